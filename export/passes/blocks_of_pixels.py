"""Space to depth in front of a convolution: blocks of pixels that become channels are a larger window.

Three operators spell it: Reshape to [N, C, H, b, W, b], Transpose, and Reshape to [N, C b b, H, W]. A convolution of
k x k pixels and stride s behind them is one of bk x bk and stride bs in front of them, with the same numbers in another
order and as many multiply-adds.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from tinytl_edge.export.onnx_graph import attribute, maker, only_reader, set_initializer

from .origin import record

_BLOCK_FIRST, _CHANNEL_FIRST = (0, 3, 5, 1, 2, 4), (0, 1, 3, 5, 2, 4)


@dataclass(frozen=True)
class _Blocks:
    """`source` [N, C, H b, W b], whose blocks become channels: in the order block, channel, or channel, block."""

    source: ir.Value
    size: int
    channel_first: bool


def merge_blocks_of_pixels(model: ir.Model) -> None:
    """Rewrite in place, where convolutions alone read the blocks; sizes must be known."""
    for node in list(model.graph):
        blocks = _blocks(node)
        if blocks is None or node.outputs[0].is_graph_output():
            continue
        readers = [use.node for use in node.outputs[0].uses()]
        if all(_takes(reader, node.outputs[0]) for reader in readers):
            for reader in readers:
                _widen(reader, blocks)


def _blocks(node: ir.Node) -> _Blocks | None:
    turn = maker(node.inputs[0]) if node.op_type == "Reshape" else None
    split = maker(turn.inputs[0]) if turn is not None and turn.op_type == "Transpose" else None
    if turn is None or split is None or split.op_type != "Reshape" or split.inputs[0] is None:
        return None
    perm = attribute(turn, "perm")
    before, within, after = (_shape(value) for value in (split.inputs[0], split.outputs[0], node.outputs[0]))
    if perm not in (_BLOCK_FIRST, _CHANNEL_FIRST) or len(before) != 4 or len(within) != 6 or len(after) != 4:
        return None
    _, channels, height, width = before
    size = within[3]
    if not isinstance(size, int) or size < 2 or any(not isinstance(n, int) for n in before[1:]):
        return None
    whole = [channels, height // size, size, width // size, size]
    if within[1:] != whole or after[1:] != [channels * size * size, height // size, width // size]:
        return None
    return _Blocks(split.inputs[0], size, perm == _CHANNEL_FIRST)


def _shape(value: ir.Value | None) -> list[int | ir.SymbolicDim]:
    return list(value.shape) if value is not None and value.shape is not None else []


def _takes(node: ir.Node, value: ir.Value) -> bool:
    weight = node.inputs[1] if node.op_type == "Conv" and node.inputs[0] is value else None
    if weight is None or weight.const_value is None or only_reader(weight) is None:
        return False
    plain = attribute(node, "group", 1) == 1 and all(n == 1 for n in attribute(node, "dilations", (1,)))
    return plain and attribute(node, "auto_pad", "NOTSET") == "NOTSET" and weight.const_value.numpy().ndim == 4


def _widen(conv: ir.Node, blocks: _Blocks) -> None:
    b, weight = blocks.size, conv.inputs[1]
    assert weight is not None and weight.const_value is not None
    old = weight.const_value.numpy()
    outputs, channels, height, width = old.shape
    inner = (channels // (b * b), b, b) if blocks.channel_first else (b, b, channels // (b * b))
    axes = (0, 1, 4, 2, 5, 3) if blocks.channel_first else (0, 3, 4, 1, 5, 2)
    parts = old.reshape(outputs, *inner, height, width)
    new = parts.transpose(axes).reshape(outputs, channels // (b * b), height * b, width * b)
    record(weight, "reshape", shape=list(old.shape))
    record(weight, "permute", axes=list(axes))
    record(weight, "reshape", shape=[parts.shape[axis] for axis in axes])
    set_initializer(weight, new)
    for name, default in (("strides", (1, 1)), ("pads", (0, 0, 0, 0))):
        numbers = [b * int(n) for n in attribute(conv, name, default)]
        conv.attributes[name] = ir.AttrInt64s(name, numbers)
    conv.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", list(new.shape[2:]))
    conv.replace_input_with(0, blocks.source)
