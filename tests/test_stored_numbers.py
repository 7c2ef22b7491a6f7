"""Parameters become what a file stores: against numpy, in every type, exactly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinytl_edge.runtime.model_files.stored_numbers import DTYPES, Step, as_stored


def floats(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4).flatmap(
        lambda s: st.tuples(st.just(s), st.permutations(range(len(s))))
    )
)
def test_axes_in_another_order(case: tuple[list[int], list[int]]) -> None:
    shape, axes = case
    numbers = floats(*shape)
    stored = as_stored(
        "w", {"w": numbers.tobytes()}.__getitem__, (Step("permute", tuple(shape), tuple(axes)),), "float32"
    )
    np.testing.assert_array_equal(np.frombuffer(stored, "<f4"), numbers.transpose(axes).ravel())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", ["multiply", "add"])
def test_a_number_for_each_channel(kind: str, axis: int) -> None:
    shape = (4, 3, 5)
    numbers, by_channel = floats(*shape), floats(shape[axis], seed=1).astype(np.float64)
    step = Step(kind, numbers=tuple(by_channel.tolist()), inner=math.prod(shape[axis + 1 :]))
    wide = by_channel.reshape([-1 if a == axis else 1 for a in range(3)])
    expected = numbers * wide if kind == "multiply" else numbers + wide
    stored = as_stored("w", {"w": numbers.tobytes()}.__getitem__, (step,), "float64")
    np.testing.assert_array_equal(np.frombuffer(stored, "<f8"), expected.ravel())


def test_what_depends_on_another_parameter() -> None:
    numbers, other, factors = floats(6), floats(6, seed=1), floats(6, seed=2).astype(np.float64)
    step = Step("add_product", numbers=tuple(factors.tolist()), other="v")
    stored = as_stored("w", {"w": numbers.tobytes(), "v": other.tobytes()}.__getitem__, (step,), "float64")
    np.testing.assert_array_equal(np.frombuffer(stored, "<f8"), numbers + other * factors)


def test_two_outputs_become_one() -> None:
    numbers = floats(2, 3)
    stored = as_stored("w", {"w": numbers.tobytes()}.__getitem__, (Step("difference"),), "float32")
    np.testing.assert_allclose(np.frombuffer(stored, "<f4"), numbers[1] - numbers[0], rtol=1e-6)


def stored(steps: tuple[Step, ...], dtype: str, **parameters: Any) -> Any:
    content = {name: array.astype("<f4").tobytes() for name, array in parameters.items()}
    return np.frombuffer(as_stored("w", content.__getitem__, steps, dtype), np.dtype(dtype))


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
def test_codes_of_a_scale_of_their_own(rows: int, inner: int, seed: int) -> None:
    numbers = floats(rows, inner, seed=seed)
    scale = np.abs(numbers).max(1) / 127
    found = stored((Step("scale", inner=inner),), "float32", w=numbers)
    np.testing.assert_allclose(found, scale, rtol=1e-6)
    codes = stored((Step("over_scale", numbers=(1.0,), inner=inner),), "int8", w=numbers).reshape(rows, inner)
    assert (np.abs(codes).max(1) == 127).all()
    assert np.abs(codes * scale[:, None] - numbers).max() <= 0.501 * scale.max()
    # A bias is in codes of what it is added to.
    bias = floats(rows, seed=seed + 1)
    step = Step("over_scale", numbers=(0.02,), inner=inner, other="v")
    np.testing.assert_allclose(stored((step,), "int32", w=bias, v=numbers), bias / (0.02 * scale), rtol=1e-5, atol=0.51)


def test_codes_of_nothing_but_zeros() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert stored((Step("scale", inner=3),), "float32", w=zeros).tolist() == [1.0, 1.0]
    assert not stored((Step("over_scale", numbers=(1.0,), inner=3),), "int8", w=zeros).any()


def test_one_output_has_the_scale_of_the_difference() -> None:
    weight, bias = floats(2, 5), floats(2, seed=1)
    scale = np.abs(weight[1] - weight[0]).max() / 127
    steps = (Step("difference"), Step("over_scale", numbers=(0.5,), inner=5, other="v", first="difference"))
    np.testing.assert_allclose(
        stored(steps, "float64", w=bias, v=weight), [(bias[1] - bias[0]) / (0.5 * scale)], rtol=1e-6
    )


@given(st.floats(-100, 100), st.floats(-100, 100), st.sampled_from([-128.0, 0.0]))
def test_a_range_and_its_zero(one: float, other: float, lowest: float) -> None:
    numbers = np.array([min(one, other), max(one, other)], np.float32)
    scale = float(stored((Step("range_scale"),), "float32", w=numbers)[0])
    zero = int(stored((Step("range_zero", numbers=(lowest,)),), "int64", w=numbers)[0])
    assert scale > 0
    assert lowest <= zero <= lowest + 255
    low, high = (lowest - zero) * scale, (lowest + 255 - zero) * scale
    assert low <= min(numbers[0], 0) + scale
    assert high >= max(numbers[1], 0) - scale


@pytest.mark.parametrize("dtype", DTYPES)
def test_types(dtype: str) -> None:
    numbers = np.array([0, 0.4, -0.6, 1.5, 2.5, 300.25, -300, 4e4, 1e-3], np.float32)
    stored = np.frombuffer(
        as_stored("w", {"w": numbers.tobytes()}.__getitem__, (), dtype), np.dtype(dtype).newbyteorder("<")
    )
    if dtype.startswith("float"):
        np.testing.assert_array_equal(stored, numbers.astype(dtype))
    else:
        limits = np.iinfo(dtype)
        np.testing.assert_array_equal(stored, np.clip(np.rint(numbers), limits.min, limits.max))


def test_codes_of_a_scale_and_a_zero_point() -> None:
    codes = np.arange(-128, 128).astype(np.int8).reshape(2, 128)
    scale, zero = np.array([0.03, 0.7], np.float32), -5
    numbers = (codes.astype(np.float32) - zero) * scale[:, None]
    steps = (
        Step("multiply", numbers=tuple((1 / scale.astype(np.float64)).tolist()), inner=128),
        Step("add", numbers=(float(zero),), inner=256),
    )
    stored = as_stored("w", {"w": numbers.tobytes()}.__getitem__, steps, "int8")
    np.testing.assert_array_equal(np.frombuffer(stored, np.int8), codes.ravel())


@pytest.mark.parametrize(
    "step",
    [Step("permute", (2, 3), (1, 0)), Step("multiply", numbers=(1.0, 2.0, 3.0)), Step("add", numbers=(1.0,), inner=4)],
)
def test_numbers_that_do_not_fit_are_refused(step: Step) -> None:
    with pytest.raises(ValueError, match="numbers are none of"):
        as_stored("w", {"w": floats(5).tobytes()}.__getitem__, (step,), "float32")
