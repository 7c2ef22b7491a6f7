"""The joint part of a step: where large linear layers stand, it runs operator by operator over several samples.

A step goes through its samples one by one, so that activations take room for one alone. A linear layer reads each
weight for one multiply-add, though, and where weights are larger than caches (VGG: 490 of 530 MB) memory bounds it.
From the first to the last such operator, samples go together: weights are read once for all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .ir import Graph, Op

_LARGE_BYTES = 4_000_000  # of a weight, beyond the caches of boards
_MOST_TOGETHER = 16  # as the kernels take
_SHARE_OF_WEIGHTS = 1 / 8  # what the other samples' maps may take


@dataclass(frozen=True)
class Joint:
    """Operators [first, end) in step order; `first` in the forward part, `end` in the backward part."""

    first: int
    end: int
    weight_bytes: int  # of the large weights, in float32

    def samples(self, batch_size: int, bytes_a_sample: int) -> int:
        """So many go together: more would take too much memory."""
        room = int(self.weight_bytes * _SHARE_OF_WEIGHTS / max(bytes_a_sample, 1))
        return max(min(batch_size, 1 + room, _MOST_TOGETHER), 1)


def find_joint(graph: Graph) -> Joint | None:
    """The joint part of a differentiated graph; None where no linear layer is large."""
    large = [index for index, op in enumerate(graph.ops()) if _is_large(graph, op)]
    forward = len(graph.forward)
    if not large or large[0] >= forward:
        return None
    parts = {op.parameters["weight"] for index, op in enumerate(graph.ops()) if index in large}
    weight_bytes = sum(4 * graph.part(part).elements for part in parts)
    return Joint(large[0], max(large[-1] + 1, forward), weight_bytes)


def _is_large(graph: Graph, op: Op) -> bool:
    weight = op.parameters.get("weight")
    if weight is None or op.kind not in ("pointwise", "pointwise_dx"):
        return False
    outputs = op.writes["y"] if op.kind == "pointwise" else op.reads["dy"]
    return math.prod(graph.values[outputs].shape[:2]) == 1 and 4 * graph.part(weight).elements >= _LARGE_BYTES
