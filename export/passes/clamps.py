"""Clamps, Clip and Relu:

- one behind another, that nothing else reads, becomes one with it; limits without effect are absent;
- one behind a Pad whose fill it leaves alone moves in front, so that the padding meets its convolution.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import add_initializer, attribute, constant, only_reader, take_name

_INFINITY = float("inf")
_LARGEST = float(np.finfo(np.float32).max)


def merge_clamps(model: ir.Model) -> None:
    """Rewrite in place; a clamp to 0 and above is Relu."""
    for node in list(model.graph):
        _past_padding(model, node)
        limits = _limits(node)
        if limits is None or node.graph is None:
            continue
        last = node
        while (reader := only_reader(last.outputs[0])) is not None and (more := _limits(reader)) is not None:
            if reader.inputs[0] is not last.outputs[0]:
                break
            limits = (_between(limits[0], *more), _between(limits[1], *more))
            last = reader
        if last is not node or node.op_type == "Clip":
            _write(model, node, last, limits)


def _limits(node: ir.Node) -> tuple[float, float] | None:
    if node.op_type == "Relu":
        return 0.0, _INFINITY
    if node.op_type != "Clip":
        return None
    limits = [-_INFINITY, _INFINITY]
    for index, value in enumerate(node.inputs[1:3]):
        if value is not None:
            number = constant(value)
            if number is None or number.size != 1 or number.dtype.kind != "f":
                return None
            if abs(number.item()) < _LARGEST:
                limits[index] = float(number.item())
    return limits[0], limits[1]


def _past_padding(model: ir.Model, node: ir.Node) -> None:
    limits, padded = _limits(node), node.inputs[0] if node.inputs else None
    pad = padded.producer() if limits is not None and padded is not None else None
    if pad is None or padded is None or limits is None or pad.op_type != "Pad" or only_reader(padded) is not node:
        return
    if node.outputs[0].is_graph_output() or attribute(pad, "mode", "constant") != "constant" or pad.inputs[0] is None:
        return
    fill = constant(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else np.zeros(1)
    if fill is None or not limits[0] <= float(fill.item()) <= limits[1]:
        return
    output, source = node.outputs[0], pad.inputs[0]
    output.replace_all_uses_with(padded)
    node.replace_input_with(0, source)
    pad.replace_input_with(0, output)
    output.shape = source.shape
    model.graph.remove(node)
    model.graph.insert_before(pad, node)


def _between(number: float, low: float, high: float) -> float:
    return min(max(number, low), high)


def _write(model: ir.Model, first: ir.Node, last: ir.Node, limits: tuple[float, float]) -> None:
    source, output = first.inputs[0], last.outputs[0]
    if limits == (0.0, _INFINITY):
        made = ir.node("Relu", [source], name=first.name)
    else:
        given: list[ir.Value | None] = [source]
        for name, old, number in (("min", first, limits[0]), ("max", first, limits[1])):
            given.append(_limit(model, old, name, number))
        if given[2] is None:
            given.pop()
        made = ir.node("Clip", given, name=first.name)
    made.outputs[0].shape, made.outputs[0].type = output.shape, output.type
    model.graph.insert_before(first, made)
    take_name(made.outputs[0], output)
    output.replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
    chain = [last]
    while chain[-1] is not first:
        chain.append(chain[-1].inputs[0].producer())  # type: ignore[arg-type, union-attr]
    model.graph.remove(chain, safe=True)


def _limit(model: ir.Model, node: ir.Node, name: str, number: float) -> ir.Value | None:
    """The node's own limit where that is it: names stay."""
    if abs(number) == _INFINITY:
        return None
    index = 1 if name == "min" else 2
    own = node.inputs[index] if node.op_type == "Clip" and len(node.inputs) > index else None
    held = constant(own)
    if own is not None and held is not None and held.shape == () and held.item() == np.float32(number):
        return own
    return add_initializer(model, f"{node.name}/{name}", np.array(number, np.float32))
