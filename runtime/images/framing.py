"""How an image file becomes the pixels that are stored of it: size, colours, and what of the image is taken.

A model's input of height x width pixels is stored with a margin or without. With one, the stored image is 8/7 as large
on each side: evaluation takes its centre, exactly the input, and training's random crops have room to move in. Without,
it is the input's own size, and evaluation sees all of it, as the app does that the classifier was deployed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FITS = ("crop", "squash", "pad")
LARGEST = 16384  # pixels of a side
_FIT_WORDS = {"crop": "cropped", "squash": "squashed", "pad": "padded"}
_COLOURS = {1: "grey", 3: "RGB"}


def stored_size(height: int, width: int, margin: bool) -> tuple[int, int]:
    """Height and width of a stored image, for an input of `height` x `width`: ceil(8 / 7 of it), or the input's own."""
    return (-(-8 * height // 7), -(-8 * width // 7)) if margin else (height, width)


def range_text(pixel_range: Sequence[float]) -> str:
    """As options and files have it: '50900:52000'."""
    return ":".join(f"{end:.10g}" for end in pixel_range)


@dataclass(frozen=True)
class Framing:
    """What an image has to become; bundles and datasets fit together where theirs are equal.

    `height`, `width` of the model's input in pixels; `channels` 3 (RGB) or 1 (grey); `fit` and `pixel_range` as in
    `Input`.

    Raises:
        ValueError: a value that cannot be; says which.
    """

    height: int
    width: int
    channels: int = 3
    fit: str = "crop"
    margin: bool = True
    pixel_range: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise ValueError(f"{name} {getattr(self, name)} is out of range: 1 to {LARGEST}")
        if self.channels not in _COLOURS:
            raise ValueError(f"channels {self.channels} are neither 3 (RGB) nor 1 (grey)")
        if self.fit not in FITS:
            raise ValueError(f"fit {self.fit!r} is none of {', '.join(FITS)}")
        if self.pixel_range and not (len(self.pixel_range) == 2 and self.pixel_range[0] < self.pixel_range[1]):
            raise ValueError(f"pixel range {list(self.pixel_range)} is no low and high")

    @property
    def stored(self) -> tuple[int, int, int]:
        """The shape of a stored image: height, width, channels."""
        return (*stored_size(self.height, self.width, self.margin), self.channels)

    def __str__(self) -> str:
        """For a sentence: '160 x 96 px, grey, squashed, without a margin' (height first, as in every shape)."""
        margin = "with" if self.margin else "without"
        colours = _COLOURS[self.channels]
        deep = f", {range_text(self.pixel_range)} of deeper pixels" if self.pixel_range else ""
        return f"{self.height} x {self.width} px, {colours}, {_FIT_WORDS[self.fit]}, {margin} a margin{deep}"

    @property
    def options(self) -> str:
        """What `pack` has to be told for this framing."""
        size = f"--resolution {self.height}" if self.height == self.width else f"--size {self.height}x{self.width}"
        words = [size, *(["--channels 1"] if self.channels == 1 else [])]
        words += [f"--fit {self.fit}"] if self.fit != "crop" else []
        words += ["--no-margin"] if not self.margin else []
        words += [f"--pixel-range {range_text(self.pixel_range)}"] if self.pixel_range else []
        return " ".join(words)
