"""The passes in order: fuse, differentiate, fold, recompute, compress, update, stream, plan, verify; and what
the result takes in memory."""

from __future__ import annotations

from dataclasses import dataclass

from tinytl_edge.runtime.knobs import Knobs as Knobs

from .compress import compress_saved
from .differentiate import differentiate
from .fold import fold
from .fuse import fuse
from .ir import Graph
from .joint import find_joint
from .plan import Plan, plan
from .quantise import is_quantised
from .recompute import candidates, multiply_adds, name_segments, recompute
from .stream import stream
from .update import add_updates
from .verify import verify

MOMENT_BLOCK = 128  # elements of 8-bit optimizer state that share a scale
_MOMENTS = {"sgd": 0, "momentum": 1, "adam": 2}
# The trainer beside what is planned, fitted to measured peaks (benchmarks/native_memory.py): the pages of code that
# run, stack and heap; what the heap holds for an operator and for a parameter; what page bounds cost a mapped weight.
PROCESS_BYTES = 1_700_000
OPERATOR_BYTES = 450
PARAMETER_BYTES = 1_300
MAPPED_BYTES = 3_500


@dataclass(frozen=True)
class StepPlan:
    """A compiled step."""

    graph: Graph
    plan: Plan
    knobs: Knobs
    segments: int  # that could be recomputed

    def memory(self, optimizer: str) -> dict[str, int]:
        """Bytes by kind: arena, gradients (sums of a batch), frozen, trainable, optimizer, process (all else)."""
        used = {name for op in self.graph.ops() for name in op.parameters.values()}
        parts = [self.graph.part(name) for name in used]
        parameters = {part.parameter.name: part.parameter for part in parts}.values()
        gradients = sum(self.graph.values[name].bytes for name in self.graph.persistent)
        frozen = trainable = state = 0
        process = PROCESS_BYTES + OPERATOR_BYTES * sum(1 for _ in self.graph.ops()) + PARAMETER_BYTES * len(parameters)
        for parameter in parameters:
            size, small = parameter.value.size, parameter.layout == "vector"
            if parameter.trains:
                trainable += size * (2 if self.knobs.trained_weights == "bfloat16" and not small else 4)
                continue
            quantised = is_quantised(parameter, self.knobs.frozen_weights)
            if small or not self.knobs.streamed:
                frozen += size if quantised else 4 * size
                process += 0 if small else MAPPED_BYTES
            if quantised:
                frozen += 4 * parameter.value.shape[-1]
        for part in parts:
            if part.trains:
                coded = self.knobs.moments == "8bit" and part.parameter.layout != "vector"
                moment = part.elements + 4 * -(-part.elements // MOMENT_BLOCK) if coded else 4 * part.elements
                state += moment * _MOMENTS[optimizer]
        # Heaps and pages are never filled to the end.
        arena = self.plan.arena_bytes + (self.knobs.together - 1) * self.plan.bytes_a_sample
        process += (arena + frozen + trainable + state) // 100
        return {
            "arena": arena - gradients,
            "gradients": gradients,
            "frozen": frozen,
            "trainable": trainable,
            "optimizer": state,
            "process": process,
        }

    def streamed_bytes(self) -> int:
        """What a step reads from the program's file."""
        return sum(self.graph.values[op.writes["y"]].bytes for op in self.graph.ops() if op.kind == "load")

    def compressed_bytes(self) -> int:
        """What waits for the backward pass in fewer bits."""
        return sum(self.graph.values[op.writes["y"]].bytes for op in self.graph.ops() if op.kind == "compress")

    def multiply_adds(self) -> int:
        """Of one sample's step."""
        return sum(multiply_adds(op) for op in self.graph.ops())


def count_multiply_adds(network: Graph) -> int:
    """Of one sample's step that computes nothing twice: forward and backward, what any runtime has to do.

    Those of convolutions and linear layers: forward, for each gradient of an input that leads to a trainable, and for
    each gradient of a weight that trains.
    """
    graph = network.copy()
    differentiate(graph)
    return sum(multiply_adds(op) for op in graph.ops())


def compile_step(network: Graph, knobs: Knobs | None = None, multi_label: bool = False) -> StepPlan:
    """Compile a training step of an imported network, single-label or multi-label."""
    knobs = knobs or Knobs()
    graph = network.copy()
    fuse(graph, knobs.scratch_bytes)
    name_segments(graph)
    differentiate(graph, multi_label)
    fold(graph)
    segments = [candidate.segment for candidate in candidates(graph)]
    recompute(graph, segments[: knobs.recomputed])
    compress_saved(graph, knobs.saved)
    add_updates(graph, knobs.accumulation)
    if knobs.streamed:
        stream(graph, knobs.frozen_weights)
    planned = plan(graph, find_joint(graph) if knobs.together > 1 else None)
    verify(graph, planned)
    return StepPlan(graph, planned, knobs, len(segments))
