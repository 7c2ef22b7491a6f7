"""`evaluate`, `predict`, `export`: what has been learnt, used."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from tinytl_edge.runtime.workers.become import become_lean

from .command import PATH, bundle_option, command, json_option, owns_process, runtime_option, threads_option


@command("tinytl-edge evaluate run --data photos/test")
@click.argument("run", type=PATH)
@click.option("--data", type=PATH, required=True, help="Folder of class folders, or with labels.csv; or packed.")
@bundle_option
@runtime_option
@threads_option
@json_option
def evaluate(run: Path, data: Path, as_json: bool, **options: Any) -> None:
    """Accuracy of a RUN (or bundle, or model file) on images.

    A bundle is measured as it was prepared; a .onnx or .tflite file by its own interpreter, where that is installed.
    """
    told = {"model": os.fspath(run), "data": os.fspath(data), "as_json": as_json, **_told(options)}
    if owns_process() and run.is_dir():  # a model file's interpreter runs here
        become_lean("tinytl_edge.runtime.answer_alone:evaluate_main", told)
    from tinytl_edge.runtime.answer_alone import evaluate_and_report

    evaluate_and_report(**told, become=False)


@command("tinytl-edge predict run new.jpg")
@click.argument("run", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@bundle_option
@runtime_option
@threads_option
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="How many classes to show.")
@json_option
def predict(run: Path, images: tuple[Path, ...], top: int, as_json: bool, **options: Any) -> None:
    """What a RUN (or bundle, or model file) sees in IMAGES.

    A bundle is asked as it was prepared; a .onnx or .tflite file by its own interpreter, where that is installed.
    """
    told: dict[str, Any] = {"model": os.fspath(run), "images": [os.fspath(image) for image in images], "top": top}
    told.update({"as_json": as_json, **_told(options)})
    if owns_process() and run.is_dir():
        become_lean("tinytl_edge.runtime.answer_alone:predict_main", told)
    from tinytl_edge.runtime.answer_alone import predict_and_report

    predict_and_report(**told, become=False)


def _told(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the command line as JSON has them."""
    return {name: os.fspath(value) if isinstance(value, Path) else value for name, value in options.items()}


@command("tinytl-edge export run --out /opt/app/model.onnx --overwrite")
@click.argument("run", type=PATH)
@bundle_option
@click.option("--out", type=PATH, required=True, help="The model's file; a link is followed.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is already there; it is kept as NAME.before.")
@click.option("--keep", type=click.IntRange(0, 1), default=1, show_default=True, help="0: without NAME.before.")
@click.option("--check", type=PATH, metavar="DATA",
              help="Compare the file with the RUN on these images, by the file's own interpreter.")  # fmt: skip
@json_option
def export(run: Path, as_json: bool, keep: int, **options: Any) -> None:
    """Write a RUN's adapted classifier (or a bundle's) as a model file.

    All that an app needs to use it stands in the file's metadata, and in plain words in a .json beside it.
    """
    from tinytl_edge.export_run import export as run_export
    from tinytl_edge.runtime.memory import megabytes
    from tinytl_edge.runtime.report import CountProgress
    from tinytl_edge.runtime.wording import counted

    with CountProgress(sys.stderr) as progress:
        result = run_export(run, keep=bool(keep), on_event=progress, **options)
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    size = f"{result['input']['height']} x {result['input']['width']} px"
    click.echo(f"{result['out']}: {megabytes(result['bytes'])}, {size}")
    for sentence in result["in_words"]:
        click.echo(f"  {sentence}")
    if result["further"]:
        before, now = len(result["classes"]) - result["further"], len(result["classes"])
        click.echo(
            f"It gives {now} numbers, where the file as it was prepared gave {before}: the app has to expect them."
        )
    for path in result["kept"]:
        click.echo(f"What was there before is kept as {path}.")
    if (checked := result.get("checked")) is not None:
        click.echo(
            f"On {counted(checked['images'], 'image')} it is right in {checked['accuracy']:.1%}, the run in "
            f"{checked['trainer_accuracy']:.1%}; the same class in {checked['same_class']:.1%}, the largest difference "
            f"of a probability is {checked['largest_difference']:.1g}."
        )
    for path in result["stale"]:
        click.echo(f"{path} was built of the model before: build it again, or the app goes on using that.")
