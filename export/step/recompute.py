"""Forward operators run again in the backward pass, where saving what they made costs more memory than it is worth.

A segment is a run of forward operators (of a strip, a chunk, a lite residual module) that can run again from what
enters it. Where it is recomputed, its results are saved no longer: before the first backward operator that needs one of
them, the operators behind it are run once more.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .ir import Graph, Op


def name_segments(graph: Graph) -> None:
    """Make a segment of each straight run of forward operators that is in none, but for the run's first operator.

    A map that is written in parts, as maps are joined, is in none: all of its writers would have to run again.
    """
    readers: dict[str, int] = {}
    for op in graph.forward:
        for name in op.reads.values():
            readers[name] = readers.get(name, 0) + 1
    written = Counter(name for op in graph.forward for name in op.writes.values())
    in_parts = {value.base for value in graph.values.values()} | {name for name, count in written.items() if count > 1}
    run = ""
    for before, op in zip(graph.forward, graph.forward[1:]):
        y = before.writes["y"]
        straight = list(op.reads.values()) == [y] and readers[y] == 1 and not {y, op.writes["y"]} & in_parts
        outside = op.segment is None and (before.segment is None or run) and "dropout" not in (before.kind, op.kind)
        run = (run or f"behind {y}") if straight and outside else ""
        op.segment = op.segment or run or None


@dataclass(frozen=True)
class Candidate:
    """A segment: the bytes that recomputing it frees at the end of the forward pass, the multiply-adds it takes."""

    segment: str
    bytes_freed: int
    multiply_adds: int


def candidates(graph: Graph) -> list[Candidate]:
    """All segments that are worth it, the most bytes for the fewest multiply-adds first."""
    saved = saved_values(graph)
    found = []
    for segment, ops in _segments(graph).items():
        again = _again(graph, ops, saved)
        made = {name for op in again for name in op.writes.values()}
        entering = {graph.root(name) for op in again for name in op.reads.values()} - made
        freed = sum(graph.values[name].bytes for name in saved & made)
        needed = sum(graph.values[name].bytes for name in entering - saved)
        if freed > needed:
            found.append(Candidate(segment, freed - needed, sum(multiply_adds(op) for op in again)))
    return sorted(found, key=lambda c: c.multiply_adds / c.bytes_freed)


def recompute(graph: Graph, segments: Iterable[str]) -> None:
    """Recompute these segments."""
    saved = saved_values(graph)
    for segment in segments:
        ops = _segments(graph)[segment]
        again = _again(graph, ops, saved)
        renamed: dict[str, str] = {}
        clones = []
        for op in again:
            clone = copy.deepcopy(op)
            clone.segment = None
            clone.reads = {role: renamed.get(name, name) for role, name in op.reads.items()}
            for role, name in op.writes.items():
                value = graph.values[name]
                renamed[name] = clone.writes[role] = graph.add_value(f"again/{name}", value.shape, value.dtype)
            clones.append(clone)
        first = None
        for index, op in enumerate(graph.backward):
            if any(name in renamed for name in op.reads.values()):
                first = index if first is None else first
                op.reads = {role: renamed.get(name, name) for role, name in op.reads.items()}
        assert first is not None
        graph.backward[first:first] = clones
        for op in ops:
            for role in ("mask", "index"):
                if op.writes.get(role) in renamed:
                    del op.writes[role]


def multiply_adds(op: Op) -> int:
    """Multiply-adds of a convolution or linear layer (a dX or dW takes as many as the forward pass); else 0."""
    if op.kind.removesuffix("_dx").removesuffix("_dw") not in ("pointwise", "depthwise", "conv"):
        return 0
    g = op.attributes["geometry"]
    return int(math.prod(g["out"]) * math.prod(g["kernel"]) * (g["in"][2] // g["groups"]))


def saved_values(graph: Graph) -> set[str]:
    """What the backward pass reads of the forward pass, as whole maps."""
    made = {graph.root(name) for op in graph.forward for name in op.writes.values()} | {graph.image}
    return {graph.root(name) for op in graph.backward for name in op.reads.values()} & made


def _segments(graph: Graph) -> dict[str, list[Op]]:
    segments: dict[str, list[Op]] = {}
    for op in graph.forward:
        if op.segment is not None:
            segments.setdefault(op.segment, []).append(op)
    return segments


def _again(graph: Graph, ops: list[Op], saved: set[str]) -> list[Op]:
    """The operators of a segment that have to run again for what is saved of it."""
    needed = set(saved)
    again: list[Op] = []
    for op in reversed(ops):
        if any(name in needed for name in op.writes.values()):
            again.insert(0, op)
            needed.update(op.reads.values())
    return again
