"""The compiler's graph: operators on the values of one sample, in the order in which they run.

Maps are [height, width, channels], vectors are maps of one pixel; masks hold one bit for each element of their shape.
An operator names what it reads and writes by role. A value is written once, except that operators may add to it, and
that each may write a run of a map (some rows, or some channels of its only pixel) or some channels of all pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .quantise import Quantised

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]

BITS = {"float32": 32, "bfloat16": 16, "uint16": 16, "int8": 8, "uint8": 8, "bit": 1}


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
    later. What is written under the roles in `adds_to` is added to what the value holds; under those in `completes`
    only a part of the value is written, and the rest of it stays. Operators of one `segment` can be run again
    together.
    """

    kind: str
    reads: dict[str, str]
    writes: dict[str, str]
    parameters: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    in_place: tuple[str, ...] = ()
    adds_to: tuple[str, ...] = ()
    completes: tuple[str, ...] = ()
    segment: str | None = None

    def copy(self) -> Op:
        """An operator that can be changed without changing this one."""
        return replace(
            self, reads=dict(self.reads), writes=dict(self.writes), parameters=dict(self.parameters),
            attributes=dict(self.attributes),
        )  # fmt: skip


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
    mask_pixels: dict[int, int] = field(
        default_factory=dict
    )  # by dropout layer: its mask is [channels, so many pixels]

    def ops(self) -> Iterator[Op]:
        """All operators in the order of a training step."""
        yield from self.forward
        yield from self.backward

    def copy(self) -> Graph:
        """A graph that passes may change without changing this one; parameters are shared."""
        copied = replace(self, values=dict(self.values), parts=dict(self.parts), persistent=set(self.persistent))
        copied.forward, copied.backward = [op.copy() for op in self.forward], [op.copy() for op in self.backward]
        return copied

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


def in_engine_layout(value: Array, layout: str, groups: int = 1) -> Array:
    """PyTorch's values in the order in which the engine has them; see `Parameter`."""
    if layout == "conv":
        out, inner, height, width = value.shape
        return value.reshape(groups, out // groups, inner, height, width).transpose(3, 4, 0, 2, 1)
    if layout == "depthwise":
        return value[:, 0].transpose(1, 2, 0)
    return value.T if layout == "linear" else value


@dataclass
class Parameter:
    """A weight or bias: its name and shape in the network graph, and its values in the engine's layout.

    `layout` tells how one becomes the other: 'conv' [out, in/group, h, w] -> [h, w, group, in/group, out/group],
    'depthwise' [channel, 1, h, w] -> [h, w, channel], 'linear' [out, in] -> [in, out], 'vector' as it is.
    """

    name: str
    shape: Shape
    layout: str
    value: Array
    groups: int = 1
    trains: bool = False
    quantised: Quantised | None = None  # the source's own 8 bits

    @staticmethod
    def from_torch(name: str, value: Array, layout: str, groups: int = 1) -> Parameter:
        """Bring PyTorch's values into the engine's layout."""
        laid_out = np.ascontiguousarray(in_engine_layout(value, layout, groups), np.float32)
        return Parameter(name, tuple(value.shape), layout, laid_out, groups)

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
