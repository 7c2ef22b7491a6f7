"""`demo`: the whole way, from images to an adapted ONNX model, for two methods side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tinytl_edge.devices.cores import performance_cores
from tinytl_edge.runtime.errors import DataError, UsageError
from tinytl_edge.runtime.evaluate import evaluate
from tinytl_edge.runtime.images.folders import find_images
from tinytl_edge.runtime.images.label_table import TABLE, has_table
from tinytl_edge.runtime.images.packing import pack
from tinytl_edge.runtime.memory import megabytes
from tinytl_edge.runtime.options import TrainOptions
from tinytl_edge.runtime.report import ProgressReport
from tinytl_edge.runtime.train import train

from .export_run import export
from .options import PrepareOptions
from .preparation import DEFAULT_MODEL, prepare

MEMORY_LIMIT = 16_000_000  # bytes of the native trainer's process: what the paper promises
BOARD_CORES = 4  # that share it
METHODS = ("last", "auto")
TRAIN_DIGITS, TEST_DIGITS = 30, 50  # of each class: a few dozen, and enough to tell methods apart


def demo(
    out: str | os.PathLike[str] = "demo",
    *,
    data: str | os.PathLike[str] | None = None,
    model: str = DEFAULT_MODEL,
    runtime: str = "auto",
    epochs: int | None = None,
    resolution: int = 96,
    threads: int | None = None,
    on_progress: Callable[[str], None] | None = None,
    watch: IO[str] | None = None,
) -> list[dict[str, Any]]:
    """Adapt ImageNet weights with the classifier alone and with what `auto` trains; one result a method.

    Args:
        data: class folders with images, or a folder with train/ and test/ (or val/) of them; without it,
            scikit-learn's handwritten digits.
        runtime: `auto` is the native trainer where there is one: it shows what a board needs.
        watch: where the training's live line goes.

    Raises:
        TinyTLError: of the kind that says what is wrong.
    """
    say = on_progress or (lambda text: None)
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder: choose another --out, or remove it.")
    if data is None:
        say("scikit-learn's handwritten digits, written as images")
        images, held_out = write_digits(folder / "images")
    else:
        images, held_out = _split(Path(data), folder / "images")
    classes = tuple(find_images(images))
    train_file, test_file = folder / "train.safetensors", folder / "test.safetensors"
    options = TrainOptions(
        epochs=epochs,
        threads=threads or min(BOARD_CORES, performance_cores()),
        flip=None if data is not None else False,  # a mirrored digit is another one
        min_area=0.22 if data is not None else 0.6,
    )
    results = []
    for method in METHODS:
        say(f"\n{method}: preparing {model} at {resolution} px")
        bundle, run = folder / f"bundle-{method}", folder / f"run-{method}"
        how = PrepareOptions(
            classes=classes,
            train=method,
            resolution=resolution,
            memory_limit=MEMORY_LIMIT if data is None and runtime != "onnxruntime-training" else None,
            threads=options.threads,
        )
        prepared = prepare(model, bundle, options=how)
        if not train_file.exists():  # the same for both methods
            framing = prepared.bundle.manifest.input.framing
            pack(images, train_file, framing, classes, say)
            pack(held_out, test_file, framing, classes, say)
        begin = time.monotonic()
        if watch is None:
            done = train(bundle, train_file, None, run, runtime=runtime, options=options)
        else:
            with ProgressReport(watch) as report:
                done = train(bundle, train_file, None, run, runtime=runtime, options=options, on_event=report)
        seconds = time.monotonic() - begin
        exported = export(run, run / "model.onnx")
        results.append(
            {
                "method": method,
                "runtime": done["runtime"],
                "accuracy": evaluate(run, test_file)["accuracy"],
                "seconds": seconds,
                "step_ms_median": done["step_ms_median"],
                "peak_rss_bytes": done["peak_rss_bytes"],
                "trainable": prepared.bundle.manifest.trainable_count,
                "adapter": done["adapter"],
                "adapter_bytes": Path(done["adapter"]).stat().st_size,
                "onnx": exported["out"],
            }
        )
    return results


def table(results: list[dict[str, Any]]) -> str:
    """The results as a table for a person."""
    head = f"{'method':<20} {'accuracy':>8} {'training':>9} {'a step':>8} {'peak memory':>12} {'adapter':>8}"
    rows = [
        f"{r['method']:<20} {r['accuracy']:>8.1%} {r['seconds']:>7.0f} s {r['step_ms_median']:>5.0f} ms "
        f"{megabytes(r['peak_rss_bytes']):>12} {megabytes(r['adapter_bytes']):>8}"
        for r in results
    ]
    title = f"{results[0]['runtime']}, one process for each training"
    return "\n".join(["", title, head, *rows, "", *(f"{r['method']}: {r['onnx']}" for r in results)])


def write_digits(folder: Path) -> tuple[Path, Path]:
    """scikit-learn's 8 x 8 digits as images in class folders: (train, test)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError("The demo's digits need scikit-learn: pip install 'tinytl-edge[demo]', or --data.") from None
    from PIL import Image

    digits = load_digits()
    seen = [0] * 10
    for values, label in zip(digits.images, digits.target.tolist()):
        number = seen[label]
        seen[label] += 1
        if number >= TRAIN_DIGITS + TEST_DIGITS:
            continue
        part = "train" if number < TRAIN_DIGITS else "test"
        place = folder / part / str(label) / f"{number:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((values * (255 / 16)).astype("uint8")).save(place)  # the values go from 0 to 16
    return folder / "train", folder / "test"


def _split(data: Path, links: Path) -> tuple[Path, Path]:
    """train/ and test/ (or val/) where they are; otherwise every fourth image is held out, by links."""
    for folder in (data, data / "train"):
        if has_table(folder):
            raise DataError(
                f"{folder} has {TABLE}, so it is multi-label: the demo takes class folders, for these use "
                "prepare and train."
            )
    for name in ("test", "val", "validation"):
        if (data / "train").is_dir() and (data / name).is_dir():
            return data / "train", data / name
    for label, files in find_images(data).items():
        if len(files) < 2:
            raise DataError(f"The class '{label}' in {data} has {len(files)} images: the demo needs two or more.")
        for number, file in enumerate(files):
            place = links / ("test" if number % 4 == 1 else "train") / label / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(file.resolve())
    return links / "train", links / "test"
