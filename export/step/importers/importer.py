"""What the importers of all operators share: our values for ONNX's, emitting an operator, parameters, and refusals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, Codes, constant, eight_bits, sizes, weight_source
from tinytl_edge.runtime.errors import UsageError

from ..ir import Graph, Op, Parameter, Shape, in_engine_layout
from ..quantise import Quantised
from .views import View

Geometry = dict[str, Any]


class Importer:
    """Builds the forward half of a step; `views` says what each ONNX value is."""

    def __init__(self, model: ir.Model, trainable: Iterable[str]) -> None:
        self.model = model
        self.graph = Graph({}, [], {}, "image", "")
        self.views: dict[ir.Value, View] = {}
        self.masks = list(model.graph.inputs[1:])
        self._trainable = set(trainable)
        images = model.graph.inputs[0]
        channels, height, width = sizes(images)
        self.graph.add_value("image", (height, width, channels))
        self.views[images] = View.of_map("image", (height, width, channels))

    def refused(self, node: ir.Node, why: str = "") -> UsageError:
        """The sentence that says which operator cannot be compiled."""
        layer = (node.name or "").strip("/").removeprefix("model/")
        return UsageError(
            f"The step compiler cannot compile the operator {node.op_type} of layer {layer}{': ' if why else ''}{why}."
        )

    # Reading ----------------------------------------------------------------------------------------------

    def view(self, node: ir.Node, index: int = 0) -> View:
        """What a node reads."""
        value = node.inputs[index]
        if value is None or value not in self.views:
            raise self.refused(node, "it reads a parameter or a constant where a map belongs")
        return self.views[value]

    def map(self, node: ir.Node, index: int = 0) -> View:
        """What a node reads, as a whole map of channels, rows and columns; brought into that order where it is not."""
        view = self.view(node, index)
        if view.is_map:
            return view
        return self.arranged(node, view)

    def arranged(self, node: ir.Node, view: View) -> View:
        """Rows, columns and channels of a map, picked into a map of their own; channels may be its last axis."""
        picked = view.selection()
        if picked is None and view.order.ndim == 3:
            first = view.ordered(view.order.transpose(2, 0, 1))
            if first.selection() is not None:
                whole = self.arranged(node, first)
                return whole.ordered(whole.order.transpose(1, 2, 0))
        if picked is None:
            raise self.refused(
                node, "it reads a map in an order of elements that is none of channels, rows and columns"
            )
        rows, columns, channels = picked
        name, shape = view.name, view.shape
        if not (_is_all(rows, shape[0]) and _is_all(columns, shape[1])):
            matrices = (_selecting(rows, shape[0]), _selecting(columns, shape[1]))
            name = self.resample(node, name, *matrices)
            shape = self.graph.values[name].shape
        if not _is_all(channels, shape[2]):
            name = self.pick_channels(node, name, channels)
        made = self.graph.values[name].shape
        return View(name, made, View.of_map(name, made).order.reshape(view.order.shape))

    # Writing ----------------------------------------------------------------------------------------------

    def emit(self, op: Op, node: ir.Node, shape: Shape, in_place: tuple[str, ...] = ()) -> str:
        """Add an operator whose result has this shape; returns its name."""
        layer = (node.name or node.op_type).strip("/").removeprefix("model/")
        name = self.graph.add_value(layer, shape)
        op.writes = {"y": name, **op.writes}
        op.in_place = in_place
        self.graph.forward.append(op)
        return name

    def bind_map(self, node: ir.Node, name: str) -> None:
        """Let the node's result be our value `name`, as channels, rows and columns (or any shape of one pixel)."""
        shape, output = self.graph.values[name].shape, node.outputs[0]
        order = View.of_map(name, shape).order
        self.views[output] = View(name, shape, order.reshape(sizes(output)))

    def resample(self, node: ir.Node, x: str, rows: Array, columns: Array) -> str:
        """Emit y = rows x columns': float32 [out height, height] and [out width, width]."""
        height, width, channels = self.graph.values[x].shape
        shape = (len(rows), len(columns), channels)
        parameters = {
            "weight": self.frozen(f"{node.name}/rows", bands(rows)),
            "bias": self.frozen(f"{node.name}/columns", bands(columns)),
        }
        geometry = {
            "in": (height, width, channels), "out": shape, "kernel": (1, 1), "stride": (1, 1), "pad": (0, 0),
            "dilation": (1, 1), "groups": 1,
        }  # fmt: skip
        return self.emit(Op("resample", {"x": x}, {}, parameters, {"geometry": geometry}), node, shape)

    def mix_channels(self, node: ir.Node, x: str, matrix: Array) -> str:
        """Emit y = matrix x of every pixel: float32 [out channels, channels]."""
        height, width, entering = self.graph.values[x].shape
        leaving = len(matrix)
        weight = self.frozen(f"{node.name}/channels", matrix.astype(np.float32)[:, :, None, None], "conv")
        geometry = {
            "in": (height, width, entering), "out": (height, width, leaving), "kernel": (1, 1), "stride": (1, 1),
            "pad": (0, 0), "dilation": (1, 1), "groups": 1,
        }  # fmt: skip
        op = Op("pointwise", {"x": x}, {}, {"weight": weight}, {"geometry": geometry, "activation": "none"})
        return self.emit(op, node, (height, width, leaving))

    def slices(self, node: ir.Node, view: View, axis: int) -> list[View]:
        """The slices of a view along an axis, each as a map of its own."""
        found = []
        for index in range(view.order.shape[axis]):
            order = np.take(view.order, index, axis)
            plain = order.reshape(-1) if view.shape[:2] == (1, 1) else order.reshape(-1, *order.shape[-2:])
            made = self.arranged(node, view.ordered(plain))
            found.append(View(made.name, made.shape, made.order.reshape(order.shape)))
        return found

    def pick_channels(self, node: ir.Node, x: str, channels: Array) -> str:
        """Emit a map of these channels of x, in this order."""
        height, width, count = self.graph.values[x].shape
        groups = _shuffled_groups(channels, count)
        if groups is not None:
            return self.emit(Op("shuffle", {"x": x}, {}, {}, {"groups": groups}), node, (height, width, count))
        breaks = [0, *(np.flatnonzero(np.diff(channels) != 1) + 1).tolist(), len(channels)]
        if len(breaks) > 65:
            raise self.refused(node, "it picks channels in an order that is no shuffle of groups")
        runs = [(x, int(channels[first]), end - first) for first, end in zip(breaks, breaks[1:])]
        return self.join_channels(node, runs)

    def join_channels(self, node: ir.Node, runs: list[tuple[str, int, int]]) -> str:
        """Emit a map whose channels are runs of others: of each its map, first channel and number."""
        height, width, _ = self.graph.values[runs[0][0]].shape
        name, at = "", 0
        for x, first, count in runs:
            op = Op("copy", {"x": x}, {}, {}, {"x_first": first, "y_first": at, "count": count})
            if name:
                op.writes, op.completes = {"y": name}, ("y",)
                self.graph.forward.append(op)
            else:
                name = self.emit(op, node, (height, width, sum(run[2] for run in runs)))
            at += count
        return name

    # Parameters -------------------------------------------------------------------------------------------

    def frozen(self, name: str, value: Array, layout: str = "vector") -> str:
        """A constant of ours as a parameter that never trains: a vector, or in another layout."""
        unique, number = name, 1
        while unique in self.graph.parameters:
            number += 1
            unique = f"{name}~{number}"
        self.graph.parameters[unique] = Parameter.from_torch(
            unique, np.ravel(value) if layout == "vector" else value, layout
        )
        return unique

    def parameter(
        self, node: ir.Node, value: ir.Value | None, layout: str, groups: int = 1, shape: tuple[int, ...] | None = None
    ) -> str:
        """The parameter that a node reads, by its initializer's name; `shape`: seen as, in PyTorch's order."""
        source, array = weight_source(value), constant(value)
        if source is None or array is None or source.name is None:
            raise self.refused(node, "its weight is no constant")
        array = array.reshape(shape or array.shape)
        name = source.name
        known = self.graph.parameters.get(name)
        if known is not None:
            if (known.layout, known.shape, known.groups) != (layout, array.shape, groups):
                raise self.refused(node, f"it shares '{name}' with a layer of another kind")
            return name
        parameter = Parameter.from_torch(name, array, layout, groups)
        parameter.trains = name in self._trainable
        codes = eight_bits(value)
        if codes is not None and not parameter.trains:
            parameter.quantised = _quantised(codes, array.shape, layout, groups)
        self.graph.parameters[name] = parameter
        return name

    def channel_parameter(self, node: ir.Node, view: View, value: ir.Value | None) -> str | None:
        """A constant that has one number for each channel of a view, as a parameter; None if it is something else."""
        array = constant(value)
        if array is None:
            return None
        try:
            everywhere = np.broadcast_to(array, view.order[None].shape)[0]
        except ValueError:
            return None
        channels = view.shape[2]
        memory = np.full(int(np.prod(view.shape)), np.nan, np.float32)
        memory[view.order] = everywhere
        rows = memory.reshape(-1, channels)
        if not np.array_equal(rows, np.broadcast_to(rows[0], rows.shape)):
            return None
        source = weight_source(value)
        if source is not None and array.size == channels and np.array_equal(array.reshape(-1), rows[0]):
            return self.parameter(node, value, "vector", shape=(channels,))
        return self.frozen(f"{node.name}/constant", rows[0])


def bands(matrix: Array) -> Array:
    """A matrix [outputs, inputs] as [outputs, 1 + K]: of each row where its band begins, and the band's K weights."""
    used = [np.flatnonzero(row) for row in matrix]
    spans = [(int(places[0]), int(places[-1]) + 1) if len(places) else (0, 1) for places in used]
    width = max(end - first for first, end in spans)
    starts = [min(first, matrix.shape[1] - width) for first, _ in spans]
    return np.array([[start, *row[start : start + width]] for start, row in zip(starts, matrix)], np.float32)


def _selecting(places: Array, size: int) -> Array:
    return np.eye(size, dtype=np.float32)[places]


def _is_all(places: Array, size: int) -> bool:
    return np.array_equal(places, np.arange(size))


def _shuffled_groups(channels: Array, count: int) -> int | None:
    """The groups of which `channels` is the shuffle: c -> (c % groups) * (count / groups) + c // groups."""
    if len(channels) != count or len(channels) < 2:
        return None
    step = int(channels[1] - channels[0])  # count / groups
    if step < 1 or count % step:
        return None
    groups = count // step
    place = np.arange(count)
    return groups if np.array_equal(channels, place % groups * step + place // groups) else None


def _quantised(codes: Codes, shape: tuple[int, ...], layout: str, groups: int) -> Quantised:
    """8 bits as the trainer stores them: int8 in its layout; what was unsigned is 128 less."""
    shift = 128 if codes.codes.dtype == np.uint8 else 0
    signed = (codes.codes.astype(np.int16) - shift).astype(np.int8).reshape(shape)
    laid_out = np.ascontiguousarray(in_engine_layout(signed, layout, groups))
    scale = np.broadcast_to(codes.scale, (shape[0],)).astype(np.float32)
    return Quantised(laid_out, np.ascontiguousarray(scale), float(codes.zero - shift))
