"""What a step does, counted by kind and not by operator: devices/prediction.py makes a time of it.

Kinds are such that a kernel takes about as many instructions for each unit, whatever the shapes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from .compile import Knobs
from .ir import Graph, Op
from .recompute import multiply_adds

_MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2}


def count_work(graph: Graph, ops: Iterable[Op], knobs: Knobs, optimizer: str) -> dict[str, int]:
    """Units of work by kind, of one sample.

    Multiply-adds (`pointwise`, `conv`, `depthwise`); `weights` that a matrix product packs or adds up; `outputs` that
    one finishes; `elements` that other operators read and write; bytes `streamed` from the file; gradients
    `summed_bfloat16`. And once a batch, parameters that the optimizer updates (`updated_adam`, ...), of their moments
    those in 8 bits (`updated_8bit`), and those that are rounded (`updated_bfloat16`).
    """
    work: Counter[str] = Counter()
    for op in ops:
        family = op.kind.removesuffix("_dx").removesuffix("_dw")
        if family in ("pointwise", "conv", "depthwise"):
            work[family] += multiply_adds(op)
            if family != "depthwise":
                work["weights"] += _weights(graph, op)
            work["outputs"] += sum(_elements(graph, name) for role, name in op.writes.items() if role in ("y", "dx"))
        elif op.kind == "load":
            work["streamed"] += graph.values[op.writes["y"]].bytes
        elif op.kind == "update":
            part = graph.part(op.parameters["weight"])
            large = part.parameter.layout != "vector"
            work[f"updated_{optimizer}"] += part.elements
            if large and knobs.moments == "8bit" and _MOMENTS[optimizer]:
                work["updated_8bit"] += part.elements * _MOMENTS[optimizer]
            if large and knobs.trained_weights == "bfloat16":
                work["updated_bfloat16"] += part.elements
        elif op.kind == "add_rounded":
            work["summed_bfloat16"] += _elements(graph, op.reads["x"])
        else:
            work["elements"] += sum(_elements(graph, name) for name in (*op.reads.values(), *op.writes.values()))
    return dict(work)


def _weights(graph: Graph, op: Op) -> int:
    if "weight" in op.parameters:
        return graph.part(op.parameters["weight"]).elements
    return _elements(graph, op.writes["dw"])


def _elements(graph: Graph, name: str) -> int:
    return math.prod(graph.values[name].shape)
