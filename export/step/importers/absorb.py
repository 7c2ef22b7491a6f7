"""Operators take in what stands behind them and reads them alone:

- a convolution takes in a shift for each channel as its bias, and a clamp (ReLU, ReLU6, a quantised range);
- GroupNorm and the norm of channels take in a scale and a shift;
- a scale takes in a shift;
- a clamp takes in another one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..ir import Graph, Op

_CONVOLUTIONS = ("conv", "pointwise", "depthwise")
_SCALED = ("group_norm", "channel_norm", "affine")


def absorb(graph: Graph) -> None:
    """Merge what can be, in the order of the operators."""
    readers: dict[str, int] = {graph.logits: 1}
    writers: dict[str, list[Op]] = {}
    for op in graph.forward:
        for name in op.reads.values():
            readers[name] = readers.get(name, 0) + 1
        writers.setdefault(op.writes["y"], []).append(op)
    kept: list[Op] = []
    for op in graph.forward:
        x = op.reads.get("x", "")
        before = writers.get(x, [])
        alone = len(before) == 1 and readers.get(x) == 1 and list(op.reads) == ["x"] and graph.logits != x
        rule = _RULES.get(op.kind)
        if alone and rule is not None and rule(graph, before[0], op):
            before[0].writes["y"] = op.writes["y"]
            writers[op.writes["y"]] = before
            del graph.values[x]
        else:
            kept.append(op)
    graph.forward = kept


def _take_affine(graph: Graph, before: Op, op: Op) -> bool:
    weight = op.parameters.get("weight")
    if before.kind in _CONVOLUTIONS:
        fits = weight is None and "bias" not in before.parameters and before.attributes["activation"] == "none"
    elif before.kind in _SCALED:
        # A scale behind a shift would have to scale that, too.
        fits = "bias" not in before.parameters and (weight is None or "weight" not in before.parameters)
    else:
        return False
    if fits:
        before.parameters.update(op.parameters)
    return fits


def _take_clamp(graph: Graph, before: Op, op: Op) -> bool:
    if op.attributes["activation"] != "clamp":
        return False
    ends = {key: op.attributes[key] for key in ("low", "high")}
    if before.kind in _CONVOLUTIONS and before.attributes["activation"] == "none":
        before.attributes.update({"activation": "clamp", **ends})
        return True
    if before.attributes.get("activation") == "clamp" and (before.kind in _CONVOLUTIONS or before.kind == "activate"):
        low = max(before.attributes["low"], ends["low"])
        high = min(before.attributes["high"], ends["high"])
        if low < high and not math.isnan(low):
            before.attributes.update({"low": low, "high": high})
            return True
    return False


_RULES: dict[str, Callable[[Graph, Op, Op], bool]] = {"affine": _take_affine, "activate": _take_clamp}
