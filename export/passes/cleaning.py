"""Nodes that do nothing here go: Identity, Dropout, casts of floats to floats, Expand where broadcasting does it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import attribute, constant

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
_BROADCASTING = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max")


def remove_idle(model: ir.Model) -> None:
    """Remove them in place; readers read what the node read."""
    for node in list(model.graph):
        source = node.inputs[0] if node.inputs else None
        if source is not None and _is_idle(node, source):
            for output in node.outputs[1:]:
                if list(output.uses()):
                    break
            else:
                _bypass(model, node, source)


def drop_zero_biases(model: ir.Model, parameters: set[str]) -> None:
    """A convolution's bias of zeros that is no parameter goes: PyTorch's exporter makes one where there is none."""
    for node in model.graph:
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
        numbers = constant(bias)
        if bias is not None and bias.name not in parameters and numbers is not None and not numbers.any():
            node.resize_inputs(2)


def _is_idle(node: ir.Node, source: ir.Value) -> bool:
    if node.op_type in ("Identity", "Dropout"):
        return True
    if node.op_type == "Cast":
        return source.dtype in _FLOATS and ir.DataType(attribute(node, "to")) in _FLOATS
    if node.op_type == "CastLike":
        like = node.inputs[1]
        return source.dtype in _FLOATS and like is not None and like.dtype in (*_FLOATS, None)
    if node.op_type in ("Pad", "Slice", "Expand", "Reshape", "AveragePool", "MaxPool"):
        return _changes_nothing(node, source)
    if node.op_type == "Concat":
        return len(node.inputs) == 1
    if node.op_type in ("Mul", "Div", "Add", "Sub"):
        return _is_neutral(node, source)
    return node.op_type == "Transpose" and attribute(node, "perm") == tuple(range(len(attribute(node, "perm") or ())))


def _changes_nothing(node: ir.Node, source: ir.Value) -> bool:
    if node.op_type == "Expand":
        return _same_shape(node, source) or _broadcast_anyway(node)
    if node.op_type in ("AveragePool", "MaxPool"):
        return all(k == 1 for k in attribute(node, "kernel_shape")) and _same_shape(node, source)
    if node.op_type == "Slice" and len(node.inputs) > 4:
        steps = constant(node.inputs[4])
        if steps is None or (steps != 1).any():
            return False
    if node.op_type == "Pad":
        amounts = constant(node.inputs[1]) if len(node.inputs) > 1 else np.array(attribute(node, "pads", (1,)))
        return amounts is not None and not amounts.any()
    return _same_shape(node, source)


def _same_shape(node: ir.Node, source: ir.Value) -> bool:
    before, after = source.shape, node.outputs[0].shape
    if before is None or after is None or source.is_initializer():
        return False
    return all(isinstance(n, int) for n in before) and tuple(before) == tuple(after)


def _broadcast_anyway(node: ir.Node) -> bool:
    """Is it read by operators alone that broadcast to the same shape: `x * gate.expand_as(x)`?"""
    output = node.outputs[0]
    for use in output.uses():
        others = [value for value in use.node.inputs if value is not None and value is not output]
        if use.node.op_type not in _BROADCASTING or len(others) != 1 or others[0].shape is None or output.shape is None:
            return False
        if tuple(others[0].shape) != tuple(output.shape):
            return False
    return bool(list(output.uses()))


def _is_neutral(node: ir.Node, source: ir.Value) -> bool:
    """x * 1, x / 1, x + 0, x - 0 with a scalar of no name."""
    number = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if number is None or number.size != 1 or source.is_initializer() or number.dtype.kind != "f":
        return False
    return bool(number.item() == (1 if node.op_type in ("Mul", "Div") else 0)) and source.dtype in _FLOATS


def _bypass(model: ir.Model, node: ir.Node, source: ir.Value) -> None:
    output = node.outputs[0]
    if output.is_graph_output() and (source.is_graph_input() or source.is_initializer()):
        return
    if output.is_graph_output():
        name, output.name = output.name, f"{output.name}/old"
        source.name = name
    output.replace_all_uses_with(source, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
