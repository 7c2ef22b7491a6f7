"""Losses of classifiers of which some are surer than others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from tinytl_edge.runtime.learning.scaled import scaled_losses
from tinytl_edge.runtime.learning.within_error import within_error


@given(st.integers(0, 10**6), st.floats(0.3, 3), st.booleans())
def test_how_sure_a_classifier_is_does_not_count(seed: int, scale: float, multi_label: bool) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, 30)
    targets = (random.random((30, 4)) < 0.4).astype(float) if multi_label else np.eye(4)[labels]
    logits, shares = random.normal(size=(30, 4)) + 1.5 * targets, random.dirichlet(np.ones(30))

    def mean_at(power: float) -> float:
        scaled = np.exp(power) * logits
        if multi_label:
            return float(shares @ (np.logaddexp(0, scaled) - targets * scaled).mean(1))
        return float(shares @ (np.log(np.exp(scaled).sum(1)) - (targets * scaled).sum(1)))

    least = minimize_scalar(mean_at, bounds=(np.log(0.05), np.log(20)), method="bounded")
    assume(0.3 < np.exp(least.x) < 5)  # there is a best scale, also of logits three times as large
    found = scaled_losses(logits, targets, shares, multi_label)
    assert shares @ found == pytest.approx(least.fun, abs=1e-6)
    np.testing.assert_allclose(scaled_losses(scale * logits, targets, shares, multi_label), found, atol=1e-5)


def test_what_may_be_chance_is_within_the_error() -> None:
    random = np.random.default_rng(0)
    others, shares = random.random(40), np.ones(40)
    assert within_error(others, others, shares)
    apart = np.tile([-1.0, 1.0], 20)
    assert within_error(others + 0.1 + apart, others, shares)  # the error is 1 / sqrt(40)
    assert not within_error(others + 0.2 + apart, others, shares)
    assert not within_error(others + 0.001, others, shares)  # of every one
