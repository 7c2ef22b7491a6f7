"""What becomes of the rows of known classes where further ones come; why: runtime/native/learning/known_classes.h."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_KEPT = 0.25  # of a known class's row


def keep_known(before: Array, found: Array, present: NDArray[np.bool_]) -> Array:
    """The rows that the classifier gets, [classes, features + 1], biases behind the weights.

    Args:
        before: those of the known classes, which come first.
        found: the discriminant's, of all classes.
        present: which classes there are samples of.
    """
    known = len(before)
    both = np.flatnonzero(present[:known])
    rows = found - found[both].mean(0) + before[both].mean(0)
    rows[both] += _KEPT * (before[both] - rows[both])
    rows[:known][~present[:known]] = before[~present[:known]]
    return np.asarray(rows)
