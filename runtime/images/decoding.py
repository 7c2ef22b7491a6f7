"""An image file, read as the few pixels that are stored of it.

Pillow is imported when the first image is read, so that training from a packed dataset does without it.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinytl_edge.runtime.wording import shown

from .depth import DeepPixels, is_deep
from .framing import Framing

if TYPE_CHECKING:
    from PIL import Image

# What Pillow may take a file for, whatever its name: some of its other formats (EPS) start programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF")
_EXIF_ORIENTATION = 0x0112
_KEPT = 1.25  # times the size that is wanted, however it is turned


class UnusableImageError(Exception):
    """Why an image cannot be used, in words that go on after "it was skipped:"."""


def read_image(path: Path, framing: Framing, deep: DeepPixels | None = None) -> bytes:
    """What is stored of an image, upright and on white: U8 [height, width, channels] of `framing.stored`.

    Grey is ITU-R 601's luma of RGB, as Pillow computes it. `deep` is shown what has more than 8 bits.

    Raises:
        UnusableImageError: the file is missing or damaged, or in a format that is not read here.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if path.exists() and not path.is_file():
            raise UnusableImageError("it is not a file")
        if path.stat().st_size == 0:
            raise UnusableImageError("it is empty")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                return _stored(image, framing, deep)
    except UnusableImageError:
        raise
    except UnidentifiedImageError:
        raise UnusableImageError("it is not an image in a format that can be read here") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnusableImageError("it has more pixels than are safe to decode") from None
    except MemoryError:
        raise UnusableImageError("it does not fit into memory") from None
    except OSError as error:
        raise UnusableImageError(error.strerror or f"it is damaged ({shown(error)})") from None
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise UnusableImageError(f"it is damaged ({shown(error) or type(error).__name__})") from None


def find_deep(paths: Iterable[Path]) -> DeepPixels:
    """What those of the images that have more than 8 bits use of their range; of others the header alone is read."""
    from PIL import Image

    found = DeepPixels()
    for path in paths:
        # One that cannot be read is named by whoever needs its pixels.
        with contextlib.suppress(Exception), Image.open(path, formats=FORMATS) as image:
            if is_deep(image):
                found.see(image)
    return found


def _stored(image: Image.Image, framing: Framing, deep: DeepPixels | None) -> bytes:
    """What `read_image` does once the file is open."""
    from PIL import Image

    height, width, channels = framing.stored
    # A JPEG can be decoded to 1/2, 1/4 or 1/8 of its side, at a small part of the memory: the image is then, on average
    # over its pixels, less than a grey level off what the filter below makes of all of it. Other formats ignore this.
    least = math.ceil(_KEPT * max(height, width))
    image.draft("RGB", (least, least))
    image.load()
    if deep is not None and is_deep(image):
        deep.see(image)
    turn = orientation(image)
    wanted = (height, width) if turn in quarter_turns() else (width, height)
    box, size = _placed(image.size, wanted, framing.fit)
    small: Image.Image = _in_bytes(image, framing.pixel_range).resize(size, Image.Resampling.BICUBIC, box=box)
    if small.mode == "RGBA":
        paper = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(paper, small)
    if turn is not None:
        small = small.transpose(turn)  # the small image: turning the whole image costs more
    small = small.convert("RGB")
    if small.size != (width, height):
        black = Image.new("RGB", (width, height))
        black.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
        small = black
    return (small if channels == 3 else small.convert("L")).tobytes()


def _placed(
    image: tuple[int, int], wanted: tuple[int, int], fit: str
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """The rectangle of an image that is taken (left, top, right, bottom), and the (width, height) it is scaled to."""
    (width, height), (to_width, to_height) = image, wanted
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


def _in_bytes(image: Image.Image, pixel_range: Sequence[float]) -> Image.Image:
    """The image with 8 bits a channel in a mode that can be scaled: L, RGB or RGBA."""
    if is_deep(image) and pixel_range:
        low, high = pixel_range
        scale = 255 / (high - low)
        deep = image.convert("F")
        return deep.point(lambda value: value * scale + (0.5 - low * scale)).convert("L")
    if image.mode == "F":
        raise UnusableImageError("its pixels are floating-point numbers of unknown range: --pixel-range tells it")
    if is_deep(image):  # 16 bits, which some versions of Pillow clip instead of scaling
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def quarter_turns() -> tuple[Image.Transpose, ...]:
    """What exchanges height and width."""
    from PIL import Image

    turns = Image.Transpose
    return turns.TRANSPOSE, turns.ROTATE_270, turns.TRANSVERSE, turns.ROTATE_90


def orientation(image: Image.Image) -> Image.Transpose | None:
    """What to do to the stored pixels to see the image upright."""
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
