"""How much of a share that was counted on a few is chance."""

from __future__ import annotations

import math


def likely(share: float, count: int) -> tuple[float, float]:
    """Where a share that was counted on `count` is likely (95 %) to lie on all: Wilson's score interval (1927)."""
    z = 1.959964
    spread = z * z / count
    middle, width = share + spread / 2, z * math.sqrt((share * (1 - share) + spread / 4) / count)
    return (middle - width) / (1 + spread), (middle + width) / (1 + spread)
