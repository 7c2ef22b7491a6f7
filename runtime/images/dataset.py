"""What the board learns from: the file dataset.safetensors, reading it and packing images into it.

Tensors `images` U8 [N, stored height, stored width, channels] (RGB or grey, row by row), `fingerprints` U8 [N, 8] (see
`fingerprint`) and `labels`. Metadata:
`format`, `version`, `classes` (a JSON list of names); `height` and `width` of the model's input, `channels` (3 or 1),
`fit` (crop, squash or pad), `margin` (true or false) and `pixel_range` ("low:high", or nothing), which say how images
became what is stored, see `framing`; and
`labels`: "single" (or nothing) where `labels` is I32 [N], the number of a class, and "multi" where it is
U8 [N, classes], 1 for each class that the image has. Unlabelled images have no classes and the label -1.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinytl_edge.runtime.errors import DamagedFileError, DataError
from tinytl_edge.runtime.files.tensors import TensorFile, atomic_write, encode_header, open_tensors
from tinytl_edge.runtime.wording import list_names, shown

from .decoding import UnusableImageError, read_image
from .depth import DeepPixels
from .fingerprint import BYTES, fingerprint
from .folders import composed, find_images
from .framing import FITS, LARGEST, Framing, range_text
from .label_table import TABLE, has_table, read_table
from .overlooked import passed_over

FORMAT = "tinytl-edge-dataset"
VERSION = "3"
UNLABELLED = -1
SINGLE, MULTI = "single", "multi"  # label or labels an image


# Reading ------------------------------------------------------------------------------------------------


class Dataset:
    """An open dataset: labels in memory, images on the medium until one is asked for.

    `labels` are numbers of classes, or empty where it is multi-label: then `marks` has a byte a class for each.
    `fingerprints` tell which images are nearly the same.

    The file stays open, so that replacing it does not mix two datasets. `close` closes it, as does the end of
    a `with` block, or letting go of the object.
    """

    def __init__(
        self,
        path: Path,
        images_start: int,
        labels: list[int],
        marks: list[bytes],
        fingerprints: list[bytes],
        classes: list[str],
        framing: Framing,
    ) -> None:
        self.path = path
        self.labels = labels
        self.marks = marks
        self.fingerprints = fingerprints
        self.classes = classes
        self.framing = framing
        self._images_start = images_start
        self._descriptor = os.open(path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._descriptor)

    @property
    def count(self) -> int:
        """Number of samples, at least one."""
        return len(self.labels) or len(self.marks)

    @property
    def kind(self) -> str:
        """SINGLE or MULTI label."""
        return MULTI if self.marks else SINGLE

    def counts(self) -> list[int]:
        """Of each class, how many images have it."""
        if self.marks:
            return [sum(column) for column in zip(*self.marks)]
        return [self.labels.count(index) for index in range(len(self.classes))]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a stored image: height, width, channels."""
        return self.framing.stored

    def image(self, index: int) -> bytes:
        """The pixels of one sample, U8 of `shape`.

        Raises:
            IndexError: there is no such sample.
            ValueError: the dataset is closed.
            DamagedFileError: the file has become shorter or the medium cannot be read.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"sample {index} of {self.count}")
        if not self._close.alive:  # the descriptor's number may be another file's by now
            raise ValueError(f"{self.path} is closed")
        length = math.prod(self.shape)
        try:
            pixels = os.pread(self._descriptor, length, self._images_start + index * length)
        except OSError as error:
            raise DamagedFileError(f"{self.path} cannot be read: {error.strerror}.") from None
        if len(pixels) != length:
            raise DamagedFileError(f"{self.path} ends inside image {index}: copy the file again.")
        return pixels

    def close(self) -> None:
        """Close the file; no image can be read after that. Closing twice is harmless."""
        self._close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Open and check a dataset; no image is read.

    Raises:
        DamagedFileError: the file is missing, damaged, not a dataset, or of another version.
    """
    file = open_tensors(path)

    def damaged(what: str) -> DamagedFileError:
        return DamagedFileError(f"{file.path} is not a usable dataset: {what}.")

    if file.metadata.get("format") != FORMAT:
        raise damaged("it was not written by 'tinytl-edge pack'")
    version = file.metadata.get("version")
    if version != VERSION:
        raise damaged(f"it has version {version!r}, not '{VERSION}', so pack the images again")
    framing = _read_framing(file, damaged)
    try:
        classes = json.loads(file.metadata.get("classes", ""))
    except (ValueError, RecursionError):
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise damaged("its classes are not a list of names")
    kind = file.metadata.get("labels", SINGLE)
    if kind not in (SINGLE, MULTI):
        raise damaged("its labels are of an unknown kind")
    for name in ("images", "fingerprints", "labels"):
        if name not in file.entries:
            raise damaged(f"it has no tensor '{name}'")

    images = file.entries["images"]
    if images.dtype != "U8" or len(images.shape) != 4 or images.shape[1:] != framing.stored:
        raise damaged(
            f"its images are {_typed(images.dtype, images.shape)}, not U8 [N, {', '.join(map(str, framing.stored))}] "
            f"as an input of {framing.height} x {framing.width} px needs"
        )
    count = images.shape[0]
    labels = _read_labels(file, count, len(classes), damaged) if kind == SINGLE else []
    marks = _read_marks(file, count, len(classes), damaged) if kind == MULTI else []
    seen = _read_fingerprints(file, count, damaged)
    try:
        return Dataset(file.path, images.start, labels, marks, seen, classes, framing)
    except OSError as error:
        raise DamagedFileError(f"{file.path} cannot be read: {error.strerror}.") from None


def _read_framing(file: TensorFile, damaged: Callable[[str], DamagedFileError]) -> Framing:
    told = file.metadata
    for name in ("height", "width"):
        if not re.fullmatch("[1-9][0-9]{0,4}", told.get(name, "")) or int(told[name]) > LARGEST:
            raise damaged(f"its {name} is not a number of pixels")
    if told.get("channels") not in ("1", "3"):
        raise damaged("its channels are neither 1 nor 3")
    if told.get("fit") not in FITS:
        raise damaged(f"its fit is none of {', '.join(FITS)}")
    if told.get("margin") not in ("true", "false"):
        raise damaged("its margin is neither true nor false")
    size = int(told["height"]), int(told["width"])
    try:
        deep = tuple(float(end) for end in told["pixel_range"].split(":")) if "pixel_range" in told else ()
        return Framing(*size, int(told["channels"]), told["fit"], told["margin"] == "true", deep)
    except ValueError:
        raise damaged("its pixel range is no low and high") from None


def _check_labels(
    file: TensorFile, dtype: str, shape: tuple[int, ...], damaged: Callable[[str], DamagedFileError]
) -> None:
    entry = file.entries["labels"]
    if entry.dtype != dtype or entry.shape != shape:
        raise damaged(f"its labels are {_typed(entry.dtype, entry.shape)}, not {_typed(dtype, shape)}")
    if shape[0] == 0:
        raise damaged("it has no samples")


def _read_labels(
    file: TensorFile, count: int, class_count: int, damaged: Callable[[str], DamagedFileError]
) -> list[int]:
    _check_labels(file, "I32", (count,), damaged)
    labels = list(struct.unpack(f"<{count}i", file.read("labels")))
    allowed = range(class_count) if class_count else range(UNLABELLED, UNLABELLED + 1)
    for index, label in enumerate(labels):
        if label not in allowed:
            raise damaged(f"the label {label} of sample {index} is none of its {class_count} classes")
    return labels


def _read_marks(
    file: TensorFile, count: int, class_count: int, damaged: Callable[[str], DamagedFileError]
) -> list[bytes]:
    if class_count == 0:
        raise damaged("it is multi-label, but has no classes")
    _check_labels(file, "U8", (count, class_count), damaged)
    content = file.read("labels")
    for index, mark in enumerate(content):
        if mark > 1:
            raise damaged(f"the label {mark} of sample {index // class_count} is neither 0 nor 1")
    return [content[start : start + class_count] for start in range(0, len(content), class_count)]


def _read_fingerprints(file: TensorFile, count: int, damaged: Callable[[str], DamagedFileError]) -> list[bytes]:
    entry = file.entries["fingerprints"]
    if entry.dtype != "U8" or entry.shape != (count, BYTES):
        raise damaged(f"its fingerprints are {_typed(entry.dtype, entry.shape)}, not {_typed('U8', (count, BYTES))}")
    content = file.read("fingerprints")
    return [content[start : start + BYTES] for start in range(0, len(content), BYTES)]


def _typed(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype} {list(shape)}"


# Packing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackReport:
    """What became of the images: how many were packed (all, and by class), and which were skipped and why."""

    path: Path
    count: int
    counts: dict[str, int]
    skipped: list[tuple[Path, str]]


def pack(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    framing: Framing,
    classes: Sequence[str] | None = None,
    on_warning: Callable[[str], object] | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> PackReport:
    """Pack the images of `<folder>/<class>/` into the dataset `out`.

    Where the folder has a table of multi-label images (`label_table`), it says which images, and which
    classes. Labels follow `classes`, the model's own order, or without it the folders' names in order. One image
    is in memory at a time. `on_warning` gets a sentence for each file that is skipped and for classes
    without images; `on_progress` gets (done, total) after each file.

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
    if not multi_label:
        for sentence in passed_over(folder):
            warn(sentence)
    found, files = _from_table(folder, known) if multi_label else _from_folders(folder, known)
    names = list(found if classes is None else classes)
    counts = [0] * len(names)
    packed = 0
    skipped: list[tuple[Path, str]] = []
    deep = DeepPixels()

    def samples() -> Iterator[tuple[bytes, bytes]]:
        nonlocal packed
        for done, (path, label) in enumerate(files, start=1):
            try:
                pixels = read_image(path, framing, deep)
            except UnusableImageError as error:
                skipped.append((path, str(error)))
                warn(f"{shown(path)} was skipped: {error}.")
            else:
                packed += 1
                for index in [i for i, has in enumerate(label) if has] if multi_label else struct.unpack("<i", label):
                    counts[index] += 1
                yield label, pixels
            progress(done, len(files))
        if not packed:  # raised while `out` is being written, which leaves what was there before
            what = "images that can be used" if files else "images in its class folders"
            raise DataError(f"{shown(folder)} has no {what}.")

    _write(out, framing, names, samples(), len(files), MULTI if multi_label else SINGLE)
    without = [name for name, count in zip(names, counts) if not count]
    if without:
        warn(f"{shown(folder)} has no usable images of {list_names(without)}.")
    if narrow := deep.warning(framing.pixel_range):
        warn(narrow)
    return PackReport(Path(out), packed, dict(zip(names, counts)), skipped)


_Files = list[tuple[Path, bytes]]  # images, each with its label as the file has it


def _from_folders(folder: Path, known: Sequence[str] | None) -> tuple[Sequence[str], _Files]:
    """The classes, in the order of their labels, and the images of all class folders."""
    images = find_images(folder)
    names = list(images) if known is None else known
    label_of = {name: _one(label) for label, name in enumerate(names)}
    for name in images:
        if name not in label_of:
            raise DataError(
                f"{shown(folder / name)} is not a class of the model, which knows "
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

    _write(out, framing, [], samples(), len(files), SINGLE)


def _write(
    out: str | os.PathLike[str],
    framing: Framing,
    classes: Sequence[str],
    samples: Iterable[tuple[bytes, bytes]],
    at_most: int,
    kind: str,
) -> None:
    """Stream (label, pixels) into a dataset.

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
