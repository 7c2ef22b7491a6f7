"""`report`: what a run has brought, before and after, for a person to look at."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinytl_edge.runtime.errors import DataError, UsageError
from tinytl_edge.runtime.evaluate import Trained, packed_for
from tinytl_edge.runtime.files.adapter import FILE as ADAPTER
from tinytl_edge.runtime.files.adapter import JUDGED, JUDGED_START, START, open_adapter
from tinytl_edge.runtime.files.run import EVENTS, RUN, Run, is_run, open_run
from tinytl_edge.runtime.images.dataset import MULTI, Dataset, open_dataset
from tinytl_edge.runtime.images.packing import pack_part
from tinytl_edge.runtime.intervals import likely
from tinytl_edge.runtime.workers.events import Event, OnEvent

from .verdict import verdict

_BINS = 10  # of probabilities
_MISTAKES = 24  # shown at most


@dataclass(frozen=True)
class _Judged:
    """Images, and what was thought of them where the training began (None: nobody knows) and at its end; what both are
    in words."""

    on: str  # "held-out", "val" or "data"
    dataset: Dataset
    before: list[Sequence[float]] | None
    after: list[Sequence[float]]
    before_is: str
    after_is: str


def report(
    run: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    bundle: str | os.PathLike[str] | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """What a finished run has brought.

    Args:
        run: its folder.
        data: images that it has not seen: a folder or packed. Default: those that it was judged on.
        out: write a page for people there, one file of HTML.
        bundle: the run's bundle, if it has moved.

    Returns:
        verdict (enough, headline, sentences); judged (None where there are no images for it: on, images, before and
        after as `_measures` has them, what both are in words, how many gained and lost, mistakes); classes (name, how
        many images were learnt from); curve (what the events say of steps and epochs); aligned (that event, or None);
        old_place (what a deployed classifier gives up where it comes from, see `_old_place`);
        training (options, result, memory over time, what trained).

    Raises:
        UsageError: it is no finished run.
        TinyTLError: of the kind that says what else is wrong.
    """
    if not is_run(Path(run)):
        raise UsageError(f"{os.fspath(run)} is no run of `tinytl-edge train`.")
    opened, watch = open_run(run, bundle), on_event or (lambda event: None)
    if opened.record.status != "done":
        raise UsageError(f"{opened.path} did not come to its end ({opened.record.status}): there is nothing to report.")
    classes = list(opened.adapter().classes)
    with tempfile.TemporaryDirectory(prefix="tinytl-edge-") as folder:
        judged = _judged(opened, Path(data) if data is not None else None, Path(folder), watch)
        content: dict[str, Any] = {"run": os.fspath(opened.path), "classes": _learnt(opened, classes), "judged": None}
        if judged is not None:
            content["judged"] = _compared(judged, classes)
        content["curve"], content["aligned"] = _curve(opened), _last(opened, "aligned")
        content["old_place"] = _old_place(opened)
        content["training"] = _training(opened)
        content["verdict"] = verdict(content)
        if out is not None:
            from .pictures.report_page import write_page

            write_page(Path(out), content, judged.dataset if judged else None)
        if judged is not None:
            judged.dataset.close()
    return content


def _judged(run: Run, data: Path | None, folder: Path, watch: OnEvent) -> _Judged | None:
    record = run.record
    final, begun = ADAPTER, START
    if data is not None:
        on, file = "data", packed_for(_trained(run, ADAPTER), data, folder, watch)[0]
    elif record.val is not None:
        on, file = "val", _there(run, record.val)
    elif record.held_out:
        on, file = "held-out", folder / "held-out.safetensors"
        with open_dataset(_there(run, record.data)) as dataset:
            pack_part(dataset, record.held_out, file)
        final, begun = JUDGED, JUDGED_START
    else:
        return None
    first = record.first_pass
    aligned = first is not None and first.aligned
    deployed = first is not None and (first.pulled or first.aligned)
    before = None
    if deployed:
        before = Trained(run.bundle, None, "auto", None).predict(file)
    elif (run.path / begun).is_file():
        before = _trained(run, begun).predict(file)
    after = _trained(run, final).predict(file)
    words = "as deployed" if deployed else "at the start", "aligned" if aligned else "after training"
    return _Judged(on, open_dataset(file), before, after, *words)


def _there(run: Run, name: str) -> Path:
    path = Path(os.path.normpath(run.path / name))
    if not path.is_file():
        raise DataError(f"{path}, which {run.path} was judged on, is gone: name other images with --data.")
    return path


def _trained(run: Run, adapter: str) -> Trained:
    opened = open_adapter(run.path / adapter, run.bundle)
    return Trained(run.bundle.with_classes(opened.classes), opened, "auto", None)


def _learnt(run: Run, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class, how many images were learnt from; None where they are gone, or have no labels."""
    file = Path(os.path.normpath(run.path / run.record.data))
    if not file.is_file():
        return [{"name": name, "images": None} for name in classes]
    with open_dataset(file) as dataset:
        counts: Sequence[int | None] = dataset.counts() or [None] * len(classes)  # images without labels
        return [{"name": name, "images": count} for name, count in zip(classes, counts)]


def _compared(judged: _Judged, classes: Sequence[str]) -> dict[str, Any]:
    dataset = judged.dataset
    multi_label = dataset.kind == MULTI
    measures = _multi_label_measures if multi_label else _measures
    return {
        "on": judged.on,
        "images": dataset.count,
        "gained": None if multi_label else _came_right(judged.before, judged.after, dataset),
        "lost": None if multi_label else _came_right(judged.after, judged.before, dataset),
        "before": measures(judged.before, dataset) if judged.before is not None else None,
        "before_is": judged.before_is,
        "after": measures(judged.after, dataset),
        "after_is": judged.after_is,
        "mistakes": [] if multi_label else _mistakes(judged, classes),
    }


def _measures(rows: Sequence[Sequence[float]], dataset: Dataset) -> dict[str, Any]:
    """accuracy, interval (where it is likely to lie), class_accuracy, loss; per_class (images, right); confusion[label]
    [guess]; calibration (bins of the likeliest class's probability, and the error that they make on average)."""
    labels, count = dataset.labels, dataset.count
    confusion = [[0] * len(dataset.classes) for _ in dataset.classes]
    for label, row in zip(labels, rows):
        confusion[label][_likeliest(row)] += 1
    per_class = [{"images": sum(row), "right": row[index]} for index, row in enumerate(confusion)]
    right = sum(entry["right"] for entry in per_class)
    seen = [entry["right"] / entry["images"] for entry in per_class if entry["images"]]
    return {
        "accuracy": right / count,
        "interval": list(likely(right / count, count)),
        "class_accuracy": sum(seen) / len(seen),
        "loss": sum(-math.log(max(row[label], 1e-12)) for label, row in zip(labels, rows)) / count,
        "per_class": per_class,
        "confusion": confusion,
        "calibration": _calibration([(max(row), _likeliest(row) == label) for label, row in zip(labels, rows)]),
    }


def _multi_label_measures(rows: Sequence[Sequence[float]], dataset: Dataset) -> dict[str, Any]:
    """The same of images that may have several classes: an answer is right where it is yes or no as it should be."""
    answers = [
        [(probability > 0.5) == bool(mark) for probability, mark in zip(row, marks)]
        for row, marks in zip(rows, dataset.marks)
    ]
    per_class = [{"images": dataset.count, "right": sum(column)} for column in zip(*answers)]
    accuracy = sum(entry["right"] for entry in per_class) / (dataset.count * len(dataset.classes))
    return {
        "accuracy": accuracy, "interval": None, "class_accuracy": accuracy, "loss": None, "per_class": per_class,
        "confusion": None, "calibration": None,
    }  # fmt: skip


def _calibration(answers: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Expected calibration error (Guo et al., On calibration of modern neural networks, 2017, equation 3)."""
    bins = []
    for number in range(_BINS):
        inside = [answer for answer in answers if min(int(_BINS * answer[0]), _BINS - 1) == number]
        if inside:
            sure = sum(probability for probability, _ in inside) / len(inside)
            right = sum(is_right for _, is_right in inside) / len(inside)
            bins.append({"images": len(inside), "probability": sure, "accuracy": right})
    error = sum(entry["images"] * abs(entry["probability"] - entry["accuracy"]) for entry in bins) / len(answers)
    return {"bins": bins, "error": error}


def _came_right(
    first: list[Sequence[float]] | None, second: list[Sequence[float]] | None, dataset: Dataset
) -> int | None:
    """How many images are wrong at first and right then."""
    if first is None or second is None:
        return None
    pairs = zip(dataset.labels, first, second)
    return sum(_likeliest(one) != label == _likeliest(other) for label, one, other in pairs)


def _mistakes(judged: _Judged, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The worst first: those that the classifier is most sure of. `image` is a number in the judged dataset."""
    found: list[dict[str, Any]] = []
    for image, (label, row) in enumerate(zip(judged.dataset.labels, judged.after)):
        guess = _likeliest(row)
        if guess != label:
            before = judged.before[image] if judged.before is not None else None
            found.append(
                {
                    "image": image, "label": classes[label], "guess": classes[guess], "probability": row[guess],
                    "of_label": row[label], "guess_before": classes[_likeliest(before)] if before is not None else None,
                }
            )  # fmt: skip
    return sorted(found, key=lambda mistake: -mistake["probability"])[:_MISTAKES]


def _likeliest(row: Sequence[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)


def _events(run: Run) -> Iterator[Event]:
    with (run.path / EVENTS).open(encoding="utf-8") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:  # cut off where the power went
                continue
            if isinstance(event, dict):
                yield event


def _curve(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Steps (step, loss), epochs and choices (as the events say them)."""
    steps, epochs, choices = [], [], []
    for event in _events(run):
        kind = event.get("event")
        if kind == "step":
            steps.append({"step": event["step"], "loss": event["loss"]})
        elif kind == "epoch":
            wanted = ("epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
            epochs.append({name: event.get(name) for name in wanted})
        elif kind == "choice":
            choices.append({name: event.get(name) for name in ("share", "epoch", "judge")})
    return {"steps": steps, "epochs": epochs, "choices": choices}


def _last(run: Run, kind: str) -> Event | None:
    return next((event for event in reversed(list(_events(run))) if event.get("event") == kind), None)


def _old_place(run: Run) -> dict[str, Any] | None:
    """What a deployed classifier gives up where it comes from: None where it is none.

    images (None: features that were kept, each left out in turn; 0: nobody knows), before and after (accuracy;
    interval, where it is likely to lie, of images).
    """
    first, result = run.record.first_pass, run.record.result
    if first is None or not first.pulled:
        return None
    fitted = _last(run, "one_pass") or {}
    images: int | None = result.kept_images
    pair = result.kept_accuracy_before, result.kept_accuracy
    if not images and not result.steps and fitted.get("kept_accuracy") is not None:
        images, pair = None, (fitted["kept_accuracy_before"], fitted["kept_accuracy"])
    before, after = (
        {"accuracy": accuracy, "interval": list(likely(accuracy, images)) if images else None}
        if accuracy is not None and images != 0
        else None
        for accuracy in pair
    )
    return {"images": images, "before": before, "after": after}


def _training(run: Run) -> dict[str, Any]:
    record, manifest = run.record, run.bundle.manifest
    content = json.loads((run.path / RUN).read_text(encoding="utf-8"))
    curve = content.get("rss_curve") or []
    return {
        "runtime": record.runtime,
        "options": asdict(record.options),
        "result": asdict(record.result),
        "seconds": curve[-1][0] if curve else None,
        "memory_over_time": curve,
        "planned_bytes": sum(manifest.planned_memory.values()) or None,
        "memory_limit_bytes": manifest.memory_limit,
        "backbone": manifest.backbone,
        "method": manifest.method,
        "parameters": manifest.parameter_count,
        "trained": manifest.trainable_count,
        "input": str(manifest.input.framing),
    }
