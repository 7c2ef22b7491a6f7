"""Places every value in one arena, by lifetime.

Greedy by size (Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020): the largest
value first, each at the lowest offset where it overlaps no value that lives at the same time. Not optimal, near it
for these graphs; `Plan.floor` tells how near.

1. A value lives from the operator that writes it to the last that reads it (the image from the start, the logits to
   the end of the forward pass).
2. An operator's first result takes the place of its in-place operand if nobody reads that operand later.
3. Offsets of whole maps are multiples of `ALIGNMENT`; rows lie where they are in their map.
4. What is persistent lives all the time.
5. Where a step has a joint part (joint.py), what lives in it lies in a region of its own behind all else, of which
   there is one for each sample that goes through it; all but gradients' sums and loaded weights, which samples share.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from .ir import Graph
from .joint import Joint

ALIGNMENT = 64
STORED_IMAGE = "stored image"  # as it is packed, before it becomes the image


@dataclass(frozen=True)
class Plan:
    """Offsets in bytes by value name; lifetimes (first and last operator, inclusive, in step order) of whole maps.

    `arena_bytes`: with the region of one sample, which begins behind `shared_bytes`.
    """

    offsets: dict[str, int]
    lifetimes: dict[str, tuple[int, int]]
    arena_bytes: int
    floor: int  # the most bytes that live at one operator: no plan can do with less
    shared_bytes: int
    joint: Joint | None = None

    @property
    def bytes_a_sample(self) -> int:
        """What each further sample of the joint part takes."""
        return self.arena_bytes - self.shared_bytes


def lifetimes(graph: Graph) -> dict[str, tuple[int, int]]:
    """First and last operator of each map that is used, by index in step order."""
    spans = {graph.image: (-1, -1)}
    count = 0
    for index, op in enumerate(graph.ops()):
        count += 1
        for name in (*op.reads.values(), *op.writes.values()):
            root = graph.root(name)
            first, _ = spans.get(root, (index, index))
            spans[root] = (first, index)
    if "targets" in spans:  # filled before the step begins
        spans["targets"] = (-1, spans["targets"][1])
    if STORED_IMAGE in graph.values:
        spans[STORED_IMAGE] = (-1, -1)
    for name in graph.persistent:
        spans[name] = (-1, count)
    return spans


def plan(graph: Graph, joint: Joint | None = None) -> Plan:
    """Plan the arena of a step."""
    spans = lifetimes(graph)
    host = _in_place_hosts(graph, spans)
    merged: dict[str, tuple[int, int]] = {}
    sizes: dict[str, int] = {}
    for name, (first, last) in spans.items():
        owner = _owner(host, name)
        begin, end = merged.get(owner, (first, last))
        merged[owner] = (min(begin, first), max(end, last))
        sizes[owner] = max(sizes.get(owner, 0), -(-graph.values[name].bytes // ALIGNMENT) * ALIGNMENT)
    own = _of_each_sample(graph, merged, joint)
    offsets, shared_bytes = _placed({name: span for name, span in merged.items() if name not in own}, sizes, 0)
    of_samples, arena_bytes = _placed({name: merged[name] for name in own}, sizes, shared_bytes)
    offsets |= of_samples
    change = [0] * (max(last for _, last in merged.values()) + 3)
    for name, (first, last) in merged.items():
        change[first + 1] += sizes[name]
        change[last + 2] -= sizes[name]
    live = floor = 0
    for step in change:
        live += step
        floor = max(floor, live)
    everywhere = {name: offsets[_owner(host, name)] for name in spans}
    for value in graph.values.values():
        if value.base in everywhere:
            everywhere[value.name] = everywhere[value.base] + value.offset
    return Plan(everywhere, spans, arena_bytes, floor, shared_bytes, joint)


def _of_each_sample(graph: Graph, spans: dict[str, tuple[int, int]], joint: Joint | None) -> set[str]:
    """What lives in the joint part, and is another one for each sample."""
    if joint is None:
        return set()
    shared = {*graph.persistent, *(op.writes["y"] for op in graph.ops() if op.kind == "load")}
    inside = {name for name, (first, last) in spans.items() if last >= joint.first and first < joint.end}
    return inside - shared


def _placed(spans: dict[str, tuple[int, int]], sizes: dict[str, int], begin: int) -> tuple[dict[str, int], int]:
    """Offsets from `begin` on, and where they end."""
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last
    offsets: dict[str, int] = {}
    for owner in sorted(spans, key=lambda name: (-sizes[name], spans[name], name)):
        first, last = spans[owner]
        size, offset = sizes[owner], begin
        for start, end, other_first, other_last in placed:
            if other_first <= last and first <= other_last:
                if start >= offset + size:
                    break
                offset = max(offset, end)
        insort(placed, (offset, offset + size, first, last))
        offsets[owner] = offset
    return offsets, max((end for _, end, _, _ in placed), default=begin)


def _in_place_hosts(graph: Graph, spans: dict[str, tuple[int, int]]) -> dict[str, str]:
    """Value -> the value whose place it takes."""
    host = {}
    for index, op in enumerate(graph.ops()):
        result = next(iter(op.writes.values()), None)
        if result is None or graph.values[result].base is not None or spans[result][0] != index:
            continue
        for role in op.in_place:
            operand = op.reads[role]
            others = [graph.root(name) for other, name in op.reads.items() if other != role]
            whole = graph.values[operand].base is None
            if whole and spans[operand][1] == index and operand not in others:
                host[result] = operand
                break
    return host


def _owner(host: dict[str, str], name: str) -> str:
    while name in host:
        name = host[name]
    return name
