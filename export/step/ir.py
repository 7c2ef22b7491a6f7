"""The compiler's graph: operators on the values of one sample, in the order in which they run.

Maps are [height, width, channels]; vectors [channels]; masks hold one bit for each element of their shape. An operator
names what it reads and writes by role. A value is written once, except that operators may add to it, and that each may
write a run of a map: some rows, or some channels of its only pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "uint8": 8, "bit": 1}


@dataclass(frozen=True)
class Value:
    """Something that lies in the arena for a while; with a `base`, a run of that map from its element `first` on."""

    name: str
    shape: Shape
    dtype: str = "float32"
    base: str | None = None
    first: int = 0

    @property
    def bytes(self) -> int:
        """Its size."""
        return -(-math.prod(self.shape) * BITS[self.dtype] // 8)

    @property
    def offset(self) -> int:
        """Where it begins in its base, in bytes."""
        return self.first * BITS[self.dtype] // 8


@dataclass
class Op:
    """One call of a kernel.

    `reads` and `writes` map roles to values, `parameters` roles to names of parts of parameters. The first of `writes`
    may take the place of a value that it reads under one of the roles in `in_place`, where nobody reads that one
    later. What is written under the roles in `adds_to` is added to what the value holds. Operators of one `segment`
    can be run again together.
    """

    kind: str
    reads: dict[str, str]
    writes: dict[str, str]
    parameters: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    in_place: tuple[str, ...] = ()
    adds_to: tuple[str, ...] = ()
    segment: str | None = None


@dataclass
class Graph:
    """A step, or its forward half: values by name, operators in order, parameters in the engine's layout."""

    values: dict[str, Value]
    forward: list[Op]
    parameters: dict[str, Parameter]
    image: str
    logits: str
    backward: list[Op] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    persistent: set[str] = field(default_factory=set)  # values that live from step to step, zero at first

    def ops(self) -> Iterator[Op]:
        """All operators in the order of a training step."""
        yield from self.forward
        yield from self.backward

    def add_value(self, name: str, shape: Shape, dtype: str = "float32") -> str:
        """A new value under `name`, or a name near to it; returns the name."""
        unique, number = name, 1
        while unique in self.values:
            number += 1
            unique = f"{name}~{number}"
        self.values[unique] = Value(unique, shape, dtype)
        return unique

    def rows(self, base: str, first: int, count: int) -> str:
        """Rows [first, first + count) of a map, as a value; the map itself where these are all."""
        height, *row = self.values[base].shape
        if count == height:
            return base
        return self._run(base, f"[{first}:{first + count}]", (count, *row), first * math.prod(row))

    def channels(self, base: str, first: int, count: int) -> str:
        """Channels [first, first + count) of a map of one pixel, as a value."""
        assert math.prod(self.values[base].shape[:-1]) == 1
        return self._run(base, f"[:,:,{first}:{first + count}]", (1, 1, count), first)

    def same_run(self, name: str, base: str) -> str:
        """The run of `base` that `name` is of a map of the same shape; `base`, where it is a whole map."""
        run = self.values[name]
        if run.base is None:
            return base
        return self._run(base, run.name.removeprefix(run.base), run.shape, run.first)

    def _run(self, base: str, which: str, shape: Shape, first: int) -> str:
        name = base + which
        self.values[name] = Value(name, shape, self.values[base].dtype, base, first)
        return name

    def root(self, name: str) -> str:
        """The map of which `name` is a run, or `name`."""
        return self.values[name].base or name

    def part(self, name: str) -> Part:
        """A part of a parameter by name; a parameter's own name is all of it."""
        if name not in self.parts:
            parameter = self.parameters[name]
            self.parts[name] = Part(name, parameter, 0, 0, parameter.shape[0])
        return self.parts[name]

    def split(self, name: str, axis: int, ends: Sequence[int]) -> list[str]:
        """Split a parameter along PyTorch's axis 0 (outputs) or 1 (inputs) at `ends`; returns the parts' names."""
        parameter = self.parameters[name]
        names = []
        for first, end in zip((0, *ends), ends):
            part = Part(f"{name}[{first}:{end}]" if axis == 0 else f"{name}[:,{first}:{end}]", parameter, axis, first,
                        end - first)  # fmt: skip
            self.parts[part.name] = part
            names.append(part.name)
        return names


@dataclass
class Parameter:
    """A weight or bias: its PyTorch name and shape, and its values in the engine's layout.

    `layout` tells how one becomes the other: 'conv' [out, in/group, h, w] -> [h, w, group, in/group, out/group],
    'depthwise' [channel, 1, h, w] -> [h, w, channel], 'linear' [out, in] -> [in, out], 'vector' as it is.
    """

    name: str
    shape: Shape
    layout: str
    value: Array
    groups: int = 1
    trains: bool = False

    @staticmethod
    def from_torch(name: str, value: Array, layout: str, groups: int = 1) -> Parameter:
        """Bring PyTorch's values into the engine's layout."""
        shape = value.shape
        if layout == "conv":
            out, inner, height, width = shape
            split = value.reshape(groups, out // groups, inner, height, width)
            value = split.transpose(3, 4, 0, 2, 1)
        elif layout == "depthwise":
            value = value[:, 0].transpose(1, 2, 0)
        elif layout == "linear":
            value = value.T
        return Parameter(name, tuple(shape), layout, np.ascontiguousarray(value, np.float32), groups)

    def to_torch(self, value: Array) -> Array:
        """The inverse: values in the engine's layout as PyTorch has them."""
        if self.layout == "conv":
            return np.ascontiguousarray(value.transpose(2, 4, 3, 0, 1).reshape(self.shape))
        if self.layout == "depthwise":
            return np.ascontiguousarray(value.transpose(2, 0, 1)[:, None])
        if self.layout == "linear":
            return np.ascontiguousarray(value.T)
        return value


@dataclass(frozen=True)
class Part:
    """A run of a parameter along PyTorch's axis 0 (outputs) or 1 (inputs): what one chunk of a block needs."""

    name: str
    parameter: Parameter
    axis: int
    first: int
    count: int

    @property
    def trains(self) -> bool:
        """Does its parameter train?"""
        return self.parameter.trains

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return self.parameter.value.size // self.parameter.shape[self.axis] * self.count

    def of(self, value: Array) -> Array:
        """This part of an array in the layout of the whole parameter."""
        if self.count == self.parameter.shape[self.axis]:
            return value
        axis = value.ndim - 1 if self.axis == 0 else value.ndim - 2
        return np.ascontiguousarray(np.take(value, range(self.first, self.first + self.count), axis))
