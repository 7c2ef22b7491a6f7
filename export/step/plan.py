"""Places every value in one arena, by lifetime.

Greedy by size (Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020): the largest
value first, each at the lowest offset where it overlaps no value that lives at the same time. Not optimal, near it
for these graphs; `Plan.floor` tells how near.

1. A value lives from the operator that writes it to the last that reads it (the image from the start, the logits to
   the end of the forward pass).
2. An operator's first result takes the place of its in-place operand if nobody reads that operand later.
3. Offsets are multiples of `ALIGNMENT`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .ir import Graph

ALIGNMENT = 64


@dataclass(frozen=True)
class Plan:
    """Offsets and lifetimes (first and last operator, inclusive, in step order) by value name; sizes in bytes."""

    offsets: dict[str, int]
    lifetimes: dict[str, tuple[int, int]]
    arena_bytes: int
    floor: int  # the most bytes that live at one operator: no plan can do with less


def lifetimes(graph: Graph) -> dict[str, tuple[int, int]]:
    """First and last operator of each value that is used, by index in step order."""
    spans = {graph.image: (-1, -1)}
    for index, op in enumerate(graph.ops()):
        for name in (*op.reads.values(), *op.writes.values()):
            first, _ = spans.get(name, (index, index))
            spans[name] = (first, index)
    return spans


def plan(graph: Graph) -> Plan:
    """Plan the arena of a step."""
    spans = lifetimes(graph)
    if "targets" in spans:  # filled before the step begins
        spans["targets"] = (-1, spans["targets"][1])
    host = _in_place_hosts(graph, spans)
    merged: dict[str, tuple[int, int]] = {}
    sizes: dict[str, int] = {}
    for name, (first, last) in spans.items():
        owner = _owner(host, name)
        begin, end = merged.get(owner, (first, last))
        merged[owner] = (min(begin, first), max(end, last))
        sizes[owner] = max(sizes.get(owner, 0), graph.values[name].bytes)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last
    offsets: dict[str, int] = {}
    for owner in sorted(merged, key=lambda name: (-sizes[name], merged[name], name)):
        first, last = merged[owner]
        offset = 0
        for start, end, other_first, other_last in sorted(placed):
            if other_first <= last and first <= other_last and start < offset + sizes[owner]:
                offset = max(offset, end)
        end = -(-(offset + sizes[owner]) // ALIGNMENT) * ALIGNMENT
        placed.append((offset, end, first, last))
        offsets[owner] = offset
    steps = range(-1, sum(1 for _ in graph.ops()))
    floor = max(sum(sizes[n] for n, (first, last) in merged.items() if first <= step <= last) for step in steps)
    return Plan(
        {name: offsets[_owner(host, name)] for name in spans},
        spans,
        max((end for _, end, _, _ in placed), default=0),
        floor,
    )


def _in_place_hosts(graph: Graph, spans: dict[str, tuple[int, int]]) -> dict[str, str]:
    """Value -> the value whose place it takes."""
    host = {}
    for index, op in enumerate(graph.ops()):
        result = next(iter(op.writes.values()), None)
        for role in op.in_place:
            operand = op.reads[role]
            others = [name for other, name in op.reads.items() if other != role]
            if result is not None and spans[operand][1] == index and operand not in others:
                host[result] = operand
                break
    return host


def _owner(host: dict[str, str], name: str) -> str:
    while name in host:
        name = host[name]
    return name
