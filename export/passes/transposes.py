"""Transposes that undo each other go:

- one behind another becomes one, or none;
- between maps that are turned one way and the same maps turned back, everything works on the maps as they lie: what
  works on every number by itself, Pad, Concat, Split and reductions, over branches and joins, where that saves
  transposes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import add_initializer, attribute, constant, weight_source

from .origin import record

_UNARY = (
    "Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Clip", "Cast", "Neg", "Sqrt", "Abs",
    "Exp", "Log", "Erf", "Softplus", "Identity", "Reciprocal",
)  # fmt: skip
_BINARY = ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max")
_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin")
_Permutation = tuple[int, ...]


def merge_transposes(model: ir.Model) -> None:
    """Rewrite in place; shapes must be known, and stay so."""
    _merge_neighbours(model)
    turned = {_permutation(node) for node in model.graph if node.op_type == "Transpose" and _of_maps(node)}
    for permutation in sorted(turned):
        for region in _regions(model, permutation):
            if region.saved > 0:
                _turn_back(model, region)
    _merge_neighbours(model)


def _of_maps(node: ir.Node) -> bool:
    return weight_source(node.inputs[0]) is None and len(node.outputs[0].shape or ()) > 2


def _permutation(node: ir.Node) -> _Permutation:
    rank = len(node.outputs[0].shape or ())
    return attribute(node, "perm", tuple(reversed(range(rank))))  # type: ignore[no-any-return]


def _merge_neighbours(model: ir.Model) -> None:
    for second in list(model.graph):
        first = second.inputs[0].producer() if second.op_type == "Transpose" and second.inputs[0] is not None else None
        if first is None or first.op_type != "Transpose" or not _of_maps(second):
            continue
        inner, outer = _permutation(first), _permutation(second)
        both = tuple(inner[axis] for axis in outer)
        source = first.inputs[0]
        assert source is not None
        if both == tuple(range(len(both))) and not second.outputs[0].is_graph_output():
            second.outputs[0].replace_all_uses_with(source)
            model.graph.remove(second, safe=True)
        else:
            second.replace_input_with(0, source)
            second.attributes["perm"] = ir.AttrInt64s("perm", both)
        if not list(first.outputs[0].uses()) and not first.outputs[0].is_graph_output():
            model.graph.remove(first, safe=True)


class _Region:
    """Values that are all turned one way: by Transposes, or made by nodes that could as well work on what is not."""

    def __init__(self, permutation: _Permutation) -> None:
        self.permutation = permutation
        self.back = tuple(int(axis) for axis in np.argsort(permutation))
        self.values: dict[int, ir.Value] = {}
        self.nodes: list[ir.Node] = []
        self.entries: list[ir.Node] = []

    def turns_back(self, node: ir.Node) -> bool:
        return node.op_type == "Transpose" and _permutation(node) == self.back

    def others(self, value: ir.Value) -> list[tuple[ir.Node, int]]:
        """Who reads a value turned, and is no part of the region."""
        inside = {id(node) for node in self.nodes}
        return [
            (use.node, use.idx) for use in value.uses() if id(use.node) not in inside and not self.turns_back(use.node)
        ]

    @property
    def saved(self) -> int:
        """Transposes fewer, were the region turned back."""
        gone, new = len(self.entries), 0
        for value in self.values.values():
            gone += sum(self.turns_back(use.node) for use in value.uses())
            new += bool(self.others(value)) or value.is_graph_output()
        return gone - new if self.nodes else 0


def _regions(model: ir.Model, permutation: _Permutation) -> list[_Region]:
    """Connected ones, the largest that there are."""
    found: dict[int, _Region] = {}
    for node in model.graph:
        if node.op_type == "Transpose" and _of_maps(node) and _permutation(node) == permutation:
            region = _Region(permutation)
            region.entries.append(node)
        else:
            inputs = [value for value in node.inputs if value is not None]
            joined = {id(found[id(value)]): found[id(value)] for value in inputs if id(value) in found}
            if not joined or not _may_join(node, [id(value) in found for value in inputs], len(permutation)):
                continue
            region, *more = joined.values()
            for other in more:
                region.values.update(other.values)
                region.nodes += other.nodes
                region.entries += other.entries
                found.update(dict.fromkeys(other.values, region))
            region.nodes.append(node)
        for output in node.outputs:
            region.values[id(output)] = output
            found[id(output)] = region
    return list({id(region): region for region in found.values()}.values())


def _may_join(node: ir.Node, turned: list[bool], rank: int) -> bool:
    """Could the node work on what is not turned? `turned`: which of its inputs are."""
    constants = [constant(value) for value in node.inputs if value is not None]
    if not all(is_turned or number is not None for is_turned, number in zip(turned, constants)):
        return False
    if len(node.outputs[0].shape or ()) != rank:
        return False
    if node.op_type in _BINARY:
        return all(number is None or number.ndim <= rank for number in constants)
    if node.op_type in _REDUCTIONS:
        return bool(attribute(node, "keepdims", 1))
    if node.op_type == "Pad":
        return len(node.inputs) <= 3 and len(constants[1]) == 2 * rank  # type: ignore[arg-type]
    return node.op_type in (*_UNARY, "Concat", "Split")


def _turn_back(model: ir.Model, region: _Region) -> None:
    for node in region.nodes:
        _adapt(model, node, region)
    for entry in region.entries:
        source, turned = entry.inputs[0], entry.outputs[0]
        assert source is not None
        _let_read(model, region, turned, source)
        if not list(turned.uses()) and not turned.is_graph_output():
            model.graph.remove(entry, safe=True)
    for node in region.nodes:
        for output in node.outputs:
            output.shape = ir.Shape([tuple(output.shape or ())[axis] for axis in region.back])
            _let_read(model, region, output, output)


def _let_read(model: ir.Model, region: _Region, turned: ir.Value, straight: ir.Value) -> None:
    """Readers of a value that was turned: those of the region, and those that turn it back, read it straight."""
    others = region.others(turned)
    backs = [use.node for use in turned.uses() if region.turns_back(use.node)]
    if straight is not turned:
        inside = {id(node) for node in region.nodes}
        for node, index in [(use.node, use.idx) for use in turned.uses() if id(use.node) in inside]:
            node.replace_input_with(index, straight)
    elif others or turned.is_graph_output():
        maker = straight.producer()
        assert maker is not None
        again = ir.node("Transpose", [straight], {"perm": region.permutation}, name=f"{maker.name}/turned")
        made = again.outputs[0]
        made.type = straight.type
        made.shape = ir.Shape([tuple(straight.shape or ())[axis] for axis in region.permutation])
        made.name = f"{straight.name}/turned"
        if straight.is_graph_output():
            model.graph.outputs[:] = [made if value is straight else value for value in model.graph.outputs]
        for node, index in others:
            node.replace_input_with(index, made)
        model.graph.insert_after(maker, again)
    for node in backs:
        if node.outputs[0].is_graph_output():
            node.replace_input_with(0, straight)
            node.attributes["perm"] = ir.AttrInt64s("perm", range(len(region.back)))
            continue
        node.outputs[0].replace_all_uses_with(straight)
        model.graph.remove(node, safe=True)


def _adapt(model: ir.Model, node: ir.Node, region: _Region) -> None:
    """Constants and axes of a node, for maps that are not turned."""
    permutation, back = region.permutation, list(region.back)
    rank = len(permutation)
    if node.op_type in _BINARY:
        for index, value in enumerate(node.inputs):
            number = constant(value) if value is not None and id(value) not in region.values else None
            if number is not None and value is not None and number.size > 1:
                full = number.reshape((1,) * (rank - number.ndim) + number.shape).transpose(back)
                made = add_initializer(model, f"{value.name}/moved", full)
                if value.is_initializer() and number.size == max(number.shape):
                    record(made, "reshape", value, shape=list(number.shape))
                node.replace_input_with(index, made)
    elif node.op_type in _REDUCTIONS:
        axes = attribute(node, "axes")
        if axes is not None:
            node.attributes["axes"] = ir.AttrInt64s("axes", sorted(permutation[axis % rank] for axis in axes))
    elif node.op_type in ("Concat", "Split"):
        axis = attribute(node, "axis", 0) % rank
        node.attributes["axis"] = ir.AttrInt64("axis", permutation[axis])
    elif node.op_type == "Pad":
        amounts = constant(node.inputs[1])
        assert amounts is not None
        moved = np.concatenate([amounts[:rank][back], amounts[rank:][back]]).astype(np.int64)
        node.replace_input_with(1, add_initializer(model, f"{node.name}/pads", moved))
