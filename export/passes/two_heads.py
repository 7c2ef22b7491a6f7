"""Two classifiers on the same features, averaged, as distilled networks have them (RepViT): one linear layer.

For networks that come as PyTorch modules, which no file waits to get back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, add_initializer, attribute, constant, maker, only_reader, take_name


@dataclass(frozen=True)
class _Head:
    """A linear function of features: weight [outputs, features] and bias [outputs], in float64."""

    features: ir.Value
    weight: Array
    bias: Array
    name: str


def merge_heads(model: ir.Model) -> None:
    """Rewrite in place: the logits, (head 1 + head 2) / 2 or another multiple, become one Gemm."""
    logits = model.graph.outputs[0]
    node, factor = maker(logits), 1.0
    if node is not None and node.op_type in ("Div", "Mul") and (number := constant(node.inputs[1])) is not None:
        if number.size != 1:
            return
        factor = 1 / float(number.item()) if node.op_type == "Div" else float(number.item())
        node = maker(node.inputs[0])
    if node is None or node.op_type != "Add":
        return
    one, other = (_head(value) for value in node.inputs)
    if one is None or other is None or one.features is not other.features or one.weight.shape != other.weight.shape:
        return
    weight = add_initializer(model, one.name, _float32(factor * (one.weight + other.weight)))
    bias = add_initializer(model, f"{one.name}/bias", _float32(factor * (one.bias + other.bias)))
    gemm = ir.node("Gemm", [one.features, weight, bias], {"transB": 1}, name=f"{one.name}/Gemm")
    made = gemm.outputs[0]
    take_name(made, logits)
    made.shape, made.type = logits.shape, logits.type
    model.graph.append(gemm)
    model.graph.outputs[0] = made


def _head(value: ir.Value | None) -> _Head | None:
    """Gemm, with a BatchNorm of the features in front of it or without."""
    node = maker(value)
    if node is None or value is None or node.op_type != "Gemm" or only_reader(value) is None:
        return None
    weight, features = constant(node.inputs[1]), node.inputs[0]
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(())
    if weight is None or bias is None or features is None or node.inputs[1] is None:
        return None
    weight, name = weight.astype(np.float64), f"{node.inputs[1].name}/merged"
    bias = np.broadcast_to(bias.astype(np.float64), weight.shape[:1])
    norm = maker(features)
    if norm is None or norm.op_type != "BatchNormalization":
        return _Head(features, weight, bias, name)
    numbers = [constant(part) for part in norm.inputs[1:5]]
    if norm.inputs[0] is None or any(part is None for part in numbers):
        return None
    gamma, beta, mean, variance = (np.asarray(part, np.float64) for part in numbers)
    scale = gamma / np.sqrt(variance + float(attribute(norm, "epsilon", 1e-5)))
    return _Head(norm.inputs[0], weight * scale, bias + weight @ (beta - mean * scale), name)


def _float32(numbers: Array) -> Array:
    return np.asarray(numbers, np.float32)
