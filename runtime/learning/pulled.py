"""A classifier that knows its classes, fitted to further samples: runtime/native/learning/pulled.h says how."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.errors import DataError

from .linear_fit import Array, LinearFit

PULLS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)  # as shares of a sample's mean squared length
_PULL_OF_FEW = 1e-3
_FEW = 5  # samples of a class, on the mean
_FOLDS = 5
_MOST_JUDGED = 512  # samples
_CLOSE, _CLOSE_ENOUGH = 1e-12, 1e-5  # to the least loss: of what comes out, of what is only compared
_MOST_ROUNDS, _MOST_TRIES = 500, 20
_STRAIGHT = 1e-3  # of a slope, what is left of it where a step ends


def fit_pulled(features: NDArray[np.float32], labels: NDArray[np.int64], before: Array) -> LinearFit:
    """Logistic regression that is pulled towards the classifier that there is.

    Args:
        features: [samples, features].
        labels: [samples]; multi-label, which classes each has [samples, classes].
        before: the classifier's rows [classes, features + 1], biases behind the weights.

    Raises:
        DataError: features are no numbers.
    """
    x = np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], 1)
    if not np.isfinite(x).all():
        raise DataError("The network's features of these images are no numbers.")
    multi_label = labels.ndim == 2
    targets = labels.astype(np.float64) if multi_label else np.eye(len(before))[labels]

    def of(samples: NDArray[np.int64]) -> _Samples:
        return _Samples(x[samples], x[samples] @ before.T, targets[samples], multi_label)

    judged = of(np.arange(0, len(x), -(-len(x) // _MOST_JUDGED)))
    all_samples = of(np.arange(len(x)))
    pull, logits = judged.choose_pull()
    found, _ = all_samples.fit(all_samples.shares(), pull, _CLOSE)
    rows = before + found.T @ x
    weight, bias = rows[:, :-1], rows[:, -1]
    if logits is None:
        return LinearFit(weight, bias, None, None, None, [], pull)
    shares, is_right = judged.shares(), judged.right(logits)
    loss, right = float(shares @ judged.losses(logits)), float(shares @ is_right.mean(1))
    answers = [] if multi_label else [(float(np.float32(p)), bool(ok)) for p, ok in zip(_sure(logits), is_right[:, 0])]
    return LinearFit(weight, bias, None, loss, right, answers, pull)


class _Samples:
    """Samples x [samples, features], the logits that they have before [samples, classes], and what these are to say.

    The rows that are added to the classifier are sums of samples, found.T @ x: found [samples, classes] is what is
    looked for.
    """

    def __init__(self, x: Array, before: Array, targets: Array, multi_label: bool) -> None:
        self._products, self._before, self._targets, self._multi_label = x @ x.T, before, targets, multi_label
        self._scale = float(np.trace(self._products)) / len(x)

    def shares(self, left_out: NDArray[np.bool_] | None = None) -> Array:
        """Of samples in a mean: every class that is there counts as much as any other."""
        there = np.ones(len(self._before)) if left_out is None else 1.0 - left_out
        if not self._multi_label:
            counts = there @ self._targets
            there = there / np.maximum(self._targets @ counts, 1)
        return np.asarray(there / there.sum())

    def losses(self, logits: Array) -> Array:
        """Cross-entropies [samples]; multi-label, the mean over labels."""
        if self._multi_label:
            return np.asarray((np.logaddexp(0, logits) - self._targets * logits).mean(1))
        return np.asarray(_log_sum(logits) - (self._targets * logits).sum(1))

    def right(self, logits: Array) -> NDArray[np.bool_]:
        """Which answers are right: [samples, 1], or multi-label [samples, classes]."""
        if self._multi_label:
            return np.asarray((logits > 0) == (self._targets > 0))
        return np.asarray(logits.argmax(1) == self._targets.argmax(1))[:, None]

    def choose_pull(self) -> tuple[float, Array | None]:
        """The pull, and the logits that samples have when they are left out; of few samples, the usual one."""
        folds = self._folds()
        if folds is None:
            return _PULL_OF_FEW, None
        parts = [np.zeros_like(self._before) for _ in range(_FOLDS)]
        losses = np.array([self.losses(self._leave_out(folds, pull, parts)) for pull in PULLS])
        more = losses - losses[(losses @ self.shares()).argmin()]  # than the least
        mean = more @ self.shares()
        error = np.sqrt(((self.shares() * (more - mean[:, None])) ** 2).sum(1))
        pull = PULLS[int(np.flatnonzero(mean <= error)[0])]
        return pull, self._leave_out(folds, pull, [np.zeros_like(self._before) for _ in range(_FOLDS)])

    def _leave_out(self, folds: NDArray[np.int64], pull: float, parts: list[Array]) -> Array:
        """The logits of each fold by a fit to the others, which begins with its part and leaves there what it finds."""
        left_out = np.empty_like(self._before)
        for fold in range(_FOLDS):
            out = folds == fold
            parts[fold], logits = self.fit(self.shares(out), pull, _CLOSE_ENOUGH, parts[fold])
            left_out[out] = logits[out]
        return left_out

    def _folds(self) -> NDArray[np.int64] | None:
        """Of each sample. Neighbours, which may be of one scene, stay together."""
        count = len(self._before)
        if self._multi_label:
            return np.arange(count) * _FOLDS // count if count >= 2 * _FOLDS else None
        labels = self._targets.argmax(1)
        counts = np.bincount(labels)
        if count < _FEW * (counts > 0).sum():
            return None
        folds = np.zeros(count, np.int64)
        for label in np.flatnonzero(counts):
            folds[labels == label] = np.arange(counts[label]) * _FOLDS // counts[label]
        return folds

    def fit(self, shares: Array, pull: float, close: float, found: Array | None = None) -> tuple[Array, Array]:
        """Conjugate gradients (Polak and Ribiere), from `found` on; what is found, and the logits with it.

        Products of two arrays are those of the rows that they stand for: sum(a * (x x^T b)).
        """
        strength = pull * self._scale
        found = np.zeros_like(self._before) if found is None else found.copy()
        added = self._products @ found  # to the logits
        along, along_added, last = np.zeros((3, *found.shape))
        last_square = 0.0
        for _ in range(_MOST_ROUNDS):
            slopes, _ = self._slopes(self._before + added)
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
            step = self._step(self._before + added, along_added, shares, pulled)
            found, added = found + step * along, added + step * along_added
            last, last_square = gradient_added, square
        return found, self._before + added

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
        if self._multi_label:
            classes = logits.shape[1]
            chances = 1 / (1 + np.exp(-logits))
            return (chances - self._targets) / classes, (chances * (1 - chances) * along**2).sum(1) / classes
        chances = np.exp(logits - _log_sum(logits)[:, None])
        mean = (chances * along).sum(1)
        return chances - self._targets, (chances * (along - mean[:, None]) ** 2).sum(1)


def _log_sum(logits: Array) -> Array:
    most = logits.max(1)
    return np.asarray(most + np.log(np.exp(logits - most[:, None]).sum(1)))


def _sure(logits: Array) -> Array:
    """The probability of the likeliest class."""
    return np.asarray(np.exp(logits.max(1) - _log_sum(logits)))
