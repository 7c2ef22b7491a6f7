"""What each turned knob of a step saves in memory and costs in time: the step beside itself with that one undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

from tinytl_edge.runtime.knobs import Choice as Choice
from tinytl_edge.runtime.knobs import Knobs

from .compile import StepPlan
from .cost import cost

WITHOUT_ANY = Knobs(scratch_bytes=2**62)


def weigh_choices(
    step: StepPlan, optimizer: str, batch_size: int, compile_with: Callable[[Knobs], StepPlan]
) -> list[Choice]:
    """The knobs of a step that are turned and save something, each weighed alone, in the order of `Knobs`."""
    taken, spent = sum(step.memory(optimizer).values()), cost(step, optimizer, batch_size)
    choices = []
    for knob in (field.name for field in fields(Knobs)):
        undone = getattr(WITHOUT_ANY, knob)
        if getattr(step.knobs, knob) != undone:
            without = compile_with(replace(step.knobs, **{knob: undone}))
            more = sum(without.memory(optimizer).values()) - taken
            if more > 0:
                choices.append(Choice(knob, more, spent / cost(without, optimizer, batch_size) - 1))
    return choices
