"""Parameters as a model file stores them: turned, scaled, shifted, in other types; with the standard library alone."""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, cycle, repeat
from operator import add, mul, sub

Read = Callable[[str], bytes]
# Bytes of a number by type.
DTYPES = {"float32": 4, "float16": 2, "float64": 8, "int8": 1, "uint8": 1, "int16": 2, "int32": 4, "int64": 8}
_CODES = {"int8": "b", "uint8": "B", "int16": "h", "int32": "i", "int64": "q"}
_LIMITS = {"uint8": (0, 255), **{f"int{bits}": (-(1 << bits - 1), (1 << bits - 1) - 1) for bits in (8, 16, 32, 64)}}
LOGITS_RANGE = "the range of the logits"  # read like a parameter: the lowest and the highest
_LEVELS = 127  # of a weight's codes on either side of zero
_SMALLEST = 1e-9  # of what codes can be scaled to: below, all are zero
_MARGIN = 0.05  # of a range, on either side: training did not see all images


@dataclass(frozen=True)
class Step:
    """One thing that is done to a parameter's numbers, in the order of their array (C order).

    - "permute": the axes of `shape` in the order `axes`
    - "multiply", "add": by `numbers`, one for each place of the axis behind which `inner` numbers lie
    - "add_product": with the parameter `other`, times `numbers`, number for number
    - "difference": the second of two rows less the first
    - "scale": the largest of each `inner` numbers becomes 127 codes: so much is one
    - "over_scale": over the "scale" of themselves, or of the parameter `other` behind its own step `first`; and over
      `numbers`, one for all
    - "range_scale", "range_zero": of the lowest and highest of some numbers, how much one of their 256 codes is, and
      which of them, counted from `numbers`, is zero
    """

    kind: str
    shape: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()
    inner: int = 1
    other: str = ""
    first: str = ""

    def __post_init__(self) -> None:
        if self.kind not in _STEPS:
            raise ValueError(f"the step {self.kind!r}")
        if self.kind == "permute" and sorted(self.axes) != list(range(len(self.shape))):
            raise ValueError(f"the axes {self.axes} of {self.shape}")
        if self.first not in ("", "difference"):
            raise ValueError(f"the step {self.first!r} first")
        needs = ("multiply", "add", "add_product", "over_scale", "range_zero")
        if self.inner < 1 or (self.kind in needs and not self.numbers):
            raise ValueError(f"a step without numbers: {self.kind}")


def as_stored(name: str, read: Read, steps: tuple[Step, ...], dtype: str) -> bytes:
    """The bytes of a float32 parameter behind its steps, little-endian; `read` gives those of one by its name.

    Raises:
        ValueError: the steps do not fit its size.
    """
    if not steps and dtype == "float32":
        return read(name)
    values = _floats(read(name))
    for step in steps:
        values = _STEPS[step.kind](values, step, read)
    if dtype == "float16":
        return struct.pack(f"<{len(values)}e", *values)
    if dtype in _CODES:
        low, high = _LIMITS[dtype]
        return _little(array(_CODES[dtype], (min(max(round(value), low), high) for value in values)))
    return _little(array("f" if dtype == "float32" else "d", values))


def _little(values: array[int] | array[float]) -> bytes:
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _floats(content: bytes) -> array[float]:
    values = array("f", content)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _permute(values: array[float], step: Step, _: Read) -> array[float]:
    shape, axes = step.shape, step.axes
    if math.prod(shape) != len(values):
        raise ValueError(f"{len(values)} numbers are none of {shape}")
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    *outer, last = axes
    result: array[float] = array("f" if values.typecode == "f" else "d")
    count, stride = shape[last], strides[last]
    for first in _places([shape[axis] for axis in outer], [strides[axis] for axis in outer]):
        result.extend(values[first : first + (count - 1) * stride + 1 : stride])
    return result


def _places(sizes: list[int], strides: list[int]) -> Iterator[int]:
    """Offsets of all indices, the last of which runs fastest."""
    if not sizes:
        yield 0
        return
    for index in range(sizes[0]):
        for place in _places(sizes[1:], strides[1:]):
            yield index * strides[0] + place


def _by_channel(operation: Callable[[float, float], float]) -> _Operation:
    def apply(values: array[float], step: Step, _: Read) -> array[float]:
        each = cycle(chain.from_iterable(map(repeat, step.numbers, repeat(step.inner))))
        if len(values) % (len(step.numbers) * step.inner):
            raise ValueError(f"{len(values)} numbers are none of {len(step.numbers)} channels")
        return array("d", map(operation, values, each))

    return apply


def _add_product(values: array[float], step: Step, read: Read) -> array[float]:
    other = _floats(read(step.other))
    if not len(values) == len(other) == len(step.numbers):
        raise ValueError(f"{len(other)} numbers beside {len(values)}")
    return array("d", map(add, values, map(mul, other, step.numbers)))


def _difference(values: array[float], _: Step, __: Read) -> array[float]:
    half = len(values) // 2
    return array("d", map(sub, values[half:], values[:half]))


def _scales(values: array[float], inner: int) -> list[float]:
    if not values or len(values) % inner:
        raise ValueError(f"{len(values)} numbers are none of {inner} each")
    largest = (max(map(abs, values[first : first + inner])) for first in range(0, len(values), inner))
    return [size / _LEVELS if size > _SMALLEST else 1.0 for size in largest]


def _scale(values: array[float], step: Step, _: Read) -> array[float]:
    return array("d", _scales(values, step.inner))


def _over_scale(values: array[float], step: Step, read: Read) -> array[float]:
    of = _floats(read(step.other)) if step.other else values
    if step.first:
        of = _STEPS[step.first](of, step, read)
    scales = _scales(of, step.inner)
    if len(values) % len(scales):
        raise ValueError(f"{len(values)} numbers beside {len(scales)} scales")
    each = len(values) // len(scales)
    divisors = chain.from_iterable(repeat(scale * step.numbers[0], each) for scale in scales)
    return array("d", (value / divisor for value, divisor in zip(values, divisors)))


def _range(values: array[float]) -> tuple[float, float]:
    """The lowest, and the step between two of 256 codes."""
    low, high = min(0.0, *values), max(0.0, *values)
    margin = _MARGIN * (high - low)
    low, high = (low - margin if low < 0 else low), (high + margin if high > 0 else high)
    return low, max((high - low) / 255, _SMALLEST)


def _range_scale(values: array[float], _: Step, __: Read) -> array[float]:
    return array("d", [_range(values)[1]])


def _range_zero(values: array[float], step: Step, _: Read) -> array[float]:
    low, scale = _range(values)
    return array("d", [step.numbers[0] + min(round(-low / scale), 255)])


_Operation = Callable[["array[float]", Step, Read], "array[float]"]
_STEPS: dict[str, _Operation] = {
    "permute": _permute,
    "multiply": _by_channel(mul),
    "add": _by_channel(add),
    "add_product": _add_product,
    "difference": _difference,
    "scale": _scale,
    "over_scale": _over_scale,
    "range_scale": _range_scale,
    "range_zero": _range_zero,
}
