"""Padding as explicit numbers, and in the operator that it is for:

- auto_pad becomes pads;
- Pad with zeros, read by convolutions or by average pools that count it, becomes their own padding;
- Pad with zeros (or less) in front of a max pool behind a ReLU, or with minus infinity, becomes the pool's.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import attribute, constant, sizes

_WINDOWED = ("Conv", "AveragePool", "MaxPool")


def explicit_pads(model: ir.Model) -> None:
    """Replace auto_pad; sizes must be known."""
    for node in model.graph:
        mode = attribute(node, "auto_pad", "NOTSET") if node.op_type in _WINDOWED else "NOTSET"
        if mode == "NOTSET" or node.inputs[0] is None:
            node.attributes.pop("auto_pad", None) if node.op_type in _WINDOWED else None
            continue
        _, *plane = sizes(node.inputs[0])
        kernel = _kernel(node)
        strides = attribute(node, "strides", (1,) * len(kernel))
        dilations = attribute(node, "dilations", (1,) * len(kernel))
        before, after = [], []
        for size, k, stride, dilation in zip(plane, kernel, strides, dilations):
            total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0) if mode != "VALID" else 0
            less, more = total // 2, total - total // 2
            before.append(less if mode == "SAME_UPPER" else more)
            after.append(more if mode == "SAME_UPPER" else less)
        del node.attributes["auto_pad"]
        node.attributes["pads"] = ir.AttrInt64s("pads", [*before, *after])


def _kernel(node: ir.Node) -> tuple[int, ...]:
    if node.op_type == "Conv" and node.inputs[1] is not None and node.inputs[1].shape is not None:
        return tuple(int(n) for n in tuple(node.inputs[1].shape)[2:])  # type: ignore[arg-type]
    return attribute(node, "kernel_shape")  # type: ignore[no-any-return]


def fuse_padding(model: ir.Model) -> None:
    """Move it in place."""
    for pad in list(model.graph):
        if pad.op_type != "Pad" or attribute(pad, "mode", "constant") != "constant" or pad.inputs[0] is None:
            continue
        amounts, fill = constant(pad.inputs[1]), constant(pad.inputs[2]) if len(pad.inputs) > 2 else None
        readers = [use.node for use in pad.outputs[0].uses()]
        if amounts is None or len(amounts) != 8 or (amounts < 0).any() or amounts[[0, 1, 4, 5]].any() or not readers:
            continue
        number = float(fill.item()) if fill is not None and fill.size else 0.0
        if pad.outputs[0].is_graph_output() or not all(_takes(node, pad, number) for node in readers):
            continue
        for node in readers:
            own = np.array(attribute(node, "pads", (0, 0, 0, 0)))
            total = own + amounts[[2, 3, 6, 7]]
            node.attributes["pads"] = ir.AttrInt64s("pads", [int(n) for n in total])
            if node.op_type == "AveragePool":
                node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
            node.replace_input_with(0, pad.inputs[0])
        model.graph.remove(pad, safe=True)


def _takes(node: ir.Node, pad: ir.Node, number: float) -> bool:
    if node.inputs[0] is not pad.outputs[0]:
        return False
    if node.op_type == "Conv":
        return number == 0
    if node.op_type == "AveragePool":
        whole = attribute(node, "count_include_pad", 0) or not any(attribute(node, "pads", (0,)))
        return number == 0 and bool(whole) and not attribute(node, "ceil_mode", 0)
    if node.op_type == "MaxPool":
        return not attribute(node, "ceil_mode", 0) and (
            number < -1e30 or (number <= 0 and _never_negative(pad.inputs[0]))
        )
    return False


def _never_negative(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    if node is None:
        return False
    low = constant(node.inputs[1]) if node.op_type == "Clip" and len(node.inputs) > 1 else None
    return node.op_type in ("Relu", "Sigmoid") or (low is not None and low.item() >= 0)
