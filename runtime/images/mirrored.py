"""Classes that are each other's mirror image, as arrows are: then images must not be mirrored while training."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Mirrored:
    """Of the images that are judged, how many are right but mirrored wrong, or the other way round."""

    lost: int
    gained: int
    images: int

    @property
    def harms(self) -> bool:
        """Are classes each other's mirror image? So many more are lost than chance would have it (McNemar 1947)."""
        more = self.lost - self.gained
        return more > 2 * math.sqrt(self.lost + self.gained) and more > 0.1 * self.images

    def __str__(self) -> str:
        return (
            f"Mirrored, {self.lost - self.gained} more of {self.images} images are taken for another class: images are "
            "not mirrored while training (--flip mirrors them)."
        )
