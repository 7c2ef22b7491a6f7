"""The compiler chooses knobs by a memory limit: what it says fits, in the order of time, or says what would do."""

from __future__ import annotations

import re

import pytest
from small_net import smooth_network

from tinytl_edge.export.step.choices import weigh_choices
from tinytl_edge.export.step.compile import Knobs, StepPlan, compile_step
from tinytl_edge.export.step.fit import fit
from tinytl_edge.runtime.errors import MemoryLimitError


def bytes_of(method: str, optimizer: str, batch: int, limit: int | None) -> tuple[int, Knobs]:
    network = smooth_network(method)
    step = fit(network.graph(), optimizer, batch, None, limit)
    return sum(step.memory(optimizer).values()), step.knobs


def test_without_a_limit_nothing_is_given_up() -> None:
    assert bytes_of("full", "adam", 1, None)[1] == Knobs(accumulation="none")
    assert bytes_of("full", "adam", 8, None)[1] == Knobs(accumulation="float32")


@pytest.mark.parametrize(("method", "batch"), [("bias", 1), ("lite-residual+bias", 8), ("full", 1)])
def test_what_is_chosen_fits(method: str, batch: int) -> None:
    most, _ = bytes_of(method, "adam", batch, None)
    with pytest.raises(MemoryLimitError) as refused:
        bytes_of(method, "adam", batch, 1000)
    needed = re.search(r"smallest --memory-limit that would do is ([\d.]+)MB", str(refused.value))
    assert needed is not None
    least = int(float(needed[1]) * 1e6)
    for limit in range(least, most, max((most - least) // 2, 1)):
        assert bytes_of(method, "adam", batch, limit)[0] <= limit
    with pytest.raises(MemoryLimitError):
        bytes_of(method, "adam", batch, least - 100_000)
    assert refused.value.exit_code == 5


def test_each_choice_is_weighed_alone() -> None:
    network = smooth_network("full")
    knobs = Knobs(
        trained_weights="bfloat16",
        moments="8bit",
        accumulation="none",
        saved="bfloat16",
        recomputed=5,
        scratch_bytes=4096,
    )

    def compile_with(knobs: Knobs) -> StepPlan:
        return compile_step(network.graph(), knobs)

    step = compile_with(knobs)
    choices = {choice.knob: choice for choice in weigh_choices(step, "adam", 1, compile_with)}
    turned = {"trained_weights", "moments", "accumulation", "saved", "recomputed", "scratch_bytes"}
    assert {"trained_weights", "moments", "accumulation", "recomputed"} <= set(choices) <= turned
    weights = sum(p.value.size for p in step.graph.parameters.values() if p.layout != "vector")
    gradients = 4 * sum(p.value.size for p in step.graph.parameters.values())
    assert choices["trained_weights"].bytes_saved == pytest.approx(2 * weights, rel=0.02)
    assert choices["moments"].bytes_saved == pytest.approx(2 * (3 - 1 / 32) * weights, rel=0.02)
    assert choices["accumulation"].bytes_saved <= gradients
    assert all(choice.bytes_saved > 0 for choice in choices.values())
    assert all(choices[knob].time_fraction > 0 for knob in set(choices) - {"accumulation", "scratch_bytes"})
    assert choices["accumulation"].time_fraction == 0
    of_four = {choice.knob: choice.time_fraction for choice in weigh_choices(step, "adam", 4, compile_with)}
    assert of_four["moments"] < choices["moments"].time_fraction / 3  # updates come once a batch


def test_cheap_knobs_come_first() -> None:
    """Rounding frozen weights costs no time."""
    most, _ = bytes_of("bias", "sgd", 1, None)
    assert bytes_of("bias", "sgd", 1, most - 1)[1] == Knobs("int8", accumulation="none")
