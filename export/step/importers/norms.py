"""Normalisation over channels, neighbours or groups of them; BatchNorm has become a scale and a shift before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import attribute, constant, only_reader

from ..ir import Op
from ..operators import LARGEST_RESPONSE_WINDOW
from .importer import Importer
from .views import View


def layer_norm(importer: Importer, node: ir.Node) -> None:
    """LayerNormalization of each pixel over its channels, which lie along the last axis."""
    view = importer.view(node)
    rank = view.order.ndim
    axis = attribute(node, "axis", -1) % (rank + 1) - 1
    if axis != rank - 1 or (rank > 1 and view.channel_axis() != axis) or (rank == 1 and not view.is_map):
        raise importer.refused(node, "it normalises something else than the channels of each pixel")
    parameters = {
        role: importer.parameter(node, value, "vector")
        for role, value in zip(("weight", "bias"), node.inputs[1:])
        if value is not None
    }
    epsilon = float(attribute(node, "epsilon", 1e-5))
    importer.views[node.outputs[0]] = view.like(channel_norm(importer, node, view, parameters, epsilon, False))


def channel_norm(
    importer: Importer, node: ir.Node, view: View, parameters: dict[str, str], epsilon: float, rms: bool
) -> str:
    """Emit the normalisation of each pixel; returns its result."""
    height, width, _ = view.shape
    op = Op("channel_norm", {"x": view.name}, {}, parameters, {"epsilon": epsilon, "rms": rms})
    op.writes["statistics"] = importer.graph.add_value(f"{node.name}/statistics", (height, width, 2))
    return importer.emit(op, node, view.shape)


def instance_norm(importer: Importer, node: ir.Node) -> None:
    """InstanceNormalization of channels, or (behind a Reshape) of groups of them: GroupNorm as PyTorch exports it."""
    view = importer.view(node)
    groups = view.order.shape[0]
    expected = View.of_map(view.name, view.shape).order.reshape(view.order.shape)
    if not np.array_equal(expected, view.order) or view.shape[2] % groups:
        raise importer.refused(node, "it normalises something else than groups of channels")
    scale, bias = constant(node.inputs[1]), constant(node.inputs[2])
    parameters = {}
    if groups == view.shape[2]:
        parameters = {r: importer.parameter(node, v, "vector") for r, v in zip(("weight", "bias"), node.inputs[1:])}
    elif scale is None or bias is None or (scale != 1).any() or bias.any():
        raise importer.refused(node, "it scales groups of channels")
    attributes = {"groups": groups, "epsilon": float(attribute(node, "epsilon", 1e-5))}
    op = Op("group_norm", {"x": view.name}, {}, parameters, attributes)
    op.writes["statistics"] = importer.graph.add_value(f"{node.name}/statistics", (1, groups, 2))
    importer.views[node.outputs[0]] = view.like(importer.emit(op, node, view.shape))


def response_norm(importer: Importer, node: ir.Node) -> None:
    """LRN, AlexNet's local response normalisation over neighbouring channels."""
    view = importer.view(node)
    if view.channel_axis() != 0:
        raise importer.refused(node, "it normalises something else than the channels of each pixel")
    size = attribute(node, "size")
    if not 1 <= size <= LARGEST_RESPONSE_WINDOW:
        raise importer.refused(node, f"it has a window of {size} channels; up to {LARGEST_RESPONSE_WINDOW} are known")
    alpha, beta, offset = (float(attribute(node, n, d)) for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    if min(alpha, beta, offset) <= 0:
        raise importer.refused(node, "its alpha, beta and bias have to be positive")
    attributes = {"size": size, "alpha": alpha / size, "beta": beta, "offset": offset}
    op = Op("response_norm", {"x": view.name}, {}, {}, attributes)
    importer.views[node.outputs[0]] = view.like(importer.emit(op, node, view.shape))


@dataclass(frozen=True)
class SpelledNorm:
    """(x - mean) / sqrt(variance + epsilon) in single operators; `rms`: without the mean; `nodes` compute `output`."""

    source: ir.Value
    output: ir.Value
    epsilon: float
    rms: bool
    axes: tuple[int, ...]
    nodes: tuple[ir.Node, ...]  # the last makes `output`


def find_spelled_norms(model: ir.Model) -> list[SpelledNorm]:
    """All of a graph."""
    return [norm for node in model.graph if node.op_type == "ReduceMean" and (norm := _spelled(node)) is not None]


def _spelled(variance: ir.Node) -> SpelledNorm | None:
    """The normalisation whose variance this mean of squares is: of centred = x - mean(x), or of x itself."""
    square = variance.inputs[0].producer() if variance.inputs[0] is not None else None
    if square is None or square.op_type not in ("Mul", "Pow") or square.inputs[0] is None:
        return None
    exponent = constant(square.inputs[1]) if square.op_type == "Pow" else None
    if square.inputs[1] is not square.inputs[0] and (exponent is None or exponent.size != 1 or exponent.item() != 2):
        return None
    centred = square.inputs[0]
    shifted = only_reader(variance.outputs[0])
    epsilon = _scalar_operand(shifted) if shifted is not None and shifted.op_type == "Add" else None
    root = only_reader(shifted.outputs[0]) if shifted is not None else None
    if shifted is None or epsilon is None or root is None or root.op_type != "Sqrt":
        return None
    inner: tuple[ir.Node, ...] = (square, variance, shifted, root)
    last = only_reader(root.outputs[0])
    if last is not None and last.op_type == "Reciprocal":
        inner = (*inner, last)
        last = only_reader(last.outputs[0])
        if last is None or last.op_type != "Mul" or centred not in last.inputs:
            return None
    elif last is None or last.op_type != "Div" or last.inputs[0] is not centred:
        return None
    centring = centred.producer()
    axes = tuple(attribute(variance, "axes") or ())
    if centring is not None and centring.op_type == "Sub" and centring.inputs[1] is not None:
        mean = centring.inputs[1].producer()
        same = mean is not None and mean.op_type == "ReduceMean" and mean.inputs[0] is centring.inputs[0]
        if (
            mean is not None
            and same
            and tuple(attribute(mean, "axes") or ()) == axes
            and centring.inputs[0] is not None
        ):
            nodes = (mean, centring, *inner, last)
            return SpelledNorm(centring.inputs[0], last.outputs[0], epsilon, False, axes, nodes)
    return SpelledNorm(centred, last.outputs[0], epsilon, True, axes, (*inner, last))


def _scalar_operand(node: ir.Node) -> float | None:
    for value in node.inputs:
        found = constant(value)
        if found is not None and found.size == 1:
            return float(found.item())
    return None


def spelled_norm(importer: Importer, node: ir.Node, norm: SpelledNorm) -> None:
    """Of each pixel over its channels."""
    if norm.source not in importer.views:
        raise importer.refused(node, "it reads a parameter or a constant where a map belongs")
    view = importer.views[norm.source]
    axis = view.channel_axis()
    if axis is None or {a % (view.order.ndim + 1) - 1 for a in norm.axes} != {axis}:
        raise importer.refused(node, "it normalises something else than the channels of each pixel")
    importer.views[norm.output] = view.like(channel_norm(importer, node, view, {}, norm.epsilon, norm.rms))
