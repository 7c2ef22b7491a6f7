"""If with a known condition is the branch that is taken: PyTorch's older exporter writes it to squeeze an axis."""

from __future__ import annotations

import onnx_ir as ir

from tinytl_edge.export.onnx_graph import constant


def inline_branches(model: ir.Model) -> None:
    """Rewrite in place."""
    for node in list(model.graph):
        condition = constant(node.inputs[0]) if node.op_type == "If" else None
        if condition is None:
            continue
        branch: ir.Graph = node.attributes["then_branch" if condition.item() else "else_branch"].value
        for value in list(branch.initializers.values()):
            branch.initializers.pop(str(value.name))
            value.name = f"{node.name}/{value.name}"
            model.graph.register_initializer(value)
        results = list(branch.outputs)
        branch.outputs.clear()
        nodes = list(branch)
        branch.remove(nodes)
        for inner in nodes:
            inner.name = f"{node.name}/{inner.name}"
            for output in inner.outputs:
                output.name = f"{node.name}/{output.name}"
        model.graph.insert_before(node, nodes)
        for old, new in zip(node.outputs, results):
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
