"""`evaluate`, `predict`, `export`: what has been learnt, used."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from .command import PATH, bundle_option, command, json_option, runtime_option, threads_option


@command("tinytl-edge evaluate run --data photos/test")
@click.argument("run", type=PATH)
@click.option("--data", type=PATH, required=True, help="Folder of class folders, or with labels.csv; or packed.")
@bundle_option
@runtime_option
@threads_option
@json_option
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
@click.argument("run", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@bundle_option
@runtime_option
@threads_option
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="How many classes to show.")
@json_option
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
@click.argument("run", type=PATH)
@click.option("--format", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="Of the file.")
@bundle_option
@click.option("--raw-pixels", is_flag=True, help="Take uint8 [batch, height, width, channels] as a camera gives it.")
@click.option("--out", type=PATH, required=True, help="The model's file.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is already there.")
@json_option
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
