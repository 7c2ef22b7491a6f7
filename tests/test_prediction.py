"""Predicted times: arithmetic by hand, what is not known, and the work that a step is counted as."""

from __future__ import annotations

import pytest
from small_net import smooth_network

from tinytl_edge.devices import prediction
from tinytl_edge.devices.board import Board, CoreCluster
from tinytl_edge.devices.instructions import INSTRUCTIONS
from tinytl_edge.devices.prediction import predicted_step_seconds
from tinytl_edge.devices.profiles import BOARDS
from tinytl_edge.export.step.compile import Knobs, StepPlan, compile_step
from tinytl_edge.export.step.work import count_work


def board(*cores: CoreCluster, architecture: str = "aarch64") -> Board:
    return Board("b", "B", architectures=(architecture,), cores=cores)


@pytest.fixture
def round_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pointwise multiply-add takes half an instruction, of which a quarter is the multiply-add itself."""
    costs = {"pointwise": 0.5, "elements": 2.0, "updated_adam": 10.0}
    monkeypatch.setattr(prediction, "INSTRUCTIONS", {"aarch64": costs})
    monkeypatch.setattr(prediction, "INSTRUCTIONS_PER_MULTIPLY_ADD", {"aarch64": 0.25})


def test_by_hand(round_numbers: None) -> None:
    core = CoreCluster("c", 4, clock_mhz=1000, multiply_adds_per_cycle=4, instructions_per_cycle=2)
    # 400 / 4 cycles of multiply-adds; others: 0.5 * 400 + 2 * 50 - 0.25 * 400 = 200 instructions, two a cycle.
    assert predicted_step_seconds({"pointwise": 400, "elements": 50}, 1, board(core)) == pytest.approx(200e-9)


def test_updates_come_once_a_batch(round_numbers: None) -> None:
    core = CoreCluster("c", 1, 1000, 1, 1)
    assert predicted_step_seconds({"elements": 5, "updated_adam": 3}, 4, board(core)) == pytest.approx((40 + 30) * 1e-9)


def test_the_fastest_kind_of_core_counts(round_numbers: None) -> None:
    slow, fast = CoreCluster("s", 4, 1000, 4, 2), CoreCluster("f", 2, 2000, 4, 2)
    assert predicted_step_seconds({"elements": 1}, 1, board(slow, fast)) == pytest.approx(0.5e-9)


@pytest.mark.parametrize(
    "unknown",
    [
        board(CoreCluster("c", 1, None, 4, 2)),
        board(CoreCluster("c", 1, 1000, None, 2)),
        board(CoreCluster("c", 1, 1000, 4, None)),
        board(CoreCluster("c", 1, 1000, 4, 2), architecture="riscv64"),
        board(),
    ],
)
def test_what_is_not_known_is_not_predicted(unknown: Board) -> None:
    assert predicted_step_seconds({"pointwise": 1}, 1, unknown) is None


def test_a_bundle_without_work_is_not_predicted() -> None:
    assert predicted_step_seconds({}, 8, BOARDS[0]) is None


def compiled(method: str, knobs: Knobs) -> StepPlan:
    return compile_step(smooth_network(method).graph(), knobs)


def work(step: StepPlan, optimizer: str = "adam") -> dict[str, int]:
    return count_work(step.graph, step.graph.ops(), step.knobs, optimizer)


def test_the_work_of_a_step_is_that_of_its_plan() -> None:
    step = compiled("full", Knobs(accumulation="none"))
    counted = work(step)
    assert counted["pointwise"] + counted["conv"] + counted["depthwise"] == step.multiply_adds()
    trained = sum(p.value.size for p in step.graph.parameters.values() if p.trains)
    assert counted["updated_adam"] == trained
    assert "streamed" not in counted


def test_knobs_are_work() -> None:
    knobs = Knobs("int8", streamed=True, trained_weights="bfloat16", moments="8bit", accumulation="bfloat16")
    step = compiled("lite-residual+bias", knobs)
    counted = work(step)
    assert counted["streamed"] == step.streamed_bytes()
    vectors = sum(p.value.size for p in step.graph.parameters.values() if p.trains and p.layout == "vector")
    weights = counted["updated_adam"] - vectors
    assert counted["updated_bfloat16"] == counted["summed_bfloat16"] == weights
    assert counted["updated_8bit"] == 2 * weights
    assert "updated_8bit" not in work(step, "sgd")


def test_every_kind_of_work_has_a_cost_on_every_processor() -> None:
    knobs = Knobs("int8", streamed=True, trained_weights="bfloat16", moments="8bit", accumulation="bfloat16")
    step = compiled("full", knobs)
    kinds = {kind for optimizer in ("sgd", "momentum", "adam") for kind in work(step, optimizer)}
    for costs in INSTRUCTIONS.values():
        assert kinds <= set(costs)


def test_boards_are_ranked_as_their_cores_are() -> None:
    counted = work(compiled("bias", Knobs(accumulation="none")))
    times = {board.name: predicted_step_seconds(counted, 1, board) for board in BOARDS}
    zero, three, four, five = (times[f"raspberry-pi-{name}"] or 0 for name in ("zero-2-w", "3b-plus", "4", "5"))
    assert zero > three > four > five > 0
