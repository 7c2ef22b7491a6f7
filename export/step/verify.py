"""Checks a planned step without sharing code with what planned it.

Runs the step on a map of the arena, in units of 4 bytes, that notes which value each unit holds: an operator may only
read, and add to, units that still hold the value it names, and only write within the arena. Where the step has a joint
part, it runs with two samples, as the trainer does: each up to it, both together, each on from there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .ir import Graph, Op
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
    samples = 1 if plan.joint is None else 2
    whole = plan.arena_bytes + (samples - 1) * plan.bytes_a_sample
    held = np.zeros(-(-whole // _UNIT), np.int32)  # 0: nothing yet
    sample = 0

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
        if offset < plan.shared_bytes < offset + value.bytes:
            raise PlanError(f"{who}: '{name}' lies across the bounds of a sample's region")
        if offset >= plan.shared_bytes:
            offset += sample * plan.bytes_a_sample
        return slice(offset // _UNIT, -(-(offset + value.bytes) // _UNIT))

    def holder_of(name: str) -> int:
        """What is summed over samples, or loaded for all of them, is every sample's."""
        return number[name] + (0 if graph.root(name) in common else sample * len(names))

    def check_held(name: str, who: str) -> None:
        holder = held[place(name, who)]
        wrong = holder != holder_of(name)
        if wrong.any():
            by = int(holder[wrong][0])
            raise PlanError(f"{who}: '{name}' was overwritten by '{names[(by - 1) % len(names)] if by else 'nothing'}'")

    common = {*graph.persistent, *(op.writes["y"] for op in graph.ops() if op.kind == "load")}
    given = [name for name in (STORED_IMAGE, graph.image, "targets") if name in plan.offsets]
    for name in graph.persistent:
        held[place(name, "the beginning")] = holder_of(name)
    for index, op, turn in _schedule(graph, plan):
        sample = turn
        if op is None:
            for name in given:
                held[place(name, "the beginning")] = holder_of(name)
            for name in (*given, *graph.persistent):
                check_held(name, "the beginning")
            continue
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
            held[spot] = holder_of(name)
    for name in graph.persistent:
        check_held(name, "the end")


def _schedule(graph: Graph, plan: Plan) -> Iterator[tuple[int, Op | None, int]]:
    """Operators with their number and the sample that they are for, in the order of the trainer (training.cc); where a
    sample comes in, none."""
    ops = list(enumerate(graph.ops()))
    if plan.joint is None:
        yield -1, None, 0
        yield from ((index, op, 0) for index, op in ops)
        return
    for sample in range(2):
        yield -1, None, sample
        yield from ((index, op, sample) for index, op in ops[: plan.joint.first])
    for index, op in ops[plan.joint.first : plan.joint.end]:
        if op.kind == "load":
            yield index, op, 0
        elif op.kind == "update":
            yield index, op, 1
        else:
            yield from ((index, op, sample) for sample in range(2))
    for sample in range(2):
        yield from ((index, op, sample) for index, op in ops[plan.joint.end :] if sample or op.kind != "update")
