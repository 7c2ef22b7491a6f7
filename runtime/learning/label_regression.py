"""A linear classifier of labels that stand beside each other (multi-label), fitted in closed form:
runtime/native/learning/label_regression.h says how, and does it in single precision."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.errors import DataError

from .linear_fit import LEAST_VARIANCE, MOST_SCORES, SHRINKAGES, Array, LinearFit

_LEAST_REST = 1e-6  # of a sample's own share in what is said of it
_ROUNDS = 50  # of Newton's method
_LEAST_CURVATURE = 1e-6


def fit_labels(features: NDArray[np.float32], marks: NDArray[np.uint8], smoothing: float = 0) -> LinearFit:
    """Ridge regression of every label; the ridge by leave-one-out, and from scores so found to logits, too.

    Args:
        features: [samples, features]; marks: [samples, labels], 0 or 1.
        smoothing: of the labels, for the logits.

    Raises:
        DataError: features are no numbers.
    """
    x, count = features.astype(np.float64), len(features)
    centre, rates = x.mean(0), marks.mean(0)
    residuals, wanted = x - centre, marks - rates
    if not np.isfinite(residuals).all():
        raise DataError("The network's features of these images are no numbers.")
    each = max(float((residuals**2).mean()), LEAST_VARIANCE)
    covariance, along = residuals.T @ residuals / count, wanted.T @ residuals / count
    left = np.arange(0, count, -(-count // max(MOST_SCORES // marks.shape[1], 1)))
    best: tuple[float, float, Array, Array] | None = None
    for shrinkage in SHRINKAGES:
        matrix = (1 - shrinkage) * covariance + shrinkage * each * np.eye(x.shape[1])
        solved = (1 - shrinkage) * np.linalg.solve(matrix, np.concatenate([along, residuals[left]]).T).T
        weight, own = solved[: len(along)], (1 + (residuals[left] * solved[len(along) :]).sum(1)) / count
        found = residuals[left] @ weight.T
        scores = wanted[left] - (wanted[left] - found) / np.maximum(1 - own, _LEAST_REST)[:, None]
        logistic = np.array([_logistic(*pair, 0) for pair in zip(scores.T, marks[left].T)])
        loss = _loss(logistic[:, 0] * scores + logistic[:, 1], marks[left])
        if best is None or loss < best[0]:
            best = loss, shrinkage, weight, scores
    assert best is not None
    _, shrinkage, weight, scores = best
    scale, shift = np.array([_logistic(*pair, smoothing) for pair in zip(scores.T, marks[left].T)]).T
    logits = scale * scores + shift
    weight = scale[:, None] * weight
    accuracy = float(((logits > 0) == marks[left]).mean())
    return LinearFit(weight, shift - weight @ centre, shrinkage, _loss(logits, marks[left]), accuracy, [])


def _loss(logits: Array, marks: NDArray[np.uint8]) -> float:
    """The mean cross-entropy."""
    return float(np.logaddexp(0, np.where(marks > 0, -logits, logits)).mean())


def _logistic(scores: Array, marks: NDArray[np.uint8], smoothing: float) -> tuple[float, float]:
    """Scale and shift that make logits of scores: Platt, Probabilistic outputs for support vector machines, 1999."""
    has, count = int(marks.sum()), len(marks)
    high, low = min((has + 1) / (has + 2), 1 - smoothing / 2), max(1 / (count - has + 2), smoothing / 2)
    targets = np.where(marks > 0, high, low)

    def loss(scale: float, shift: float) -> float:
        logits = scale * scores + shift
        return float((np.logaddexp(0, logits) - targets * logits).mean())

    mean = float(targets.mean())
    scale, shift = 0.0, float(np.log(mean / (1 - mean)))
    lowest, constant = loss(scale, shift), shift
    for _ in range(_ROUNDS):
        chances = 1 / (1 + np.exp(-np.clip(scale * scores + shift, -500, 500)))
        slopes = chances - targets
        by_scale, by_shift = float((slopes * scores).mean()), float(slopes.mean())
        curves = chances * (1 - chances)
        a = float((curves * scores**2).mean()) + _LEAST_CURVATURE
        b, c = float((curves * scores).mean()), float(curves.mean()) + _LEAST_CURVATURE
        determinant = a * c - b * b
        steps = (c * by_scale - b * by_shift) / determinant, (a * by_shift - b * by_scale) / determinant
        share = 1.0
        while share > 1e-6 and loss(scale - share * steps[0], shift - share * steps[1]) > lowest:
            share /= 2
        scale, shift = scale - share * steps[0], shift - share * steps[1]
        before, lowest = lowest, loss(scale, shift)
        if before - lowest < 1e-9:
            break
    return (scale, shift) if scale > 0 else (0.0, constant)
