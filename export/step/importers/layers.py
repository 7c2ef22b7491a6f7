"""Convolutions and linear layers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, attribute, constant, sizes

from ..ir import Op, Shape
from .importer import Importer
from .views import View


def convolution(importer: Importer, node: ir.Node) -> None:
    """Conv: dense, grouped, depthwise, or (1x1) a product of each pixel; or of a whole map, a linear layer."""
    weight = constant(node.inputs[1])
    if weight is not None and weight.ndim == 3 and weight.shape[:2] == (1, 1):
        _over_channels(importer, node, weight)
        return
    x = importer.map(node)
    if weight is None or weight.ndim != 4:
        raise importer.refused(node, "its weight is no constant, or it is no 2-D convolution")
    channels, height, width = sizes(node.outputs[0])
    out = (height, width, channels)
    groups = attribute(node, "group", 1)
    pads = attribute(node, "pads", (0, 0, 0, 0))
    strides, dilation = attribute(node, "strides", (1, 1)), attribute(node, "dilations", (1, 1))
    kernel = weight.shape[2:]
    depthwise = groups > 1 and groups == x.shape[2] == channels
    whole = groups == 1 and kernel == x.shape[:2] and out[:2] == (1, 1) and not any(pads) and max(dilation) == 1
    pointwise = kernel == (1, 1) and groups == 1 and max(strides) == 1 and not any(pads)
    kind = "depthwise" if depthwise else "pointwise" if pointwise or whole else "conv"
    layout = "depthwise" if depthwise else "conv"
    parameters = {"weight": importer.parameter(node, node.inputs[1], layout, 1 if depthwise else groups)}
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        parameters["bias"] = importer.parameter(node, bias, "vector")
    geometry: dict[str, object] = {
        "in": x.shape, "out": out, "kernel": kernel, "stride": strides, "pad": pads[:2], "dilation": dilation,
        "groups": groups,
    }  # fmt: skip
    if whole:
        geometry = linear_geometry(1, int(np.prod(x.shape)), channels)
    attributes = {"geometry": geometry, "activation": "none"}
    importer.bind_map(node, importer.emit(Op(kind, {"x": x.name}, {}, parameters, attributes), node, out))


def _over_channels(importer: Importer, node: ir.Node, weight: Array) -> None:
    """Conv1d along the channels of a pixel, as ECA's attention has it: they are the columns of a map of one channel."""
    view = importer.view(node)
    before, after = attribute(node, "pads", (0, 0))
    leaving = sizes(node.outputs[0])[-1]
    stride, dilation = attribute(node, "strides", (1,))[0], attribute(node, "dilations", (1,))[0]
    if view.shape[:2] != (1, 1) or not view.is_whole or view.shape[2] != leaving or before != after:
        raise importer.refused(node, "it is no 2-D convolution, nor one along the channels of a pixel")
    geometry = {
        "in": (1, leaving, 1), "out": (1, leaving, 1), "kernel": (1, weight.shape[2]), "stride": (1, stride),
        "pad": (0, before), "dilation": (1, dilation), "groups": 1,
    }  # fmt: skip
    parameters = {"weight": importer.parameter(node, node.inputs[1], "conv", shape=(1, 1, 1, weight.shape[2]))}
    if len(node.inputs) > 2:
        parameters["bias"] = importer.parameter(node, node.inputs[2], "vector")
    op = Op("conv", {"x": view.name}, {}, parameters, {"geometry": geometry, "activation": "none"})
    importer.bind_map(node, importer.emit(op, node, view.shape))


def linear_geometry(pixels: int, entering: int, leaving: int, shape: Shape = (1, 1, 0)) -> dict[str, object]:
    """Of a product of each of `pixels` (in one row, or as in `shape`) with a matrix."""
    height, width = shape[:2] if shape[2] else (1, pixels)
    return {
        "in": (height, width, entering), "out": (height, width, leaving), "kernel": (1, 1), "stride": (1, 1),
        "pad": (0, 0), "dilation": (1, 1), "groups": 1,
    }  # fmt: skip


def gemm(importer: Importer, node: ir.Node) -> None:
    """A linear layer of a vector; a map that is flattened in any of the two usual orders is one."""
    if attribute(node, "transB", 0) != 1 or attribute(node, "transA", 0):
        raise importer.refused(node, "this is no linear layer")
    if {attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)} != {1.0}:
        raise importer.refused(node, "its product is scaled")
    _linear(importer, node, importer.view(node), node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None)


def matmul(importer: Importer, node: ir.Node) -> None:
    """A linear layer of vectors or of every pixel; or rows or columns of maps times a constant matrix."""
    left, right = node.inputs
    matrix = constant(left)
    if matrix is not None and right in importer.views:  # of rows
        x = importer.map(node, 1)
        _need_plane(importer, node, x, matrix.ndim)
        name = importer.resample(node, x.name, matrix.reshape(matrix.shape[-2:]), np.eye(x.shape[1], dtype=np.float32))
        return importer.bind_map(node, name)
    view, matrix = importer.view(node), constant(right)
    if matrix is None or matrix.ndim != 2:
        raise importer.refused(node, "it multiplies two maps, as attention does")
    axis = view.channel_axis()
    flat = view.order.ndim == 1
    if not flat and axis == view.order.ndim - 1 and matrix.shape[0] == view.shape[2]:
        return _per_pixel(importer, node, view, right)
    if not flat:  # of columns
        x = importer.map(node)
        _need_plane(importer, node, x, 2)
        name = importer.resample(node, x.name, np.eye(x.shape[0], dtype=np.float32), matrix.T)
        return importer.bind_map(node, name)
    return _linear(importer, node, view, _transposed(importer, node, right), None)


def _transposed(importer: Importer, node: ir.Node, right: ir.Value | None) -> ir.Value | None:
    producer = right.producer() if right is not None else None
    if producer is None or producer.op_type != "Transpose":
        raise importer.refused(node, "its weight is not [outputs, inputs] behind a Transpose")
    return producer.inputs[0]


def _need_plane(importer: Importer, node: ir.Node, x: View, rank: int) -> None:
    if x.order.ndim != 3 or rank < 2:
        raise importer.refused(node, "it multiplies something else than rows or columns of a map")


def _per_pixel(importer: Importer, node: ir.Node, view: View, right: ir.Value | None) -> None:
    weight = _transposed(importer, node, right)
    leaving = sizes(node.outputs[0])[-1]
    height, width, entering = view.shape
    geometry = linear_geometry(height * width, entering, leaving, view.shape)
    parameters = {"weight": importer.parameter(node, weight, "linear")}
    op = Op("pointwise", {"x": view.name}, {}, parameters, {"geometry": geometry, "activation": "none"})
    name = importer.emit(op, node, (height, width, leaving))
    order = np.arange(height * width * leaving, dtype=np.int32).reshape(sizes(node.outputs[0]))
    importer.views[node.outputs[0]] = View(name, (height, width, leaving), order)


def _linear(importer: Importer, node: ir.Node, view: View, weight: ir.Value | None, bias: ir.Value | None) -> None:
    array = constant(weight)
    if view.order.ndim != 1 or array is None or array.ndim != 2 or array.shape[1] != view.order.size:
        raise importer.refused(node, "this is no linear layer of a vector")
    leaving, entering = array.shape
    if view.order.size != int(np.prod(view.shape)):  # some channels of a pixel, say
        view = importer.arranged(node, view)
    height, width, channels = view.shape
    by_channel = np.array_equal(View.of_map(view.name, view.shape).order.reshape(-1), view.order)
    if view.is_whole:
        name = importer.parameter(node, weight, "linear")
    elif by_channel:
        name = importer.parameter(node, weight, "conv", shape=(leaving, channels, height, width))
    else:
        raise importer.refused(node, "it reads a map that was flattened in an unusual order")
    parameters = {"weight": name}
    if bias is not None:
        parameters["bias"] = importer.parameter(node, bias, "vector", shape=(leaving,))
    attributes = {"geometry": linear_geometry(1, entering, leaving), "activation": "none"}
    importer.bind_map(
        node, importer.emit(Op("pointwise", {"x": view.name}, {}, parameters, attributes), node, (1, 1, leaving))
    )
