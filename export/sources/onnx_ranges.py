"""Between which two numbers a value lies for any input, as far as its operators tell."""

from __future__ import annotations

import onnx_ir as ir

from tinytl_edge.export.onnx_graph import constant

_INFINITY = float("inf")
_FIXED = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0),
          "HardSwish": (-0.375, _INFINITY)}  # fmt: skip
_WITHIN = ("Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "MaxPool",
           "GlobalMaxPool", "GlobalAveragePool", "ReduceMean", "ReduceMax", "ReduceMin", "Slice", "Split", "Gather",
           "Expand")  # fmt: skip


def bounds(value: ir.Value | None) -> tuple[float, float]:
    """The smallest and the largest number that it can be."""
    node = value.producer() if value is not None else None
    if value is not None and value.const_value is not None:
        numbers = value.const_value.numpy()
        return (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
    if node is None:
        return -_INFINITY, _INFINITY
    if node.op_type in _FIXED:
        return _FIXED[node.op_type]
    if node.op_type in ("Relu", "Clip"):
        low, high = bounds(node.inputs[0])
        limits = (0.0, _INFINITY) if node.op_type == "Relu" else _limits(node)
        return min(max(low, limits[0]), limits[1]), max(min(high, limits[1]), limits[0])
    if node.op_type in _WITHIN:
        return bounds(node.inputs[0])
    if node.op_type in ("AveragePool", "Pad"):  # may bring in zeros
        low, high = bounds(node.inputs[0])
        fill = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        other = float(fill.item()) if fill is not None and fill.size == 1 else 0.0
        return min(low, other), max(high, other)
    if node.op_type == "Concat":
        parts = [bounds(part) for part in node.inputs]
        return min(low for low, _ in parts), max(high for _, high in parts)
    return -_INFINITY, _INFINITY


def _limits(node: ir.Node) -> tuple[float, float]:
    found = [-_INFINITY, _INFINITY]
    for index, limit in enumerate(node.inputs[1:3]):
        number = constant(limit)
        if number is not None and number.size == 1:
            found[index] = float(number.item())
    for index, name in enumerate(("min", "max")):  # before opset 11
        if name in node.attributes:
            found[index] = float(node.attributes[name].value)
    return found[0], found[1]
