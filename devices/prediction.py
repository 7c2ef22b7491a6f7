"""How long a training step takes on a board: predicted, never measured there.

A step's work (export/step/work.py) times the instructions that each kind of work takes, as they were counted, gives
instructions. A core does its multiply-adds at the rate that is published of it, and all other instructions behind them
as fast as it takes them up. What that leaves out: waiting for RAM, which makes it too fast, and that cores do both at
once, which makes it too slow. docs/benchmarks.md says how far off it was where it could be checked.
"""

from __future__ import annotations

from collections.abc import Mapping

from .board import Board, CoreCluster
from .instructions import INSTRUCTIONS, INSTRUCTIONS_PER_MULTIPLY_ADD, MULTIPLY_ADDS

_ONCE_A_BATCH = "updated_"


def predicted_step_seconds(work: Mapping[str, int], batch_size: int, board: Board) -> float | None:
    """A step of `batch_size` samples on one of the board's fastest cores. None: what is needed is not known.

    `work` is a sample's. Several threads share it: how well, this does not say.
    """
    arch = next((arch for arch in board.architectures if arch in INSTRUCTIONS), None)
    times = [
        time
        for core in board.cores
        if arch and (time := _core_seconds(_of_a_step(work, batch_size), arch, core)) is not None
    ]
    return min(times, default=None)


def _of_a_step(work: Mapping[str, int], batch_size: int) -> dict[str, int]:
    return {kind: units * (1 if kind.startswith(_ONCE_A_BATCH) else batch_size) for kind, units in work.items()}


def _core_seconds(work: Mapping[str, int], arch: str, core: CoreCluster) -> float | None:
    if not (work and core.clock_mhz and core.multiply_adds_per_cycle and core.instructions_per_cycle):
        return None
    multiply_adds = sum(work.get(kind, 0) for kind in MULTIPLY_ADDS)
    instructions = sum(INSTRUCTIONS[arch].get(kind, 0) * units for kind, units in work.items())
    others = max(0.0, instructions - INSTRUCTIONS_PER_MULTIPLY_ADD[arch] * multiply_adds)
    cycles = multiply_adds / core.multiply_adds_per_cycle + others / core.instructions_per_cycle
    return cycles / (core.clock_mhz * 1e6)
