"""`inspect`, `bench`, `devices`, `demo`: what there is, how fast it is, and the whole way."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from .command import PATH, bundle_option, command, json_option, need, threads_option


@command("tinytl-edge inspect bundle")
@click.argument("path", type=PATH)
@bundle_option
@click.option("--plot", type=PATH, metavar="FILE",
              help="Draw a training step's memory: an image, .png, .svg or .pdf.")  # fmt: skip
@click.option("--map", "with_map", is_flag=True, help="Show what lies where in a training step's arena, as text.")
@json_option
def inspect(path: Path, bundle: Path | None, plot: Path | None, with_map: bool, as_json: bool) -> None:
    """Say what PATH is: a bundle, a run, a dataset or an adapter.

    Of bundles and runs also the memory: planned, by the paper's count, and as measured. --plot and --map compile the
    step once more, on a workstation: they need the extra `prepare`.
    """
    from tinytl_edge.inspection import describe
    from tinytl_edge.inspection import inspect as run_inspect

    if plot is not None:
        need("onnx", "prepare")
        need("matplotlib", "prepare")
        from tinytl_edge.pictures.memory_plot import plot_memory

        plot_memory(path, plot, bundle=bundle)
    arena = ""
    if with_map:
        need("onnx", "prepare")
        from tinytl_edge.pictures.arena_map import arena_map

        arena = arena_map(path, bundle=bundle)
    content = run_inspect(path, bundle=bundle)
    if as_json:
        content.update({"arena_map": arena.splitlines()} if with_map else {})
        click.echo(json.dumps(content, indent=1, ensure_ascii=False))
        return
    click.echo(describe(content))
    if with_map:
        click.echo(f"\n{arena}")
    if plot is not None:
        click.echo(f"\n{plot}: the memory of a training step")


@command("tinytl-edge doctor photos/train --val photos/test --bundle bundle")
@click.argument("folder", type=PATH)
@click.option("--val", type=PATH, help="Images that a training is to be judged on.")
@click.option("--bundle", type=PATH, help="Examine them as this bundle's input, and by its classifier.")
@click.option("--resolution", type=click.IntRange(16, 4096), metavar="PX",
              help="Or: height and width of the model's input.  [default: 160]")  # fmt: skip
@json_option
def doctor(folder: Path, as_json: bool, **options: Any) -> None:
    """What is odd about a FOLDER of images, before they are learnt from.

    Files that are passed over or cannot be read, names of classes, counts, the same image twice, in two classes or in
    --val, small, dark and blurred ones, classes that their files give away; with --bundle also likely wrong labels, and
    whether mirrored images are taken for other classes.
    """
    from tinytl_edge.runtime.doctor import describe
    from tinytl_edge.runtime.doctor import doctor as run_doctor
    from tinytl_edge.runtime.report import CountProgress

    with CountProgress(sys.stderr) as progress:
        content = run_doctor(folder, on_event=progress, **options)
    click.echo(json.dumps(content, indent=1, ensure_ascii=False) if as_json else describe(content))


@command("tinytl-edge report run --out report.html")
@click.argument("run", type=PATH)
@click.option("--data", type=PATH, help="Images that it has not seen.  [default: those that it was judged on]")
@click.option("--out", type=PATH, help="The page, one file.  [default: report.html in the run's folder]")
@bundle_option
@json_option
def report(run: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """What a RUN has brought, as a page to look at.

    Before and after, by class; what is taken for what, and the worst mistakes as pictures; how sure it is; what it took
    in memory and time; and whether it has learnt enough.
    """
    from tinytl_edge.run_report import report as run_report
    from tinytl_edge.runtime.report import CountProgress

    page = out or (None if as_json else run / "report.html")
    with CountProgress(sys.stderr) as progress:
        content = run_report(run, out=page, on_event=progress, **options)
    if as_json:
        click.echo(json.dumps(content, ensure_ascii=False))
        return
    click.echo(content["verdict"]["headline"] + ".")
    for sentence in content["verdict"]["sentences"]:
        click.echo(sentence)
    click.echo(f"{page}: the page, to be opened in a browser")


@command("tinytl-edge bench bundle --runtime native --runtime pytorch")
@click.argument("bundle", type=PATH)
@click.option("--runtime", "runtimes", multiple=True, metavar="NAME",
              help="native, onnxruntime-training, onnxruntime-training-plain (artifacts as generated) or pytorch; "
              "several with several --runtime.  [default: all that can run here]")  # fmt: skip
@click.option("--steps", type=int, default=100, show_default=True, help="Measured ones of each runtime.")
@click.option("--threads", type=int, default=1, show_default=True, help="How many compute, in each runtime.")
@json_option
def bench(bundle: Path, as_json: bool, **options: Any) -> None:
    """Measure a BUNDLE on this machine, runtimes side by side.

    Time and memory of a training step, and its share of what the machine could compute; start, and evaluation. Others
    than native need the extras `prepare` and `ort`: on a board it stands alone.
    """
    from tinytl_edge.benchmark import bench as run_bench
    from tinytl_edge.benchmark import describe

    say = None if as_json else lambda text: click.echo(f"... {text}", err=True)
    result = run_bench(bundle, on_progress=say, **options)
    click.echo(json.dumps(result, ensure_ascii=False) if as_json else describe(result))


@command("tinytl-edge devices raspberry-pi-4")
@click.argument("name", required=False)
@json_option
def devices(name: str | None, as_json: bool) -> None:
    """The boards we know, one of them by NAME, or "this-machine"."""
    from tinytl_edge.devices.board import table
    from tinytl_edge.devices.detect import find_board, this_machine
    from tinytl_edge.devices.profiles import BOARDS

    if name is not None:
        board = find_board(name)
        click.echo(board.to_json() if as_json else board.describe())
        return
    boards = [*BOARDS, this_machine()]
    if as_json:
        click.echo(json.dumps([board.as_dict() for board in boards], indent=1))
    else:
        click.echo(table(boards))


@command("tinytl-edge demo --out demo")
@click.option("--data", type=PATH, help="Your own images, in class folders (or with train/ and test/ in it).")
@click.option("--model", metavar="MODEL", default="efficientnet-lite0", show_default=True, help="See prepare.")
@click.option("--runtime", type=click.Choice(["auto", "native", "onnxruntime-training"]), default="auto",
              show_default=True, help="auto: the native trainer where there is one.")  # fmt: skip
@click.option("--epochs", type=int, help="Rounds through the images.  [default: as `train`]")
@click.option("--resolution", type=int, metavar="PX", default=96, show_default=True, help="Size of the input.")
@threads_option
@click.option("--out", type=PATH, default=Path("demo"), show_default=True, help="Bundles and runs stay here.")
@json_option
def demo(out: Path, as_json: bool, **options: Any) -> None:
    """The whole way, on handwritten digits or your images.

    Prepares, trains, evaluates and exports twice: the classifier alone against what `auto` trains.
    """
    need("torch", "prepare")
    from tinytl_edge.demo import demo as run_demo
    from tinytl_edge.demo import table

    say = None if as_json else lambda text: click.echo(text, err=True)
    results = run_demo(out, on_progress=say, watch=None if as_json else sys.stderr, **options)
    click.echo(json.dumps(results, ensure_ascii=False) if as_json else table(results))
