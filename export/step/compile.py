"""The passes in order: import, differentiate, plan, verify; and what the result takes in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnx import ModelProto

from .differentiate import differentiate
from .import_onnx import import_forward
from .ir import Graph
from .plan import Plan, plan
from .quantise import is_quantised
from .verify import verify

_STATE_COPIES = {"sgd": 0, "momentum": 1, "adam": 2}


@dataclass(frozen=True)
class StepPlan:
    """A compiled step."""

    graph: Graph
    plan: Plan

    def memory(self, optimizer: str, frozen_weights: str) -> dict[str, int]:
        """Bytes by kind: arena, frozen (parameters), trainable, gradients, optimizer (state)."""
        used = {name for op in self.graph.ops() for name in op.parameters.values()}
        parameters = [self.graph.parameters[name] for name in used]
        trainable = sum(4 * p.value.size for p in parameters if p.trains)
        return {
            "arena": self.plan.arena_bytes,
            "frozen": sum(
                p.value.size + 4 * p.value.shape[-1] if is_quantised(p, frozen_weights) else 4 * p.value.size
                for p in parameters
                if not p.trains
            ),
            "trainable": trainable,
            "gradients": trainable,
            "optimizer": trainable * _STATE_COPIES[optimizer],
        }


def compile_step(forward: ModelProto, trainable: Iterable[str]) -> StepPlan:
    """Compile a training step.

    Raises:
        UsageError: the graph holds something that cannot be compiled.
    """
    graph = import_forward(forward, trainable)
    differentiate(graph)
    planned = plan(graph)
    verify(graph, planned)
    return StepPlan(graph, planned)
