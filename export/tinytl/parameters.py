"""What of a network graph is a parameter, and of which kind."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tinytl_edge.export.onnx_graph import constant, maker, sizes, weight_source

WEIGHT, BIAS, NORM_SCALE, NORM_BIAS, OTHER = "weight", "bias", "norm_scale", "norm_bias", "other"
_NORMS = ("InstanceNormalization", "LayerNormalization", "BatchNormalization")


@dataclass(frozen=True)
class Use:
    """Who reads a parameter, and as what: one of WEIGHT, BIAS, NORM_SCALE, NORM_BIAS, OTHER (slopes, scale layers)."""

    kind: str
    value: ir.Value  # the initializer
    node: ir.Node


def find_parameters(model: ir.Model) -> dict[str, Use]:
    """All parameters by name, in the order of their first readers.

    Numbers for each channel count from the first convolution on: before, they normalise the input.
    """
    found: dict[str, Use] = {}
    learnt: set[ir.Value] = set()  # values behind a weight

    def note(kind: str, value: ir.Value | None, node: ir.Node) -> None:
        source = weight_source(value)
        if source is not None and source.name:
            found.setdefault(source.name, Use(kind, source, node))

    for node in model.graph:
        inputs = list(node.inputs)
        if node.op_type in ("Conv", "Gemm", "ConvTranspose"):
            note(WEIGHT, inputs[1], node)
            if len(inputs) > 2:
                note(BIAS, inputs[2], node)
        elif node.op_type == "MatMul" and weight_source(inputs[1]) is not None and maker(inputs[1]) is not None:
            note(WEIGHT, inputs[1], node)
        elif node.op_type in ("BatchNormalization", "LayerNormalization") or _is_instance_norm(node):
            note(NORM_SCALE, inputs[1], node)
            if len(inputs) > 2:
                note(NORM_BIAS, inputs[2], node)
        elif node.op_type in ("Add", "Mul", "PRelu") and learnt & set(inputs):
            _note_channels(node, note)
        if node.op_type in ("Conv", "Gemm", "MatMul") or learnt & set(inputs):
            learnt.update(node.outputs)
    return found


def _is_instance_norm(node: ir.Node) -> bool:
    """Not the core of a GroupNorm, whose scale and shift stand behind it."""
    if node.op_type != "InstanceNormalization" or node.inputs[0] is None:
        return False
    maker = node.inputs[0].producer()
    return maker is None or maker.op_type != "Reshape"


def _note_channels(node: ir.Node, note) -> None:  # type: ignore[no-untyped-def]
    """A constant operand that holds a number for each channel."""
    constants = [index for index, value in enumerate(node.inputs) if weight_source(value) is not None]
    if len(constants) != 1:
        return
    value = node.inputs[constants[0]]
    array = constant(value)
    if array is None or array.dtype.kind != "f" or array.size < 2 or array.size not in sizes(node.outputs[0]):
        return
    other = node.inputs[1 - constants[0]]
    norm = _behind_norm(other)
    if node.op_type == "Add":
        note(NORM_BIAS if norm else BIAS, value, node)
    else:
        note(NORM_SCALE if norm and node.op_type == "Mul" else OTHER, value, node)


def _behind_norm(value: ir.Value | None) -> bool:
    """Does a value come from a normalisation, through other shapes and its scale alone?"""
    while value is not None:
        node = value.producer()
        if node is None:
            return False
        if node.op_type in _NORMS or (node.op_type == "Div" and _divides_by_root(node)):
            return True
        if node.op_type == "Mul":
            maps = [v for v in node.inputs if weight_source(v) is None]
            value = maps[0] if len(maps) == 1 else None
        elif node.op_type in ("Reshape", "Transpose"):
            value = node.inputs[0]
        else:
            return False
    return False


def _divides_by_root(node: ir.Node) -> bool:
    root = node.inputs[1].producer() if node.inputs[1] is not None else None
    return root is not None and root.op_type == "Sqrt"
