"""What the board learns from: dataset.safetensors, and packing photographs into it.

Tensors `images` U8 [N, S, S, 3] (RGB, row by row) and `labels` I32 [N]; metadata `format`, `version`,
`classes` (a JSON list of names) and `resolution`. S, the stored size, is ceil(resolution / 0.875), so that
evaluation's centre square, 7/8 of the side, is exactly the model's input, and training's random crops have
a margin to move in. Unlabelled pictures have no classes and the label -1.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import unicodedata
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DamagedFileError, DataError, UsageError
from .tensors import TensorFile, atomic_write, encode_header, open_tensors

if TYPE_CHECKING:
    from PIL import Image

FORMAT = "tinytl-edge-dataset"
VERSION = "1"
UNLABELLED = -1

# What a camera or a phone writes. HEIC and AVIF are not read: they are listed to be reported, not overlooked.
SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pbm", ".pnm",
    ".tif", ".tiff", ".heic", ".heif", ".avif",
))  # fmt: skip
# Pillow goes by a file's content, and some formats it knows (EPS) start other programs: these do not.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
_EXIF_ORIENTATION = 0x0112
# Folders that archives and memory cards bring along.
_NOT_CLASSES = frozenset(("__MACOSX", "lost+found", "System Volume Information"))


def stored_size(resolution: int) -> int:
    """Side in pixels of the square that is kept of a photograph: ceil(resolution / 0.875), in integers."""
    return -(-8 * resolution // 7)


# Reading ------------------------------------------------------------------------------------------------


class Dataset:
    """An open dataset: labels in memory, images on the medium until one is asked for.

    The file stays open, so that replacing it does not mix two datasets; `close` it, leave a `with` block,
    or let go of the object.
    """

    def __init__(
        self, path: Path, images_start: int, labels: list[int], classes: list[str], resolution: int
    ) -> None:
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


# Finding ------------------------------------------------------------------------------------------------


def find_photographs(folder: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """The photographs of `<folder>/<class>/*.jpg` (and .png, ...) by class, classes and files sorted by name.

    Hidden files and folders are ignored; a class folder without photographs has an empty list. Names are in
    Unicode's composed form, however the medium spells them.

    Raises:
        DataError: the folder is missing, cannot be read, or is not arranged in class folders.
    """
    folder = Path(folder)
    class_folders, loose = _list_folder(folder)
    example = Path(folder, "daisy", "1.jpg")
    if not class_folders:
        if loose:
            raise DataError(
                f"{_shown(folder)} holds photographs but no class folders: "
                f"put each into a folder named after its class, as in {_shown(example)}."
            )
        raise DataError(
            f"{_shown(folder)} has no class folders: it needs one for each class, as in {_shown(example)}."
        )

    photographs: dict[str, list[Path]] = {}
    nested = []
    for class_folder in class_folders:
        inner_folders, files = _list_folder(class_folder)
        photographs.setdefault(_class_name(class_folder), []).extend(files)
        if not files and any(_list_folder(inner)[1] for inner in inner_folders):
            nested.append(class_folder)
    if nested and not any(photographs.values()):
        likely = next((path for path in nested if path.name.lower().startswith("train")), nested[0])
        raise DataError(
            f"{_shown(folder)} holds no class folders itself, but {_list_names([p.name for p in nested])} "
            f"inside it does: name one such folder, for example {_shown(likely)}."
        )
    return dict(sorted(photographs.items()))


def _list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """The visible folders and the photographs in `folder`, sorted by name."""
    try:
        paths = sorted(path for path in folder.iterdir() if not _is_hidden(path.name))
        folders = [path for path in paths if path.is_dir()]
        # A dangling link is kept, to be reported when it is opened; a pipe or a device is no photograph.
        files = [
            path
            for path in paths
            if path.suffix.lower() in SUFFIXES and (path.is_file() or not path.exists())
        ]
    except FileNotFoundError:
        raise DataError(f"{_shown(folder)} does not exist: name a folder of photographs.") from None
    except OSError as error:
        raise DataError(f"{_shown(folder)} cannot be read as a folder: {error.strerror}.") from None
    return folders, files


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _NOT_CLASSES


def _class_name(folder: Path) -> str:
    try:
        folder.name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{_shown(folder)} has a name that is not Unicode text: rename the folder.") from None
    return _composed(folder.name)


def _composed(name: str) -> str:
    """The one spelling of a name by which classes are compared: some media write 'ü' as 'u' and two dots."""
    return unicodedata.normalize("NFC", name)


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
    label_of = {_composed(name): label for label, name in enumerate(names)}
    for name in photographs:
        if name not in label_of:
            raise DataError(
                f"{_shown(Path(folder, name))} is not a class of the model, which knows "
                f"{_list_names(names)}: rename or remove that folder."
            )

    total = sum(map(len, photographs.values()))
    counts = [0] * len(names)
    skipped: list[tuple[Path, str]] = []

    def samples() -> Iterator[tuple[int, bytes]]:
        done = 0
        for name, paths in photographs.items():
            for path in paths:
                try:
                    pixels = _read_square(path, stored_size(resolution))
                except _UnusablePictureError as error:
                    skipped.append((path, str(error)))
                    warn(f"{_shown(path)} was skipped: {error}.")
                else:
                    counts[label_of[name]] += 1
                    yield label_of[name], pixels
                done += 1
                progress(done, total)
        if not any(counts):
            what = "photographs that can be used" if total else "photographs in its class folders"
            raise DataError(f"{_shown(Path(folder))} has no {what}.")

    _write(out, resolution, names, samples(), total)
    without = [name for name, count in zip(names, counts) if not count]
    if without:
        warn(f"{_shown(Path(folder))} has no usable photographs of {_list_names(without)}.")
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
                yield UNLABELLED, _read_square(path, stored_size(resolution))
            except _UnusablePictureError as error:
                raise DataError(f"{_shown(path)} cannot be used: {error}.") from None

    _write(out, resolution, [], samples(), len(files))


def _write(
    out: str | os.PathLike[str],
    resolution: int,
    classes: Sequence[str],
    samples: Iterable[tuple[int, bytes]],
    at_most: int,
) -> None:
    """Stream (label, pixels) into a dataset; how many come is known only afterwards, up to `at_most`."""
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


# One picture --------------------------------------------------------------------------------------------


class _UnusablePictureError(Exception):
    """Why a picture cannot be used: the end of a sentence."""


def _read_square(path: Path, size: int) -> bytes:
    """The centre square of a picture as it is meant to be seen, scaled to U8 [size, size, 3] RGB."""
    from PIL import Image, UnidentifiedImageError

    try:
        if path.exists() and not path.is_file():
            raise _UnusablePictureError("it is not a file")
        if path.stat().st_size == 0:
            raise _UnusablePictureError("it is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return _square(image, size)
    except _UnusablePictureError:
        raise
    except UnidentifiedImageError:
        raise _UnusablePictureError("it is not a picture in a format that can be read here") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _UnusablePictureError("it has more pixels than are safe to decode") from None
    except MemoryError:
        raise _UnusablePictureError("it does not fit into memory") from None
    except OSError as error:
        raise _UnusablePictureError(error.strerror or f"it is damaged ({_shown(error)})") from None
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise _UnusablePictureError(f"it is damaged ({_shown(error) or type(error).__name__})") from None


def _square(image: Image.Image, size: int) -> bytes:
    from PIL import Image

    # A JPEG decoder can leave out what is not needed: 1/2, 1/4 or 1/8 of the side, at a small part of the
    # memory. Twice the size is kept for the filter below to work on.
    image.draft("RGB", (2 * size, 2 * size))
    image.load()
    orientation = _orientation(image)
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square: Image.Image = _in_bytes(image).resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    if square.mode == "RGBA":
        paper = Image.new("RGBA", square.size, "white")
        square = Image.alpha_composite(paper, square)
    if orientation is not None:
        square = square.transpose(orientation)  # a square's turn costs less than the whole picture's
    return square.convert("RGB").tobytes()


def _in_bytes(image: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel in a mode that can be scaled: L, RGB or RGBA."""
    if image.mode.startswith("I"):  # 16 bits; Pillow has clipped rather than scaled them in some versions
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode == "F":
        raise _UnusablePictureError("its pixels are floating-point numbers of unknown range")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """What to do to the stored pixels to see the picture upright."""
    from PIL import Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    if image.format == "TIFF":  # Pillow has turned it by itself, and in some versions left the tag
        return None
    with contextlib.suppress(Exception):  # broken EXIF says nothing against the pixels
        return turns.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    return None


# Words --------------------------------------------------------------------------------------------------


def _shown(thing: object) -> str:
    """A name or message as it can stand in a one-line sentence: escaped if it holds control characters."""
    text = str(thing)
    return text if text.isprintable() else repr(text)


def _list_names(names: Sequence[str]) -> str:
    """The first ten names in quotes, and how many there are beyond."""
    shown = ", ".join(repr(name) for name in names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
