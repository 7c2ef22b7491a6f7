"""Sequences of tensors go: SplitToSequence and SequenceAt, as which PyTorch exports `split`, become Split."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import add_initializer, attribute, constant


def remove_sequences(model: ir.Model) -> None:
    """Rewrite in place, where the sizes along the axis are known."""
    for node in list(model.graph):
        if node.op_type == "SplitToSequence":
            _to_split(model, node)


def _to_split(model: ir.Model, node: ir.Node) -> None:
    source = node.inputs[0]
    readers = [use.node for use in node.outputs[0].uses()]
    indices = [constant(reader.inputs[1]) if reader.op_type == "SequenceAt" else None for reader in readers]
    axis = attribute(node, "axis", 0)
    whole = source.shape[axis] if source is not None and source.shape is not None else None
    if not isinstance(whole, int) or any(index is None for index in indices) or not attribute(node, "keepdims", 1):
        return
    sizes = constant(node.inputs[1]) if len(node.inputs) > 1 else np.array(1)
    if sizes is None:
        return
    if sizes.ndim == 0:
        step = int(sizes)
        sizes = np.array([min(step, whole - first) for first in range(0, whole, step)])
    split_sizes = add_initializer(model, f"{node.name}/sizes", sizes.astype(np.int64))
    split = ir.node("Split", [source, split_sizes], {"axis": axis}, num_outputs=len(sizes), name=node.name)
    for number, output in enumerate(split.outputs):
        output.name = f"{node.outputs[0].name}/{number}"
        output.type = source.type if source is not None else None
    model.graph.insert_before(node, split)
    for reader, index in zip(readers, indices):
        assert index is not None
        reader.outputs[0].replace_all_uses_with(split.outputs[int(index.item())], replace_graph_outputs=True)
    model.graph.remove([*readers, node], safe=True)
