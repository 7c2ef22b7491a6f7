"""Gather that reads all numbers in their order is Reshape: PyTorch spells as_strided so, for a view of a view."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import add_initializer, attribute, constant, take_name


def remove_gathers(model: ir.Model, batch: int, traced: int) -> None:
    """Rewrite in place: Gather(Reshape(x, [-1]), 0 1 2 ... as [shape]) is Reshape(x, shape).

    Args:
        batch, traced: sizes of the batch, now and in what the file spells out.
    """
    for node in list(model.graph):
        flat = node.inputs[0] if node.op_type == "Gather" and attribute(node, "axis", 0) == 0 else None
        if flat is None or flat.shape is None or len(flat.shape) != 1 or not isinstance(flat.shape[0], int):
            continue
        order = constant(node.inputs[1])
        if order is None or not np.array_equal(order.ravel(), np.arange(order.size)):
            continue
        shape = list(order.shape)
        if order.size * batch == flat.shape[0] * traced and shape and shape[0] == traced:
            shape[0] = batch
        elif order.size != flat.shape[0]:
            continue
        aim = [-1 if size == batch and not place else size for place, size in enumerate(shape)]
        target = add_initializer(model, f"{node.name}/shape", np.array(aim, np.int64))
        made = ir.node("Reshape", [flat, target], name=node.name)
        model.graph.insert_before(node, made)
        old, new = node.outputs[0], made.outputs[0]
        take_name(new, old)
        new.shape, new.type = ir.Shape(shape), old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        _past_flat(made)


def _past_flat(node: ir.Node) -> None:
    """Reshape of a Reshape reads what that reads."""
    inner = node.inputs[0].producer() if node.inputs[0] is not None else None
    if inner is not None and inner.op_type in ("Reshape", "Flatten"):
        node.replace_input_with(0, inner.inputs[0])
