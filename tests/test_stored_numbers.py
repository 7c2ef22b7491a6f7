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
