"""How a parameter of a file became one of the network graph, so that a trained one can be written back.

A list of steps as JSON stands in the metadata_props of an initializer's value, under the key ORIGIN, where there was
one:

    {"step": "permute", "axes": [...]}                        its axes were put into this order
    {"step": "transpose"}                                     a matrix was turned
    {"step": "reshape", "shape": [...]}                       it had this shape
    {"step": "scale", "factor": f}                            it was multiplied by f
    {"step": "cast", "dtype": "float16"}                      it was of this type
    {"step": "dequantise", "dtype", "scale", "zero", "axis"}  of codes, float = (code - zero) * scale along the axis
    {"step": "copy", "of": name}                              it is one reader's own copy of this initializer
    {"step": "reader", "makes": name, "input": n}             and this is who reads it: the node that makes this value
    {"step": "channels", "factors": [...]}                    it was multiplied by these, along its first axis
    {"step": "shift", "numbers": [...]}                       these were added, along its first axis
    {"step": "shift_by", "other": name, "numbers": [...]}     another parameter times these was added
    {"step": "two_outputs"}                                   of one logit z it became two, -z/2 and z/2
    {"step": "computed", "of_value": name}                      it is what the file computes under this name
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array
from tinytl_edge.runtime.model_files.stored_numbers import Step

ORIGIN = "tinytl-edge.origin"
FILE_VALUE = "tinytl-edge.file_value"
ADDED = "tinytl-edge.added"
# Of a model whose file fuses operators: the values that it has, by its names of them, as JSON; each with the range of
# its 8-bit codes, or null.
FILE_MAPS = "tinytl-edge.maps"


def steps(value: ir.Value) -> list[dict[str, Any]]:
    """What was done to an initializer, in order."""
    found: list[dict[str, Any]] = json.loads(value.metadata_props.get(ORIGIN, "[]"))
    return found


def record(value: ir.Value, step: str, before: ir.Value | None = None, **details: Any) -> None:
    """Note what was done to `value`, after all that was done to `before`, which it was copied from."""
    past = steps(before if before is not None else value)
    if before is not None and before is not value:
        past.append({"step": "copy", "of": before.name})
    if step:
        past.append({"step": step, **details})
    value.metadata_props[ORIGIN] = json.dumps(past)


def begin(value: ir.Value, name: str, steps: Sequence[dict[str, Any]]) -> None:
    """`value` is what the file calls `name`, after these steps."""
    value.metadata_props[ORIGIN] = json.dumps([{"step": "copy", "of": name}, *steps])


def note_file_value(value: ir.Value, name: str | None) -> None:
    """`value` stands for what the file calls `name`."""
    if name is not None:
        value.metadata_props[FILE_VALUE] = name


def file_value(value: ir.Value) -> str:
    """The file's name of what `value` stands for."""
    return value.metadata_props.get(FILE_VALUE) or value.name or ""


def mark_added(part: ir.Value | ir.Node, to: str) -> None:
    """A parameter or a node is no file's, but was added to the block `to`."""
    part.metadata_props[ADDED] = to


def added_to(part: ir.Value | ir.Node) -> str | None:
    """The block that this was added to, or None for what the network had."""
    return part.metadata_props.get(ADDED)


def forget(value: ir.Value, step: str) -> None:
    """Take the steps of a kind out of what was done to `value`."""
    value.metadata_props[ORIGIN] = json.dumps([done for done in steps(value) if done["step"] != step])


def forget_all(model: ir.Model) -> None:
    """Nothing in the network graph tells any more where it came from."""
    made = [value for node in model.graph for value in node.outputs]
    for part in (*model.graph.inputs, *model.graph.initializers.values(), *made, *model.graph):
        for key in (ORIGIN, FILE_VALUE, ADDED):
            part.metadata_props.pop(key, None)


@dataclass(frozen=True)
class Stored:
    """Where a parameter's numbers are in its file: the initializer's name, type and shape, and the way there.

    `computed`: the file has no such initializer, but a value of this name that it computes from constants. `reader`:
    which of several readers of the initializer this is for: the node that makes the value of this name, at this input.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    steps: tuple[Step, ...]
    computed: bool = False
    reader: tuple[str, int] | None = None


def stored(value: ir.Value, passing_over: str = "") -> Stored:
    """The way back of what was recorded for an initializer; a kind of step may be passed over.

    Raises:
        ValueError: there is none: it was multiplied by zero, or is one of several outputs.
    """
    assert value.const_value is not None and value.name is not None
    name, shape, dtype = value.name, tuple(value.const_value.numpy().shape), "float32"
    back: list[Step] = []
    reader = None
    for step in reversed(steps(value)):
        kind, size = step["step"], math.prod(shape)
        if kind == passing_over:
            continue
        if kind == "computed":
            return Stored(step["of_value"], dtype, shape, tuple(back), True)
        if kind == "copy":
            name = step["of"]
        elif kind == "reader":
            reader = step["makes"], step["input"]
        elif kind == "transpose":
            back.append(Step("permute", shape, tuple(reversed(range(len(shape))))))
            shape = shape[::-1]
        elif kind == "permute":
            axes = step["axes"]
            back.append(Step("permute", shape, tuple(axes.index(axis) for axis in range(len(axes)))))
            shape = tuple(shape[axes.index(axis)] for axis in range(len(axes)))
        elif kind == "reshape":
            shape = tuple(step["shape"])
        elif kind == "two_outputs":
            back.append(Step("difference"))
            shape = (1, *shape[1:])
        elif kind == "cast":
            dtype = step["dtype"]
        elif kind == "scale":
            back.append(_by_channel("multiply", 1 / np.array([step["factor"]]), size))
        elif kind == "channels":
            back.append(_by_channel("multiply", 1 / _nonzero(step["factors"], name), size))
        elif kind == "shift":
            back.append(_by_channel("add", -np.array(step["numbers"]), size))
        elif kind == "shift_by":
            back.append(Step("add_product", numbers=tuple((-np.array(step["numbers"])).tolist()), other=step["other"]))
        elif kind == "dequantise":
            dtype, inner = step["dtype"], math.prod(shape[step["axis"] + 1 :])
            for operation, numbers in (("multiply", 1 / np.array(step["scale"])), ("add", np.array(step["zero"]))):
                back.append(Step(operation, numbers=tuple(numbers.tolist()), inner=inner if len(numbers) > 1 else size))
    return Stored(name, dtype, shape, tuple(back), reader=reader)


def _by_channel(operation: str, numbers: Array, size: int) -> Step:
    """With a number for each place of the first axis."""
    return Step(operation, numbers=tuple(numbers.tolist()), inner=max(size // len(numbers), 1))


def _nonzero(factors: Sequence[float], name: str) -> Array:
    numbers = np.array(factors)
    if not numbers.all():
        raise ValueError(f"'{name}' was multiplied by zero")
    return numbers
