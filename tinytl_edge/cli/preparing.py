"""`prepare`: what a workstation does before a board trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tinytl_edge.export.tinytl.methods import METHODS
from tinytl_edge.options import COLOURS, FROZEN_WEIGHTS, ROOM, PrepareOptions
from tinytl_edge.runtime.images.framing import FITS
from tinytl_edge.runtime.options import OPTIMIZERS

from . import options
from .command import PATH, command, json_option, need


@command("tinytl-edge prepare model.tflite --data images/train --out bundle")
@click.argument("model", default="efficientnet-lite0")
@click.option("--weights", metavar="NAME|FILE",
              help="Of a backbone or PyTorch network: imagenet, random, or a .pth file.  "
              "[default: imagenet, where a backbone has them; a network's own]")  # fmt: skip
@click.option("--classes", metavar="N|NAMES", callback=options.class_list,
              help="How many classes, or their names: cat,dog,fox.")  # fmt: skip
@click.option("--data", type=PATH, help="Take the classes' names from this folder of images, and try MODEL on them.")
@click.option("--room", type=int,
              help="Outputs for classes that come later, in the field; 0: these are all.  "
              f"[default: {ROOM} with --data; 0 with --classes]")  # fmt: skip
@click.option("--labels", type=PATH, metavar="FILE",
              help="Names of MODEL's own outputs, one a line, where it does not bring them.")  # fmt: skip
@click.option("--multi-label", is_flag=True,
              help="With --classes: an image may have any of them.  [--data: where it has labels.csv]")  # fmt: skip
@click.option("--train", multiple=True, metavar="METHOD|GLOB", default=(PrepareOptions.train,), show_default=True,
              help=f"What trains: {', '.join(METHODS)}; or parameters by name, beside the classifier or, given twice, "
              "a method.")  # fmt: skip
@click.option("--resolution", metavar="PX|HxW", callback=options.pixels,
              help="Height and width of the input, where MODEL leaves them open.  [default: MODEL's own]")  # fmt: skip
@click.option("--fit", type=click.Choice(FITS),
              help="How an image becomes the input: its centre; all of it, squashed; all of it, on black.  "
              "[default: found by trying on --data, else crop]")  # fmt: skip
@click.option("--colours", type=click.Choice(COLOURS),
              help="Of MODEL's input, where it does not say it.  [default: found by trying, else rgb]")  # fmt: skip
@click.option("--batch-size", type=int, default=PrepareOptions.batch_size, show_default=True, help="Images a step.")
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default=PrepareOptions.optimizer, show_default=True,
              help="How it trains.")  # fmt: skip
@click.option(
    "--memory-limit",
    metavar="SIZE",
    callback=options.size,
    help="What the native trainer may take in all: 16MB (10^6), 15MiB, bytes.  [default: as fast as it goes]",
)
@click.option("--device", metavar="NAME",
              help="Pick what fits this board: memory limit, threads, resolution, if not given.")  # fmt: skip
@click.option("--threads", type=int, help="How many --memory-limit has room for.  [default: 1, or --device's cores]")
@click.option("--frozen-weights", type=click.Choice(FROZEN_WEIGHTS),
              help="int8: rounded to 8 bits, a quarter of the memory in the native trainer.  "
              "[default: as they are, or what --memory-limit needs]")  # fmt: skip
@click.option("--raw-pixels", is_flag=True,
              help="The model that comes out takes uint8 [batch, height, width, channels] of a camera.")  # fmt: skip
@click.option("--mean", metavar="R,G,B", callback=options.triple,
              help="Mean of the pixels, 0..255, where MODEL's is wrong or not known.")  # fmt: skip
@click.option("--std", metavar="R,G,B", callback=options.triple, help="Their standard deviation.")
@click.option("--pixel-range", metavar="LOW:HIGH", callback=options.pixel_range,
              help="What becomes black and white of images with more than 8 bits.  [default: 0:65536]")  # fmt: skip
@click.option(
    "--seed", type=int, default=PrepareOptions.seed, show_default=True, help="Of what is initialised at random."
)
@click.option("--out", type=PATH, required=True, help="The bundle's folder.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is already there.")
@json_option
def prepare(model: str, data: Path | None, out: Path, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Turn a classifier into a bundle that a board can train.

    MODEL is FILE.tflite, FILE.onnx, a PyTorch network (torchvision.models:NAME, timm:NAME, package.module:factory), or
    a backbone: efficientnet-lite0/1/2, mobilenet-v2[-WIDTH], proxylessnas-mobile, or a .json. Freezes most weights
    (--train), compiles the training step. On a workstation: needs the extra `prepare`.
    """
    need("onnx_ir", "prepare")
    from tinytl_edge.inspection import describe, inspect
    from tinytl_edge.preparation import prepare as run_prepare

    say = None if as_json else lambda text: click.echo(f"... {text}", err=True)
    prepared = run_prepare(model, out, data, PrepareOptions(**options), overwrite=overwrite, on_progress=say)
    content = inspect(out)
    if as_json:
        click.echo(json.dumps({**content, "notes": list(prepared.notes)}, indent=1))
    else:
        click.echo(describe(content))
        for note in prepared.notes:
            click.echo(note)
