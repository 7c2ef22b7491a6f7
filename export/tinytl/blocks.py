"""A network's blocks, found by themselves: what TinyTL puts a lite residual module beside.

The tensors through which every path from the image to the logits goes cut a network into pieces. Of these cuts the
ends of blocks are: what enters and what leaves a residual or joined region, and a convolution's output without an
activation behind it (the narrow end of an inverted residual). Where a network has neither, as VGG, they are what
stands before each step to a smaller map. The piece with the image in it (the stem, and the first block where that
does not widen) is no block, nor is the piece with the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

import onnx_ir as ir

from tinytl_edge.export.onnx_graph import (
    attribute,
    constant,
    has_sizes,
    nodes_between,
    only_reader,
    sizes,
    weight_source,
)

_LAYERS = ("Conv", "Gemm", "MatMul")
_LINEAR = ("Conv", "BatchNormalization")
_AFFINE = ("BatchNormalization", "Add", "Mul", "Dropout", "Identity")


@dataclass(frozen=True)
class Block:
    """A part of a network from one map to another: its name, by its parameters', and the two maps."""

    name: str
    entering: ir.Value
    leaving: ir.Value


def find_blocks(model: ir.Model) -> list[Block]:
    """All blocks in their order, from the image on."""
    cuts = _cuts(model)
    ends = _ends(cuts)
    if len(ends) < 3:
        ends = _before_smaller(cuts)
    blocks: list[Block] = []
    for number, (entering, leaving) in enumerate(zip(ends, ends[1:])):
        if _has_layer(entering, leaving):
            blocks.append(Block(_name(entering, leaving, number, blocks), entering, leaving))
    return blocks


def _cuts(model: ir.Model) -> list[ir.Value]:
    """The maps through which every path from the image to the logits goes, in their order."""
    image, logits = model.graph.inputs[0], model.graph.outputs[0]
    nodes = list(nodes_between(image, logits))
    place = {id(value): index for index, node in enumerate(nodes, 1) for value in node.outputs}
    place[id(image)] = 0
    cuts: list[ir.Value] = []
    reach = 0  # the last node that reads anything made so far
    inside = {id(node): index for index, node in enumerate(nodes, 1)}
    for index, value in enumerate([image, *(node.outputs[0] for node in nodes)]):
        if reach <= index:
            cuts.append(value)
        readers = [inside[id(use.node)] for use in value.uses() if id(use.node) in inside]
        reach = max([reach, *readers])
    return [value for value in cuts if value.shape is not None and len(value.shape) == 4 and has_sizes(value)]


def _ends(cuts: list[ir.Value]) -> list[ir.Value]:
    found: list[ir.Value] = []
    for value, following in zip(cuts, [*cuts[1:], None]):
        joins = _joins(value)
        branches = following is not None and len(list(value.uses())) > 1 and _joins(following)
        is_end = (joins or branches or _is_linear_end(value)) and not _kept_in_range(value)
        if value.producer() is not None and is_end and _has_channels(value):
            found.append(value)
    return found


def _has_channels(value: ir.Value) -> bool:
    channels, height, width = sizes(value)
    return channels > 1 and height * width > 1


def _maker(value: ir.Value) -> ir.Node | None:
    """The node that makes a value; of a value kept in the range of its 8 bits, the node before."""
    node = value.producer()
    if node is not None and node.op_type == "Clip" and node.inputs[0] is not None and len(node.inputs) > 1:
        low = constant(node.inputs[1])
        if low is not None and low.item() < 0:
            return node.inputs[0].producer()
    return node


def _kept_in_range(value: ir.Value) -> bool:
    """Does nothing but the range of its 8 bits stand behind it?"""
    reader = only_reader(value)
    return reader is not None and reader.op_type == "Clip" and _maker(reader.outputs[0]) is value.producer()


def _joins(value: ir.Value) -> bool:
    """Is it a sum of two maps, or maps joined by channels?"""
    node = _maker(value)
    if node is None:
        return False
    maps = [source for source in node.inputs if source is not None and weight_source(source) is None]
    return node.op_type in ("Add", "Concat") and len(maps) > 1


def _is_linear_end(value: ir.Value) -> bool:
    """Is it a convolution's, without an activation of its own, that a further convolution reads?"""
    node = _maker(value)
    while node is not None and node.op_type in _AFFINE and node.op_type != "Conv":
        maps = [source for source in node.inputs if source is not None and weight_source(source) is None]
        if len(maps) != 1:
            return False
        node = maps[0].producer()
    if node is None or node.op_type != "Conv" or attribute(node, "group", 1) != 1:
        return False
    return bool(list(value.uses())) and all(use.node.op_type == "Conv" for use in value.uses())


def _before_smaller(cuts: list[ir.Value]) -> list[ir.Value]:
    """The last cut of each size."""
    maps = [value for value in cuts if value.producer() is not None and _has_channels(value)]
    return [a for a, b in zip(maps, maps[1:]) if sizes(b)[1:] != sizes(a)[1:]] + maps[-1:]


def _has_layer(entering: ir.Value, leaving: ir.Value) -> bool:
    """Does it hold a convolution, keep or shrink its map, and so can have a module beside it?"""
    smaller = all(after <= before for before, after in zip(sizes(entering)[1:], sizes(leaving)[1:]))
    return smaller and any(node.op_type in _LAYERS for node in nodes_between(entering, leaving))


def _name(entering: ir.Value, leaving: ir.Value, number: int, others: list[Block]) -> str:
    """What its parameters' names have in common, or a number."""
    names = [
        source.name.split(".")
        for node in nodes_between(entering, leaving)
        for value in node.inputs
        if (source := weight_source(value)) is not None and source.name and len(source.name.split(".")) > 2
    ]
    together = takewhile(lambda parts: len(set(parts)) == 1, zip(*names))
    common = ".".join(parts[0] for parts in together)
    taken = {block.name for block in others}
    return common if common and common not in taken else f"block{number}"
