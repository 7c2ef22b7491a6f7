"""Pooling, means, and sizes that change: windows, whole maps, padding and resizing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, attribute, constant, sizes
from tinytl_edge.export.resizing import resize_matrix

from ..ir import Op
from .importer import Geometry, Importer
from .views import View

_LARGEST_WINDOW = 65536  # elements that an index of 16 bits tells apart
_MOST_BRANCHES = 16


def average_pool(importer: Importer, node: ir.Node) -> None:
    """What lies in the padding counts, or not; unevenly padded, the padding becomes part of the map."""
    include_pad = bool(attribute(node, "count_include_pad", 0))
    top, left, bottom, right = attribute(node, "pads", (0, 0, 0, 0))
    x = importer.map(node)
    name = x.name
    if include_pad and (top, left) != (bottom, right):
        padded = [_padding(size, before, after) for size, before, after in zip(x.shape, (top, left), (bottom, right))]
        name, top, left = importer.resample(node, name, *padded), 0, 0
    geometry = _windows(importer, node, name, (top, left))
    # What PyTorch counts beyond the input lies within the padding, so without any it is all the same.
    attributes = {"geometry": geometry, "include_pad": include_pad and any((top, left))}
    importer.bind_map(node, importer.emit(Op("average_pool", {"x": name}, {}, {}, attributes), node, geometry["out"]))


def max_pool(importer: Importer, node: ir.Node) -> None:
    """The largest of each window."""
    x = importer.map(node)
    _max_pool(importer, node, x.name, _windows(importer, node, x.name, attribute(node, "pads", (0, 0, 0, 0))[:2]))


def _max_pool(importer: Importer, node: ir.Node, x: str, geometry: Geometry) -> None:
    window = geometry["kernel"][0] * geometry["kernel"][1]
    if window > _LARGEST_WINDOW:
        raise importer.refused(node, f"its window has more than {_LARGEST_WINDOW} elements")
    op = Op("max_pool", {"x": x}, {}, {}, {"geometry": geometry})
    dtype = "uint8" if window <= 256 else "uint16"
    op.writes["index"] = importer.graph.add_value(f"{node.name}/index", geometry["out"], dtype)
    importer.bind_map(node, importer.emit(op, node, geometry["out"]))


def _windows(importer: Importer, node: ir.Node, x: str, pad: tuple[int, int]) -> Geometry:
    kernel = attribute(node, "kernel_shape")
    strides = attribute(node, "strides", (1, 1))
    channels, height, width = sizes(node.outputs[0])
    shape = importer.graph.values[x].shape
    if max(attribute(node, "dilations", (1, 1))) > 1 or len(node.outputs) > 1:
        raise importer.refused(node, "it is dilated, or returns indices")
    if any((n - 1) * stride >= size + before for n, stride, size, before in zip((height, width), strides, shape, pad)):
        raise importer.refused(node, "its last window holds nothing but padding")  # PyTorch drops it, ONNX does not
    return {
        "in": shape, "out": (height, width, channels), "kernel": kernel, "stride": strides, "pad": tuple(pad),
        "dilation": (1, 1), "groups": 1,
    }  # fmt: skip


def global_average(importer: Importer, node: ir.Node) -> None:
    """GlobalAveragePool."""
    x = importer.map(node)
    importer.bind_map(node, importer.emit(Op("global_pool", {"x": x.name}, {}), node, (1, 1, x.shape[2])))


def global_max(importer: Importer, node: ir.Node) -> None:
    """GlobalMaxPool."""
    x = importer.map(node)
    _max_pool(importer, node, x.name, _whole_window(x))


def _whole_window(x: View) -> Geometry:
    height, width, channels = x.shape
    return {
        "in": x.shape, "out": (1, 1, channels), "kernel": (height, width), "stride": (1, 1), "pad": (0, 0),
        "dilation": (1, 1), "groups": 1,
    }  # fmt: skip


def reduce(importer: Importer, node: ir.Node) -> None:
    """ReduceMean, ReduceSum, ReduceL2 and ReduceMax over rows, columns or both; the first two over channels, too."""
    view = importer.view(node)
    if view.order.size != int(np.prod(view.shape)) and view.selection() is not None:
        view = importer.arranged(node, view)
    axes = _axes(node, view)
    reduced = _reduced_pixels(view, axes)
    if reduced is None and node.op_type in ("ReduceMean", "ReduceSum") and len(axes) == 1 and axes[0] >= 0:
        return _reduce_channels(importer, node, view, axes[0])
    if reduced is None:
        raise importer.refused(node, "it reduces something else than rows and columns of a map")
    height, width, channels = view.shape
    mean = node.op_type == "ReduceMean"
    name = view.name
    if node.op_type == "ReduceL2":
        square = Op("multiply", {"x": name, "other": name}, {}, {}, {"per_channel": False})
        name = importer.emit(square, node, view.shape)
    if reduced == {0, 1} and mean:
        name = importer.emit(Op("global_pool", {"x": view.name}, {}), node, (1, 1, channels))
    elif node.op_type == "ReduceMax":
        if reduced != {0, 1}:
            raise importer.refused(node, "it takes the largest of rows or columns alone")
        return _max_pool(importer, node, view.name, _whole_window(view))
    else:
        matrices = [
            np.full((1, size), 1 / size if mean else 1, np.float32)
            if axis in reduced
            else np.eye(size, dtype=np.float32)
            for axis, size in enumerate((height, width))
        ]
        name = importer.resample(node, name, *matrices)
    if node.op_type == "ReduceL2":
        root = Op("activate", {"x": name}, {}, {}, {"activation": "sqrt"})
        name = importer.emit(root, node, importer.graph.values[name].shape)
    made = importer.graph.values[name].shape
    order = np.arange(int(np.prod(made)), dtype=np.int32).reshape(made)
    if view.channel_axis() == 0:
        order = order.transpose(2, 0, 1)
    importer.views[node.outputs[0]] = View(name, made, order.reshape(sizes(node.outputs[0])))
    return None


def _axes(node: ir.Node, view: View) -> list[int]:
    """What a node reduces, of the axes without the batch's, which is -1."""
    rank = view.order.ndim + 1
    axes = attribute(node, "axes") if len(node.inputs) < 2 else constant(node.inputs[1])
    return sorted({int(axis) % rank - 1 for axis in (axes if axes is not None else range(rank))})


def _reduced_pixels(view: View, axes: list[int]) -> set[int] | None:
    """Which of our rows (0) and columns (1) are reduced; None: others."""
    channel = view.channel_axis()
    pixels = [axis for axis in range(view.order.ndim) if axis != channel]
    if channel is None or channel in axes or -1 in axes or not axes:
        return None
    if axes == pixels:
        return {0, 1}
    return {pixels.index(axis) for axis in axes} if len(pixels) == 2 else None


def _reduce_channels(importer: Importer, node: ir.Node, view: View, axis: int) -> None:
    """Over all channels of each pixel, or over an axis that they were split along, as attention to branches does."""
    share = 1 / view.order.shape[axis] if node.op_type == "ReduceMean" else 1.0
    if view.channel_axis() == axis:
        name = importer.mix_channels(node, view.name, np.full((1, view.shape[2]), share))
        made = (*view.shape[:2], 1)
    else:
        if view.order.shape[axis] > _MOST_BRANCHES:
            raise importer.refused(node, f"it reduces an axis of more than {_MOST_BRANCHES} elements")
        first, *others = importer.slices(node, view, axis)
        name, made = first.name, first.shape
        for other in others:
            name = importer.emit(Op("add", {"x": name, "other": other.name}, {}), node, made, in_place=("x", "other"))
        if share != 1:
            weight = importer.frozen(f"{node.name}/share", np.full(made[2], share, np.float32))
            name = importer.emit(Op("affine", {"x": name}, {}, {"weight": weight}), node, made, in_place=("x",))
    order = View.of_map(name, made).order
    importer.views[node.outputs[0]] = View(name, made, order.reshape(sizes(node.outputs[0])))


def resize(importer: Importer, node: ir.Node) -> None:
    """Bilinear with half-pixel centres has a kernel of its own; every other way is a product with matrices."""
    x = importer.map(node)
    channels, height, width = sizes(node.outputs[0])
    mode, coordinates = (
        attribute(node, "mode", "nearest"),
        attribute(node, "coordinate_transformation_mode", "half_pixel"),
    )
    plain = (
        mode == "linear" and coordinates in ("half_pixel", "pytorch_half_pixel") and not attribute(node, "antialias", 0)
    )
    if plain and x.shape[0] <= height and x.shape[1] <= width:
        geometry = {
            "in": x.shape, "out": (height, width, channels), "kernel": (1, 1), "stride": (1, 1), "pad": (0, 0),
            "dilation": (1, 1), "groups": 1,
        }  # fmt: skip
        op = Op("upsample", {"x": x.name}, {}, {}, {"geometry": geometry})
        importer.bind_map(node, importer.emit(op, node, (height, width, channels)))
        return
    matrices = (resize_matrix(node, x.shape[0], height), resize_matrix(node, x.shape[1], width))
    importer.bind_map(node, importer.resample(node, x.name, *matrices))


def pad(importer: Importer, node: ir.Node) -> None:
    """With zeros, by reflection or with the edge; below zero it crops."""
    x = importer.map(node)
    amounts, fill = constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None
    mode = attribute(node, "mode", "constant")
    if amounts is None or len(amounts) != 8 or len(node.inputs) > 3 or amounts[[0, 1, 4, 5]].any():
        raise importer.refused(node, "it pads something else than rows and columns")
    if mode == "constant" and fill is not None and fill.any() and (amounts > 0).any():
        raise importer.refused(node, "it pads with something else than zeros")
    top, left, bottom, right = (int(amounts[index]) for index in (2, 3, 6, 7))
    rows, columns = _padding(x.shape[0], top, bottom, mode), _padding(x.shape[1], left, right, mode)
    importer.bind_map(node, importer.resample(node, x.name, rows, columns))


def _padding(size: int, before: int, after: int, mode: str = "constant") -> Array:
    """The matrix that pads (or, below zero, crops) along one axis."""
    places: Array = np.arange(-before, size + after)
    if mode == "reflect":
        places = np.abs(places)
        places = np.where(places >= size, 2 * (size - 1) - places, places)
    elif mode == "edge":
        places = places.clip(0, size - 1)
    matrix = np.zeros((len(places), size), np.float32)
    inside = np.flatnonzero((places >= 0) & (places < size))
    matrix[inside, places[inside]] = 1
    return matrix
