"""Checks a planned step without sharing code with what planned it.

Runs the step on a map of the arena, in units of 4 bytes, that notes which value each unit holds: an operator may only
read, and add to, units that still hold the value it names, and only write within the arena.
"""

from __future__ import annotations

import numpy as np

from .ir import Graph
from .plan import STORED_IMAGE, Plan

_UNIT = 4


class PlanError(Exception):
    """The plan is wrong: an overlap, a read before a write, a bad offset. A fault of ours, never of the user."""


def verify(graph: Graph, plan: Plan) -> None:
    """Check a plan.

    Raises:
        PlanError: says which operator and value.
    """
    names = list(graph.values)
    number = {name: index + 1 for index, name in enumerate(names)}
    for name, value in graph.values.items():  # rows belong to their map
        if value.base is not None:
            number[name] = number[value.base]
    held = np.zeros(-(-plan.arena_bytes // _UNIT), np.int32)  # 0: nothing yet

    def place(name: str, who: str) -> slice:
        value = graph.values[name]
        offset = plan.offsets.get(name, -1)
        if offset < 0 or offset + value.bytes > plan.arena_bytes:
            raise PlanError(f"{who}: '{name}' lies outside of the arena")
        if offset % (_UNIT if value.base is not None else 16):
            raise PlanError(f"{who}: '{name}' is not aligned")
        if value.base is not None:
            base = graph.values[value.base]
            if value.offset + value.bytes > base.bytes or offset != plan.offsets[value.base] + value.offset:
                raise PlanError(f"{who}: '{name}' does not lie in '{value.base}'")
        return slice(offset // _UNIT, -(-(offset + value.bytes) // _UNIT))

    def check_held(name: str, who: str) -> None:
        holder = held[place(name, who)]
        wrong = holder != number[name]
        if wrong.any():
            by = int(holder[wrong][0])
            raise PlanError(f"{who}: '{name}' was overwritten by '{names[by - 1] if by else 'nothing'}'")

    present = [name for name in (STORED_IMAGE, graph.image, "targets", *graph.persistent) if name in plan.offsets]
    for name in present:
        held[place(name, "the beginning")] = number[name]
    for name in present:
        check_held(name, "the beginning")
    for index, op in enumerate(graph.ops()):
        who = f"operator {index} ({op.kind})"
        for name in op.reads.values():
            check_held(name, who)
        spots = [(role, name, place(name, who)) for role, name in op.writes.items()]
        for position, (role, name, spot) in enumerate(spots):
            if role in op.adds_to + op.completes:
                check_held(name, who)
            for _, other, taken in spots[:position]:
                if spot.start < taken.stop and taken.start < spot.stop:
                    raise PlanError(f"{who}: its results '{name}' and '{other}' overlap")
            for source_role, read in op.reads.items():
                source = place(read, who)
                same = source.start == spot.start and source_role in op.in_place and position == 0
                adding = role in op.adds_to and read == name
                if spot.start < source.stop and source.start < spot.stop and not same and not adding:
                    raise PlanError(f"{who}: its result '{name}' overlaps '{read}', which it reads")
        for _, name, spot in spots:
            held[spot] = number[name]
    for name in graph.persistent:
        check_held(name, "the end")
