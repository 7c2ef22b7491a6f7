"""Weights that train for little memory: those of layers whose input is narrow.

A weight's gradient needs the layer's input, which has to wait for the backward pass. In an inverted residual block the
input of the widening layer is the block's own, a sixth of what lies inside, and small in the later blocks. What it
brings to train these weights is in docs/accuracy.md. "On-Device Training Under 256KB Memory" (Lin et al. 2022) chooses
such sets by search.
"""

from __future__ import annotations

import math

from tinytl_edge.export.onnx_graph import attribute, sizes

from .parameters import WEIGHT, Use


def reads_little(use: Use) -> bool:
    """Is this the weight of a layer that widens, and holds at least as many numbers as it reads of an image?"""
    node, shape = use.node, use.value.shape
    if use.kind != WEIGHT or node.op_type == "ConvTranspose" or attribute(node, "group", 1) != 1:
        return False
    assert shape is not None and node.inputs[0] is not None
    outputs, inputs, *taps = shape.numpy()
    return bool(outputs > inputs and math.prod((outputs, inputs, *taps)) >= math.prod(sizes(node.inputs[0])))
