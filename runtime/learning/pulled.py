"""A classifier that knows its classes, fitted to further samples: runtime/native/learning/pulled.h says how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.errors import DataError

from .linear_fit import Array, LinearFit
from .logistic import Logistic, sure
from .within_error import within_error

PULLS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)  # as shares of a sample's mean squared length
_PULL_OF_FEW = 1e-3
_FEW = 5  # samples of a class, on the mean
_FOLDS = 5
MOST_GIVEN_UP = 0.03  # of the accuracy where the classifier comes from
_MOST_JUDGED = 512  # samples
_CLOSE, _CLOSE_ENOUGH = 1e-12, 1e-5  # to the least loss: of what comes out, of what is only compared


@dataclass(frozen=True)
class Kept:
    """Samples of the place that a classifier comes from: features [samples, features], labels [samples]; and their
    share in what is fitted."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    share: float


def fit_pulled(
    features: NDArray[np.float32], labels: NDArray[np.int64], before: Array, kept: Kept | None = None
) -> LinearFit:
    """Logistic regression that is pulled towards the classifier that there is.

    Args:
        features: [samples, features].
        labels: [samples]; multi-label, which classes each has [samples, classes].
        before: the classifier's rows [classes, features + 1], biases behind the weights.

    Raises:
        DataError: features are no numbers.
    """
    multi_label, own = labels.ndim == 2, len(features)
    if kept is not None:
        features = np.concatenate([features, kept.features])
        labels = np.concatenate([labels, kept.labels])
    x = np.concatenate([features.astype(np.float64), np.ones((len(features), 1))], 1)
    if not np.isfinite(x).all():
        raise DataError("The network's features of these images are no numbers.")
    targets = labels.astype(np.float64) if multi_label else np.eye(len(before))[labels]
    keep = kept.share if kept is not None else 0.0

    def of(chosen: NDArray[np.int64]) -> Logistic:
        some = np.concatenate([chosen, np.arange(own, len(x))])
        return Logistic(x[some], x[some] @ before.T, targets[some], multi_label, len(chosen), keep)

    pull, said = _choose_pull(of(_spread(own, _MOST_JUDGED)))
    everything = of(np.arange(own))
    found, _ = everything.fit(everything.shares(), pull, _CLOSE)
    rows = before + found.T @ x
    return LinearFit(rows[:, :-1], rows[:, -1], None, pull=pull, **said)


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Numbers below `count` at equal distances, not more than `most`."""
    return np.arange(0, count, max(-(-count // most), 1))


def _choose_pull(samples: Logistic) -> tuple[float, dict[str, Any]]:
    """The pull, of few samples the usual one, and what samples that are left out say of it."""
    own, folds = slice(samples.own), samples.folds(_FOLDS)
    classes = len(np.unique(samples.labels[own]))
    few = samples.own < (2 * _FOLDS if samples.multi_label else _FEW * classes)
    pull = _PULL_OF_FEW
    shares = samples.shares()[own]
    shares /= shares.sum()
    if few:
        folds[own] = _FOLDS  # none is left out
    else:
        parts = [np.zeros_like(samples.before) for _ in range(_FOLDS)]
        found = [_leave_out(samples, folds, pull, parts) for pull in PULLS]
        losses = [samples.losses(logits)[own] for logits in found]
        keeping = [at for at, logits in enumerate(found) if _given_up(samples, logits) <= MOST_GIVEN_UP] or [0]
        least = losses[min(keeping, key=lambda at: float(losses[at] @ shares))]
        pull = next(PULLS[at] for at in keeping if within_error(losses[at], least, shares))
    logits = _leave_out(samples, folds, pull, [np.zeros_like(samples.before) for _ in range(_FOLDS)])
    right = samples.right(logits)
    said: dict[str, Any] = {"loss": None, "accuracy": None, "answers": []}
    if not few:
        said["loss"] = float(shares @ samples.losses(logits)[own])
        said["accuracy"] = float(shares @ right[own].mean(1))
    if not few and not samples.multi_label:
        said["answers"] = [(float(np.float32(p)), bool(ok)) for p, ok in zip(sure(logits), right[own, 0])]
    if samples.own < len(samples.before):
        said["kept"] = (_kept(samples, samples.before), _kept(samples, logits))
    return pull, said


def _kept(samples: Logistic, logits: Array) -> float:
    """The accuracy on kept samples."""
    there = samples.shares()[samples.own :]
    return float(there @ samples.right(logits)[samples.own :, 0] / there.sum())


def _given_up(samples: Logistic, logits: Array) -> float:
    """Of the accuracy on kept samples."""
    if samples.own == len(samples.before):
        return 0.0
    return _kept(samples, samples.before) - _kept(samples, logits)


def _leave_out(samples: Logistic, folds: NDArray[np.int64], pull: float, parts: list[Array]) -> Array:
    """The logits of each fold by a fit to the others, which begins with its part and leaves there what it finds."""
    left_out = np.zeros_like(samples.before)
    for fold in range(_FOLDS):
        out = folds == fold
        if out.any():
            parts[fold], logits = samples.fit(samples.shares(out), pull, _CLOSE_ENOUGH, parts[fold])
            left_out[out] = logits[out]
    return left_out
