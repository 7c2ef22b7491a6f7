"""Maps that wait for the backward pass, in fewer bits: rounded behind their last use in the forward pass, and widened
in front of the first operator of the backward pass that reads them. The forward pass stays exact."""

from __future__ import annotations

import math

from .ir import Graph, Op, Shape
from .recompute import saved_values

BLOCK = 64  # elements in 8 bits that share a scale: the largest magnitude / 127
_FEWEST_ELEMENTS = 1024  # that are worth two operators


def compress_saved(graph: Graph, saved: str) -> None:
    """Insert the operators `compress` and `decompress`; `saved`: float32, bfloat16 or 8bit."""
    if saved == "float32":
        return
    for name in sorted(saved_values(graph)):
        value = graph.values[name]
        if value.dtype == "float32" and math.prod(value.shape) >= _FEWEST_ELEMENTS:
            _compress(graph, name, saved)


def _compress(graph: Graph, name: str, saved: str) -> None:
    def uses(op: Op) -> bool:
        return any(graph.root(other) == name for other in (*op.reads.values(), *op.writes.values()))

    last = max((index for index, op in enumerate(graph.forward) if uses(op)), default=-1)
    first = next(index for index, op in enumerate(graph.backward) if uses(op))
    shape, attributes = graph.values[name].shape, {"bits": 16 if saved == "bfloat16" else 8}
    if saved == "bfloat16":
        small = graph.add_value(f"saved/{name}", shape, "bfloat16")
    else:
        small = graph.add_value(f"saved/{name}", _in_8_bits(shape), "uint8")
    whole = graph.add_value(f"again/{name}", shape)
    graph.forward.insert(last + 1, Op("compress", {"x": name}, {"y": small}, attributes=dict(attributes)))
    for op in graph.backward[first:]:
        op.reads = {role: _moved(graph, other, name, whole) for role, other in op.reads.items()}
    graph.backward.insert(first, Op("decompress", {"x": small}, {"y": whole}, attributes=dict(attributes)))


def _in_8_bits(shape: Shape) -> Shape:
    """Codes, up to a multiple of 4 of them, and behind them a float32 for each block."""
    elements = math.prod(shape)
    return (-(-elements // 4) * 4 + 4 * -(-elements // BLOCK),)


def _moved(graph: Graph, name: str, old: str, new: str) -> str:
    """The same run of `new` as `name` is of `old`; or `name`, where it is something else."""
    return graph.same_run(name, new) if graph.root(name) == old else name
