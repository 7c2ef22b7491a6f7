"""What is wrong with images, looked for before they are learnt from."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinytl_edge.runtime.files.bundle import Bundle, open_bundle
from tinytl_edge.runtime.images.appearance import look, odd_looks
from tinytl_edge.runtime.images.balance import uneven
from tinytl_edge.runtime.images.class_folders import meant
from tinytl_edge.runtime.images.dataset import SINGLE, Dataset, open_dataset
from tinytl_edge.runtime.images.duplicates import (
    in_two_classes_said,
    learnt_and_judged,
    learnt_and_judged_said,
    of_two_classes,
    same_images,
)
from tinytl_edge.runtime.images.findings import Finding
from tinytl_edge.runtime.images.folders import composed, find_images
from tinytl_edge.runtime.images.framing import Framing
from tinytl_edge.runtime.images.held_out import ENOUGH
from tinytl_edge.runtime.images.label_table import has_table, read_table
from tinytl_edge.runtime.images.new_classes import with_new_classes
from tinytl_edge.runtime.images.packing import PackReport, pack
from tinytl_edge.runtime.images.source import OnCount, check_exists, check_kind
from tinytl_edge.runtime.wording import are, counted, list_names, shown

from .errors import DataError, UsageError
from .second_look import doubted_labels, mirror_images, second_look, why_not
from .workers.events import OnEvent

RESOLUTION = 160  # pixels of an input, where no bundle says it
_SHOWN = 5  # files of a finding


def doctor(
    data: str | os.PathLike[str],
    val: str | os.PathLike[str] | None = None,
    *,
    bundle: str | os.PathLike[str] | None = None,
    resolution: int | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Examine a folder of images: what a person should look at before training.

    Args:
        data: a folder with one sub-folder of images a class, or with labels.csv.
        val: the same, of images that training is to be judged on.
        bundle: examine the images as this bundle's input, against its classes, and by its classifier.
        resolution: without a bundle, pixels of the input's height and width. Default: RESOLUTION.
        on_event: called with `pack` and `examining` (done, total).

    Returns:
        images, classes (a count each), findings (kind, message and files of each; empty where nothing is odd),
        accuracy (of the classifier that one pass over half of the images finds, on the other half; None without a
        bundle), unexamined (why the bundle's classifier could not look at them).

    Raises:
        DataError: there is no image that can be used, or no folder.
        TinyTLError: of the kind that says what else is wrong.
    """
    if bundle is not None and resolution is not None:
        raise UsageError("The bundle says what its input is like: leave out either --bundle or --resolution.")
    opened = open_bundle(bundle) if bundle is not None else None
    side = resolution or RESOLUTION
    framing = opened.manifest.input.framing if opened else Framing(side, side)
    watch = on_event or (lambda event: None)
    sources = [Path(data), *([Path(val)] if val is not None else [])]
    for source in sources:
        _check(source, opened)
    with tempfile.TemporaryDirectory(prefix="tinytl-edge-") as folder:
        return _Examination(Path(folder), opened, framing, watch).of(*sources)


def _check(source: Path, bundle: Bundle | None) -> None:
    check_exists(source)
    if source.is_file():
        raise UsageError(f"{shown(source)} is a packed dataset: name the folder that it was packed from.")
    if bundle is not None:
        check_kind(bundle.manifest, source)


class _Examination:
    """Of images in class folders; datasets go to `folder`."""

    def __init__(self, folder: Path, bundle: Bundle | None, framing: Framing, watch: OnEvent) -> None:
        self._folder = folder
        self._bundle = bundle
        self._framing = framing
        self._watch = watch

    def of(self, data: Path, val: Path | None = None) -> dict[str, Any]:
        packed, known = self._folder / "data.safetensors", self._known(data)
        report = self._pack(data, packed, known)
        findings = _of_files(report)
        if self._bundle is not None and known is None:
            findings += _names_between(list(report.counts), self._bundle.manifest.classes, shown(data), "the bundle")
        if self._bundle is not None and known is not None:
            findings += _new_classes(known[self._bundle.manifest.class_count :], self._bundle.manifest.room, data)
        accuracy = unexamined = None
        with open_dataset(packed) as dataset:
            findings += _of_counts(dataset)
            findings += _of_duplicates(dataset, report.packed)
            findings += self._of_looks(dataset, report.packed)
            if val is not None:
                findings += self._of_val(dataset, report.packed, val)
            if self._bundle is not None:
                unexamined = why_not(self._bundle, dataset)
            if self._bundle is not None and unexamined is None:
                seen = second_look(self._bundle, dataset, self._folder, self._progress("examining"))
                accuracy = seen.accuracy(dataset.labels)
                findings += doubted_labels(seen, dataset, report.packed) + mirror_images(seen, dataset)
        return {
            "images": report.count,
            "classes": report.counts,
            "findings": [asdict(finding) for finding in findings],
            "accuracy": accuracy,
            "unexamined": unexamined,
        }

    def _known(self, data: Path) -> Sequence[str] | None:
        """The bundle's classes, in its order, and new ones; None where the images have others still."""
        if self._bundle is None:
            return None
        names = read_table(data).classes if has_table(data) else tuple(find_images(data))
        try:
            known = with_new_classes(self._bundle.manifest, data)
        except DataError:  # more than there is room for
            return None
        return known if known and set(names) <= {composed(name) for name in known} else None

    def _pack(self, source: Path, out: Path, classes: Sequence[str] | None = None) -> PackReport:
        return pack(source, out, self._framing, classes, on_progress=self._progress("pack"))

    def _progress(self, event: str) -> OnCount:
        def progress(done: int, total: int) -> None:
            self._watch({"event": event, "done": done, "total": total})

        return progress

    def _of_looks(self, dataset: Dataset, paths: Sequence[Path]) -> list[Finding]:
        labels = dataset.labels or [0] * dataset.count
        classes = dataset.classes if dataset.labels else ["all"]
        looks = [
            look(path, label, dataset.image(index), self._framing)
            for index, (path, label) in enumerate(zip(paths, labels))
        ]
        return odd_looks(looks, classes, self._framing)

    def _of_val(self, dataset: Dataset, paths: Sequence[Path], val: Path) -> list[Finding]:
        packed = self._folder / "val.safetensors"
        report = self._pack(val, packed)
        findings = _of_files(report)
        findings += _names_between(list(report.counts), dataset.classes, shown(val), "the images to train on")
        with open_dataset(packed) as judged:
            if pairs := learnt_and_judged(dataset, judged):
                files = tuple(f"{report.packed[other]} ({paths[first]})" for first, other in pairs)
                findings.append(Finding("judged-and-learnt", learnt_and_judged_said(pairs, judged), files))
            findings += self._of_looks(judged, report.packed)
        return findings


def _of_files(report: PackReport) -> list[Finding]:
    findings = list(report.findings)
    if report.skipped:
        files = tuple(f"{path} ({why})" for path, why in report.skipped)
        findings.append(
            Finding(
                "unreadable", f"{counted(len(report.skipped), 'image')} cannot be read, and would be skipped.", files
            )
        )
    return findings


def _new_classes(names: Sequence[str], room: int, data: Path) -> list[Finding]:
    what = "a new class" if len(names) == 1 else "new classes"
    message = f"{shown(data)}: {list_names(names)} would be {what}; the bundle has room for {room}."
    return [Finding("new-class", message)] if names else []


def _names_between(names: Sequence[str], known: Sequence[str], where: str, whose: str) -> list[Finding]:
    """Classes that one side has and the other does not; nothing where one has no names."""
    findings: list[Finding] = []
    if not known:
        return findings
    for name in names:
        if name in known:
            continue
        other = meant(name, known)
        hint = f": {other!r} is, which differs in case or spaces only; rename the folder." if other else "."
        findings.append(Finding("class", f"{where}: {name!r} is not a class of {whose}{hint}"))
    if missing := [name for name in known if name not in names]:
        findings.append(Finding("class", f"{where} has no folder for {list_names(missing)} of {whose}."))
    return findings


def _of_counts(dataset: Dataset) -> list[Finding]:
    findings = []
    few = [f"{name} ({count})" for name, count in zip(dataset.classes, dataset.counts()) if 0 < count < ENOUGH]
    if few:
        classes = "class has" if len(few) == 1 else "classes have"
        message = (
            f"{len(few)} {classes} fewer than {ENOUGH} images, too few to tell how good a training is: "
            f"{', '.join(few[:10])}{' and more' if len(few) > 10 else ''}."
        )
        findings.append(Finding("few", message))
    if dataset.kind == SINGLE and (sentence := uneven(dataset.classes, dataset.counts())):
        findings.append(Finding("uneven", sentence))
    return findings


def _of_duplicates(dataset: Dataset, paths: Sequence[Path]) -> list[Finding]:
    def files(pairs: Iterable[tuple[int, int]]) -> tuple[str, ...]:
        return tuple(f"{paths[other]} ({paths[first]})" for first, other in pairs)

    findings = []
    pairs = same_images(dataset)
    apart = of_two_classes(dataset, pairs) if dataset.kind == SINGLE else []
    if apart:
        findings.append(Finding("two-classes", in_two_classes_said(dataset, apart), files(apart)))
    if within := [pair for pair in pairs if pair not in set(apart)]:
        message = f"{are(len(within), 'image')} nearly the same as another of the class: little is learnt from it."
        findings.append(Finding("same", message, files(within)))
    return findings


def describe(content: dict[str, Any]) -> str:
    """`doctor`'s answer as text for a person."""
    counts = content["classes"]
    width = min(max(map(len, counts)), 40)
    lines = [f"{counted(content['images'], 'image')} of {len(counts)} classes"]
    lines += [f"  {name:<{width}}  {count}" for name, count in counts.items()]
    if content["accuracy"] is not None:
        lines.append(
            f"One pass over half of the images tells the other half's classes with an accuracy of "
            f"{content['accuracy']:.1%}."
        )
    if content["unexamined"] is not None:
        lines.append(content["unexamined"])
    findings = content["findings"]
    if not findings:
        lines.append("Nothing odd was found.")
    for finding in findings:
        lines.append(f"- {finding['message']}")
        lines += [f"    {shown(file)}" for file in finding["files"][:_SHOWN]]
        if len(finding["files"]) > _SHOWN:
            lines.append(f"    and {len(finding['files']) - _SHOWN} more (--json names them)")
    return "\n".join(lines)
