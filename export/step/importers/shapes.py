"""What only moves elements: other shapes and orders are free, pieces picked where they are read, joins copied."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import attribute, constant, sizes

from .importer import Importer
from .views import View


def reshape(importer: Importer, node: ir.Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze, Expand to the same size; a shuffle of channels is done at once."""
    if node.inputs[0] not in importer.views:
        return  # of a parameter: its reader looks through
    view = importer.view(node)
    shape = sizes(node.outputs[0])
    if int(np.prod(shape)) != view.order.size:
        raise importer.refused(node, "it mixes images of a batch, or repeats elements")
    made = view.ordered(view.order.reshape(shape))
    if len(shape) == 3 and shape == (view.shape[2], *view.shape[:2]) and view.shape[:2] != (1, 1) and not made.is_map:
        picked = made.selection()
        if picked is not None:
            made = importer.arranged(node, made)
    importer.views[node.outputs[0]] = made


def transpose(importer: Importer, node: ir.Node) -> None:
    """The batch stays the first axis."""
    if node.inputs[0] not in importer.views:
        return
    view = importer.view(node)
    axes = attribute(node, "perm") or tuple(reversed(range(view.order.ndim + 1)))
    if axes[0] != 0:
        raise importer.refused(node, "it moves the batch")
    importer.views[node.outputs[0]] = view.ordered(view.order.transpose([axis - 1 for axis in axes[1:]]))


def piece(importer: Importer, node: ir.Node) -> None:
    """Slice with constant ends."""
    view = importer.view(node)
    starts, ends, *more = (constant(value) for value in node.inputs[1:])
    rank = view.order.ndim + 1
    if starts is None or ends is None or any(m is None for m in more):
        raise importer.refused(node, "what it takes is no constant")
    axes = more[0] if more and more[0] is not None else np.arange(len(starts))
    steps = more[1] if len(more) > 1 and more[1] is not None else np.ones(len(starts), int)
    taken = [slice(None)] * (rank - 1)
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes.tolist(), steps.tolist()):
        if axis % rank == 0:
            if start != 0 or step != 1:
                raise importer.refused(node, "it takes some images of a batch")
            continue
        size = view.order.shape[axis % rank - 1]
        last = None if step < 0 and end < -size else end
        taken[axis % rank - 1] = slice(start, last, step)
    importer.views[node.outputs[0]] = view.ordered(view.order[tuple(taken)])


def split(importer: Importer, node: ir.Node) -> None:
    """Pieces along one axis."""
    view = importer.view(node)
    axis = attribute(node, "axis", 0) % (view.order.ndim + 1)
    if axis == 0:
        raise importer.refused(node, "it splits the batch")
    at = 0
    for output in node.outputs:
        count = sizes(output)[axis - 1]
        taken = [slice(None)] * view.order.ndim
        taken[axis - 1] = slice(at, at + count)
        importer.views[output] = view.ordered(view.order[tuple(taken)])
        at += count


def gather(importer: Importer, node: ir.Node) -> None:
    """With constant indices."""
    view, indices = importer.view(node), constant(node.inputs[1])
    axis = attribute(node, "axis", 0) % (view.order.ndim + 1)
    if indices is None or axis == 0:
        raise importer.refused(node, "it picks images of a batch, or what it picks is no constant")
    importer.views[node.outputs[0]] = view.ordered(np.take(view.order, indices, axis - 1))


def concatenate(importer: Importer, node: ir.Node) -> None:
    """Channels of several maps behind each other; runs of channels are copied from where they lie."""
    views = [importer.view(node, index) for index in range(len(node.inputs))]
    rank = views[0].order.ndim + 1
    axis = attribute(node, "axis", 1) % rank - 1
    if rank == 4 and axis == 2:
        views = [view if view.channel_axis() is not None else importer.arranged(node, view) for view in views]
    channel_last = axis == rank - 2 and rank > 2 and all(view.channel_axis() == axis for view in views)
    if rank == 2 or axis == 0 or channel_last:
        runs = []
        for view in views:
            runs += [(view.name, 0, view.shape[2])] if channel_last else _runs(importer, node, view)
        name = importer.join_channels(node, runs)
        made = importer.graph.values[name].shape
        order = np.arange(int(np.prod(made)), dtype=np.int32).reshape(made)
        order = order if channel_last else order.transpose(2, 0, 1)
        importer.views[node.outputs[0]] = View(name, made, order.reshape(sizes(node.outputs[0])))
        return
    raise importer.refused(node, "it joins something else than channels")


def _runs(importer: Importer, node: ir.Node, view: View) -> list[tuple[str, int, int]]:
    """A view as runs of channels of maps, which may be stacked along further axes."""
    if view.order.ndim > 3:
        view = view.ordered(view.order.reshape(-1, *view.order.shape[-2:]))
    picked = view.selection()
    if picked is None:
        raise importer.refused(node, "it joins a map in an unusual order of elements")
    rows, columns, channels = picked
    whole = len(rows) == view.shape[0] and len(columns) == view.shape[1]
    ascending = bool((np.diff(channels) == 1).all())
    in_order = bool((np.diff(rows) == 1).all() and (np.diff(columns) == 1).all())
    if whole and in_order and ascending:
        return [(view.name, int(channels[0]), len(channels))]
    made = importer.arranged(node, view)
    return [(made.name, 0, made.shape[2])]
