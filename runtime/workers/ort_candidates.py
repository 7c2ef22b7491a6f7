"""What a training may end with, and which of that a deployed classifier does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.learning.within_error import within_error

from .ort_judge import Score


@dataclass(frozen=True)
class Candidate:
    """The share of what was trained; accuracy where the classifier comes from; losses [images] at the best scale."""

    share: float
    kept: float | None
    score: Score
    losses: NDArray[np.float64]


def nearest(candidates: Sequence[Candidate], shares: NDArray[np.float64]) -> Candidate:
    """Of a deployed classifier, which knows another place, too: the least share, if any, that is about as good.

    Its logits are as large as the images that it is pulled to call for; training smooths labels.

    Args:
        shares: of images in the mean loss.
    """
    best = min(candidates, key=lambda candidate: float(shares @ candidate.losses))
    lower = (one for one in candidates if 0 < one.share < best.share)
    return next((one for one in lower if within_error(one.losses, best.losses, shares)), best)
