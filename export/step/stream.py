"""Frozen weights read from the program's file where they are needed, instead of mapped: they take room in the arena
only from their first use to their last, once in the forward and once in the backward pass."""

from __future__ import annotations

from .ir import Graph, Op
from .quantise import is_quantised


def stream(graph: Graph, frozen_weights: str) -> None:
    """Insert the loads; `frozen_weights` is the type in which they lie in the file, where their source has none of 8
    bits itself."""
    graph.forward = _with_loads(graph, graph.forward, frozen_weights)
    graph.backward = _with_loads(graph, graph.backward, frozen_weights)


def is_streamed(graph: Graph, part: str) -> bool:
    """Frozen weights are, biases and scales are not."""
    parameter = graph.part(part).parameter
    return not parameter.trains and parameter.layout != "vector"


def _with_loads(graph: Graph, ops: list[Op], frozen_weights: str) -> list[Op]:
    loaded: dict[str, str] = {}
    result = []
    for op in ops:
        part = op.parameters.get("weight")
        if part is not None and op.kind != "update" and is_streamed(graph, part):
            if part not in loaded:
                dtype = "int8" if is_quantised(graph.part(part).parameter, frozen_weights) else "float32"
                loaded[part] = graph.add_value(f"loaded/{part}", (graph.part(part).elements,), dtype)
                result.append(Op("load", {}, {"y": loaded[part]}, {"weight": part}))
            op.reads["loaded"] = loaded[part]
        result.append(op)
    return result
