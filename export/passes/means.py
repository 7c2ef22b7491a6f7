"""Means of means over other axes are one mean, as tf2onnx writes a pooling axis by axis."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import add_initializer, attribute, only_reader


def merge_means(model: ir.Model) -> None:
    """Rewrite in place; axes must be attributes, shapes known."""
    for node in list(model.graph):
        if _axes(node) is None or node.graph is None:
            continue
        while (reader := only_reader(node.outputs[0])) is not None and _axes(reader) is not None:
            node = _merged(model, node, reader)


def _axes(node: ir.Node) -> list[int] | None:
    """Over which a node takes the mean, where it is one over pixels."""
    source = node.inputs[0] if node.inputs else None
    if source is None or source.shape is None:
        return None
    rank = len(source.shape)
    if node.op_type == "GlobalAveragePool":
        return list(range(2, rank))
    axes = attribute(node, "axes") if node.op_type == "ReduceMean" else None
    return None if axes is None or 0 in axes else sorted(axis % rank for axis in axes)


def _merged(model: ir.Model, first: ir.Node, second: ir.Node) -> ir.Node:
    before, source, output = _axes(first), first.inputs[0], second.outputs[0]
    assert before is not None and source is not None and source.shape is not None
    left = list(range(len(source.shape)))
    if first.op_type == "ReduceMean" and not attribute(first, "keepdims", 1):
        left = [axis for axis in left if axis not in before]
    both = sorted({*before, *(left[axis] for axis in _axes(second) or ())})
    mean = ir.node("ReduceMean", [source], {"axes": both, "keepdims": 0}, name=first.name)
    made = mean.outputs[0]
    made.name, made.type = f"{output.name}/mean", output.type
    made.shape = ir.Shape([size for axis, size in enumerate(source.shape) if axis not in both])
    model.graph.insert_before(second, mean)
    if output.shape is not None and len(output.shape) != len(made.shape):
        shape = add_initializer(model, f"{second.name}/shape", np.array([0, *tuple(output.shape)[1:]], np.int64))
        same = ir.node("Reshape", [made, shape], name=second.name)
        model.graph.insert_before(second, same)
        made = same.outputs[0]
        made.name, made.type, made.shape = f"{output.name}/kept", output.type, output.shape
    output.replace_all_uses_with(made, replace_graph_outputs=True)
    model.graph.remove([second, first], safe=True)
    return mean
