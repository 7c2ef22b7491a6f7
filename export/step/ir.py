"""The compiler's graph: operators on the values of one sample, in the order in which they run.

Maps are float32 [height, width, channels]; vectors [channels]; masks hold one bit for each element of their shape.
An operator names what it reads and writes by role; each value is written once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """Something that lies in the arena for a while."""

    name: str
    shape: Shape
    mask: bool = False

    @property
    def bytes(self) -> int:
        """Its size."""
        elements = math.prod(self.shape)
        return -(-elements // 8) if self.mask else 4 * elements


@dataclass
class Op:
    """One call of a kernel.

    `reads` and `writes` map roles to values, `parameters` roles to parameter names. The first of `writes` may take
    the place of a value that it reads under one of the roles in `in_place`, where nobody reads that one later.
    """

    kind: str
    reads: dict[str, str]
    writes: dict[str, str]
    parameters: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    in_place: tuple[str, ...] = ()


@dataclass
class Graph:
    """A step, or its forward half: values by name, operators in order, parameters in the engine's layout."""

    values: dict[str, Value]
    forward: list[Op]
    parameters: dict[str, Parameter]
    image: str
    logits: str
    backward: list[Op] = field(default_factory=list)

    def ops(self) -> Iterator[Op]:
        """All operators in the order of a training step."""
        yield from self.forward
        yield from self.backward

    def add_value(self, name: str, shape: Shape, mask: bool = False) -> str:
        """A new value under `name`, or a name near to it; returns the name."""
        unique, number = name, 1
        while unique in self.values:
            number += 1
            unique = f"{name}~{number}"
        self.values[unique] = Value(unique, shape, mask)
        return unique


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
