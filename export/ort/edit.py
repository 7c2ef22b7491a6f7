"""Putting nodes in a node's place."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..onnx_graph import Array, add_initializer

Operand = ir.Value | None


class Replacement:
    """New nodes, named after the node before which they stand, and which they are to replace."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.model = model
        self.node = node
        self._taken: dict[str, int] = {}

    def add(self, op: str, *inputs: Operand, stem: str = "", **attributes: Any) -> ir.Value:
        """A node with one output, or the first of `outputs`."""
        name = self._name(stem or op.lower())
        outputs = attributes.pop("outputs", 1)
        made = ir.node(op, inputs, attributes or None, num_outputs=outputs, name=name)
        for index, value in enumerate(made.outputs):
            value.name = f"{name}:{index}" if index else name
        self.model.graph.insert_before(self.node, made)
        return made.outputs[0]

    def constant(self, stem: str, value: Array) -> ir.Value:
        """A new initializer."""
        return add_initializer(self.model, self._name(stem), value)

    def finish(self, results: ir.Value | dict[int, ir.Value]) -> None:
        """Let `results`, by output, take the places and names of the old node's outputs, and take it out.

        A result that is an operand of the old node keeps its own name.
        """
        for index, new in (results if isinstance(results, dict) else {0: results}).items():
            old = self.node.outputs[index]
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            if new not in self.node.inputs:
                new.shape, new.type = old.shape, old.type
                old.name, new.name = f"{old.name}/replaced", old.name
        self.model.graph.remove(self.node, safe=True)

    def _name(self, stem: str) -> str:
        number = self._taken[stem] = self._taken.get(stem, 0) + 1
        return f"{self.node.name}/{stem}" if number == 1 else f"{self.node.name}/{stem}_{number}"
