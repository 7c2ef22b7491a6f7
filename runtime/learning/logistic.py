"""Logistic regression of samples that a classifier has logits of: runtime/native/learning/logistic.h in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .linear_fit import Array

_MOST_ROUNDS, _MOST_TRIES = 500, 20
_STRAIGHT = 1e-3  # of a slope, what is left of it where a step ends
_HIDDEN = -1e9  # a logit that has no part in anything


class Logistic:
    """Samples x [samples, features], the logits that they have before [samples, classes], and what these are to say.

    The first `own` are of this place; others, of the place that the classifier comes from, have the share `keep` in a
    mean. Of a place only the classes that it shows are told from each other: what is known of others stays. The rows
    that are added to the classifier are sums of samples, found.T @ x: found [samples, classes] is what is looked for.
    """

    def __init__(self, x: Array, before: Array, targets: Array, multi_label: bool, own: int, keep: float) -> None:
        self.before, self.targets, self.multi_label, self.own = before, targets, multi_label, own
        self._keep = keep if own < len(x) else 0.0
        self._products = x @ x.T
        self._scale = float(np.trace(self._products)) / len(x)
        self._hidden = np.zeros_like(before)  # added to logits
        for place in () if multi_label else (slice(own), slice(own, None)):
            self._hidden[place, ~targets[place].any(0)] = _HIDDEN

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of each sample; multi-label, 0."""
        return np.zeros(len(self.before), np.int64) if self.multi_label else self.targets.argmax(1)

    def shares(self, left_out: NDArray[np.bool_] | None = None) -> Array:
        """Of samples in a mean: of a place every class that is there has the same."""
        there = np.ones(len(self.before)) if left_out is None else 1.0 - left_out
        for part, share in ((slice(self.own), 1 - self._keep), (slice(self.own, None), self._keep)):
            labels = self.labels[part]
            counts = np.bincount(labels, there[part], self.before.shape[1])
            there[part] *= share / (np.maximum(counts[labels], 1) * max((counts > 0).sum(), 1))
        return np.asarray(there)

    def folds(self, count: int) -> NDArray[np.int64]:
        """Of each sample, below `count`: of a place neighbours of a class together, which may be of one scene."""
        found = np.zeros(len(self.before), np.int64)
        own = np.arange(len(found)) < self.own
        for label in np.unique(self.labels):
            for place in (own, ~own):
                those = np.flatnonzero((self.labels == label) & place)
                found[those] = np.arange(len(those)) * count // max(len(those), 1)
        return found

    def losses(self, logits: Array) -> Array:
        """Cross-entropies [samples]; multi-label, the mean over labels."""
        if self.multi_label:
            return np.asarray((np.logaddexp(0, logits) - self.targets * logits).mean(1))
        return np.asarray(_log_sum(logits + self._hidden) - (self.targets * logits).sum(1))

    def right(self, logits: Array) -> NDArray[np.bool_]:
        """Which answers are right: [samples, 1], or multi-label [samples, classes]."""
        if self.multi_label:
            return np.asarray((logits > 0) == (self.targets > 0))
        return np.asarray(logits.argmax(1) == self.labels)[:, None]

    def fit(self, shares: Array, pull: float, close: float, found: Array | None = None) -> tuple[Array, Array]:
        """Conjugate gradients (Polak and Ribiere), from `found` on; what is found, and the logits with it.

        Products of two arrays are those of the rows that they stand for: sum(a * (x x^T b)).
        """
        strength = pull * self._scale
        found = np.zeros_like(self.before) if found is None else found.copy()
        added = self._products @ found  # to the logits
        along, along_added, last = np.zeros((3, *found.shape))
        last_square = 0.0
        for _ in range(_MOST_ROUNDS):
            slopes, _ = self._slopes(self.before + added)
            gradient = shares[:, None] * slopes + strength * found
            gradient_added = self._products @ gradient
            square = float((gradient * gradient_added).sum())
            if square <= 2 * strength * close:  # no loss is lower by more than `close`
                break
            keep = max(0.0, square - float((gradient * last).sum())) / last_square if last_square else 0.0
            along, along_added = keep * along - gradient, keep * along_added - gradient_added
            if float((along * gradient_added).sum()) >= 0:
                along, along_added = -gradient, -gradient_added
            pulled = strength * float((found * along_added).sum()), strength * float((along * along_added).sum())
            step = self._step(self.before + added, along_added, shares, pulled)
            found, added = found + step * along, added + step * along_added
            last, last_square = gradient_added, square
        return found, self.before + added

    def _step(self, logits: Array, along: Array, shares: Array, pulled: tuple[float, float]) -> float:
        """To the lowest loss along a direction: Newton's method between steps known to be too short and too long."""
        step, short, long, first = 0.0, 0.0, np.inf, 0.0
        for number in range(_MOST_TRIES):
            slopes, curves = self._slopes(logits + step * along, along)
            slope = float(shares @ (slopes * along).sum(1)) + pulled[0] + step * pulled[1]
            if number == 0:
                first = abs(slope)
            elif abs(slope) <= _STRAIGHT * first:
                break
            if slope < 0:
                short = step
            else:
                long = step
            step -= slope / (float(shares @ curves) + pulled[1])
            if not short < step < long:
                step = (short + long) / 2 if long < np.inf else 2 * short
        return step

    def _slopes(self, logits: Array, along: Array | None = None) -> tuple[Array, Array]:
        """Of each sample's loss by its logits, and its curvature [samples] along a direction of logits."""
        along = np.zeros_like(logits) if along is None else along
        if self.multi_label:
            classes = logits.shape[1]
            chances = 0.5 * (1 + np.tanh(0.5 * logits))
            return (chances - self.targets) / classes, (chances * (1 - chances) * along**2).sum(1) / classes
        logits = logits + self._hidden
        chances = np.exp(logits - _log_sum(logits)[:, None])
        mean = (chances * along).sum(1)
        return chances - self.targets, (chances * (along - mean[:, None]) ** 2).sum(1)


def _log_sum(logits: Array) -> Array:
    most = logits.max(1)
    return np.asarray(most + np.log(np.exp(logits - most[:, None]).sum(1)))


def sure(logits: Array) -> Array:
    """The probability of the likeliest class."""
    return np.asarray(np.exp(logits.max(1) - _log_sum(logits)))
