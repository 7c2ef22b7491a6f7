"""Small tools for editing ONNX graphs: who makes a value, who reads it, constants, replacement, order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


class GraphEditor:
    """An editable view of a model's graph; `finish` writes the changes back.

    Nodes may be appended in any order: `finish` sorts them so that every value is made before it is read,
    drops what no output needs, and keeps the given order otherwise.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = {}
        self._fresh = 0
        self.refresh()

    def refresh(self) -> None:
        """Recompute `producers` and `consumers` after nodes changed."""
        self.producers = {output: node for node in self.nodes for output in node.output if output}
        consumers = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                if name:
                    consumers[name].append(node)
        self.consumers = dict(consumers)

    def constant(self, name: str) -> Array | None:
        """The value of an initializer or Constant node, or None."""
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        node = self.producers.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return numpy_helper.to_array(node.attribute[0].t)
        return None

    def add_constant(self, stem: str, value: Array) -> str:
        """A new initializer; returns its name."""
        name = self.fresh_name(stem)
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def fresh_name(self, stem: str) -> str:
        """A value name that nothing bears yet."""
        self._fresh += 1
        return f"{stem}/{self._fresh}"

    def add(self, op: str, inputs: list[str], stem: str, output: str | None = None, **attributes: Any) -> str:
        """Append a node; returns its output's name."""
        output = output or self.fresh_name(stem)
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def remove(self, node: NodeProto) -> None:
        """Take a node out (by identity)."""
        self.nodes = [other for other in self.nodes if other is not node]

    def rename_uses(self, old: str, new: str) -> None:
        """Let every reader of `old`, the graph's outputs included, read `new`."""
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new
        for output in self.model.graph.output:
            if output.name == old:
                output.name = new

    def finish(self, rank: Callable[[int, NodeProto], float] | None = None) -> ModelProto:
        """Write nodes and initializers back, sorted and without what no output needs.

        `rank` gives a node's wish for its place from its index and itself; the lowest ready node goes first.
        """
        self.refresh()
        graph = self.model.graph
        nodes = self._needed([output.name for output in graph.output])
        ordered = self._sorted(nodes, rank or (lambda index, node: index))
        used = {name for node in ordered for name in node.input} | {output.name for output in graph.output}
        del graph.node[:]
        graph.node.extend(ordered)
        kept = [tensor for name, tensor in self.initializers.items() if name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        del graph.value_info[:]
        return self.model

    def _needed(self, outputs: Iterable[str]) -> list[NodeProto]:
        wanted, keep = list(outputs), set()
        while wanted:
            node = self.producers.get(wanted.pop())
            if node is not None and id(node) not in keep:
                keep.add(id(node))
                wanted.extend(node.input)
        return [node for node in self.nodes if id(node) in keep]

    def _sorted(self, nodes: list[NodeProto], rank: Callable[[int, NodeProto], float]) -> list[NodeProto]:
        import heapq

        made_by = {output: index for index, node in enumerate(nodes) for output in node.output if output}
        waits = [{made_by[name] for name in node.input if name in made_by} for node in nodes]
        readers = defaultdict(list)
        for index, needs in enumerate(waits):
            for need in needs:
                readers[need].append(index)
        ready = [(rank(index, node), index) for index, node in enumerate(nodes) if not waits[index]]
        heapq.heapify(ready)
        ordered = []
        while ready:
            _, index = heapq.heappop(ready)
            ordered.append(nodes[index])
            for reader in readers[index]:
                waits[reader].discard(index)
                if not waits[reader]:
                    heapq.heappush(ready, (rank(reader, nodes[reader]), reader))
        if len(ordered) != len(nodes):
            raise ValueError("the graph has a cycle")
        return ordered


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """A node's attribute as a Python value."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def static_shapes(model: ModelProto) -> dict[str, tuple[int | str, ...]]:
    """Shapes by value name, a name standing for a symbolic size.

    Raises:
        onnx.shape_inference.InferenceError: the graph contradicts itself.
    """
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = inferred.graph
    shapes: dict[str, tuple[int | str, ...]] = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shapes[value.name] = tuple(
                d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in kind.shape.dim
            )
    return shapes
