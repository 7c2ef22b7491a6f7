"""Operators that onnxruntime's optimiser writes (domain com.microsoft), as the operators that they were made from."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import add_initializer, attribute
from tinytl_edge.runtime.errors import UsageError

_ACTIVATIONS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Relu": (), "Sigmoid": (), "Tanh": ()}


def split_fused(model: ir.Model) -> None:
    """Rewrite in place; com.microsoft's Gelu and its like become ONNX's; FusedConv, FusedGemm, FusedMatMul are split.

    Raises:
        UsageError: one of them has an option that is not known here.
    """
    for node in list(model.graph):
        if node.domain != "com.microsoft":
            continue
        if node.op_type in ("FusedConv", "FusedGemm"):
            _with_activation(model, node)
        elif node.op_type == "FusedMatMul":
            _matmul(model, node)
        elif node.op_type in ("Gelu", "BiasGelu", "FastGelu", "QuickGelu"):
            _gelu(model, node)


def _replace(model: ir.Model, old: ir.Node, *new: ir.Node) -> None:
    for node in new:
        node.outputs[0].name = node.name
    model.graph.insert_before(old, list(new))
    old.outputs[0].replace_all_uses_with(new[-1].outputs[0], replace_graph_outputs=True)
    model.graph.remove(old, safe=True)


def _with_activation(model: ir.Model, node: ir.Node) -> None:
    conv = node.op_type == "FusedConv"
    kept = {name: entry.value for name, entry in node.attributes.items() if not name.startswith("activation")}
    nodes = [ir.node(node.op_type.removeprefix("Fused"), node.inputs[:3], kept, name=node.name)]
    if conv and len(node.inputs) > 3 and node.inputs[3] is not None:
        nodes.append(ir.node("Add", [nodes[-1].outputs[0], node.inputs[3]], name=f"{node.name}/sum"))
    activation, last = attribute(node, "activation", ""), nodes[-1].outputs[0]
    numbers = attribute(node, "activation_params", ()) if conv else [
        attribute(node, f"activation_{name}") for name in ("alpha", "beta") if f"activation_{name}" in node.attributes
    ]  # fmt: skip
    if activation == "Clip":
        limits = [add_initializer(model, f"{node.name}/limit", np.array(number, np.float32)) for number in numbers]
        nodes.append(ir.node("Clip", [last, *limits], name=f"{node.name}/clip"))
    elif activation in _ACTIVATIONS:
        attributes = dict(zip(_ACTIVATIONS[activation], numbers))
        nodes.append(ir.node(activation, [last], attributes, name=f"{node.name}/{activation.lower()}"))
    elif activation:
        raise UsageError(f"{node.op_type} '{node.name}' ends in {activation}, which is not known here.")
    _replace(model, node, *nodes)


def _matmul(model: ir.Model, node: ir.Node) -> None:
    if any(attribute(node, name, 0) for name in ("transA", "transBatchA", "transBatchB")):
        raise UsageError(f"FusedMatMul '{node.name}' turns its input, which is not known here.")
    nodes, right = [], node.inputs[1]
    if attribute(node, "transB", 0) and right is not None:
        rank = len(right.shape) if right.shape is not None else 2
        order = [*range(rank - 2), rank - 1, rank - 2]
        nodes.append(ir.node("Transpose", [right], {"perm": order}, name=f"{node.name}/turned"))
        right = nodes[-1].outputs[0]
    nodes.append(ir.node("MatMul", [node.inputs[0], right], name=node.name))
    alpha = attribute(node, "alpha", 1.0)
    if alpha != 1.0:
        factor = add_initializer(model, f"{node.name}/alpha", np.array(alpha, np.float32))
        nodes.append(ir.node("Mul", [nodes[-1].outputs[0], factor], name=f"{node.name}/scaled"))
    _replace(model, node, *nodes)


def _gelu(model: ir.Model, node: ir.Node) -> None:
    nodes, x = [], node.inputs[0]
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        nodes.append(ir.node("Add", [x, node.inputs[1]], name=f"{node.name}/sum"))
        x = nodes[-1].outputs[0]
    if node.op_type == "QuickGelu":
        alpha = add_initializer(model, f"{node.name}/alpha", np.array(attribute(node, "alpha", 1.702), np.float32))
        scaled = ir.node("Mul", [x, alpha], name=f"{node.name}/scaled")
        gate = ir.node("Sigmoid", [scaled.outputs[0]], name=f"{node.name}/gate")
        nodes += [scaled, gate, ir.node("Mul", [x, gate.outputs[0]], name=node.name)]
    else:
        approximate = "tanh" if node.op_type == "FastGelu" else "none"
        nodes.append(ir.node("Gelu", [x], {"approximate": approximate}, name=node.name))
    _replace(model, node, *nodes)
