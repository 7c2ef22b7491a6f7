"""The classifier in one pass: what is said of samples that are left out is what fitting without them gives, and the
native trainer finds the same classifier in single precision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from native_learning import AMPLE, Floats, Labels, NativeFit
from numpy.typing import NDArray

from tinytl_edge.runtime.learning import discriminant, label_regression
from tinytl_edge.runtime.learning.discriminant import fit_discriminant
from tinytl_edge.runtime.learning.label_regression import fit_labels
from tinytl_edge.runtime.learning.linear_fit import LinearFit


def features_of(seed: int, labels: Labels, length: int, apart: float = 1.0) -> Floats:
    """Features of classes whose means lie `apart`, with a few strong directions, as networks' have, far from zero."""
    random = np.random.default_rng(seed)
    means = random.normal(size=(labels.max() + 1, length)) * apart
    strong = random.normal(size=(min(length, 3), length))
    noise = random.normal(size=(len(labels), length)) + random.normal(size=(len(labels), len(strong))) @ strong
    return (3 + means[labels] + noise).astype(np.float32)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Floats, Labels, int]:
    """Features, labels and a number of classes, of which some may have one sample or none."""
    classes = draw(st.integers(2, 20))
    length = draw(st.integers(1, 80))
    counts = draw(st.lists(st.integers(0, 9), min_size=classes, max_size=classes))
    assume(sum(count > 0 for count in counts) > 1)
    labels = np.repeat(np.arange(classes), counts)
    return (
        features_of(draw(st.integers(0, 10**6)), labels, length, draw(st.sampled_from([0.3, 1.0, 3.0]))),
        labels,
        classes,
    )


def test_what_is_left_out_is_as_if_it_had_never_been_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against fits without the sample, of which shrinkage, ridge and divisor are those of all samples."""
    labels = np.repeat(np.arange(4), [5, 2, 7, 1])
    x = features_of(3, labels, 6).astype(np.float64)
    for shrinkage in (0.1, 0.7):
        monkeypatch.setattr(discriminant, "SHRINKAGES", (shrinkage,))
        kept: list[NDArray[np.float64]] = []
        monkeypatch.setattr(discriminant, "_scale", lambda scores, *_, to=kept: to.append(scores) or 1.0)
        fit_discriminant(x.astype(np.float32), labels, 4)
        means = np.stack([x[labels == label].mean(0) for label in range(4)])
        each = ((x - means[labels]) ** 2).mean()
        judged = np.flatnonzero(labels != 3)
        for row, sample in enumerate(judged):
            without = np.arange(len(x)) != sample
            fewer = np.stack([x[without & (labels == label)].mean(0) for label in range(4)])
            residuals = (x - fewer[labels])[without]
            matrix = (1 - shrinkage) * residuals.T @ residuals / len(x) + shrinkage * each * np.eye(6)
            away = x[sample] - fewer
            wanted = -0.5 * (away @ np.linalg.inv(matrix) * away).sum(1)
            np.testing.assert_allclose(kept[0][row], wanted, rtol=1e-5)


def test_classes_that_lie_apart_are_told_apart_with_fewer_samples_than_features() -> None:
    labels = np.repeat(np.arange(5), 4)
    x = features_of(5, np.concatenate([labels, labels]), 200, 2.0)
    found = fit_discriminant(x[:20], labels, 5)
    assert ((x[20:] @ found.weight.T + found.bias).argmax(1) == labels).mean() > 0.9
    assert found.accuracy is not None
    assert found.accuracy > 0.9


def test_a_class_counts_as_much_with_few_samples_as_with_many() -> None:
    """Where noise alone decides, the rare class is not given up."""
    labels = np.repeat([0, 1], [800, 40])
    x = features_of(7, labels, 3, 0.7)
    found = fit_discriminant(x, labels, 2)
    right = (x @ found.weight.T + found.bias).argmax(1) == labels
    assert abs(right[labels == 1].mean() - right[labels == 0].mean()) < 0.15


def test_one_sample_a_class_gives_the_nearest_and_nothing_is_said_of_its_accuracy() -> None:
    labels = np.arange(6)
    x = features_of(9, labels, 30, 3.0)
    found = fit_discriminant(x, labels, 6)
    assert found.loss is None
    assert ((x @ found.weight.T + found.bias).argmax(1) == labels).all()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeFit:
    return NativeFit(tmp_path_factory.mktemp("discriminant"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problems())
def test_the_native_trainer_finds_the_same(native: NativeFit, problem: tuple[Floats, Labels, int]) -> None:
    x, labels, classes = problem
    wanted, (got, read) = fit_discriminant(x, labels, classes, 0.1), native(x, labels, classes)
    assert (got.loss is None) == (wanted.loss is None)
    if got.shrinkage != wanted.shrinkage:  # a tie
        assert got.loss == pytest.approx(wanted.loss, rel=1e-3, abs=1e-4)
        return
    scale = np.abs(x @ wanted.weight.T + wanted.bias).max()
    np.testing.assert_allclose(
        x @ got.weight.T + got.bias, x @ wanted.weight.T + wanted.bias, rtol=1e-2, atol=1e-2 * max(scale, 1)
    )
    if wanted.loss is not None:
        assert got.loss == pytest.approx(wanted.loss, rel=1e-2, abs=1e-3)
        probabilities = [[probability for probability, _ in fit.answers] for fit in (got, wanted)]
        np.testing.assert_allclose(probabilities[0], probabilities[1], rtol=2e-2, atol=2e-2)
    check_what_is_said_of_all(x, labels, got, read["said"][4:8])


@pytest.mark.parametrize("samples", [40, 150])
def test_any_number_of_threads_gives_the_same_bits(native: NativeFit, samples: int) -> None:
    labels = np.arange(samples) % 7
    x = features_of(1, labels, 100)
    alone, together = (native(x, labels, 7, threads)[1] for threads in (1, 3))
    for name, value in alone.items():
        np.testing.assert_array_equal(value, together[name])


@pytest.mark.parametrize("room", [0, 60_000])
def test_where_memory_is_short_a_part_of_the_samples_spans_the_space(native: NativeFit, room: int) -> None:
    labels = np.arange(160) % 5
    x = features_of(2, np.concatenate([labels, labels]), 240, 1.0)
    exact, short = (native(x[:160], labels, 5, room=size) for size in (AMPLE, room))
    right = [((x[160:] @ fit.weight.T + fit.bias).argmax(1) == labels).mean() for fit, _ in (exact, short)]
    assert right[0] > right[1] - 0.02
    assert right[1] > (0.6 if room == 0 else 0.9)
    check_what_is_said_of_all(x[:160], labels, short[0], short[1]["said"][4:8])


def test_samples_of_fewer_directions_than_samples_are_fitted(native: NativeFit) -> None:
    """And the same samples again and again."""
    labels = np.arange(60) % 3
    x = np.repeat(features_of(4, labels[:12], 100), 5, axis=0).astype(np.float32)
    labels = np.repeat(labels[:12], 5)
    wanted, (got, _) = fit_discriminant(x, labels, 3, 0.1), native(x, labels, 3)
    assert got.shrinkage == wanted.shrinkage
    np.testing.assert_allclose(x @ got.weight.T + got.bias, x @ wanted.weight.T + wanted.bias, atol=0.02)


def check_what_is_said_of_all(x: Floats, labels: Labels, found: LinearFit, said: NDArray[np.float64]) -> None:
    """The sum of losses, right guesses, lowest and highest logit."""
    logits = x @ found.weight.T + found.bias
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    losses, correct, low, high = said
    assert losses == pytest.approx(-np.log(chances[np.arange(len(x)), labels]).sum(), rel=0.01, abs=0.01)
    assert abs(correct - (logits.argmax(1) == labels).sum()) <= 1  # ties
    scale = np.abs(logits).max()
    assert (low, high) == pytest.approx((min(logits.min(), 0), max(logits.max(), 0)), abs=5e-3 * max(scale, 1))


def test_where_all_samples_look_alike_it_is_not_steep(native: NativeFit, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with random weights: of a steeper one, each step of training would change all answers."""
    labels = np.arange(40) % 4
    x = (1 + 1e-6 * features_of(6, labels, 30)).astype(np.float32)
    for found in (fit_discriminant(x, labels, 4, 0.1), native(x, labels, 4)[0]):
        assert np.abs(found.weight).max() < 2000
    monkeypatch.setattr(discriminant, "LEAST_VARIANCE", 1e-30)
    assert np.abs(fit_discriminant(x, labels, 4, 0.1).weight).max() > 100_000


# Labels that stand beside each other ---------------------------------------------------------------------


@st.composite
def multi_label_problems(draw: st.DrawFn) -> tuple[Floats, Labels]:
    """Features and marks, of labels of which some are had by all or none."""
    labels, length, samples = draw(st.integers(1, 12)), draw(st.integers(1, 80)), draw(st.integers(2, 90))
    shares = np.array(draw(st.lists(st.sampled_from([0, 0.1, 0.4, 0.7, 1]), min_size=labels, max_size=labels)))
    return marked(draw(st.integers(0, 10**6)), samples, shares, length)


def marked(seed: int, samples: int, shares: NDArray[np.float64], length: int) -> tuple[Floats, Labels]:
    random = np.random.default_rng(seed)
    marks = (random.random((samples, len(shares))) < shares).astype(np.int64)
    towards = np.random.default_rng(99).normal(size=(len(shares), length))
    return (3 + marks @ towards + random.normal(size=(samples, length))).astype(np.float32), marks


def losses_of(logits: NDArray[np.float64], marks: Labels) -> NDArray[np.float64]:
    return np.logaddexp(0, np.where(marks > 0, -logits, logits))


def test_scores_of_samples_left_out_are_those_of_a_regression_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against ridge regressions of all others, with the ridge of all."""
    x, marks = marked(1, 30, np.array([0.5, 0.2]), 6)
    shrinkage, exact = 0.3, x.astype(np.float64)
    kept: list[NDArray[np.float64]] = []

    def keep(scores: NDArray[np.float64], marks: Labels, smoothing: float) -> tuple[float, float]:
        kept.append(scores)
        return 1.0, 0.0

    monkeypatch.setattr(label_regression, "SHRINKAGES", (shrinkage,))
    monkeypatch.setattr(label_regression, "_logistic", keep)
    fit_labels(x, marks.astype(np.uint8))
    ridge = 30 * shrinkage / (1 - shrinkage) * ((exact - exact.mean(0)) ** 2).mean()
    for sample in range(30):
        others = np.arange(30) != sample
        centre = exact[others].mean(0)
        residuals, wanted = exact[others] - centre, marks[others] - marks[others].mean(0)
        weight = np.linalg.solve(residuals.T @ residuals + ridge * np.eye(6), residuals.T @ wanted)
        score = (exact[sample] - centre) @ weight + marks[others].mean(0) - marks.mean(0)
        np.testing.assert_allclose([scores[sample] for scores in kept[:2]], score, rtol=1e-8)


def test_labels_are_told_and_a_rare_one_is_not_said_of_everything() -> None:
    shares = np.array([0.5, 0.3, 0.05, 0, 1])
    x, marks = marked(2, 400, shares, 40)
    found = fit_labels(x[:150], marks[:150].astype(np.uint8), 0.1)
    logits = x[150:] @ found.weight.T + found.bias
    assert ((logits > 0) == marks[150:]).mean(0).min() > 0.93
    assert found.loss == pytest.approx(losses_of(logits, marks[150:]).mean(), abs=0.03)
    assert found.accuracy == pytest.approx(((logits > 0) == marks[150:]).mean(), abs=0.03)
    np.testing.assert_array_equal(found.weight[3:], 0)
    assert found.bias[3] < -2 < 2 < found.bias[4]


def test_what_tells_nothing_is_answered_by_how_many_have_it() -> None:
    random = np.random.default_rng(5)
    x, marks = random.normal(size=(60, 500)).astype(np.float32), (random.random((60, 3)) < 0.25).astype(np.uint8)
    found = fit_labels(x, marks)
    other = random.normal(size=(1000, 500)) @ found.weight.T + found.bias
    chances = 1 / (1 + np.exp(-other))
    np.testing.assert_allclose(chances.mean(0), marks.mean(0), atol=0.1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(multi_label_problems())
def test_the_native_trainer_finds_the_same_of_labels(native: NativeFit, problem: tuple[Floats, Labels]) -> None:
    x, marks = problem
    wanted, (got, read) = fit_labels(x, marks.astype(np.uint8), 0.1), native(x, marks, marks.shape[1])
    assert got.loss == pytest.approx(wanted.loss, rel=1e-2, abs=2e-3)
    assert got.accuracy == pytest.approx(wanted.accuracy, abs=1.01 / marks.size)
    logits = x @ got.weight.T + got.bias
    if got.shrinkage == wanted.shrinkage:  # no tie
        np.testing.assert_allclose(logits, x @ wanted.weight.T + wanted.bias, rtol=2e-2, atol=5e-2)
    losses, correct, low, high = read["said"][4:8]
    assert losses == pytest.approx(losses_of(logits, marks).mean(1).sum(), rel=0.01, abs=0.01)
    assert abs(correct - ((logits > 0) == marks).sum()) <= 1
    assert (low, high) == pytest.approx((min(logits.min(), 0), max(logits.max(), 0)), abs=0.02)


@pytest.mark.parametrize("room", [0, 60_000])
def test_labels_are_fitted_where_memory_is_short(native: NativeFit, room: int) -> None:
    x, marks = marked(3, 320, np.array([0.5, 0.3, 0.6]), 240)
    found, _ = native(x[:160], marks[:160], 3, threads=2, room=room)
    right = ((x[160:] @ found.weight.T + found.bias > 0) == marks[160:]).mean()
    assert right > (0.7 if room == 0 else 0.9)
