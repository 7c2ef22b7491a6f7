"""A classifier aligned with a place of which there are images without labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_learning import Floats, Labels, NativeFit

from tinytl_edge.runtime.errors import DataError
from tinytl_edge.runtime.learning.aligned import OldPlace
from tinytl_edge.runtime.learning.discriminant import fit_discriminant

Places = tuple[Floats, Labels, Floats, Labels, Floats]


def places(seed: int, classes: int, features: int, each: int, far: float, of_one: bool = False) -> Places:
    """Features and labels here and there, where all are others by as much, and a classifier of there."""
    random = np.random.default_rng(seed)
    means = 2 * random.normal(size=(classes, features))
    there = np.arange(classes * each) % classes
    here = np.zeros(classes * each, np.int64) if of_one else there
    old = means[there] + random.normal(size=(len(there), features))
    new = means[here] + random.normal(size=(len(here), features)) + far * random.normal(size=features)
    fit = fit_discriminant(old.astype(np.float32), there, classes)
    rows = np.concatenate([fit.weight, fit.bias[:, None]], 1)
    return new.astype(np.float32), here, old.astype(np.float32), there, rows.astype(np.float32)


def accuracies(x: Floats, labels: Labels, rows: Floats, off: np.ndarray) -> tuple[float, float]:
    logits = x @ rows[:, :-1].T + rows[:, -1]
    return float((logits.argmax(1) == labels).mean()), float(((logits - off).argmax(1) == labels).mean())


def test_what_is_others_for_all_classes_is_taken_off() -> None:
    x, labels, kept, known, rows = places(1, 5, 30, 40, 4)
    found = OldPlace(kept, known, rows.astype(np.float64)).align(x)
    before, after = accuracies(x, labels, rows, found.off)
    assert before < 0.8 < 0.9 < after
    assert found.share == pytest.approx(0.6, abs=0.01) and found.helps


def test_six_tenths_of_the_way_to_the_mean() -> None:
    x, _, kept, known, rows = places(2, 3, 8, 50, 1.5)
    found = OldPlace(kept, known, rows.astype(np.float64)).align(x)
    mean_there = np.mean([kept[known == label].mean(0) for label in range(3)], 0)
    moved = rows[:, :-1].astype(np.float64) @ (x.mean(0) - mean_there)
    np.testing.assert_allclose(found.off, found.share * moved, rtol=1e-4)


def test_where_means_differ_by_chance_nothing_moves() -> None:
    x, _, kept, known, rows = places(3, 4, 200, 4, 0)
    assert OldPlace(kept, known, rows.astype(np.float64)).align(x).share < 0.2


def test_images_of_one_class_alone_are_no_other_place() -> None:
    x, _, kept, known, rows = places(4, 5, 30, 40, 0, of_one=True)
    found = OldPlace(kept, known, rows.astype(np.float64)).align(x)
    assert not found.helps
    assert found.sure < found.sure_before - 0.05


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeFit:
    return NativeFit(tmp_path_factory.mktemp("aligned"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.builds(
        places, st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 70), st.integers(2, 9), st.floats(0, 3),
        st.booleans(),
    )
)  # fmt: skip
def test_the_native_trainer_finds_the_same(native: NativeFit, given: Places) -> None:
    x, _, kept, known, rows = given
    wanted = OldPlace(kept, known, rows.astype(np.float64)).align(x)
    got, helps = native.aligned(x, kept, known, rows)
    np.testing.assert_allclose(got.off, wanted.off, rtol=1e-6, atol=1e-6 * np.abs(rows).max())
    assert (got.share, got.sure_before, got.sure) == pytest.approx(
        (wanted.share, wanted.sure_before, wanted.sure), abs=1e-6
    )
    # The second classifier is single precision there: an answer on the edge may be another.
    assert (got.agreed_before, got.agreed) == pytest.approx((wanted.agreed_before, wanted.agreed), abs=2 / len(x))
    assert helps == got.helps


def test_features_that_are_no_numbers_are_refused(native: NativeFit) -> None:
    x, _, kept, known, rows = places(5, 2, 3, 4, 1)
    x[1, 2] = np.inf
    with pytest.raises(AssertionError, match="no numbers"):
        native.aligned(x, kept, known, rows)
    with pytest.raises(DataError, match="no numbers"):
        OldPlace(kept, known, rows.astype(np.float64)).align(x)
