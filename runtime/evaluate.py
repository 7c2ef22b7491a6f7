"""Evaluation and prediction with an adapted classifier, or with a bundle as it was prepared."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinytl_edge.runtime.files.adapter import Adapter
from tinytl_edge.runtime.files.bundle import STEP, Bundle
from tinytl_edge.runtime.files.run import open_model
from tinytl_edge.runtime.images.dataset import MULTI, open_dataset, pack_files
from tinytl_edge.runtime.images.source import dataset_for
from tinytl_edge.runtime.workers.events import Event
from tinytl_edge.runtime.workers.worker import Measured, OnEvent, choose_runtime, run_worker, worker_command

from .errors import DataError, UsageError
from .memory import peak_rss
from .model_files.deployed import BEFORE
from .threads import threads_for

if TYPE_CHECKING:
    from .model_files.using import ModelFile

_BATCH = 8
_ENDINGS = (".onnx", ".tflite", ".lite")


def evaluate(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    bundle: str | os.PathLike[str] | None = None,
    runtime: str = "auto",
    threads: int | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Accuracy, loss and confusion of a run (of a bundle as prepared, of a model file) on images.

    Multi-label, accuracy is the share of right answers (a probability above one half, or not) over
    images and classes, and there is no confusion.

    Args:
        model: a run's or a bundle's folder; or a .onnx or .tflite file, where its interpreter is installed.
        data: a folder with one sub-folder of images a class or with labels.csv, or a packed dataset.
        bundle: the run's bundle, if it has moved; for a file that does not say how images become its input, the bundle
            that was prepared from it.
        threads: how many compute; default: the machine's fastest cores.

    Returns:
        images, loss, accuracy, classes, per_class (accuracy or None), confusion[label][guess],
        peak_rss_bytes.

    Raises:
        TinyTLError: of the kind that says what is wrong.
    """
    watch = on_event or (lambda event: None)
    file = _model_file(model, bundle)
    opened, adapter = (None, None) if file is not None else open_model(model, bundle)
    manifest = file.manifest if file is not None else opened.manifest  # type: ignore[union-attr]
    classes = adapter.classes if adapter else manifest.classes

    def progress(done: int, total: int) -> None:
        watch({"event": "pack", "done": done, "total": total})

    def warn(message: str) -> None:
        watch({"event": "warning", "message": message})

    with tempfile.TemporaryDirectory(prefix="tinytl-edge-") as folder:
        packed = Path(folder) / "data.safetensors"
        source = dataset_for(manifest, classes, Path(data), packed, warn, progress)
        with open_dataset(source) as dataset:
            names = list(dataset.classes)
        if file is not None:
            result, peak = _measured(file, source, watch), peak_rss()
        else:
            assert opened is not None
            measured = _work("evaluate", opened, adapter, source, runtime, threads, watch)
            result, peak = measured.last, measured.peak_rss_bytes
            result.pop("event")
    details: dict[str, Any]
    if manifest.labels == MULTI:
        details = {"per_class": [right / result["images"] for right in result.pop("right")]}
    else:
        confusion = result.pop("confusion")
        per_class = [row[i] / sum(row) if sum(row) else None for i, row in enumerate(confusion)]
        details = {"per_class": per_class, "confusion": confusion}
    return {**result, "classes": names, **details, "peak_rss_bytes": peak}


def predict(
    model: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    bundle: str | os.PathLike[str] | None = None,
    runtime: str = "auto",
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """What the classifier sees in images; `model` and `bundle` as in `evaluate`.

    Returns:
        for each image: `image`, `prediction` (the likeliest class; multi-label, the list of those more likely
        than not), `probabilities` by class name, likeliest first.

    Raises:
        DataError: an image cannot be read; names it.
        TinyTLError: of the kind that says what else is wrong.
    """
    if not images:
        raise UsageError("Name at least one image.")
    for image in images:
        if not Path(image).is_file():
            raise DataError(f"{os.fspath(image)} is no file: name images.")
    file = _model_file(model, bundle)
    opened, adapter = (None, None) if file is not None else open_model(model, bundle)
    manifest = file.manifest if file is not None else opened.manifest  # type: ignore[union-attr]
    classes = adapter.classes if adapter else manifest.classes
    names = list(classes) or [str(index) for index in range(manifest.class_count)]
    seen: list[Event] = []
    with tempfile.TemporaryDirectory(prefix="tinytl-edge-") as folder:
        packed = Path(folder) / "images.safetensors"
        pack_files(images, packed, manifest.input.framing)
        if file is not None:
            from .model_files.using import predict_file

            rows = predict_file(file, packed)
        else:
            assert opened is not None
            _work("predict", opened, adapter, packed, runtime, threads, seen.append)
            rows = [event["probabilities"] for event in seen if event["event"] == "prediction"]
    predictions = []
    for image, row in zip(images, rows):
        ranked = sorted(zip(names, row), key=lambda pair: -pair[1])
        likely = [name for name, probability in ranked if probability > 0.5]
        prediction = likely if manifest.labels == MULTI else ranked[0][0]
        predictions.append({"image": os.fspath(image), "prediction": prediction, "probabilities": dict(ranked)})
    return predictions


def _model_file(model: str | os.PathLike[str], bundle: str | os.PathLike[str] | None) -> ModelFile | None:
    path = Path(model)
    if not path.name.lower().removesuffix(BEFORE).endswith(_ENDINGS) or not path.is_file():
        return None
    try:
        from .model_files.using import ModelFile
    except ImportError:
        raise UsageError(f"{path} needs numpy and an interpreter: pip install 'tinytl-edge[onnxruntime]'.") from None
    return ModelFile(path, Path(bundle) if bundle is not None else None)


def _measured(file: ModelFile, dataset: Path, watch: OnEvent) -> dict[str, Any]:
    from .model_files.using import measure_file

    def progress(done: int, total: int) -> None:
        watch({"event": "evaluating", "done": done, "total": total})

    return {"runtime": "file", **measure_file(file, dataset, progress)}


def _work(
    command: str,
    bundle: Bundle,
    adapter: Adapter | None,
    data: Path,
    runtime: str,
    threads: int | None,
    watch: OnEvent,
) -> Measured:
    chosen = choose_runtime(runtime, bundle)
    job = {
        "command": command,
        "bundle": os.fspath(bundle.path.resolve()),
        "program": os.fspath(bundle.file(STEP).resolve()),
        "adapter": os.fspath(adapter.tensors.path.resolve()) if adapter else None,
        "data": os.fspath(data.resolve()),
        "batch_size": min(_BATCH, bundle.manifest.batch_size),
        "threads": threads_for(bundle, threads),
    }
    return run_worker(worker_command(chosen), job, watch)
