"""Images of a folder, packed into the dataset that training reads."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinytl_edge.runtime.errors import DataError
from tinytl_edge.runtime.files.tensors import atomic_write, encode_header
from tinytl_edge.runtime.wording import list_names, shown

from .class_folders import meant, odd_names
from .dataset import FORMAT, MULTI, SINGLE, UNLABELLED, VERSION, Dataset
from .decoding import UnusableImageError, read_image
from .depth import DeepPixels
from .findings import Finding
from .fingerprint import BYTES, fingerprint
from .folders import composed, find_images, find_unlabelled
from .framing import Framing, range_text
from .label_table import TABLE, has_table, read_table
from .overlooked import passed_over


@dataclass(frozen=True)
class PackReport:
    """What became of the images: which were packed, in order; how many of each class; which were skipped, and why.

    `findings`: what else is odd, each said as a warning while packing.
    """

    path: Path
    packed: list[Path]
    counts: dict[str, int]
    skipped: list[tuple[Path, str]]
    findings: list[Finding]

    @property
    def count(self) -> int:
        return len(self.packed)


def pack(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    framing: Framing,
    classes: Sequence[str] | None = None,
    on_warning: Callable[[str], object] | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    partly: bool = False,
) -> PackReport:
    """Pack the images of `<folder>/<class>/` into the dataset `out`.

    Where the folder has a table of multi-label images (`label_table`), it says which images, and which
    classes. Labels follow `classes`, the model's own order, or without it the folders' names in order. One image
    is in memory at a time. `on_warning` gets a sentence for each file that is skipped and for classes
    without images (not if they are only a part: `partly`); `on_progress` gets (done, total) after each file.

    Raises:
        DataError: nothing to pack, a folder or column that is none of `classes`, a column that is missing, or see
            `find_images` and `read_table`.
        StorageError: `out` cannot be written; what was there before stays.
    """
    warn = on_warning or (lambda sentence: None)
    progress = on_progress or (lambda done, total: None)
    folder = Path(folder)
    known = None if classes is None else [composed(name) for name in classes]
    multi_label = has_table(folder)
    findings: list[Finding] = []

    def odd(finding: Finding) -> None:
        findings.append(finding)
        warn(finding.message)

    if not multi_label:
        for finding in passed_over(folder):
            odd(finding)
    found, files = _from_table(folder, known) if multi_label else _from_folders(folder, known)
    names = list(found if classes is None else classes)
    if not multi_label:
        for finding in odd_names(folder, names):
            odd(finding)
    counts = [0] * len(names)
    packed: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    deep = DeepPixels()

    def samples() -> Iterator[tuple[bytes, bytes]]:
        for done, (path, label) in enumerate(files, start=1):
            try:
                pixels = read_image(path, framing, deep)
            except UnusableImageError as error:
                skipped.append((path, str(error)))
                warn(f"{shown(path)} was skipped: {error}.")
            else:
                packed.append(path)
                for index in [i for i, has in enumerate(label) if has] if multi_label else struct.unpack("<i", label):
                    counts[index] += 1
                yield label, pixels
            progress(done, len(files))
        if not packed:  # raised while `out` is being written, which leaves what was there before
            what = "images that can be used" if files else "images in its class folders"
            raise DataError(f"{shown(folder)} has no {what}.")

    write_dataset(out, framing, names, samples(), len(files), MULTI if multi_label else SINGLE)
    without = [name for name, count in zip(names, counts) if not count]
    if without and not partly:
        odd(Finding("empty", f"{shown(folder)} has no usable images of {list_names(without)}."))
    if narrow := deep.warning(framing.pixel_range):
        odd(Finding("range", narrow))
    return PackReport(Path(out), packed, dict(zip(names, counts)), skipped, findings)


_Files = list[tuple[Path, bytes]]  # images, each with its label as the file has it


def _from_folders(folder: Path, known: Sequence[str] | None) -> tuple[Sequence[str], _Files]:
    """The classes, in the order of their labels, and the images of all class folders."""
    images = find_images(folder)
    names = list(images) if known is None else known
    label_of = {name: _one(label) for label, name in enumerate(names)}
    for name in images:
        if name not in label_of:
            other = meant(name, names)
            hint = f" ({other!r} is, which differs in case or spaces only)" if other else ""
            raise DataError(
                f"{shown(folder / name)} is not a class of the model{hint}, which knows "
                f"{list_names(names)}: rename or remove that folder."
            )
    return names, [(path, label_of[name]) for name, paths in images.items() for path in paths]


def _from_table(folder: Path, known: Sequence[str] | None) -> tuple[Sequence[str], _Files]:
    """The same from the folder's table."""
    table = read_table(folder)
    if known is None:
        return table.classes, list(table.rows)
    for names, others, what in ((table.classes, known, "has"), (known, table.classes, "lacks")):
        odd = [name for name in names if name not in others]
        if odd:
            raise DataError(
                f"{shown(folder / TABLE)} {what} the column {odd[0]!r}; the classes of the model are "
                f"{list_names(known)}: its columns have to be these."
            )
    return known, list(table.in_order(tuple(known)).rows)


def _one(label: int) -> bytes:
    return struct.pack("<i", label)


def pack_files(paths: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str], framing: Framing) -> None:
    """Pack images of unknown class, in the order given, into the dataset `out`.

    Raises:
        DataError: no image is named, or one cannot be read.
        StorageError: `out` cannot be written; what was there before stays.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise DataError("No image was named: name at least one file.")

    def samples() -> Iterator[tuple[bytes, bytes]]:
        for path in files:
            try:
                yield _one(UNLABELLED), read_image(path, framing)
            except UnusableImageError as error:
                raise DataError(f"{shown(path)} cannot be used: {error}.") from None

    write_dataset(out, framing, [], samples(), len(files), SINGLE)


def pack_unlabelled(
    folder: Path,
    out: Path,
    framing: Framing,
    on_warning: Callable[[str], object],
    on_progress: Callable[[int, int], object],
) -> None:
    """Pack all images of a folder, and of folders below it, without labels; what cannot be read is said and skipped.

    Raises:
        DataError: there is none that can be used.
        StorageError: `out` cannot be written; what was there before stays.
    """
    files = find_unlabelled(folder)

    def samples() -> Iterator[tuple[bytes, bytes]]:
        packed = 0
        for done, path in enumerate(files, start=1):
            try:
                yield _one(UNLABELLED), read_image(path, framing)
                packed += 1
            except UnusableImageError as error:
                on_warning(f"{shown(path)} was skipped: {error}.")
            on_progress(done, len(files))
        if not packed:
            raise DataError(f"{shown(folder)} has no images{' that can be used' if files else ''}.")

    write_dataset(out, framing, [], samples(), len(files), SINGLE)


def pack_part(dataset: Dataset, images: Sequence[int], out: str | os.PathLike[str], mirrored: bool = False) -> None:
    """Pack some of a dataset's images once more, as they are or mirrored left to right.

    Raises:
        DamagedFileError: the dataset cannot be read.
        StorageError: `out` cannot be written.
    """
    samples = ((dataset.label_bytes(index), _image(dataset, index, mirrored)) for index in images)
    write_dataset(out, dataset.framing, dataset.classes, samples, len(images), dataset.kind)


def _image(dataset: Dataset, index: int, mirrored: bool) -> bytes:
    pixels = dataset.image(index)
    if not mirrored:
        return pixels
    height, width, channels = dataset.shape
    pixel = [pixels[start : start + channels] for start in range(0, len(pixels), channels)]
    return b"".join(value for row in range(height) for value in reversed(pixel[row * width : (row + 1) * width]))


def write_dataset(
    out: str | os.PathLike[str],
    framing: Framing,
    classes: Sequence[str],
    samples: Iterable[tuple[bytes, bytes]],
    at_most: int,
    kind: str,
) -> None:
    """Stream (label, pixels) into a dataset, each label as the file has it.

    Their number is known only at the end, but is `at_most` so many: room is left for the header of that many,
    and the header is written last.
    """
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "height": str(framing.height),
        "width": str(framing.width),
        "channels": str(framing.channels),
        "fit": framing.fit,
        "margin": "true" if framing.margin else "false",
        "labels": kind,
    }
    if framing.pixel_range:
        metadata["pixel_range"] = range_text(framing.pixel_range)

    def header(count: int, length: int | None = None) -> bytes:
        labelled = ("U8", (count, len(classes))) if kind == MULTI else ("I32", (count,))
        prints = ("U8", (count, BYTES))
        tensors = {"images": ("U8", (count, *framing.stored)), "fingerprints": prints, "labels": labelled}
        return encode_header(tensors, metadata, length)

    room = len(header(at_most))
    labels: list[bytes] = []
    prints: list[bytes] = []
    with atomic_write(out) as file:
        file.seek(room)
        for label, pixels in samples:
            file.write(pixels)
            prints.append(fingerprint(pixels, framing.stored))
            labels.append(label)
        file.write(b"".join(prints + labels))
        file.seek(0)
        file.write(header(len(labels), room))
