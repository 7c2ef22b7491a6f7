"""`pack`, `train`: what a board learns from, and learning."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinytl_edge.runtime.options import STARTS

from . import options
from .command import PATH, F, bundle_option, command, given, json_option, owns_process, runtime_option, threads_option

if TYPE_CHECKING:
    pass


@command("tinytl-edge pack photos/train --resolution 160 --out train.safetensors")
@click.argument("folder", type=PATH)
@click.option("--bundle", type=PATH, help="Take what the input is like, and the classes, from this bundle.")
@click.option("--resolution", type=int, metavar="PX", help="Or: height and width of the model's input.")
@click.option("--size", metavar="HxW", callback=options.pixels, help="Or both of them: 96x160.")
@click.option("--channels", type=click.Choice(["1", "3"]), help="1: grey.  [default: 3, RGB]")
@click.option("--fit", type=click.Choice(["crop", "squash", "pad"]),
              help="What of an image is taken: its centre; all of it, squashed; all of it, on black.  "
              "[default: crop]")  # fmt: skip
@click.option("--margin/--no-margin", default=None, help="Store more than the input's size.  [default: margin]")
@click.option("--pixel-range", metavar="LOW:HIGH", callback=options.pixel_range,
              help="What becomes black and white of images with more than 8 bits.  [default: 0:65536]")  # fmt: skip
@click.option("--out", type=PATH, required=True, help="The dataset's file.")
@json_option
def pack(
    folder: Path,
    bundle: Path | None,
    resolution: int | None,
    size: tuple[int, int] | None,
    channels: str | None,
    fit: str | None,
    margin: bool | None,
    pixel_range: tuple[float, ...] | None,
    out: Path,
    as_json: bool,
) -> None:
    """Pack a FOLDER of images into one file that training reads.

    FOLDER holds one folder for each class, with the class's images in it; or, for multi-label images, a
    table labels.csv: the row file,NAME,NAME,... and below it images, with 0 or 1 for each name.
    """
    from tinytl_edge.runtime.errors import UsageError
    from tinytl_edge.runtime.files.bundle import open_bundle
    from tinytl_edge.runtime.images.framing import Framing
    from tinytl_edge.runtime.images.new_classes import with_new_classes
    from tinytl_edge.runtime.images.packing import pack as run_pack
    from tinytl_edge.runtime.images.source import check_exists, check_kind
    from tinytl_edge.runtime.report import CountProgress
    from tinytl_edge.runtime.wording import counted

    classes = None
    if bundle is not None:
        if both := given("resolution", "size", "channels", "fit", "margin", "pixel_range"):
            raise UsageError(f"{', '.join(both)}: the bundle says what its input is like; leave out either.")
        manifest = open_bundle(bundle).manifest
        check_exists(folder)
        check_kind(manifest, folder)
        framing, classes = manifest.input.framing, with_new_classes(manifest, folder) or None
    else:
        if (resolution is None) == (size is None):
            raise UsageError("Say for which input size: --resolution PX, --size HxW, or --bundle BUNDLE.")
        height, width = size or (resolution or 0, resolution or 0)
        for side in (height, width):
            if not 16 <= side <= 4096:
                name = "--size" if size else "--resolution"
                raise UsageError(f"{name} {side} is out of range: 16 to 4096.")
        framing = Framing(height, width, int(channels or 3), fit or "crop", margin is not False, pixel_range or ())
    with CountProgress(sys.stderr) as progress:
        report = run_pack(folder, out, framing, classes, progress.warn, progress.show)
    if as_json:
        content = {"out": str(out), "images": report.count, "classes": report.counts}
        content["skipped"] = {str(path): reason for path, reason in dict(report.skipped).items()}
        click.echo(json.dumps(content, ensure_ascii=False))
    else:
        click.echo(f"{out}: {counted(report.count, 'image')} of {len(report.counts)} classes, for {framing}")


_TRAINING = [
    click.option(
        "--epochs",
        type=int,
        help="Rounds through the images; 0: one pass.  [default: 3 to 30, so that 3,600 images are looked at]",
    ),
    click.option(
        "--start",
        type=click.Choice(STARTS),
        help="Begin with the classifier that one pass over the images finds, with the bundle's, or with what a RUN has "
        "learnt.  [default: the run, or one-pass, unless the bundle's classifier knows but some of its classes]",
    ),
    click.option(
        "--keep",
        type=float,
        help="Of a deployed classifier: the share that images which the bundle was prepared with have where it is "
        "fitted in one pass. They stay what they are to it.  [default: 0.3]",
    ),
    click.option(
        "--hold-out",
        type=float,
        help="Without --val: share of the images that training is first not shown, to be judged on; 0: none.  "
        "[default: 0.2, where a class has ten images]",
    ),
    click.option(
        "--blend",
        type=float,
        help="Share of what was trained in the result; the rest is where training began.  "
        "[default: what is judged best; without a judge 0.65, 0.2 of a deployed classifier; 1 where a new classifier "
        "began at random]",
    ),
    click.option("--batch-size", type=int, help="Images a step.  [default: the bundle's]"),
    click.option("--lr", type=float, help="Learning rate of the classifier.  [default: by optimizer and batch size]"),
    click.option("--lr-bias", type=float, help="... of the biases."),
    click.option("--lr-lite-residual", type=float, help="... of the lite residual modules."),
    click.option("--lr-weight", type=float, help="... of other weights (methods norm+last and full)."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of order, crops and dropout."),
    click.option("--label-smoothing", type=float, default=0.1, show_default=True, help="Share given to all classes."),
    click.option("--dropout", type=float, help="Share dropped.  [default: the model's own]"),
    click.option("--min-area", type=float, default=0.22, show_default=True, help="Least share a random crop takes."),
    click.option(
        "--flip/--no-flip",
        default=None,
        help="Mirror images at random.  [default: flip, unless mirrored images are taken for other classes]",
    ),
    threads_option,
    click.option("--log-every", type=int, help="Steps between step events.  [default: 10]"),
]


def _training_options(function: F) -> F:
    for option in reversed(_TRAINING):
        function = option(function)
    return function


@command("tinytl-edge train bundle --data photos/train --out run")
@click.argument("model", type=PATH, metavar="BUNDLE|RUN")
@click.option("--data", type=PATH, help="Folder of class folders, or with labels.csv; or a packed dataset.")
@click.option("--val", type=PATH, help="The same, to judge it on.  [default: part of --data is held out]")
@click.option("--unlabelled", type=PATH,
              help="In the place of --data: images without labels, a folder or packed. A deployed classifier's biases "
              "follow what is otherwise here, if --val or how sure its answers are says that it helps.")  # fmt: skip
@click.option(
    "--keep-images",
    type=PATH,
    help="Labelled images of where a deployed classifier comes from: no more than 3 points are given up there.",
)
@bundle_option
@runtime_option
@_training_options
@click.option("--resume", is_flag=True, help="Go on from the run's checkpoint, with the run's own data and options.")
@click.option("--out", type=PATH, required=True, help="The run's folder.")
@json_option
def train(
    model: Path,
    data: Path | None,
    val: Path | None,
    unlabelled: Path | None,
    keep_images: Path | None,
    bundle: Path | None,
    runtime: str,
    resume: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Adapt a BUNDLE's classifier to images (on the board). Ctrl-C leaves a checkpoint.

    A RUN goes on: from what it has learnt, with its images and those in --data, in a new run. What it was judged on
    stays held out.
    """
    warning = None
    if unlabelled and (ignored := given(*options.keys() - {"threads"})):
        warning = f"{', '.join(ignored)} not used: --unlabelled trains nothing."
    if resume and (ignored := given("data", "val", "keep_images", *options.keys() - {"threads", "log_every"})):
        warning = f"{', '.join(ignored)} not used: --resume goes on with the run's own."
    places = {
        "model": model,
        "data": data,
        "val": val,
        "unlabelled": unlabelled,
        "keep_images": keep_images,
        "bundle": bundle,
        "out": out,
    }
    asked = {name: None if place is None else os.fspath(place) for name, place in places.items()}
    told: dict[str, Any] = {**asked, "runtime": runtime, "options": options, "resume": resume}
    if owns_process():
        from tinytl_edge.runtime.workers.become import become_lean

        become_lean("tinytl_edge.runtime.train_alone:main", {**told, "as_json": as_json, "warning": warning})
    from tinytl_edge.runtime.train_alone import train_and_report

    train_and_report(**told, as_json=as_json, warning=warning, become=False)
