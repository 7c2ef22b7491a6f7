"""Masks and bias gradients fold into the convolution's dX that makes the gradient: no pass over memory of their own."""

from __future__ import annotations

from collections import Counter

from .ir import Graph, Op

_DX = ("pointwise_dx", "depthwise_dx", "conv_dx")


def fold(graph: Graph) -> None:
    """Fold what stands right behind a dX and works on its result alone."""
    readers, writers = Counter[str](), Counter[str]()
    for op in graph.backward:
        readers.update(op.reads.values())
        writers.update(graph.root(name) for name in op.writes.values())
    maker: dict[str, Op] = {}
    backward: list[Op] = []
    for op in graph.backward:
        dx = maker.get(op.reads.get("dy", ""))
        if dx is not None and op.kind == "mask_gradient" and readers[op.reads["dy"]] == 1 and "mask" not in dx.reads:
            dx.reads["mask"] = op.reads["mask"]
            dx.writes["dx"] = op.writes["dx"]
            maker[op.writes["dx"]] = dx
            continue
        if dx is not None and op.kind == "bias_gradient" and "db" not in dx.writes and not _flattens(graph, dx):
            dx.writes["db"] = op.writes["db"]
            dx.adds_to = (*dx.adds_to, "db")
            continue
        # What a second operator adds to, be it to some rows, is finished only there.
        if op.kind in _DX and not op.adds_to and writers[graph.root(op.writes["dx"])] == 1:
            maker[op.writes["dx"]] = op
        backward.append(op)
    graph.backward = backward


def _flattens(graph: Graph, dx: Op) -> bool:
    """Does a linear layer read a whole map, whose channels are fewer than its inputs?"""
    made, read = graph.values[dx.writes["dx"]].shape, graph.values[dx.reads["dy"]].shape
    return dx.kind == "pointwise_dx" and made[:-1] != read[:-1]
