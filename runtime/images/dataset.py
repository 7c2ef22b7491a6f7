"""What the board learns from: the file dataset.safetensors, and reading it. (`packing` writes it.)

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
from collections.abc import Callable, Sequence
from pathlib import Path

from tinytl_edge.runtime.errors import DamagedFileError
from tinytl_edge.runtime.files.tensors import TensorFile, open_tensors

from .fingerprint import BYTES
from .framing import FITS, LARGEST, Framing

FORMAT = "tinytl-edge-dataset"
VERSION = "3"
UNLABELLED = -1
SINGLE, MULTI = "single", "multi"  # label or labels an image


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

    def label_bytes(self, index: int) -> bytes:
        """The label of one sample, or its marks, as the file has it."""
        return self.marks[index] if self.marks else struct.pack("<i", self.labels[index])

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
