"""Evaluation and prediction with an adapted classifier, with a bundle as it was prepared, or with a model file."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinytl_edge.runtime.files.adapter import Adapter
from tinytl_edge.runtime.files.bundle import STEP, Bundle, Manifest, open_bundle
from tinytl_edge.runtime.files.run import open_model
from tinytl_edge.runtime.images.dataset import MULTI, open_dataset
from tinytl_edge.runtime.images.packing import pack_files
from tinytl_edge.runtime.images.source import dataset_for
from tinytl_edge.runtime.workers.events import Event, OnEvent
from tinytl_edge.runtime.workers.runtimes import choose_runtime, worker_command

from .errors import DataError, UsageError
from .memory import peak_rss
from .model_files.deployed import kind_of
from .threads import threads_for
from .unknown import UNKNOWN

if TYPE_CHECKING:
    from tinytl_edge.runtime.workers.worker import Measured

_BATCH = 8


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
        images, loss, accuracy, classes, per_class (accuracy or None), class_accuracy (their mean),
        confusion[label][guess], unknown (`Unknown`: how many of the right and wrong answers are not sure enough; None
        where nothing tells how sure they have to be), peak_rss_bytes.

    Raises:
        TinyTLError: of the kind that says what is wrong.
    """
    watch = on_event or (lambda event: None)
    return evaluated(opened_model(model, bundle, runtime, threads), Path(data), watch)


def evaluated(opened: Opened, data: Path, watch: OnEvent) -> dict[str, Any]:
    """`evaluate`, of what is open."""
    with tempfile.TemporaryDirectory(prefix="tinytl-edge-") as folder:
        source, names = packed_for(opened, data, Path(folder), watch)
        result = opened.evaluate(source, watch)
    details: dict[str, Any]
    if opened.manifest.labels == MULTI:
        details = {"per_class": [right / result["images"] for right in result.pop("right")]}
    else:
        confusion = result.pop("confusion")
        per_class = [row[i] / sum(row) if sum(row) else None for i, row in enumerate(confusion)]
        details = {"per_class": per_class, "confusion": confusion}
    seen = [share for share in details["per_class"] if share is not None]
    total = 0.0
    for share in seen:  # not with sum(), which newer Pythons compute more exactly than the trainer
        total += share
    details["class_accuracy"] = total / len(seen)
    peak, unknown = result.pop("peak_rss_bytes"), result.pop("unknown", None)
    return {**result, "classes": names, **details, "unknown": unknown, "peak_rss_bytes": peak}


def packed_for(opened: Opened, data: Path, folder: Path, watch: OnEvent) -> tuple[Path, list[str]]:
    """Images as a dataset (in `folder`, where they are not packed yet), and the names of their classes.

    Raises:
        TinyTLError: they do not fit the model, or cannot be used.
    """
    packed = folder / "data.safetensors"
    source = dataset_for(opened.manifest, opened.classes, data, packed, _warning(watch), _progress(watch))
    with open_dataset(source) as dataset:
        return source, list(dataset.classes)


def packed_images(opened: Opened, images: Sequence[str | os.PathLike[str]], folder: Path) -> Path:
    """Images of unknown class as a dataset in `folder`.

    Raises:
        DataError: one cannot be read; names it.
    """
    if not images:
        raise UsageError("Name at least one image.")
    for image in images:
        if not Path(image).is_file():
            raise DataError(f"{os.fspath(image)} is no file: name images.")
    packed = folder / "images.safetensors"
    pack_files(images, packed, opened.manifest.input.framing)
    return packed


def _warning(watch: OnEvent) -> Callable[[str], None]:
    return lambda message: watch({"event": "warning", "message": message})


def _progress(watch: OnEvent) -> Callable[[int, int], None]:
    return lambda done, total: watch({"event": "pack", "done": done, "total": total})


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
        for each image: `image`, `prediction` (the likeliest class, or UNKNOWN; multi-label, the list of those more
        likely than not), `known` (not multi-label: is it sure enough of the likeliest class?), `probabilities` by class
        name, likeliest first.

    Raises:
        DataError: an image cannot be read; names it.
        TinyTLError: of the kind that says what else is wrong.
    """
    return predicted(opened_model(model, bundle, runtime, threads), images)


def predicted(opened: Opened, images: Sequence[str | os.PathLike[str]]) -> list[dict[str, Any]]:
    """`predict`, of what is open."""
    with tempfile.TemporaryDirectory(prefix="tinytl-edge-") as folder:
        rows = opened.predict(packed_images(opened, images, Path(folder)))
    predictions: list[dict[str, Any]] = []
    for image, row in zip(images, rows):
        ranked = sorted(zip(opened.names, row), key=lambda pair: -pair[1])
        answer: dict[str, Any] = {"prediction": [name for name, probability in ranked if probability > 0.5]}
        if opened.manifest.labels != MULTI:
            known = ranked[0][1] >= (opened.unknown_below or 0)
            answer = {"prediction": ranked[0][0] if known else UNKNOWN, "known": known}
        predictions.append({"image": os.fspath(image), **answer, "probabilities": dict(ranked)})
    return predictions


def compare(
    model: str | os.PathLike[str],
    file: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    bundle: str | os.PathLike[str] | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """A run and the model file that was written of it, on the same images; arguments as in `evaluate`.

    Returns:
        images; accuracy of the file and trainer_accuracy; same_class (the share of images in which both see the same
        class); largest_difference (of any probability).

    Raises:
        TinyTLError: of the kind that says what is wrong; without the file's interpreter, UsageError.
    """
    watch = on_event or (lambda event: None)
    trained, written = opened_model(model, bundle), opened_model(file)

    with tempfile.TemporaryDirectory(prefix="tinytl-edge-") as folder:
        source, _ = packed_for(trained, Path(data), Path(folder), watch)
        accuracies = [opened.evaluate(source, watch)["accuracy"] for opened in (written, trained)]
        pairs = list(zip(written.predict(source), trained.predict(source)))
    same = sum(ours.index(max(ours)) == theirs.index(max(theirs)) for ours, theirs in pairs)
    return {
        "images": len(pairs),
        "accuracy": accuracies[0],
        "trainer_accuracy": accuracies[1],
        "same_class": same / len(pairs),
        "largest_difference": max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs)),
    }


class Opened(ABC):
    """What can be measured."""

    manifest: Manifest
    classes: tuple[str, ...]
    unknown_below: float | None  # the probability of the likeliest class

    @property
    def names(self) -> list[str]:
        """Of the classes; their numbers where they have none."""
        return list(self.classes) or [str(index) for index in range(self.manifest.class_count)]

    @abstractmethod
    def evaluate(self, dataset: Path, watch: OnEvent) -> dict[str, Any]:
        """Of packed images: images, loss, accuracy, unknown, peak_rss_bytes, and confusion or (multi-label) right."""

    @abstractmethod
    def predict(self, dataset: Path) -> list[Sequence[float]]:
        """Probabilities of each class for each image of a packed dataset."""


def opened_model(
    model: str | os.PathLike[str],
    bundle: str | os.PathLike[str] | None = None,
    runtime: str = "auto",
    threads: int | None = None,
) -> Opened:
    """A run, a bundle or a model file; arguments as in `evaluate`.

    Raises:
        TinyTLError: it is none of them, or damaged.
    """
    path = Path(model)
    kind = kind_of(path)
    if kind is not None and path.is_file():
        return _File(path, kind, open_bundle(bundle) if bundle is not None else None)
    return Trained(*open_model(path, bundle), runtime, threads)


class _File(Opened):
    """A model file, by its own interpreter, in this process."""

    def __init__(self, path: Path, kind: str, bundle: Bundle | None) -> None:
        try:
            from .model_files.using import ModelFile
        except ImportError:
            raise UsageError(
                f"{path} needs numpy and an interpreter: pip install 'tinytl-edge[onnxruntime]', or [litert]."
            ) from None
        self._file = ModelFile(path, kind, bundle)
        self.manifest, self.classes = self._file.manifest, self._file.manifest.classes
        self.unknown_below = self._file.unknown_below

    def evaluate(self, dataset: Path, watch: OnEvent) -> dict[str, Any]:
        def progress(done: int, total: int) -> None:
            watch({"event": "evaluating", "done": done, "total": total})

        return {**self._file.measure(dataset, progress), "peak_rss_bytes": peak_rss()}

    def predict(self, dataset: Path) -> list[Sequence[float]]:
        return self._file.predict(dataset)


class Trained(Opened):
    """A run, or a bundle as prepared, by a worker."""

    def __init__(self, bundle: Bundle, adapter: Adapter | None, runtime: str, threads: int | None) -> None:
        self._bundle, self._adapter, self._threads = bundle, adapter, threads
        self.runtime = choose_runtime(runtime, bundle)
        self.worker = worker_command(self.runtime)
        self.manifest = bundle.manifest
        self.classes = bundle.manifest.classes
        self.unknown_below = adapter.unknown_below if adapter else None

    def evaluate(self, dataset: Path, watch: OnEvent) -> dict[str, Any]:
        measured = self._work("evaluate", dataset, watch)
        return {**{k: v for k, v in measured.last.items() if k != "event"}, "peak_rss_bytes": measured.peak_rss_bytes}

    def predict(self, dataset: Path) -> list[Sequence[float]]:
        seen: list[Event] = []
        self._work("predict", dataset, seen.append)
        return [event["probabilities"] for event in seen if event["event"] == "prediction"]

    def job(self, command: str, dataset: str) -> dict[str, Any]:
        """For the worker."""
        bundle = self._bundle
        return {
            "command": command,
            "bundle": os.fspath(bundle.path.resolve()),
            "program": os.fspath(bundle.file(STEP).resolve()),
            "adapter": os.fspath(self._adapter.tensors.path.resolve()) if self._adapter else None,
            "data": dataset,
            "classes": self.names,
            "batch_size": min(_BATCH, bundle.manifest.batch_size),
            "threads": threads_for(bundle, self._threads),
            "unknown_below": self.unknown_below,
        }

    def _work(self, command: str, dataset: Path, watch: OnEvent) -> Measured:
        from tinytl_edge.runtime.workers.worker import run_worker

        return run_worker(self.worker, self.job(command, os.fspath(dataset.resolve())), watch)
