"""Losses of classifiers of which some are surer than others: runtime/native/scaled.h in numpy."""

from __future__ import annotations

import numpy as np

from .linear_fit import Array

_LEAST, _MOST = 0.05, 20.0  # scales of logits
_HALVINGS = 30


def scaled_losses(logits: Array, targets: Array, shares: Array, multi_label: bool) -> Array:
    """Cross-entropies [samples] of logits [samples, classes] times the one number by which their mean is least.

    Args:
        targets: [samples, classes], 1 for the classes that a sample has.
        shares: of samples in the mean.
    """
    low, high = np.log(_LEAST), np.log(_MOST)
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if float(shares @ _losses(logits, targets, float(np.exp(middle)), multi_label)[1]) > 0:
            high = middle
        else:
            low = middle
    return _losses(logits, targets, float(np.exp(0.5 * (low + high))), multi_label)[0]


def _losses(logits: Array, targets: Array, scale: float, multi_label: bool) -> tuple[Array, Array]:
    """And their slopes by the scale, [samples]."""
    scaled = scale * logits
    if multi_label:
        chances = 0.5 * (1 + np.tanh(0.5 * scaled))
        return (np.logaddexp(0, scaled) - targets * scaled).mean(1), (logits * (chances - targets)).mean(1)
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    chances = powers / powers.sum(1, keepdims=True)
    losses = np.log(powers.sum(1)) + scaled.max(1) - (targets * scaled).sum(1)
    return losses, (logits * (chances - targets)).sum(1)
