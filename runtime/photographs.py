"""Images on a medium: found in class folders, and each read as the few pixels that are stored of it.

Pillow is imported when the first picture is read, so that training from a packed dataset does without it.
"""

from __future__ import annotations

import contextlib
import os
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import DataError
from .framing import Framing

if TYPE_CHECKING:
    from PIL import Image

# What counts as a photograph in a folder. HEIC and AVIF cannot be read, and so are reported, not overlooked.
_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pbm", ".pnm",
    ".tif", ".tiff", ".heic", ".heif", ".avif",
))  # fmt: skip
# What Pillow may take a file for, whatever its name: some of its other formats (EPS) start programs.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
_EXIF_ORIENTATION = 0x0112
# Folders that archives and memory cards bring along.
_NOT_CLASSES = frozenset(("__MACOSX", "lost+found", "System Volume Information"))


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
                f"{shown(folder)} holds photographs but no class folders: "
                f"put each into a folder named after its class, as in {shown(example)}."
            )
        raise DataError(f"{shown(folder)} has no class folders: it needs one for each class, as in {shown(example)}.")

    photographs: dict[str, list[Path]] = {}
    for class_folder in class_folders:
        photographs.setdefault(_class_name(class_folder), []).extend(_list_folder(class_folder)[1])
    if not any(photographs.values()):
        _refuse_folder_of_data_sets(folder, class_folders)
    return dict(sorted(photographs.items()))


def _refuse_folder_of_data_sets(folder: Path, inner_folders: list[Path]) -> None:
    """Many data sets come as train/<class> and test/<class>: the one to use is a level further down."""
    data_sets = [inner for inner in inner_folders if any(_list_folder(below)[1] for below in _list_folder(inner)[0])]
    if data_sets:
        names = list_names([path.name for path in data_sets])
        likely = next((path for path in data_sets if path.name.lower().startswith("train")), data_sets[0])
        raise DataError(
            f"{shown(folder)} has its class folders one level further down, in {names}: "
            f"name one such folder, for example {shown(likely)}."
        )


def _list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """The visible folders and the photographs in `folder`, sorted by name."""
    try:
        paths = sorted(path for path in folder.iterdir() if not _is_hidden(path.name))
        folders = [path for path in paths if path.is_dir()]
        # A dangling link is kept, to be reported when it is opened; a pipe or a device is no photograph.
        files = [path for path in paths if path.suffix.lower() in _SUFFIXES and (path.is_file() or not path.exists())]
    except FileNotFoundError:
        raise DataError(f"{shown(folder)} does not exist: name a folder of photographs.") from None
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be read as a folder: {error.strerror}.") from None
    return folders, files


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _NOT_CLASSES


def _class_name(folder: Path) -> str:
    try:
        folder.name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{shown(folder)} has a name that is not Unicode text: rename the folder.") from None
    return composed(folder.name)


def composed(name: str) -> str:
    """The spelling by which names of classes are compared: some media write 'ü' as 'u' and two dots."""
    return unicodedata.normalize("NFC", name)


# One picture --------------------------------------------------------------------------------------------


class UnusablePictureError(Exception):
    """Why a picture cannot be used, in words that go on after "it was skipped:"."""


def read_image(path: Path, framing: Framing) -> bytes:
    """What is stored of a picture, upright and on white: U8 [height, width, channels] of `framing.stored`.

    Grey is ITU-R 601's luma of RGB, as Pillow computes it.

    Raises:
        UnusablePictureError: the file is missing or damaged, or in a format that is not read here.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if path.exists() and not path.is_file():
            raise UnusablePictureError("it is not a file")
        if path.stat().st_size == 0:
            raise UnusablePictureError("it is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return _stored(image, framing)
    except UnusablePictureError:
        raise
    except UnidentifiedImageError:
        raise UnusablePictureError("it is not a picture in a format that can be read here") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnusablePictureError("it has more pixels than are safe to decode") from None
    except MemoryError:
        raise UnusablePictureError("it does not fit into memory") from None
    except OSError as error:
        raise UnusablePictureError(error.strerror or f"it is damaged ({shown(error)})") from None
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise UnusablePictureError(f"it is damaged ({shown(error) or type(error).__name__})") from None


def _stored(image: Image.Image, framing: Framing) -> bytes:
    """What `read_image` does once the file is open."""
    from PIL import Image

    height, width, channels = framing.stored
    # A JPEG can be decoded to 1/2, 1/4 or 1/8 of its side, at a small part of the memory. At least twice the
    # size is kept for the filter below to work on, however it is turned. Other formats ignore this.
    least = 2 * max(height, width)
    image.draft("RGB", (least, least))
    image.load()
    orientation = _orientation(image)
    wanted = (height, width) if orientation in _quarter_turns() else (width, height)
    box, size = _placed(image.size, wanted, framing.fit)
    small: Image.Image = _in_bytes(image).resize(size, Image.Resampling.BICUBIC, box=box)
    if small.mode == "RGBA":
        paper = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(paper, small)
    if orientation is not None:
        small = small.transpose(orientation)  # the small image: turning the whole picture costs more
    small = small.convert("RGB")
    if small.size != (width, height):
        black = Image.new("RGB", (width, height))
        black.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
        small = black
    return (small if channels == 3 else small.convert("L")).tobytes()


def _placed(
    picture: tuple[int, int], wanted: tuple[int, int], fit: str
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """The rectangle of a picture that is taken (left, top, right, bottom), and the (width, height) it is scaled to."""
    (width, height), (to_width, to_height) = picture, wanted
    wider = width * to_height > height * to_width  # than what is wanted
    if fit == "crop":
        across, down = (height * to_width / to_height, height) if wider else (width, width * to_height / to_width)
        left, top = (width - across) / 2, (height - down) / 2
        return (left, top, left + across, top + down), wanted
    if fit == "pad" and wider:  # its width fills the image, its height is rounded to whole pixels
        wanted = (to_width, max((2 * height * to_width + width) // (2 * width), 1))
    elif fit == "pad":
        wanted = (max((2 * width * to_height + height) // (2 * height), 1), to_height)
    return (0, 0, width, height), wanted


def _in_bytes(image: Image.Image) -> Image.Image:
    """The picture with 8 bits a channel in a mode that can be scaled: L, RGB or RGBA."""
    if image.mode.startswith("I"):  # 16 bits, which some versions of Pillow clip instead of scaling
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode == "F":
        raise UnusablePictureError("its pixels are floating-point numbers of unknown range")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _quarter_turns() -> tuple[Image.Transpose, ...]:
    """What exchanges height and width."""
    from PIL import Image

    turns = Image.Transpose
    return turns.TRANSPOSE, turns.ROTATE_270, turns.TRANSVERSE, turns.ROTATE_90


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
    if image.format == "TIFF":  # turned by Pillow itself, which in some versions leaves the tag
        return None
    with contextlib.suppress(Exception):  # broken EXIF says nothing against the pixels
        return turns.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    return None


# Words --------------------------------------------------------------------------------------------------


def shown(thing: object) -> str:
    """A name or message as it can stand in a one-line sentence: escaped if it holds control characters."""
    text = str(thing)
    return text if text.isprintable() else repr(text)


def list_names(names: Sequence[str]) -> str:
    """The first ten names in quotes, and how many there are beyond."""
    first = ", ".join(map(repr, names[:10]))
    return first if len(names) <= 10 else f"{first} and {len(names) - 10} more"
