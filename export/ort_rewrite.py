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

from collections.abc import Iterable
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from .graph import Array, GraphEditor, attribute, static_shapes


def rewrite(training: ModelProto, forward: ModelProto, trainable: Iterable[str]) -> ModelProto:
    """Rewrite the generated training model in place and return it.

    Args:
        training: as generated; `forward`: the graph it was generated from (its shapes are known).
        trainable: names of the parameters whose gradients are wanted.
    """
    shapes = static_shapes(forward)
    trains = set(trainable)
    weights = {t.name: t for t in forward.graph.initializer if t.name not in trains}
    editor = GraphEditor(training)
    early = _forward_names(editor, forward)
    for node in list(editor.nodes):
        if node.op_type == "ConvGrad" and node.input[2] in weights:
            _rewrite_conv_grad(editor, node, shapes, numpy_helper.to_array(weights[node.input[2]]))
    editor.refresh()
    for clip in [node for node in editor.nodes if node.op_type == "Clip" and node.output[0] in early]:
        early |= _rewrite_clip_grad(editor, clip)
    editor.refresh()
    for node in [node for node in editor.nodes if node.op_type == "ReluGrad"]:
        early |= _rewrite_relu_grad(editor, node, early)
    return _order(editor, early)


def _forward_names(editor: GraphEditor, forward: ModelProto) -> set[str]:
    """Values of the forward pass, and the input sizes that the backward pass asks for."""
    names = {output for node in forward.graph.node for output in node.output}
    for node in editor.nodes:
        if node.op_type == "Shape" and node.input[0] in names:
            names.add(node.output[0])
    return names


def _rewrite_conv_grad(
    editor: GraphEditor, node: NodeProto, shapes: dict[str, tuple[int | str, ...]], value: Array
) -> None:
    """`value` is the frozen weight [out, in / groups, *kernel]."""
    gradient, source, weight = node.input[:3]
    outputs = [*node.output, "", "", ""]
    rank = value.ndim - 2
    editor.remove(node)
    if outputs[2]:
        axes = editor.add_constant(f"{node.name}/axes", np.array([0, *range(2, rank + 2)], np.int64))
        editor.add("ReduceSum", [gradient, axes], f"{node.name}/db", output=outputs[2], keepdims=0)
    if not outputs[0]:
        return
    group = attribute(node, "group", 1)
    strides = attribute(node, "strides", [1] * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    pads = attribute(node, "pads", [0] * 2 * rank)
    sizes = [int(n) for n in shapes[source][2:]]
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, value.shape[2:])]
    if value.shape[1] == 1 and value.shape[0] == group and max(strides) == 1:
        flipped = editor.add_constant(f"{weight}/flipped", np.flip(value, tuple(range(2, rank + 2))))
        mirrored = [r - 1 - p for r, p in zip(reach * 2, pads)]
        more: dict[str, Any]
        inputs, op, more = [gradient, flipped], "Conv", {"pads": mirrored, "dilations": dilations}
    else:
        unreached = [
            (size + pads[axis] + pads[axis + rank] - reach[axis]) % strides[axis] for axis, size in enumerate(sizes)
        ]
        inputs, op = [gradient, weight], "ConvTranspose"
        more = {"pads": pads, "dilations": dilations, "output_padding": unreached, "strides": strides}
    editor.add(op, inputs, f"{node.name}/dx", output=outputs[0], group=group, **more)


def _rewrite_clip_grad(editor: GraphEditor, clip: NodeProto) -> set[str]:
    """Find GreaterOrEqual, LessOrEqual, And, Cast, Mul behind a Clip's input and replace them."""
    source, low, high = clip.input
    for both in editor.consumers.get(source, []):
        if both.op_type != "GreaterOrEqual":
            continue
        conjunction = editor.consumers[both.output[0]][0]
        cast = editor.consumers[conjunction.output[0]][0]
        product = editor.consumers[cast.output[0]][0]
        if (conjunction.op_type, cast.op_type, product.op_type) != ("And", "Cast", "Mul"):
            continue
        gradient = next(name for name in product.input if name != cast.output[0])
        # Strictly inside, as PyTorch's hardtanh; the output tells as much as the input.
        above = editor.add("Greater", [clip.output[0], low], f"{clip.name}/above")
        below = editor.add("Less", [clip.output[0], high], f"{clip.name}/below")
        mask = editor.add("And", [above, below], f"{clip.name}/mask")
        _mask_gradient(editor, product, mask, gradient)
        return {above, below, mask}
    return set()


def _rewrite_relu_grad(editor: GraphEditor, node: NodeProto, early: set[str]) -> set[str]:
    gradient, activation = node.input
    kept_anyway = any(
        reader is not node and reader.op_type != "Shape" and reader.output[0] not in early
        for reader in editor.consumers[activation]
    )
    if kept_anyway:
        return set()
    zero = editor.add_constant(f"{node.name}/zero", np.zeros((), np.float32))
    mask = editor.add("Greater", [activation, zero], f"{node.name}/mask")
    _mask_gradient(editor, node, mask, gradient)
    return {mask}


def _mask_gradient(editor: GraphEditor, old: NodeProto, mask: str, gradient: str) -> None:
    zero = editor.add_constant(f"{old.name}/zero", np.zeros((), np.float32))
    editor.remove(old)
    editor.add("Where", [mask, gradient, zero], f"{old.name}/masked", output=old.output[0])


_FOLLOWS_FORWARD = {"Greater", "Less", "And", "Shape"}
_FOLLOWS_BACKWARD = {"Conv", "ConvTranspose", "ReduceSum", "Where", "InPlaceAccumulatorV2"}


def _order(editor: GraphEditor, early: set[str]) -> ModelProto:
    """Forward nodes first; in both halves what frees or shrinks a value follows it at once."""
    rank: dict[str, float] = {}

    def place(index: int, node: NodeProto) -> float:
        name = next(output for output in node.output if output)
        if node.op_type in (_FOLLOWS_FORWARD if name in early else _FOLLOWS_BACKWARD):
            rank[name] = max(rank.get(source, -1.0) for source in node.input) + 1e-3
        else:
            rank[name] = float(index)
        return rank[name] + (0 if name in early else len(editor.nodes))

    return editor.finish(rank=place)
