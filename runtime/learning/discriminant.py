"""A linear classifier of features, fitted in closed form: runtime/native/learning/discriminant.h says how, and does it
in single precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.errors import DataError

from .linear_fit import LEAST_VARIANCE, MOST_SCORES, SHRINKAGES, Array, LinearFit

_WITHOUT_PAIRS = 0.5  # the shrinkage where no class has two samples
_SURE = 0.9  # and how sure of these they are to be
_ABSENT = -1.0  # the logit of a class without samples, others being 0 on the mean


def fit_discriminant(
    features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, smoothing: float = 0
) -> LinearFit:
    """Linear discriminant analysis; shrinkage and scale by leave-one-out.

    Args:
        features: [samples, features]; labels: [samples], below `classes`.
        smoothing: of the labels, for the scale of the logits.

    Raises:
        DataError: features are no numbers.
    """
    x, counts = features.astype(np.float64), np.bincount(labels, minlength=classes)
    present = np.flatnonzero(counts)
    means = np.stack([x[labels == label].mean(0) for label in present])
    centre = means.mean(0)
    means -= centre
    own = np.searchsorted(present, labels)
    has_pairs = bool((counts > 1).any())
    residuals = x - centre - (means[own] if has_pairs else 0)
    if not np.isfinite(residuals).all():
        raise DataError("The network's features of these images are no numbers.")
    each = max(float((residuals**2).mean()), LEAST_VARIANCE)
    covariance = residuals.T @ residuals / len(x)
    left = _left_out(labels, counts, classes, has_pairs)
    shares = 1 / np.bincount(own[left], minlength=len(present))[own[left]]
    shares /= shares.sum()
    least = 1 / (len(left) + 1)  # where all are right, no scale would be large enough: as if one more were wrong
    best: tuple[float, float, Array, Array, Array] | None = None
    for shrinkage in SHRINKAGES if has_pairs else (_WITHOUT_PAIRS,):
        matrix = (1 - shrinkage) * covariance + shrinkage * each * np.eye(x.shape[1])
        solved = np.linalg.solve(matrix, np.concatenate([means, residuals[left]]).T).T
        weight, inner = solved[: len(means)], solved[: len(means)] @ means.T
        if has_pairs:
            scores = _scores(
                shrinkage, residuals[left], solved[len(means) :], weight, inner, own[left], counts[present]
            )
        else:
            scores = -0.5 * (np.diag(inner)[own[left]][:, None] + np.diag(inner) - 2 * inner[own[left]])
        scale = _scale(scores, own[left], shares, least, has_pairs)
        loss = float(shares @ _losses(scores, own[left], least, scale)) if has_pairs else 0
        if best is None or loss < best[0]:
            best = loss, shrinkage, weight, -0.5 * np.diag(inner), scores
    assert best is not None
    _, shrinkage, found, bias, scores = best
    scale = _scale(scores, own[left], shares, max(least, smoothing), has_pairs)
    loss = float(shares @ _losses(scores, own[left], 0, scale))
    weight, full_bias = np.zeros((classes, x.shape[1])), np.full(classes, _ABSENT)
    weight[present] = scale * (found - found.mean(0))
    full_bias[present] = scale * (bias - bias.mean()) - weight[present] @ centre
    others = np.where(np.arange(len(present)) == own[left][:, None], -np.inf, scores).max(1)
    right = float(shares @ (scores[np.arange(len(left)), own[left]] > others))
    if not has_pairs:
        return LinearFit(weight, full_bias, shrinkage, None, None, [])
    sure = 1 / np.exp(scale * (scores - scores.max(1, keepdims=True))).sum(1)
    answers = [(float(np.float32(p)), bool(best)) for p, best in zip(sure, scores.argmax(1) == own[left])]
    return LinearFit(weight, full_bias, shrinkage, loss, right, answers)


def _left_out(labels: NDArray[np.int64], counts: NDArray[np.int64], classes: int, has_pairs: bool) -> NDArray[np.int64]:
    """The samples that are judged; not all, where there are very many scores."""
    each = -(-len(labels) // max(MOST_SCORES // classes, 1))
    chosen = np.arange(0, len(labels), each)
    return chosen[counts[labels[chosen]] > 1] if has_pairs else chosen


def _scores(
    shrinkage: float, residuals: Array, solved: Array, weight: Array, inner: Array, own: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> Array:  # fmt: skip
    """-(x - m_c')^T A'^-1 (x - m_c') / 2 of each sample, A' and m' being without it."""
    n = counts[own].astype(np.float64)
    part = (1 - shrinkage) * n / ((n - 1) * counts.sum())
    h = (residuals * solved).sum(1)  # r^T A^-1 r
    along = residuals @ weight.T
    across = along[np.arange(len(own)), own][:, None] - along
    apart = np.diag(inner)[own][:, None] + np.diag(inner) - 2 * inner[own]
    rest = np.maximum(1 - part * h, 1e-6)
    towards = h[:, None] + across  # r^T A^-1 (x - m_c)
    distance = h[:, None] + 2 * across + apart + (part / rest)[:, None] * towards**2
    distance[np.arange(len(own)), own] = (n / (n - 1)) ** 2 * h / rest
    return np.asarray(-0.5 * distance)


def _losses(scores: Array, own: NDArray[np.int64], smoothing: float, scale: float) -> Array:
    """Cross-entropies of scores times `scale`."""
    above = _above(scores, own)
    return np.asarray(np.log(np.exp(np.minimum(scale * above, 500)).sum(1)) - smoothing * scale * above.mean(1))


def _slope(scores: Array, own: NDArray[np.int64], shares: Array, smoothing: float, scale: float) -> float:
    """Of the mean cross-entropy by the scale."""
    above = _above(scores, own)
    chances = np.exp(np.minimum(scale * above, 500))
    return float(shares @ ((chances * above).sum(1) / chances.sum(1) - smoothing * above.mean(1)))


def _above(scores: Array, own: NDArray[np.int64]) -> Array:
    """Scores less that of the right class."""
    return np.asarray(scores - scores[np.arange(len(own)), own][:, None])


def _scale(scores: Array, own: NDArray[np.int64], shares: Array, smoothing: float, has_pairs: bool) -> float:
    """Of the lowest loss; or, where nothing is left out, the one by which samples are as sure as they are to be."""
    if has_pairs:
        return _where(lambda scale: _slope(scores, own, shares, smoothing, scale))
    return _where(lambda scale: float(shares @ np.exp(-_losses(scores, own, 0, scale))) - _SURE)


def _where(quantity: Callable[[float], float]) -> float:
    """The scale from which on a quantity that grows is positive."""
    low, high = np.log(1e-5), np.log(1e2)
    for _ in range(40):
        middle = 0.5 * (low + high)
        if quantity(float(np.exp(middle))) > 0:
            high = middle
        else:
            low = middle
    return float(np.exp(0.5 * (low + high)))
