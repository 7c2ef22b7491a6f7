"""Checks a planned step without sharing code with what planned it.

Runs the step on a map of the arena's bytes that notes which value each byte holds: an operator may only read bytes
that still hold the value it names, and only write within the arena.
"""

from __future__ import annotations

import numpy as np

from .ir import Graph
from .plan import Plan


class PlanError(Exception):
    """The plan is wrong: an overlap, a read before a write, a bad offset. A fault of ours, never of the user."""


def verify(graph: Graph, plan: Plan) -> None:
    """Check a plan.

    Raises:
        PlanError: says which operator and value.
    """
    names = list(graph.values)
    number = {name: index + 1 for index, name in enumerate(names)}
    held = np.zeros(plan.arena_bytes, np.int32)  # 0: nothing yet

    def place(name: str, who: str) -> slice:
        offset, size = plan.offsets.get(name, -1), graph.values[name].bytes
        if offset < 0 or offset + size > plan.arena_bytes:
            raise PlanError(f"{who}: '{name}' lies outside of the arena")
        if offset % 16:
            raise PlanError(f"{who}: '{name}' is not aligned")
        return slice(offset, offset + size)

    for name in (graph.image, "targets"):
        if name in plan.offsets:
            held[place(name, "the beginning")] = number[name]
    for index, op in enumerate(graph.ops()):
        who = f"operator {index} ({op.kind})"
        for name in op.reads.values():
            if (held[place(name, who)] != number[name]).any():
                holder = held[place(name, who)]
                by = int(holder[holder != number[name]][0])
                raise PlanError(f"{who}: '{name}' was overwritten by '{names[by - 1] if by else 'nothing'}'")
        spots = [(name, place(name, who)) for name in op.writes.values()]
        for position, (name, spot) in enumerate(spots):
            for other, taken in spots[:position]:
                if spot.start < taken.stop and taken.start < spot.stop:
                    raise PlanError(f"{who}: its results '{name}' and '{other}' overlap")
            for role, read in op.reads.items():
                source = place(read, who)
                same = source.start == spot.start and role in op.in_place and position == 0
                if spot.start < source.stop and source.start < spot.stop and not same:
                    raise PlanError(f"{who}: its result '{name}' overlaps '{read}', which it reads")
            held[spot] = number[name]
