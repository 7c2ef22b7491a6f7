"""The command line: parses and prints; the work is in modules with the same verbs."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from tinytl_edge import __version__
from tinytl_edge.cli import options as cli_options

if TYPE_CHECKING:
    from tinytl_edge.runtime.workers.events import Event

F = TypeVar("F", bound=Callable[..., Any])
METHODS = ["last", "bias", "lite-residual", "lite-residual+bias", "norm+last", "full"]
_PATH = click.Path(path_type=Path)


class _Group(click.Group):
    """Commands in the order in which one uses them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class _Command(click.Command):
    """A command whose help ends with an example."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            formatter.write(f"{' ' * formatter.current_indent}{self.example}\n")  # unwrapped, to be copied


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tinytl-edge")
def cli() -> None:
    """Adapt an image classifier on the board it runs on, from a few dozen images, in little memory.

    On a workstation `prepare` turns a classifier (.tflite, .onnx, PyTorch) into a bundle; on the board `train` adapts
    it.
    """


def command(example: str) -> Callable[[F], click.Command]:
    """Register a command; our own errors become one sentence and their exit code."""

    def register(function: F) -> click.Command:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            from tinytl_edge.runtime.errors import InterruptedTrainingError, StorageError, TinyTLError

            try:
                function(*args, **kwargs)
            except TinyTLError as error:
                _fail(str(error), error.exit_code)
            except KeyboardInterrupt:
                _fail("Interrupted.", InterruptedTrainingError.exit_code)
            except BrokenPipeError:
                _fail("", 128 + signal.SIGPIPE)  # whoever read us has had enough
            except OSError as error:  # of files it would be a StorageError: this is standard output
                _fail(f"The output could not be written: {error.strerror or error}.", StorageError.exit_code)

        return cli.command(cls=_Command, example=example)(guarded)

    return register


def _fail(message: str, exit_code: int) -> NoReturn:
    if message:
        click.echo(f"tinytl-edge: {' '.join(message.split())}", err=True)
    with contextlib.suppress(OSError, ValueError):  # what cannot be written is not tried again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(exit_code)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
_runtime_option = click.option(
    "--runtime", type=click.Choice(["auto", "native", "onnxruntime-training"]), default="auto", show_default=True,
    help="What computes.",
)  # fmt: skip
_threads_option = click.option("--threads", type=int, help="How many compute.  [default: the fastest cores]")
_bundle_option = click.option("--bundle", type=_PATH, help="The run's bundle, if it has moved.")


@command("tinytl-edge prepare model.tflite --data images/train --out bundle")
@click.argument("model", default="efficientnet-lite0")
@click.option("--weights", metavar="NAME|FILE",
              help="Of a backbone or PyTorch network: imagenet, random, or a .pth file.  "
              "[default: imagenet, where a backbone has them; a network's own]")  # fmt: skip
@click.option("--classes", metavar="N|NAMES", callback=cli_options.class_list,
              help="How many classes, or their names: cat,dog,fox.")  # fmt: skip
@click.option("--data", type=_PATH, help="Take the classes' names from this folder of images, and try MODEL on them.")
@click.option("--labels", type=_PATH, metavar="FILE",
              help="Names of MODEL's own outputs, one a line, where it does not bring them.")  # fmt: skip
@click.option("--multi-label", is_flag=True,
              help="With --classes: an image may have any of them.  [--data: where it has labels.csv]")  # fmt: skip
@click.option("--method", type=click.Choice(METHODS), default="lite-residual+bias", show_default=True,
              help="What trains.")  # fmt: skip
@click.option("--resolution", metavar="PX|HxW", callback=cli_options.pixels,
              help="Height and width of the input, where MODEL leaves them open.  [default: MODEL's own]")  # fmt: skip
@click.option("--fit", type=click.Choice(["crop", "squash", "pad"]),
              help="How an image becomes the input: its centre; all of it, squashed; all of it, on black.  "
              "[default: crop]")  # fmt: skip
@click.option("--batch-size", type=int, default=8, show_default=True, help="Images a step.")
@click.option("--optimizer", type=click.Choice(["adam", "sgd", "momentum"]), default="adam", show_default=True,
              help="How it trains.")  # fmt: skip
@click.option(
    "--memory-limit",
    metavar="SIZE",
    callback=cli_options.size,
    help="What the native trainer may take in all: 16MB (10^6), 15MiB, bytes.  [default: as fast as it goes]",
)
@click.option("--device", metavar="NAME",
              help="Pick what fits this board: memory limit, threads, resolution, if not given.")  # fmt: skip
@click.option("--threads", type=int, help="How many --memory-limit has room for.  [default: 1, or --device's cores]")
@click.option("--frozen-weights", type=click.Choice(["float32", "int8"]),
              help="int8: rounded to 8 bits, a quarter of the memory in the native trainer.  "
              "[default: as they are, or what --memory-limit needs]")  # fmt: skip
@click.option("--train", "also_train", multiple=True, metavar="GLOB",
              help="Further parameters to train, by name.")  # fmt: skip
@click.option("--mean", metavar="R,G,B", callback=cli_options.triple,
              help="Mean of the pixels, 0..255, where MODEL's is wrong or not known.")  # fmt: skip
@click.option("--std", metavar="R,G,B", callback=cli_options.triple, help="Their standard deviation.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is initialised at random.")
@click.option("--out", type=_PATH, required=True, help="The bundle's folder.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
@_json_option
def prepare(as_json: bool, also_train: tuple[str, ...], **options: Any) -> None:
    """Turn a classifier into a bundle that a board can train.

    MODEL is FILE.tflite, FILE.onnx, a PyTorch network (torchvision.models:NAME, timm:NAME, package.module:factory), or
    a backbone: efficientnet-lite0/1/2, mobilenet-v2[-WIDTH], proxylessnas-mobile, or a .json. Freezes its weights,
    inserts lite residual modules, compiles the training step. On a workstation: needs the extra `prepare`.
    """
    _need("onnx_ir", "prepare")
    from tinytl_edge.inspection import describe, inspect
    from tinytl_edge.preparation import prepare as run_prepare

    out = options.pop("out")
    say = None if as_json else lambda text: click.echo(f"... {text}", err=True)
    prepared = run_prepare(out, train=also_train, on_progress=say, **options)
    content = inspect(out)
    if as_json:
        click.echo(json.dumps({**content, "notes": list(prepared.notes)}, indent=1))
    else:
        click.echo(describe(content))
        for note in prepared.notes:
            click.echo(note)


def _need(module: str, extra: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        from tinytl_edge.runtime.errors import UsageError

        raise UsageError(
            f"This command needs {module}, which a board does without: pip install 'tinytl-edge[{extra}]'."
        )


@command("tinytl-edge pack photos/train --resolution 160 --out train.safetensors")
@click.argument("folder", type=_PATH)
@click.option("--bundle", type=_PATH, help="Take what the input is like, and the classes, from this bundle.")
@click.option("--resolution", type=int, metavar="PX", help="Or: height and width of the model's input.")
@click.option("--size", metavar="HxW", callback=cli_options.pixels, help="Or both of them: 96x160.")
@click.option("--channels", type=click.Choice(["1", "3"]), help="1: grey.  [default: 3, RGB]")
@click.option("--fit", type=click.Choice(["crop", "squash", "pad"]),
              help="What of an image is taken: its centre; all of it, squashed; all of it, on black.  "
              "[default: crop]")  # fmt: skip
@click.option("--margin/--no-margin", default=None, help="Store more than the input's size.  [default: margin]")
@click.option("--out", type=_PATH, required=True, help="The dataset's file.")
@_json_option
def pack(
    folder: Path,
    bundle: Path | None,
    resolution: int | None,
    size: tuple[int, int] | None,
    channels: str | None,
    fit: str | None,
    margin: bool | None,
    out: Path,
    as_json: bool,
) -> None:
    """Pack a FOLDER of images into one file that training reads.

    FOLDER holds one folder for each class, with the class's images in it; or, for multi-label images, a
    table labels.csv: the row file,NAME,NAME,... and below it images, with 0 or 1 for each name.
    """
    from tinytl_edge.runtime.errors import UsageError
    from tinytl_edge.runtime.files.bundle import open_bundle
    from tinytl_edge.runtime.images.dataset import pack as run_pack
    from tinytl_edge.runtime.images.framing import Framing
    from tinytl_edge.runtime.images.source import check_exists, check_kind
    from tinytl_edge.runtime.report import CountProgress, counted

    classes = None
    if bundle is not None:
        if given := _given("resolution", "size", "channels", "fit", "margin"):
            raise UsageError(f"{', '.join(given)}: the bundle says what its input is like; leave out either.")
        manifest = open_bundle(bundle).manifest
        check_exists(folder)
        check_kind(manifest, folder)
        framing, classes = manifest.input.framing, manifest.classes or None
    else:
        if (resolution is None) == (size is None):
            raise UsageError("Say for which input size: --resolution PX, --size HxW, or --bundle BUNDLE.")
        height, width = size or (resolution or 0, resolution or 0)
        for side in (height, width):
            if not 16 <= side <= 4096:
                name = "--size" if size else "--resolution"
                raise UsageError(f"{name} {side} is out of range: 16 to 4096.")
        framing = Framing(height, width, int(channels or 3), fit or "crop", margin is not False)
    with CountProgress(sys.stderr) as progress:
        report = run_pack(folder, out, framing, classes, progress.warn, progress.show)
    if as_json:
        content = {"out": str(out), "images": report.count, "classes": report.counts}
        content["skipped"] = {str(path): reason for path, reason in dict(report.skipped).items()}
        click.echo(json.dumps(content, ensure_ascii=False))
    else:
        click.echo(f"{out}: {counted(report.count, 'image')} of {len(report.counts)} classes, for {framing}")


_TRAINING = [
    click.option("--epochs", type=int, default=10, show_default=True, help="Rounds through the images."),
    click.option("--batch-size", type=int, help="Images a step.  [default: the bundle's]"),
    click.option("--lr", type=float, help="Learning rate of the classifier.  [default: by optimizer and batch size]"),
    click.option("--lr-bias", type=float, help="... of the biases."),
    click.option("--lr-lite-residual", type=float, help="... of the lite residual modules."),
    click.option("--lr-weight", type=float, help="... of other weights (methods norm+last and full)."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of order, crops and dropout."),
    click.option("--label-smoothing", type=float, default=0.1, show_default=True, help="Share given to all classes."),
    click.option("--dropout", type=float, help="Share dropped.  [default: the model's own]"),
    click.option("--min-area", type=float, default=0.22, show_default=True, help="Least share a random crop takes."),
    click.option("--flip/--no-flip", default=True, show_default=True, help="Mirror images at random."),
    _threads_option,
    click.option("--log-every", type=int, default=10, show_default=True, help="Steps between step events."),
]


def _training_options(function: F) -> F:
    for option in reversed(_TRAINING):
        function = option(function)
    return function


@command("tinytl-edge train bundle --data photos/train --val photos/val --epochs 10 --out run")
@click.argument("bundle", type=_PATH)
@click.option("--data", type=_PATH, help="Folder of class folders, or with labels.csv; or a packed dataset.")
@click.option("--val", type=_PATH, help="The same, to measure accuracy on after each epoch.")
@_runtime_option
@_training_options
@click.option("--resume", is_flag=True, help="Go on from the run's checkpoint, with the run's own data and options.")
@click.option("--out", type=_PATH, required=True, help="The run's folder.")
@_json_option
def train(
    bundle: Path,
    data: Path | None,
    val: Path | None,
    runtime: str,
    resume: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Adapt a BUNDLE's classifier to images (on the board). Ctrl-C leaves a checkpoint."""
    from tinytl_edge.runtime.options import TrainOptions
    from tinytl_edge.runtime.report import JsonReport, ProgressReport
    from tinytl_edge.runtime.train import train as run_train

    report = JsonReport(sys.stdout) if as_json else ProgressReport(sys.stderr)
    with report:
        if resume and (ignored := _given("data", "val", *options.keys() - {"threads", "log_every"})):
            message = f"{', '.join(ignored)} not used: --resume goes on with the run's own."
            report({"event": "warning", "message": message})
        done = run_train(
            bundle,
            data,
            val,
            out,
            runtime=runtime,
            options=TrainOptions(**options),
            resume=resume,
            on_event=report,
        )
    if not as_json:
        click.echo(summary(done))


def _given(*names: str) -> list[str]:
    """Which of these options stand on the command line."""
    context = click.get_current_context()
    written = {o.name: o.opts[0] for o in context.command.params if o.name in names}
    by_user = click.core.ParameterSource.COMMANDLINE
    return [opt for name, opt in written.items() if context.get_parameter_source(name) is by_user]


def summary(done: Event) -> str:
    """The `done` event of a training as two lines for a person."""
    from tinytl_edge.runtime.memory import megabytes

    accuracy = done.get("val_accuracy")
    result = f"Validation accuracy {accuracy:.1%}." if accuracy is not None else "No validation images (--val)."
    median = done.get("step_ms_median")
    pace = f", {median:.0f} ms a step" if median is not None else ""
    return (
        f"{result} {done['steps']} steps{pace}, peak memory {megabytes(done['peak_rss_bytes'])} "
        f"(and {megabytes(done['parent_peak_rss_bytes'])} for this command).\nAdapter: {done['adapter']}"
    )


@command("tinytl-edge evaluate run --data photos/test")
@click.argument("run", type=_PATH)
@click.option("--data", type=_PATH, required=True, help="Folder of class folders, or with labels.csv; or packed.")
@_bundle_option
@_runtime_option
@_threads_option
@_json_option
def evaluate(run: Path, data: Path, as_json: bool, **options: Any) -> None:
    """Accuracy of a RUN (or of a bundle as prepared) on images."""
    from tinytl_edge.runtime.evaluate import evaluate as run_evaluate
    from tinytl_edge.runtime.memory import megabytes
    from tinytl_edge.runtime.report import CountProgress, counted

    with CountProgress(sys.stderr) as progress:
        result = run_evaluate(run, data, on_event=progress, **options)
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    images = counted(result["images"], "image")
    peak = megabytes(result["peak_rss_bytes"])
    click.echo(f"accuracy {result['accuracy']:.1%}, loss {result['loss']:.3f}, {images}, peak memory {peak}")
    width = max(len(name) for name in result["classes"])
    for name, share in zip(result["classes"], result["per_class"]):
        click.echo(f"  {name:<{width}}  {'no images' if share is None else format(share, '.0%')}")


@command("tinytl-edge predict run new.jpg")
@click.argument("run", type=_PATH)
@click.argument("images", nargs=-1, required=True, type=_PATH)
@_bundle_option
@_runtime_option
@_threads_option
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="How many classes to show.")
@_json_option
def predict(run: Path, images: tuple[Path, ...], top: int, as_json: bool, **options: Any) -> None:
    """What a RUN (or a bundle as prepared) sees in IMAGES."""
    from tinytl_edge.runtime.evaluate import predict as run_predict

    for answer in run_predict(run, images, **options):
        if as_json:
            click.echo(json.dumps(answer, ensure_ascii=False))
        else:
            best = list(answer["probabilities"].items())[:top]
            click.echo(f"{answer['image']}: " + ", ".join(f"{name} {share:.1%}" for name, share in best))


@command("tinytl-edge export run --format onnx --out model.onnx")
@click.argument("run", type=_PATH)
@click.option("--format", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="Of the file.")
@_bundle_option
@click.option("--raw-pixels", is_flag=True, help="Take uint8 [batch, height, width, channels] as a camera gives it.")
@click.option("--out", type=_PATH, required=True, help="The model's file.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is already there.")
@_json_option
def export(run: Path, as_json: bool, **options: Any) -> None:
    """Write a RUN's adapted classifier (or a bundle's) as a model.

    Its metadata tell classes, resolution, and by which mean and standard deviation pixels are normalised.
    """
    from tinytl_edge.export_run import export as run_export
    from tinytl_edge.runtime.memory import megabytes

    result = run_export(run, **options)
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
    else:
        size = f"{result['input']['height']} x {result['input']['width']} px"
        click.echo(f"{result['out']}: {megabytes(result['bytes'])}, {size}")


@command("tinytl-edge inspect bundle")
@click.argument("path", type=_PATH)
@_bundle_option
@click.option("--plot", type=_PATH, metavar="FILE",
              help="Draw a training step's memory: an image, .png, .svg or .pdf.")  # fmt: skip
@click.option("--map", "with_map", is_flag=True, help="Show what lies where in a training step's arena, as text.")
@_json_option
def inspect(path: Path, bundle: Path | None, plot: Path | None, with_map: bool, as_json: bool) -> None:
    """Say what PATH is: a bundle, a run, a dataset or an adapter.

    Of bundles and runs also the memory: planned, by the paper's count, and as measured. --plot and --map compile the
    step once more, on a workstation: they need the extra `prepare`.
    """
    from tinytl_edge.inspection import describe
    from tinytl_edge.inspection import inspect as run_inspect

    if plot is not None:
        _need("onnx", "prepare")
        _need("matplotlib", "prepare")
        from tinytl_edge.pictures.memory_plot import plot_memory

        plot_memory(path, plot, bundle=bundle)
    arena = ""
    if with_map:
        _need("onnx", "prepare")
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


@command("tinytl-edge bench bundle --runtime native --runtime pytorch")
@click.argument("bundle", type=_PATH)
@click.option("--runtime", "runtimes", multiple=True, metavar="NAME",
              help="native, onnxruntime-training, onnxruntime-training-plain (artifacts as generated) or pytorch; "
              "several with several --runtime.  [default: all that can run here]")  # fmt: skip
@click.option("--steps", type=int, default=100, show_default=True, help="Measured ones of each runtime.")
@click.option("--threads", type=int, default=1, show_default=True, help="How many compute, in each runtime.")
@_json_option
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
@_json_option
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
@click.option("--data", type=_PATH, help="Your own images, in class folders (or with train/ and test/ in it).")
@click.option("--model", metavar="MODEL", default="efficientnet-lite0", show_default=True, help="See prepare.")
@click.option("--runtime", type=click.Choice(["auto", "native", "onnxruntime-training"]), default="auto",
              show_default=True, help="auto: the native trainer where there is one.")  # fmt: skip
@click.option("--epochs", type=int, default=10, show_default=True, help="Rounds through the images.")
@click.option("--resolution", type=int, metavar="PX", default=96, show_default=True, help="Size of the input.")
@_threads_option
@click.option("--out", type=_PATH, default=Path("demo"), show_default=True, help="Bundles and runs stay here.")
@_json_option
def demo(out: Path, as_json: bool, **options: Any) -> None:
    """The whole way, on handwritten digits or your images.

    Prepares, trains, evaluates and exports twice: last layer alone against lite-residual+bias.
    """
    _need("torch", "prepare")
    from tinytl_edge.demo import demo as run_demo
    from tinytl_edge.demo import table

    say = None if as_json else lambda text: click.echo(text, err=True)
    results = run_demo(out, on_progress=say, watch=None if as_json else sys.stderr, **options)
    click.echo(json.dumps(results, ensure_ascii=False) if as_json else table(results))


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="tinytl-edge")
