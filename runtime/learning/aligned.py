"""A classifier in a place of which there are images without labels: runtime/native/learning/aligned.h in numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.errors import DataError

from .discriminant import fit_discriminant
from .linear_fit import Array
from .logistic import sure

_SHARE = 0.6
_LESS_SURE, _MORE_AGREED = 0.05, 0.1


@dataclass(frozen=True)
class Aligned:
    """What is taken off each class's bias [classes]; the share of the way to the features' mean; how sure the answers
    are as they were and at the mean itself, and how often a second classifier agrees with them."""

    off: Array
    share: float
    sure_before: float
    sure: float
    agreed_before: float
    agreed: float

    @property
    def helps(self) -> bool:
        """Is it likely to?"""
        return self.sure > self.sure_before - _LESS_SURE or self.agreed > self.agreed_before + _MORE_AGREED


class OldPlace:
    """Where a classifier comes from, by some of what it has seen there."""

    def __init__(self, kept: NDArray[np.float32], labels: NDArray[np.int64], before: Array) -> None:
        """Take features.

        Args:
            kept, labels: [samples, features]; [samples], of every class some.
            before: the classifier's rows [classes, features + 1], biases behind the weights.
        """
        there, classes = kept.astype(np.float64), len(before)
        means = np.stack([there[labels == label].mean(0) for label in range(classes)])
        counts = np.bincount(labels, minlength=classes)
        self._mean = means.mean(0)
        self._by_chance = float((((there - means[labels]) ** 2).sum(1) / counts[labels] ** 2).sum()) / classes**2
        self._before = before
        self._second = fit_discriminant(kept, labels, classes)

    def align(self, features: NDArray[np.float32]) -> Aligned:
        """Towards where the mean of features [images, features] of another place is what it was here.

        Raises:
            DataError: features are no numbers.
        """
        x, before, second = features.astype(np.float64), self._before, self._second
        if not np.isfinite(x).all():
            raise DataError("The network's features of these images are no numbers.")
        moved = x.mean(0) - self._mean
        by_chance = float(((x - x.mean(0)) ** 2).sum()) / len(x) ** 2 + self._by_chance
        share = _SHARE * max(1 - by_chance / max(float((moved**2).sum()), 1e-30), 0.0)
        off = before[:, :-1] @ moved
        logits = x @ before[:, :-1].T + before[:, -1]
        others = x @ second.weight.T + second.bias
        others_moved = others - second.weight @ moved
        return Aligned(
            share * off,
            share,
            float(sure(logits).mean()),
            float(sure(logits - off).mean()),
            float((logits.argmax(1) == others.argmax(1)).mean()),
            float(((logits - off).argmax(1) == others_moved.argmax(1)).mean()),
        )
