"""Whether some losses are higher than others, or may be so by chance."""

from __future__ import annotations

import numpy as np

from .linear_fit import Array


def within_error(losses: Array, others: Array, shares: Array) -> bool:
    """Is the mean of losses [samples], by shares, above that of others by no more than a standard error of their
    differences?"""
    apart = losses - others
    mean = float(shares @ apart / shares.sum())
    return mean <= float(np.sqrt(((shares * (apart - mean)) ** 2).sum()) / shares.sum())
