"""A map that is repeated along one axis of size 1, as grey images that a network takes in three channels: Concat."""

from __future__ import annotations

import onnx_ir as ir

from tinytl_edge.export.onnx_graph import constant

_MOST = 16  # copies


def repeats_to_concat(model: ir.Model) -> None:
    """Rewrite Expand and Tile of channels in place."""
    for node in list(model.graph):
        source = node.inputs[0] if node.op_type in ("Expand", "Tile") else None
        before, after = (source.shape if source is not None else None), node.outputs[0].shape
        if source is None or before is None or after is None or len(before) != len(after) or len(before) < 3:
            continue
        if constant(source) is not None:
            continue
        grown = [axis for axis, (old, new) in enumerate(zip(before, after)) if old != new]
        copies = after[1] if grown == [1] and before[1] == 1 else 0
        if isinstance(copies, int) and 1 < copies <= _MOST:
            made = ir.node("Concat", [source] * copies, {"axis": 1}, name=node.name)
            made.outputs[0].shape, made.outputs[0].type = after, node.outputs[0].type
            made.outputs[0].name = f"{node.outputs[0].name}/copies"
            model.graph.insert_before(node, made)
            node.outputs[0].replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
