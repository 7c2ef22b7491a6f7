"""Rewrites training_model.onnx so that a frozen weight really means: this activation need not be kept.

As generated, the gradient of every frozen convolution still reads its input, and ReLU6's gradient compares
the float pre-activation at the end of the step, so every map stays alive. Here:

1. ConvGrad of a frozen weight -> dX as ConvTranspose (reads dY and the weight), dB as ReduceSum (reads dY).
   A depthwise one of stride 1 becomes a Conv with the flipped weight instead: several times faster there.
2. The gradient of Clip -> a bool mask computed right behind the activation, and a Where.
3. ReluGrad -> likewise, unless something else keeps the activation anyway.
4. Each node that does not lengthen a lifetime stands right behind what it reads: masks, sizes, sums.

The order only holds in a session with PRIORITY_BASED execution order and without memory reuse.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ..onnx_graph import attribute, constant, sizes
from .edit import Replacement


def rewrite(training: ir.Model, forward: ir.Model, trainable: Iterable[str]) -> None:
    """Rewrite the generated training model in place.

    Args:
        training: as generated; `forward`: the graph it was generated from (its shapes are known).
        trainable: names of the parameters whose gradients are wanted.
    """
    trains = set(trainable)
    known = {str(value.name): value for node in forward.graph for value in (*node.inputs, *node.outputs) if value}
    early = _forward_names(training, forward)
    for node in _all(training, "ConvGrad"):
        _, source, weight = (known.get(str(value.name)) for value in node.inputs[:3] if value is not None)
        if source is not None and weight is not None and weight.name not in trains and constant(weight) is not None:
            _rewrite_conv_grad(Replacement(training, node), source, weight)
    for clip in _all(training, "Clip"):
        if clip.outputs[0].name in early:
            early |= _rewrite_clip_grad(training, clip)
    for node in _all(training, "ReluGrad"):
        early |= _rewrite_relu_grad(training, node, early)
    RemoveUnusedNodesPass()(training)
    _order(training.graph, early)


def _all(model: ir.Model, op: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op]


def _forward_names(training: ir.Model, forward: ir.Model) -> set[str]:
    """Values of the forward pass, and the input sizes that the backward pass asks for."""
    names = {str(output.name) for node in forward.graph for output in node.outputs}
    for node in (*_all(training, "Shape"), *_all(training, "Size")):
        if node.inputs[0] is not None and node.inputs[0].name in names:
            names.add(str(node.outputs[0].name))
    return names


def _rewrite_conv_grad(new: Replacement, source: ir.Value, frozen: ir.Value) -> None:
    """The convolution's input is `source` and its weight `frozen` [out, in / groups, *kernel], both of `forward`."""
    node = new.node
    gradient, _, weight = node.inputs[:3]
    value = constant(frozen)
    assert value is not None
    rank = value.ndim - 2
    results: dict[int, ir.Value] = {}
    if len(node.outputs) > 2 and node.outputs[2].name:
        axes = new.constant("axes", np.array([0, *range(2, rank + 2)], np.int64))
        results[2] = new.add("ReduceSum", gradient, axes, stem="db", keepdims=0)
    if node.outputs[0].name:
        group = attribute(node, "group", 1)
        strides = attribute(node, "strides", (1,) * rank)
        dilations = attribute(node, "dilations", (1,) * rank)
        pads = attribute(node, "pads", (0,) * 2 * rank)
        reach = [d * (k - 1) + 1 for d, k in zip(dilations, value.shape[2:])]
        if value.shape[1] == 1 and value.shape[0] == group and max(strides) == 1:
            flipped = new.constant("flipped", np.flip(value, tuple(range(2, rank + 2))))
            mirrored = [r - 1 - p for r, p in zip(reach * 2, pads)]
            dx = new.add("Conv", gradient, flipped, stem="dx", group=group, pads=mirrored, dilations=dilations)
        else:
            unreached = [
                (size + pads[axis] + pads[axis + rank] - reach[axis]) % strides[axis]
                for axis, size in enumerate(sizes(source)[1:])
            ]
            dx = new.add(
                "ConvTranspose", gradient, weight, stem="dx", group=group, pads=pads, dilations=dilations,
                output_padding=unreached, strides=strides,
            )  # fmt: skip
        results[0] = dx
    new.finish(results)


def _readers(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses()]


def _rewrite_clip_grad(training: ir.Model, clip: ir.Node) -> set[str]:
    """Find GreaterOrEqual, LessOrEqual, And, Cast, Mul behind a Clip's input and replace them."""
    source, low, high = clip.inputs
    assert source is not None
    for both in _readers(source):
        if both.op_type != "GreaterOrEqual":
            continue
        conjunction = _readers(both.outputs[0])[0]
        cast = _readers(conjunction.outputs[0])[0]
        product = _readers(cast.outputs[0])[0]
        if (conjunction.op_type, cast.op_type, product.op_type) != ("And", "Cast", "Mul"):
            continue
        gradient = next(value for value in product.inputs if value is not cast.outputs[0])
        # Strictly inside, as PyTorch's hardtanh; the output tells as much as the input.
        new = Replacement(training, product)
        above = new.add("Greater", clip.outputs[0], low, stem="above")
        below = new.add("Less", clip.outputs[0], high, stem="below")
        mask = new.add("And", above, below, stem="mask")
        _mask_gradient(new, mask, gradient)
        return {str(value.name) for value in (above, below, mask)}
    return set()


def _rewrite_relu_grad(training: ir.Model, node: ir.Node, early: set[str]) -> set[str]:
    gradient, activation = node.inputs
    assert activation is not None
    kept_anyway = any(
        reader is not node and reader.op_type not in ("Shape", "Size") and reader.outputs[0].name not in early
        for reader in _readers(activation)
    )
    if kept_anyway:
        return set()
    new = Replacement(training, node)
    mask = new.add("Greater", activation, new.constant("zero", np.zeros((), np.float32)), stem="mask")
    _mask_gradient(new, mask, gradient)
    return {str(mask.name)}


def _mask_gradient(new: Replacement, mask: ir.Value, gradient: ir.Value | None) -> None:
    zero = new.constant("zero", np.zeros((), np.float32))
    new.finish({0: new.add("Where", mask, gradient, zero, stem="masked")})


_FOLLOWS_FORWARD = {"Greater", "Less", "And", "Shape", "Size"}
_FOLLOWS_BACKWARD = {"Conv", "ConvTranspose", "ReduceSum", "Where", "InPlaceAccumulatorV2"}


def _order(graph: ir.Graph, early: set[str]) -> None:
    """Forward nodes first; in both halves what frees or shrinks a value follows it at once."""
    nodes = list(graph)
    index = {node: place for place, node in enumerate(nodes)}
    waits = [{index[p] for v in node.inputs if v is not None and (p := v.producer()) is not None} for node in nodes]
    readers: list[list[int]] = [[] for _ in nodes]
    for place, needs in enumerate(waits):
        for need in needs:
            readers[need].append(place)
    wishes: dict[int, float] = {}  # where a node would like to stand in its half

    def rank(place: int) -> tuple[bool, float, int]:
        node, sources = nodes[place], waits_at_first[place]
        late = all(output.name not in early for output in node.outputs)
        follows = node.op_type in (_FOLLOWS_BACKWARD if late else _FOLLOWS_FORWARD)
        wishes[place] = max((wishes[source] for source in sources), default=-1.0) + 1e-3 if follows else float(place)
        return late, wishes[place], place

    waits_at_first = [set(needs) for needs in waits]
    ready = [rank(place) for place in range(len(nodes)) if not waits[place]]
    heapq.heapify(ready)
    ordered = []
    while ready:
        *_, place = heapq.heappop(ready)
        ordered.append(nodes[place])
        for reader in readers[place]:
            waits[reader].discard(place)
            if not waits[reader]:
                heapq.heappush(ready, rank(reader))
    graph.remove(nodes)
    graph.extend(ordered)
