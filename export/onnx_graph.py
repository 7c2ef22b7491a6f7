"""Reading an onnx-ir graph: attributes, constants and shapes as Python values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from tinytl_edge.runtime.errors import UsageError

Array = np.ndarray[Any, Any]


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """A node's attribute as a Python value: lists become tuples, strings str."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    return tuple(value) if isinstance(value, (list, tuple)) else value


@dataclass(frozen=True)
class Codes:
    """An 8-bit weight as a file has it: weight = (codes - zero) * scale, scale [outputs] or [1]; INT8 or UINT8."""

    codes: Array
    scale: Array
    zero: int


def eight_bits(value: ir.Value | None) -> Codes | None:
    """The codes of a weight that is read through DequantizeLinear, or None."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    codes, scale, *zero = [_tensor(source) for source in node.inputs]
    if codes is None or scale is None:
        return None
    zeros = zero[0] if zero and zero[0] is not None else np.zeros(1, np.int64)
    return Codes(codes, np.atleast_1d(scale).astype(np.float32), int(np.ravel(zeros)[0]))


def constant(value: ir.Value | None) -> Array | None:
    """What an initializer holds, also in another shape, or as an 8-bit weight behind DequantizeLinear; or None."""
    found = _tensor(value)
    if found is not None:
        return found
    coded = eight_bits(value)
    if coded is None:
        return _reshaped(value)
    per_output = coded.scale.reshape(-1, *[1] * (coded.codes.ndim - 1)) if coded.scale.size > 1 else coded.scale[0]
    return ((coded.codes.astype(np.int32) - coded.zero).astype(np.float32) * per_output).astype(np.float32)


def _reshaped(value: ir.Value | None) -> Array | None:
    """A constant behind an operator that gives it another shape alone."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in _SHAPES or value is None or value.shape is None:
        return None
    inner = constant(node.inputs[0])
    if inner is None:
        return None
    if node.op_type == "Transpose":
        return inner.transpose(attribute(node, "perm"))
    shape = [n for n in value.shape if isinstance(n, int)]
    return inner.reshape(shape) if len(shape) == len(value.shape) else None


def _tensor(value: ir.Value | None) -> Array | None:
    if value is None or value.const_value is None or value.producer() is not None:
        return None
    return value.const_value.numpy()


_SHAPES = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Flatten")


def weight_source(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind a parameter: itself, what DequantizeLinear reads, what has another shape; or None."""
    while value is not None and value.producer() is not None:
        node = value.producer()
        if node is None or node.op_type not in ("DequantizeLinear", *_SHAPES):
            return None
        value = node.inputs[0]
    return value if value is not None and value.const_value is not None else None


def has_sizes(value: ir.Value) -> bool:
    """Is its shape known, but for the batch?"""
    return value.shape is not None and all(isinstance(n, int) for n in tuple(value.shape)[1:])


def sizes(value: ir.Value) -> tuple[int, ...]:
    """A value's sizes without the batch.

    Raises:
        UsageError: one of them is not known.
    """
    if not has_sizes(value):
        raise UsageError(f"The shape of the model's value '{value.name}' is not known before it runs: {value.shape}.")
    assert value.shape is not None
    return tuple(int(n) for n in tuple(value.shape)[1:])  # type: ignore[arg-type]


def maker(value: ir.Value | None) -> ir.Node | None:
    """The node that makes a value; None for an initializer, an input, or no value."""
    return value.producer() if value is not None else None


def only_reader(value: ir.Value) -> ir.Node | None:
    """The node that alone reads a value, once; None where there are more, or where it is an output."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def add_initializer(model: ir.Model, name: str, value: Array) -> ir.Value:
    """A new initializer, under a name near to `name`."""
    unique, number = name, 1
    while unique in model.graph.initializers:
        number += 1
        unique = f"{name}~{number}"
    array = np.asarray(value, order="C")
    tensor = ir.tensor(array, name=unique)
    made = ir.Value(name=unique, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(made)
    return made


def set_initializer(value: ir.Value, array: Array) -> None:
    """Give an initializer another content."""
    tensor = ir.tensor(np.asarray(array, order="C"), name=value.name)
    value.const_value, value.shape, value.type = tensor, ir.Shape(np.shape(array)), ir.TensorType(tensor.dtype)


def take_name(made: ir.Value, old: ir.Value) -> None:
    """`made` stands for `old`: under its name, and with what is noted of it."""
    made.name, old.name = old.name, f"{old.name}/old"
    made.metadata_props.update(old.metadata_props)


def nodes_between(first: ir.Value, last: ir.Value) -> Iterator[ir.Node]:
    """All nodes on which `last` depends and which depend on `first`, in the graph's order."""
    below: set[int] = set()
    stack = [last]
    seen: set[int] = set()
    while stack:
        value = stack.pop()
        node = value.producer()
        if value is first or node is None or id(node) in seen:
            continue
        seen.add(id(node))
        stack.extend(source for source in node.inputs if source is not None)
    reached = {id(first)}
    graph = last.graph
    assert graph is not None
    for node in graph:
        if id(node) in seen and any(source is not None and id(source) in reached for source in node.inputs):
            reached.update(id(output) for output in node.outputs)
            below.add(id(node))
            yield node
