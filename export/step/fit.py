"""Chooses a step's knobs by a memory limit: of all settings that fit, the one that costs the least time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from tinytl_edge.runtime.errors import MemoryLimitError
from tinytl_edge.runtime.knobs import SCRATCH_BYTES
from tinytl_edge.runtime.memory import megabytes
from tinytl_edge.runtime.threads import THREAD_BYTES

from .compile import Knobs, StepPlan, compile_step
from .cost import cost
from .ir import Graph

_SCRATCH = (SCRATCH_BYTES, SCRATCH_BYTES // 2)
_SAVED = (("float32", "bfloat16"), ("8bit",))  # 8 bits only where nothing else fits


def fit(
    network: Graph,
    optimizer: str,
    batch_size: int,
    frozen_weights: str | None,
    limit: int | None,
    threads: int = 1,
    multi_label: bool = False,
) -> StepPlan:
    """Compile a training step into `limit` bytes of memory (None: as fast and exact as it goes) for so many threads.

    `frozen_weights` None lets the limit decide: float32 where it fits. `multi_label` has another loss.

    Raises:
        MemoryLimitError: no setting fits; names the smallest limit that would do.
    """
    compiler = _Compiler(network, optimizer, batch_size, threads, multi_label)
    accumulation = "none" if batch_size == 1 else "float32"
    exact = Knobs(frozen_weights=frozen_weights or "float32", accumulation=accumulation)
    exact = replace(exact, together=compiler.most_together(exact))
    plain = compiler.step(exact)
    if limit is None or compiler.bytes(plain) <= limit:
        return plain
    best, smallest = None, compiler.bytes(plain)
    for saved in _SAVED:
        for knobs in _settings(exact, frozen_weights is None, batch_size > 1, saved):
            step = compiler.step(knobs)
            if best is not None and compiler.time(step) >= compiler.time(best):
                continue
            if compiler.bytes(step) > limit:
                step = compiler.with_recomputation(step, limit)
            smallest = min(smallest, compiler.bytes(step))
            if compiler.bytes(step) <= limit and (best is None or compiler.time(step) < compiler.time(best)):
                best = step
        if best is not None:
            break
    if best is None:
        needed = -(-smallest // 100_000) / 10
        raise MemoryLimitError(
            f"This training does not fit {megabytes(limit)}: the smallest --memory-limit that would do is "
            f"{needed:.1f}MB; or choose a smaller --resolution, another --train or --optimizer, or --batch-size 1."
        )
    return best


def _settings(exact: Knobs, may_round: bool, accumulates: bool, saved: tuple[str, ...]) -> Iterator[Knobs]:
    """All knobs but recomputation."""
    choices = itertools.product(
        (exact.frozen_weights, "int8") if may_round else (exact.frozen_weights,),
        (False, True),
        ("float32", "bfloat16"),
        ("float32", "8bit"),
        (exact.accumulation, "bfloat16") if accumulates else (exact.accumulation,),
        saved,
        _SCRATCH,
        sorted({exact.together, 1}, reverse=True),
    )
    for frozen, streamed, trained, moments, accumulation, bits, scratch, together in choices:
        yield Knobs(frozen, streamed, trained, moments, accumulation, bits, 0, scratch, together)


class _Compiler:
    """Compiles one training step with different knobs; those that change no program share one."""

    def __init__(
        self,
        network: Graph,
        optimizer: str,
        batch_size: int,
        threads: int,
        multi_label: bool,
    ) -> None:
        self._network, self._optimizer, self._multi_label = network, optimizer, multi_label
        self._batch_size = batch_size
        self._other_threads = (threads - 1) * THREAD_BYTES
        self._compiled: dict[Knobs, StepPlan] = {}

    def step(self, knobs: Knobs) -> StepPlan:
        program = replace(knobs, trained_weights="float32", moments="float32")
        if not knobs.streamed:
            program = replace(program, frozen_weights="float32")
        if program not in self._compiled:
            self._compiled[program] = compile_step(self._network, program, self._multi_label)
        return replace(self._compiled[program], knobs=knobs)

    def most_together(self, knobs: Knobs) -> int:
        """Samples that go through large linear layers at once."""
        if self._batch_size == 1:
            return 1
        plan = self.step(replace(knobs, together=2)).plan
        return plan.joint.samples(self._batch_size, plan.bytes_a_sample) if plan.joint else 1

    def with_recomputation(self, step: StepPlan, limit: int) -> StepPlan:
        """The fewest segments recomputed with which the step fits, or all of them."""
        low, high = 0, step.segments
        best = self.step(replace(step.knobs, recomputed=high))
        while high - low > 1 and self.bytes(best) <= limit:
            middle = (low + high) // 2
            tried = self.step(replace(step.knobs, recomputed=middle))
            if self.bytes(tried) <= limit:
                best, high = tried, middle
            else:
                low = middle
        return best

    def bytes(self, step: StepPlan) -> int:
        return sum(step.memory(self._optimizer).values()) + self._other_threads

    def time(self, step: StepPlan) -> float:
        return cost(step, self._optimizer, self._batch_size)
