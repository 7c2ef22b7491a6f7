"""A classifier that knows its classes, fitted to samples with a pull towards what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from native_learning import Floats, Labels, NativeFit
from numpy.typing import NDArray
from scipy.optimize import minimize

from tinytl_edge.runtime.errors import DataError
from tinytl_edge.runtime.learning import pulled
from tinytl_edge.runtime.learning.discriminant import fit_discriminant
from tinytl_edge.runtime.learning.linear_fit import LinearFit
from tinytl_edge.runtime.learning.pulled import Kept, fit_pulled

Array = NDArray[np.float64]
Problem = tuple[Floats, Labels, Floats]


def problem(seed: int, classes: int, features: int, each: int, multi_label: bool = False) -> Problem:
    """Features of samples, their labels or marks, and a classifier that knows a little of them."""
    random = np.random.default_rng(seed)
    means = 2 * random.normal(size=(classes, features))
    labels = np.repeat(np.arange(classes), each)
    x = np.maximum(means[labels] + 2 * random.normal(size=(len(labels), features)), 0)
    rows = np.concatenate([means + 3 * random.normal(size=means.shape), random.normal(size=(classes, 1))], 1) / features
    if multi_label:
        labels = (random.random((len(labels), classes)) < 0.2 + 0.6 * np.eye(classes)[labels]).astype(np.int64)
    return x.astype(np.float32), labels, rows.astype(np.float32)


problems = st.builds(
    problem, st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 70), st.integers(1, 9), st.booleans()
)


def fitted(native: NativeFit, x: Floats, labels: Labels, before: Floats, **how: Any) -> LinearFit:
    return native(x, labels, len(before), before=before, **how)[0]


def elsewhere(seed: int, labels: Labels, features: int, share: float) -> Kept:
    """Samples of another place, where the same classes look otherwise."""
    random = np.random.default_rng(seed)
    means = 2 * random.normal(size=(labels.max() + 1, features))
    x = np.maximum(means[labels] + random.normal(size=(len(labels), features)), 0) + 0.1
    return Kept(x.astype(np.float32), labels, share)


def logits_of(fit: LinearFit, x: Floats) -> Array:
    return np.asarray(x.astype(np.float64) @ fit.weight.T + fit.bias)


def best_by_another_solver(x: Floats, labels: Labels, before: Floats, pull: float) -> Array:
    """Rows of the least mean cross-entropy with the pull; every class counts as much."""
    whole = np.concatenate([x.astype(np.float64), np.ones((len(x), 1))], 1)
    several = labels.ndim == 2
    targets = labels if several else np.eye(len(before))[labels]
    shares = np.full(len(x), 1.0) if several else 1 / np.bincount(labels)[labels]
    shares = shares / shares.sum()
    strength = pull * (whole**2).sum(1).mean()

    def loss(flat: Array) -> tuple[float, Array]:
        rows = flat.reshape(before.shape)
        logits = whole @ rows.T
        if several:
            losses = (np.logaddexp(0, logits) - targets * logits).mean(1)
            slopes = (0.5 * (1 + np.tanh(0.5 * logits)) - targets) / targets.shape[1]
        else:
            sums = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
            losses, slopes = sums - (targets * logits).sum(1), np.exp(logits - sums[:, None]) - targets
        apart = rows - before
        gradient = (shares[:, None] * slopes).T @ whole + strength * apart
        return float(shares @ losses + 0.5 * strength * (apart**2).sum()), gradient.ravel()

    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9}
    found = minimize(loss, before.astype(np.float64).ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x.reshape(before.shape))


@settings(max_examples=40, deadline=None)
@example(problem(6, 2, 1, 2, True), 1e-4)  # logits of a thousand on the way
@given(problems, st.sampled_from([1e-2, 1e-3, 1e-4]))
def test_it_is_the_pulled_logistic_regression(problem: Problem, pull: float) -> None:
    x, labels, before = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pulled, "PULLS", (pull,))
        patch.setattr(pulled, "_PULL_OF_FEW", pull)
        found = fit_pulled(x, labels, before.astype(np.float64))
    wanted = best_by_another_solver(x, labels, before, pull)
    np.testing.assert_allclose(np.concatenate([found.weight, found.bias[:, None]], 1), wanted, atol=3e-5, rtol=1e-4)
    assert found.pull == pull


def test_few_samples_have_the_usual_pull_and_nothing_is_said_of_their_accuracy() -> None:
    x, labels, before = problem(1, 4, 30, 4)
    found = fit_pulled(x, labels, before.astype(np.float64))
    assert (found.pull, found.loss, found.accuracy, found.answers) == (1e-3, None, None, [])
    assert (logits_of(found, x).argmax(1) == labels).all()


def test_what_it_knew_is_kept_where_samples_tell_nothing() -> None:
    """Labels at random: the strongest pull loses least."""
    x, _, before = problem(2, 3, 40, 20)
    labels = np.random.default_rng(0).permutation(np.arange(60) % 3)
    assert fit_pulled(x, labels, before.astype(np.float64)).pull == max(pulled.PULLS)


def test_samples_of_a_place_that_it_does_not_know_weaken_the_pull() -> None:
    x, labels, before = problem(3, 3, 40, 40)
    found = fit_pulled(x, labels, -before.astype(np.float64))
    assert found.pull is not None and found.pull < 1e-3
    assert found.accuracy is not None and found.accuracy > 0.9
    assert len(found.answers) == 120
    assert np.mean([right for _, right in found.answers]) == pytest.approx(found.accuracy)


def test_what_is_known_of_classes_without_samples_stays() -> None:
    x, labels, before = problem(4, 5, 30, 12)
    some = labels != 2
    found = fit_pulled(x[some], labels[some], before.astype(np.float64))
    np.testing.assert_array_equal(found.weight[2], before[2, :-1])
    moved = np.linalg.norm(found.weight - before[:, :-1], axis=1)
    assert moved[[0, 1, 3, 4]].min() > 0
    alone = fit_pulled(x[labels == 1], labels[labels == 1], before.astype(np.float64))
    np.testing.assert_array_equal(alone.weight, before[:, :-1])


def test_what_is_kept_of_the_place_that_it_comes_from_is_not_unlearnt() -> None:
    x, labels, _ = problem(8, 4, 30, 20)
    kept = elsewhere(9, np.arange(80) % 4, 30, 0.3)
    before = fit_discriminant(kept.features, kept.labels, 4)
    rows = np.concatenate([before.weight, before.bias[:, None]], 1)
    alone, both = fit_pulled(x, labels, rows), fit_pulled(x, labels, rows, kept)
    there = [(logits_of(fit, kept.features).argmax(1) == kept.labels).mean() for fit in (alone, both)]
    assert there[1] > 0.97 > there[0] + 0.1
    assert both.accuracy is not None and alone.accuracy is not None
    assert both.accuracy > alone.accuracy - 0.1
    assert both.kept is not None
    assert both.kept == pytest.approx((1, there[1]), abs=0.06) and alone.kept is None


def test_no_more_than_three_points_of_that_place_are_given_up() -> None:
    x, labels, _ = problem(8, 4, 30, 20)
    kept = elsewhere(9, np.arange(80) % 4, 30, 0.01)  # a share that does not keep them by itself
    before = fit_discriminant(kept.features, kept.labels, 4)
    rows = np.concatenate([before.weight, before.bias[:, None]], 1)
    found = fit_pulled(x, labels, rows, kept)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pulled, "MOST_GIVEN_UP", 1)
        freely = fit_pulled(x, labels, rows, kept)
    assert found.kept is not None and freely.kept is not None and found.pull is not None and freely.pull is not None
    assert found.kept[1] >= found.kept[0] - 0.03 > freely.kept[1]
    assert found.pull > freely.pull


def test_features_that_are_no_numbers_are_refused() -> None:
    x, labels, before = problem(5, 2, 3, 4)
    x[1, 2] = np.nan
    with pytest.raises(DataError, match="no numbers"):
        fit_pulled(x, labels, before.astype(np.float64))


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeFit:
    return NativeFit(tmp_path_factory.mktemp("pulled"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problems)
def test_the_native_trainer_finds_the_same(native: NativeFit, problem: Problem) -> None:
    x, labels, before = problem
    wanted, got = fit_pulled(x, labels, before.astype(np.float64)), fitted(native, x, labels, before)
    if got.pull != wanted.pull:  # a tie
        assert got.loss == pytest.approx(wanted.loss, rel=0.05)
        return
    scale = np.abs(logits_of(wanted, x)).max()
    np.testing.assert_allclose(logits_of(got, x), logits_of(wanted, x), atol=1e-6 * max(scale, 1))
    assert got.accuracy == (None if wanted.accuracy is None else pytest.approx(wanted.accuracy))
    assert got.loss == (None if wanted.loss is None else pytest.approx(wanted.loss, rel=1e-6))
    np.testing.assert_allclose([p for p, _ in got.answers], [p for p, _ in wanted.answers], rtol=1e-6)


@pytest.mark.parametrize(
    ("each", "others", "shown", "share"),
    [(12, 60, 3, 0.3), (2, 9, 3, 0.3), (3, 300, 3, 0.3), (12, 60, 2, 0.3), (6, 20, 1, 0.3), (20, 60, 3, 0.01)],
)
def test_the_native_trainer_keeps_the_same(native: NativeFit, each: int, others: int, shown: int, share: float) -> None:
    x, labels, before = problem(11, 3, 40, each)
    x, labels = x[labels < shown], labels[labels < shown]
    kept = elsewhere(12, np.arange(others) % 3, 40, share)
    wanted = fit_pulled(x, labels, before.astype(np.float64), kept)
    got = fitted(native, x, labels, before, kept=kept)
    assert got.pull == wanted.pull
    assert got.kept == pytest.approx(wanted.kept)
    assert got.accuracy == (None if wanted.accuracy is None else pytest.approx(wanted.accuracy))
    np.testing.assert_allclose(logits_of(got, x), logits_of(wanted, x), atol=1e-6 * np.abs(logits_of(wanted, x)).max())


def test_the_native_trainer_refuses_features_that_are_no_numbers(native: NativeFit) -> None:
    x, labels, before = problem(5, 2, 3, 6)
    x[1, 2] = np.inf
    with pytest.raises(AssertionError, match="no numbers"):
        fitted(native, x, labels, before)


def test_any_number_of_threads_gives_the_same_bits(native: NativeFit) -> None:
    x, labels, before = problem(6, 4, 100, 20)
    alone, together = (fitted(native, x, labels, before, threads=number) for number in (1, 3))
    np.testing.assert_array_equal(alone.weight, together.weight)
    np.testing.assert_array_equal(alone.bias, together.bias)


def test_where_memory_is_short_products_are_computed_again_or_samples_are_left_away(native: NativeFit) -> None:
    x, labels, before = problem(7, 4, 60, 30)
    exact = fitted(native, x, labels, before)
    again = fitted(native, x, labels, before, room=2 * 120 * 4 * 8 * 15)  # the arrays fit, 120 x 120 products do not
    assert again.pull == exact.pull
    np.testing.assert_allclose(logits_of(again, x), logits_of(exact, x), atol=1e-5)
    some = fitted(native, x, labels, before, room=20_000)
    right = [(logits_of(fit, x).argmax(1) == labels).mean() for fit in (exact, some)]
    assert right[1] > right[0] - 0.1
