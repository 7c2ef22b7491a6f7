"""What the board learns from: the file dataset.safetensors, reading it and packing photographs into it.

Tensors `images` U8 [N, S, S, 3] (RGB, row by row) and `labels` I32 [N]; metadata `format`, `version`,
`classes` (a JSON list of names) and `resolution`. S, the stored size, is ceil(resolution / 0.875), so that
evaluation's centre square, 7/8 of the side, is exactly the model's input, and training's random crops have
a margin to move in. Unlabelled pictures have no classes and the label -1.
"""

from __future__ import annotations

import json
import os
import re
import struct
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import DamagedFileError, DataError, UsageError
from .photographs import UnusablePictureError, composed, find_photographs, list_names, read_square, shown
from .tensors import TensorFile, atomic_write, encode_header, open_tensors

FORMAT = "tinytl-edge-dataset"
VERSION = "1"
UNLABELLED = -1


def stored_size(resolution: int) -> int:
    """Side in pixels of the square that is kept of a photograph: ceil(resolution / 0.875), in integers."""
    return -(-8 * resolution // 7)


# Reading ------------------------------------------------------------------------------------------------


class Dataset:
    """An open dataset: labels in memory, images on the medium until one is asked for.

    The file stays open, so that replacing it does not mix two datasets. `close` closes it, as does the end of
    a `with` block, or letting go of the object.
    """

    def __init__(self, path: Path, images_start: int, labels: list[int], classes: list[str], resolution: int) -> None:
        self.path = path
        self.labels = labels
        self.classes = classes
        self.resolution = resolution
        self._images_start = images_start
        self._descriptor = os.open(path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._descriptor)

    @property
    def count(self) -> int:
        """Number of samples, at least one."""
        return len(self.labels)

    @property
    def size(self) -> int:
        """Side of a stored image in pixels."""
        return stored_size(self.resolution)

    def image(self, index: int) -> bytes:
        """The pixels of one sample, U8 [size, size, 3], RGB.

        Raises:
            IndexError: there is no such sample.
            ValueError: the dataset is closed.
            DamagedFileError: the file has become shorter or the medium cannot be read.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"sample {index} of {self.count}")
        if not self._close.alive:  # the descriptor's number may be another file's by now
            raise ValueError(f"{self.path} is closed")
        length = self.size * self.size * 3
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
        raise damaged(f"it has version {version!r}, not '{VERSION}', so pack the photographs again")
    if not re.fullmatch("[1-9][0-9]{0,4}", file.metadata.get("resolution", "")):
        raise damaged("its resolution is not a number of pixels")
    resolution = int(file.metadata["resolution"])
    try:
        classes = json.loads(file.metadata.get("classes", ""))
    except (ValueError, RecursionError):
        classes = None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise damaged("its classes are not a list of names")
    for name in ("images", "labels"):
        if name not in file.entries:
            raise damaged(f"it has no tensor '{name}'")

    images = file.entries["images"]
    side = stored_size(resolution)
    if images.dtype != "U8" or len(images.shape) != 4 or images.shape[1:] != (side, side, 3):
        raise damaged(
            f"its images are {_typed(images.dtype, images.shape)}, not U8 [N, {side}, {side}, 3] "
            f"as resolution {resolution} needs"
        )
    labels = _read_labels(file, images.shape[0], len(classes), damaged)
    try:
        return Dataset(file.path, images.start, labels, classes, resolution)
    except OSError as error:
        raise DamagedFileError(f"{file.path} cannot be read: {error.strerror}.") from None


def _read_labels(
    file: TensorFile, count: int, class_count: int, damaged: Callable[[str], DamagedFileError]
) -> list[int]:
    entry = file.entries["labels"]
    if entry.dtype != "I32" or entry.shape != (count,):
        raise damaged(f"its labels are {_typed(entry.dtype, entry.shape)}, not I32 [{count}]")
    if count == 0:
        raise damaged("it has no samples")
    labels = list(struct.unpack(f"<{count}i", file.read("labels")))
    allowed = range(class_count) if class_count else range(UNLABELLED, UNLABELLED + 1)
    for index, label in enumerate(labels):
        if label not in allowed:
            raise damaged(f"the label {label} of sample {index} is none of its {class_count} classes")
    return labels


def _typed(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype} {list(shape)}"


# Packing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackReport:
    """What became of the photographs: how many were packed, by class, and which were skipped and why."""

    path: Path
    counts: dict[str, int]
    skipped: list[tuple[Path, str]]

    @property
    def count(self) -> int:
        """Number of samples in the file."""
        return sum(self.counts.values())


def pack(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    resolution: int,
    classes: Sequence[str] | None = None,
    on_warning: Callable[[str], object] | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> PackReport:
    """Pack the photographs of `<folder>/<class>/` into the dataset `out` for a model of `resolution` pixels.

    Labels follow `classes`, the model's own order, or without it the folders' names in order. One photograph
    is in memory at a time. `on_warning` gets a sentence for each file that is skipped and for classes
    without photographs; `on_progress` gets (done, total) after each file.

    Raises:
        UsageError: the resolution is not positive.
        DataError: nothing to pack, a folder that is none of `classes`, or see `find_photographs`.
        StorageError: `out` cannot be written; what was there before stays.
    """
    warn = on_warning or (lambda sentence: None)
    progress = on_progress or (lambda done, total: None)
    photographs = find_photographs(folder)
    names = list(photographs) if classes is None else list(classes)
    label_of = {composed(name): label for label, name in enumerate(names)}
    for name in photographs:
        if name not in label_of:
            raise DataError(
                f"{shown(Path(folder, name))} is not a class of the model, which knows "
                f"{list_names(names)}: rename or remove that folder."
            )

    files = [(label_of[name], path) for name, paths in photographs.items() for path in paths]
    counts = [0] * len(names)
    skipped: list[tuple[Path, str]] = []

    def samples() -> Iterator[tuple[int, bytes]]:
        for done, (label, path) in enumerate(files, start=1):
            try:
                pixels = read_square(path, stored_size(resolution))
            except UnusablePictureError as error:
                skipped.append((path, str(error)))
                warn(f"{shown(path)} was skipped: {error}.")
            else:
                counts[label] += 1
                yield label, pixels
            progress(done, len(files))
        if not any(counts):  # raised while `out` is being written, which leaves what was there before
            what = "photographs that can be used" if files else "photographs in its class folders"
            raise DataError(f"{shown(Path(folder))} has no {what}.")

    _write(out, resolution, names, samples(), len(files))
    without = [name for name, count in zip(names, counts) if not count]
    if without:
        warn(f"{shown(Path(folder))} has no usable photographs of {list_names(without)}.")
    return PackReport(Path(out), dict(zip(names, counts)), skipped)


def pack_files(paths: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str], resolution: int) -> None:
    """Pack pictures of unknown class, in the order given, into the dataset `out`.

    Raises:
        UsageError: the resolution is not positive.
        DataError: no picture is named, or one cannot be read.
        StorageError: `out` cannot be written; what was there before stays.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise DataError("No picture was named: name at least one file.")

    def samples() -> Iterator[tuple[int, bytes]]:
        for path in files:
            try:
                yield UNLABELLED, read_square(path, stored_size(resolution))
            except UnusablePictureError as error:
                raise DataError(f"{shown(path)} cannot be used: {error}.") from None

    _write(out, resolution, [], samples(), len(files))


def _write(
    out: str | os.PathLike[str],
    resolution: int,
    classes: Sequence[str],
    samples: Iterable[tuple[int, bytes]],
    at_most: int,
) -> None:
    """Stream (label, pixels) into a dataset.

    Their number is known only at the end, but is `at_most` so many: room is left for the header of that many,
    and the header is written last.
    """
    if resolution < 1:
        raise UsageError(f"The resolution cannot be {resolution}: it is the model's input in pixels.")
    side = stored_size(resolution)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "resolution": str(resolution),
    }

    def header(count: int, length: int | None = None) -> bytes:
        tensors = {"images": ("U8", (count, side, side, 3)), "labels": ("I32", (count,))}
        return encode_header(tensors, metadata, length)

    room = len(header(at_most))
    labels: list[int] = []
    with atomic_write(out) as file:
        file.seek(room)
        for label, pixels in samples:
            file.write(pixels)
            labels.append(label)
        file.write(struct.pack(f"<{len(labels)}i", *labels))
        file.seek(0)
        file.write(header(len(labels), room))
