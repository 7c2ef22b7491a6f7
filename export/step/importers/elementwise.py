"""Activations, sums and products: of maps with each other, and with one number for each channel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, attribute, constant, sizes, weight_source

from ..ir import Op
from .activations import Activation
from .importer import Importer
from .views import View


def activate(importer: Importer, node: ir.Node, activation: Activation) -> None:
    """Whatever order the elements are in."""
    if activation.source not in importer.views:
        raise importer.refused(node, "it reads a parameter or a constant where a map belongs")
    view = _whole(importer, node, importer.views[activation.source])
    op = Op("activate", {"x": view.name}, {}, {}, {"activation": activation.kind, **activation.parameters})
    importer.views[activation.output] = view.like(importer.emit(op, node, view.shape, in_place=("x",)))


def prelu(importer: Importer, node: ir.Node) -> None:
    """A slope of its own for each channel, below zero."""
    view = _whole(importer, node, importer.view(node))
    slope = importer.channel_parameter(node, view, node.inputs[1])
    if slope is None:
        raise importer.refused(node, "its slope is not one for each channel")
    op = Op("prelu", {"x": view.name}, {}, {"weight": slope})
    importer.views[node.outputs[0]] = view.like(importer.emit(op, node, view.shape))


def add(importer: Importer, node: ir.Node) -> None:
    """Of two maps, or of a map and a shift for each channel."""
    left, right = (value in importer.views for value in node.inputs)
    if left and right:
        _sum(importer, node, importer.view(node), importer.view(node, 1))
    else:
        _affine(importer, node, 0 if left else 1, None, node.inputs[1 if left else 0])


def subtract(importer: Importer, node: ir.Node) -> None:
    """Of two maps, or of a map and a shift for each channel, in either order."""
    left, right = (value in importer.views for value in node.inputs)
    if left and right:
        second = _whole(importer, node, importer.view(node, 1))
        negative = importer.frozen(f"{node.name}/negative", np.full(second.shape[2], -1, np.float32))
        negated = importer.emit(Op("affine", {"x": second.name}, {}, {"weight": negative}), node, second.shape)
        _sum(importer, node, importer.view(node), second.like(negated))
    elif left:
        _scaled_by(importer, node, 0, None, -_constant(importer, node, 1))
    else:
        ones = np.full((1,), -1, np.float32)
        _scaled_by(importer, node, 1, ones, _constant(importer, node, 0))


def divide(importer: Importer, node: ir.Node) -> None:
    """Of a map by a constant for each channel, or by another map."""
    if node.inputs[0] not in importer.views:
        raise importer.refused(node, "it divides a parameter or a constant by a map")
    if node.inputs[1] in importer.views:
        divisor = _whole(importer, node, importer.view(node, 1))
        inverse = Op("activate", {"x": divisor.name}, {}, {}, {"activation": "reciprocal"})
        return _product(importer, node, importer.view(node), divisor.like(importer.emit(inverse, node, divisor.shape)))
    _scaled_by(importer, node, 0, (1 / _constant(importer, node, 1).astype(np.float64)).astype(np.float32), None)
    return None


def multiply(importer: Importer, node: ir.Node) -> None:
    """Of two maps, of a map and one pixel that holds a factor for each channel, by a constant, or a dropout's mask."""
    known = [value in importer.views for value in node.inputs]
    if not all(known) and node.inputs[known.index(False)] in importer.masks:
        _dropout(importer, node, known.index(True))
    elif all(known):
        _product(importer, node, importer.view(node), importer.view(node, 1))
    else:
        index = known.index(True)
        _affine(importer, node, index, node.inputs[1 - index], None)


def power(importer: Importer, node: ir.Node) -> None:
    """Squares."""
    exponent = constant(node.inputs[1])
    if exponent is None or exponent.size != 1 or exponent.item() != 2:
        raise importer.refused(node, "it is another power than the square")
    view = importer.view(node)
    _product(importer, node, view, view)


def softmax(importer: Importer, node: ir.Node) -> None:
    """Of two branches, as attention to them weighs them: the sigmoid of their difference, and what is left of 1."""
    view = _whole(importer, node, importer.view(node))
    axis = attribute(node, "axis", -1) % (view.order.ndim + 1) - 1
    if axis < 0 or view.order.shape[axis] != 2:
        raise importer.refused(node, "it weighs other than two branches against each other")
    first, second = importer.slices(node, view, axis)
    shape = first.shape

    def affine(x: str, weight: float, bias: float) -> str:
        numbers = {"weight": weight, "bias": bias}
        parameters = {
            r: importer.frozen(f"{node.name}/{r}", np.full(shape[2], n, np.float32)) for r, n in numbers.items()
        }
        return importer.emit(Op("affine", {"x": x}, {}, parameters), node, shape)

    apart = Op("add", {"x": first.name, "other": affine(second.name, -1, 0)}, {})
    gate = Op("activate", {"x": importer.emit(apart, node, shape)}, {}, {}, {"activation": "sigmoid"})
    weighed = importer.emit(gate, node, shape)
    name = importer.join_channels(node, [(weighed, 0, shape[2]), (affine(weighed, -1, 1), 0, shape[2])])
    made = (*shape[:2], 2 * shape[2])
    order = View.of_map(name, made).order.reshape(2, *first.order.shape)
    importer.views[node.outputs[0]] = View(name, made, np.moveaxis(order, 0, axis))


def negate(importer: Importer, node: ir.Node) -> None:
    """Times -1."""
    _scaled_by(importer, node, 0, np.full((1,), -1, np.float32), None)


def _whole(importer: Importer, node: ir.Node, view: View) -> View:
    """All of a value, in whatever order."""
    return view if view.order.size == int(np.prod(view.shape)) else importer.arranged(node, view)


def _constant(importer: Importer, node: ir.Node, index: int) -> Array:
    found = constant(node.inputs[index])
    if found is None:
        raise importer.refused(node, "one of its operands is neither a map nor a constant")
    return found.astype(np.float32)


def _sum(importer: Importer, node: ir.Node, x: View, other: View) -> None:
    if x.order.shape != other.order.shape:
        raise importer.refused(node, f"it adds maps of shapes {list(x.order.shape)} and {list(other.order.shape)}")
    x, other = _alike(importer, node, x, other)
    op = Op("add", {"x": x.name, "other": other.name}, {})
    importer.views[node.outputs[0]] = x.like(importer.emit(op, node, x.shape, in_place=("x", "other")))


def _alike(importer: Importer, node: ir.Node, x: View, other: View) -> tuple[View, View]:
    """Two views of one shape with their elements in the same order in memory."""
    x, other = _whole(importer, node, x), _whole(importer, node, other)
    if x.shape == other.shape and np.array_equal(x.order, other.order):
        return x, other
    return importer.arranged(node, x), importer.arranged(node, other)


def _product(importer: Importer, node: ir.Node, x: View, other: View) -> None:
    if x.order.shape == other.order.shape:
        x, other = _alike(importer, node, x, other)
        op = Op("multiply", {"x": x.name, "other": other.name}, {}, {}, {"per_channel": False})
        importer.views[node.outputs[0]] = x.like(importer.emit(op, node, x.shape, in_place=("x", "other")))
        return None
    x, other = sorted((_whole(importer, node, view) for view in (x, other)), key=lambda v: v.shape, reverse=True)
    if x.shape[2] == 1 < other.shape[2] and x.is_map and x.order.ndim == 3:  # of each pixel, and of each channel
        name = importer.mix_channels(node, x.name, np.ones((other.shape[2], 1)))
        x = View.of_map(name, (*x.shape[:2], other.shape[2]))
    if other.shape[2] == 1 < x.shape[2]:  # one factor for all channels
        other = _spread(importer, node, x, other)
        if other.shape == x.shape:
            return _product(importer, node, x, other)
    if other.shape != (1, 1, x.shape[2]) or not _is_of_channels(x, other):
        raise importer.refused(
            node, f"it multiplies maps of shapes {list(x.order.shape)} and {list(other.order.shape)}"
        )
    op = Op("multiply", {"x": x.name, "other": other.name}, {}, {}, {"per_channel": True})
    importer.views[node.outputs[0]] = x.like(importer.emit(op, node, x.shape, in_place=("x",)))
    return None


def _spread(importer: Importer, node: ir.Node, x: View, other: View) -> View:
    """A map of one channel as one of all channels of x."""
    name = importer.mix_channels(node, other.name, np.ones((x.shape[2], 1)))
    made = (*other.shape[:2], x.shape[2])
    alike = made == x.shape and np.array_equal(np.broadcast_to(other.order, x.order.shape), x.order // x.shape[2])
    return View(name, made, x.order if alike else View.of_vector(name, made).order.reshape(-1, 1, 1))


def _is_of_channels(x: View, other: View) -> bool:
    """Does each element of x meet the element of `other` that has its channel's number?"""
    try:
        met = np.broadcast_to(other.order, x.order.shape)
    except ValueError:
        return False
    return np.array_equal(met, x.order % x.shape[2])


def _affine(importer: Importer, node: ir.Node, index: int, weight: ir.Value | None, bias: ir.Value | None) -> None:
    """x * weight + bias with constants of the graph, whose names stay, as they may train."""
    view = _whole(importer, node, importer.view(node, index))
    if tuple(view.order.shape) != sizes(node.outputs[0]):
        raise importer.refused(node, "a constant makes its map larger")
    parameters = {}
    for role, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        name = importer.channel_parameter(node, view, value)
        if name is None:
            what = "a constant" if weight_source(value) is not None else "something"
            raise importer.refused(node, f"it meets {what} that is not one number for each channel")
        parameters[role] = name
    op = Op("affine", {"x": view.name}, {}, parameters)
    importer.views[node.outputs[0]] = view.like(importer.emit(op, node, view.shape, in_place=("x",)))


def _scaled_by(importer: Importer, node: ir.Node, index: int, weight: Array | None, bias: Array | None) -> None:
    """The same with constants that are computed here, and so never train."""
    view = _whole(importer, node, importer.view(node, index))
    parameters = {}
    for role, array in (("weight", weight), ("bias", bias)):
        if array is not None:
            value = ir.Value(name=f"{node.name}/{role}", const_value=ir.tensor(array))
            name = importer.channel_parameter(node, view, value)
            if name is None:
                raise importer.refused(node, "it meets a constant that is not one number for each channel")
            parameters[role] = name
    op = Op("affine", {"x": view.name}, {}, parameters)
    importer.views[node.outputs[0]] = view.like(importer.emit(op, node, view.shape, in_place=("x",)))


def _dropout(importer: Importer, node: ir.Node, index: int) -> None:
    view = _whole(importer, node, importer.view(node, index))
    mask, pixels = node.inputs[1 - index], view.shape[0] * view.shape[1]
    assert mask is not None
    # A mask's elements count as those of ONNX's value, where channels come first unless a network moved them.
    if view.is_whole:
        pixels = 1
    elif not np.array_equal(view.order.reshape(-1), View.of_map(view.name, view.shape).order.reshape(-1)):
        raise importer.refused(
            node, "it drops of a map in an order of elements that is neither of channels nor of pixels"
        )
    op = Op("dropout", {"x": view.name}, {}, {}, {"layer": importer.masks.index(mask)})
    importer.graph.mask_pixels[op.attributes["layer"]] = pixels
    op.writes["mask"] = importer.graph.add_value(f"{mask.name}/mask", view.shape)
    importer.views[node.outputs[0]] = view.like(importer.emit(op, node, view.shape, in_place=("x",)))
