"""Places every value in one arena, by lifetime.

Greedy by size (Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020): the largest
value first, each at the lowest offset where it overlaps no value that lives at the same time. Not optimal, near it
for these graphs; `Plan.floor` tells how near.

1. A value lives from the operator that writes it to the last that reads it (the image from the start, the logits to
   the end of the forward pass).
2. An operator's first result takes the place of its in-place operand if nobody reads that operand later.
3. Offsets of whole maps are multiples of `ALIGNMENT`; rows lie where they are in their map.
4. What is persistent lives all the time.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from .ir import Graph

ALIGNMENT = 64
STORED_IMAGE = "stored image"  # as it is packed, before it becomes the image


@dataclass(frozen=True)
class Plan:
    """Offsets in bytes by value name; lifetimes (first and last operator, inclusive, in step order) of whole maps."""

    offsets: dict[str, int]
    lifetimes: dict[str, tuple[int, int]]
    arena_bytes: int
    floor: int  # the most bytes that live at one operator: no plan can do with less


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


def plan(graph: Graph) -> Plan:
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
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last
    offsets: dict[str, int] = {}
    for owner in sorted(merged, key=lambda name: (-sizes[name], merged[name], name)):
        first, last = merged[owner]
        size, offset = sizes[owner], 0
        for start, end, other_first, other_last in placed:
            if other_first <= last and first <= other_last:
                if start >= offset + size:
                    break
                offset = max(offset, end)
        insort(placed, (offset, offset + size, first, last))
        offsets[owner] = offset
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
    return Plan(everywhere, spans, max(end for _, end, _, _ in placed), floor)


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
