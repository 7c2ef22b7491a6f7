"""Memory as the TinyTL paper counts it: what `inspect` shows beside the planned and the measured figure.

memory = peak_activation(batch 1) x batch + parameters (Cai et al. 2020, section 4 and its released
profiler). It leaves out gradients, optimizer state, workspaces and code; see docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import attribute, constant, has_sizes, sizes, weight_source
from tinytl_edge.export.step.importers.activations import find_activations

from .blocks import find_blocks
from .parameters import find_parameters

BYTES = 4  # an activation and a trained parameter are float32; a frozen parameter counts one byte


@dataclass(frozen=True)
class PaperMemory:
    """Bytes by the paper's accounting: `activations` for one image, and `parameters`."""

    activations: float
    parameters: int

    def total(self, batch_size: int) -> float:
        """Bytes at this batch size."""
        return self.activations * batch_size + self.parameters


def paper_memory(model: ir.Model, trainable: Collection[str]) -> PaperMemory:
    """Count by the paper's rules, BatchNorm not folded, for these trainables.

    Walks the graph in its order: `kept` grows, `peak` is the most that ever stands at once.
    """
    counts = {name: int(np.prod(use.value.shape or ())) for name, use in find_parameters(model).items()}  # type: ignore[arg-type]
    skips = _skips(model)
    activations = {a.nodes[-1]: a for a in find_activations(model, trainable)}
    kept = skip = peak = 0.0
    anything_below_trains = False
    for node in model.graph:
        skip = skips.get(node, skip)
        used = [s.name for value in node.inputs if (s := weight_source(value)) is not None and s.name in counts]
        trains = [name in trainable for name in used]
        anything_below_trains |= any(trains)
        if node in activations:
            activation = activations[node]
            transient = float(_bytes(activation.source))
            clamp = activation.kind == "clamp"
            stays = transient * anything_below_trains / (32 if clamp else 1)  # a bit for 32
        else:
            transient, stays = _layer(node, bool(trains and trains[0]))
        peak = max(peak, kept + skip + transient)
        kept += stays
    parameters = sum(count * (BYTES if name in trainable else 1) for name, count in counts.items())
    return PaperMemory(peak, parameters)


def _bytes(value: ir.Value | None) -> int:
    """Of one image. In attention the batch is not always the first size."""
    if value is None or value.shape is None:
        return 0
    if has_sizes(value):
        return BYTES * int(np.prod(sizes(value)))
    return BYTES * int(np.prod([size for size in value.shape if isinstance(size, int)]))


def _layer(node: ir.Node, weight_trains: bool) -> tuple[float, float]:
    """Bytes that a layer needs while it runs, and that it keeps."""
    entering, leaving = _bytes(node.inputs[0]) if constant(node.inputs[0]) is None else 0, _bytes(node.outputs[0])
    if node.op_type == "Conv":
        return entering + leaving // attribute(node, "group", 1), entering * weight_trains
    if node.op_type in ("Gemm", "MatMul"):
        return entering + leaving, entering * weight_trains
    if node.op_type in ("BatchNormalization", "InstanceNormalization", "LayerNormalization"):
        return entering, entering * weight_trains
    # The scale of a GroupNorm stands behind it, and keeps as much.
    return 0.0, entering * (node.op_type == "Mul" and weight_trains)


def _skips(model: ir.Model) -> dict[ir.Node, float]:
    """Bytes of a residual block's input, from the block's first node on until its sum."""
    found: dict[ir.Node, float] = {}
    for block in find_blocks(model):
        total = block.leaving.producer()
        if total is not None and total.op_type == "Add" and block.entering in total.inputs:
            first = min((use.node for use in block.entering.uses()), key=list(model.graph).index)
            found[first] = float(_bytes(block.entering))
            following = next(iter(total.outputs[0].uses()), None)
            if following is not None:
                found.setdefault(following.node, 0.0)
    return found
