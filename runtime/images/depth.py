"""Images with more than 8 bits a pixel, as thermal cameras give them: which of their numbers are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

WHOLE = (0.0, 65536.0)  # of 16 bits
_NARROW = 0.25  # of the range: 64 of 256 grey values


@dataclass
class DeepPixels:
    """The lowest and highest pixel of the deep images that were read."""

    low: float = float("inf")
    high: float = -float("inf")
    images: int = 0

    def see(self, image: Image.Image) -> None:
        """Take note of an image of one deep channel."""
        low, high = image.getextrema()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))  # type: ignore[arg-type]
        self.images += 1

    def warning(self, pixel_range: Sequence[float]) -> str | None:
        """A sentence, with a way out, where few of 256 grey values are left of what was seen, or None."""
        begin, end = pixel_range or WHOLE
        inside = min(self.high, end) - max(self.low, begin)
        used = inside / (end - begin)
        if not self.images or used >= _NARROW:
            return None
        left = max(round(256 * used) + 1, 1)
        spread = f"{self.low:.6g}:{max(self.high, self.low + 1):.6g}"
        share = f"{max(100 * used, 0):.2g} %"
        return (
            f"Images with more than 8 bits ({self.images}) use {self.low:.6g} to {self.high:.6g}, {share} "
            f"of {begin:g} to {end:g}: about {left} grey values are left. Prepare with --pixel-range {spread}, or a "
            "little wider."
        )


def is_deep(image: Image.Image) -> bool:
    """Has it one channel of more than 8 bits?"""
    return image.mode.startswith("I") or image.mode == "F"
