"""Linear layers in one of two forms:

- of vectors: Gemm(x, W, b) with W [outputs, inputs];
- of every pixel or token: MatMul(x, Transpose(W)), and Add.

Gemm of other orders, and scaled, is brought into the first; a constant matrix into the second, or (followed by a sum
with a constant) of vectors into the first.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import (
    Array,
    add_initializer,
    attribute,
    constant,
    eight_bits,
    only_reader,
    set_initializer,
    sizes,
    take_name,
    weight_source,
)

from .origin import ORIGIN, record


def normalise_linear_layers(model: ir.Model) -> None:
    """Rewrite in place."""
    for node in list(model.graph):
        if node.op_type == "Gemm" and weight_source(node.inputs[1]) is not None:
            _gemm(model, node)
        elif node.op_type == "MatMul":
            _matmul(model, node)


def _gemm(model: ir.Model, node: ir.Node) -> None:
    if attribute(node, "transA", 0):
        return
    weight, alpha = node.inputs[1], attribute(node, "alpha", 1.0)
    if not attribute(node, "transB", 0):
        weight = _with_outputs_first(model, node, weight)
        if weight is None:
            return
        node.replace_input_with(1, weight)
    if alpha != 1.0:
        _scale(model, node, 1, alpha)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias, beta = constant(node.inputs[2]), attribute(node, "beta", 1.0)
        rows = _rows(node.inputs[1])
        if bias is not None and (beta != 1.0 or bias.shape != (rows,)):
            scaled = np.broadcast_to(bias.reshape(-1) * np.float32(beta), (rows,)).astype(np.float32)
            _set(model, node, 2, scaled, beta, bias)
    for name in ("alpha", "beta", "transA"):
        node.attributes.pop(name, None)
    node.attributes["transB"] = ir.AttrInt64("transB", 1)


def _rows(weight: ir.Value | None) -> int:
    source = weight_source(weight)
    return int(source.shape[0]) if source is not None and source.shape else 0  # type: ignore[arg-type]


def _with_outputs_first(model: ir.Model, node: ir.Node, weight: ir.Value | None) -> ir.Value | None:
    """A weight [inputs, outputs] as [outputs, inputs], under its own name where nobody else reads it."""
    producer = weight.producer() if weight is not None else None
    if producer is not None and producer.op_type == "Transpose":
        return producer.inputs[0]
    source = weight_source(weight)
    if weight is None or source is None:
        return None
    alone = len(list(source.uses())) == 1 and len(list(weight.uses())) == 1
    coded = eight_bits(weight)
    if coded is not None and producer is not None:
        if not alone:
            return None
        set_initializer(source, coded.codes.T)
        record(source, "transpose")
        if coded.scale.size > 1 or "axis" in producer.attributes:
            axis = attribute(producer, "axis", 1) % 2
            producer.attributes["axis"] = ir.AttrInt64("axis", 1 - axis)
        if weight.shape is not None:
            weight.shape = ir.Shape(list(reversed(tuple(weight.shape))))
        return weight
    array = constant(weight)
    if array is None or array.ndim != 2:
        return None
    if alone and weight is source:
        set_initializer(source, array.T)
        record(source, "transpose")
        return source
    made = add_initializer(model, f"{source.name}/{node.name}", array.T)
    record(made, "transpose", source)
    return made


def _scale(model: ir.Model, node: ir.Node, index: int, factor: float) -> None:
    array = constant(node.inputs[index])
    assert array is not None
    _set(model, node, index, (array * np.float32(factor)).astype(np.float32), factor, array)


def _set(model: ir.Model, node: ir.Node, index: int, array: Array, factor: float, old: Array) -> None:
    """Put `array` at an input, which is `old` * `factor` in its own shape."""
    value = node.inputs[index]
    source = weight_source(value)
    assert value is not None and source is not None
    if value is source and len(list(value.uses())) == 1:
        set_initializer(value, array)
        made = value
    else:
        made = add_initializer(model, f"{source.name}/{node.name}", array)
    if old.size != array.size:
        record(made, "computed", source, of_value=source.name)
    elif old.shape != array.shape:
        record(made, "reshape", source, shape=list(old.shape))
    if factor != 1.0:
        record(made, "scale", None if made.metadata_props.get(ORIGIN) else source, factor=float(factor))
    if made is not value:
        node.replace_input_with(index, made)


def _matmul(model: ir.Model, node: ir.Node) -> None:
    left, right = node.inputs
    if left is None or right is None or weight_source(left) is not None:
        return
    source = weight_source(right)
    if source is None or source.shape is None or len(source.shape) != 2 or left.shape is None:
        return
    if right.shape is None or len(right.shape) != 2:
        return
    # Of rows or columns of a map it stays as it is: the last axis is no channel axis then, which the importer sees.
    weight = _with_outputs_first(model, node, right)
    if weight is None:
        return
    if len(sizes(left)) == 1:
        _to_gemm(model, node, left, weight)
        return
    if right.producer() is not None and right.producer().op_type == "Transpose":  # type: ignore[union-attr]
        return
    transpose = ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{node.name}/weight")
    made = transpose.outputs[0]
    made.name, made.shape, made.type = transpose.name, ir.Shape(tuple(right.shape)), ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_before(node, transpose)
    node.replace_input_with(1, made)


def _to_gemm(model: ir.Model, node: ir.Node, x: ir.Value, weight: ir.Value) -> None:
    output, last = node.outputs[0], node
    inputs: list[ir.Value | None] = [x, weight]
    reader = only_reader(output)
    outputs = (weight.shape or (0,))[0]
    if reader is not None and reader.op_type == "Add":
        bias = next((v for v in reader.inputs if v is not None and v is not output), None)
        array = constant(bias)
        if array is not None and array.size == outputs and bias is not None:
            if array.ndim > 1:
                vector = add_initializer(model, f"{bias.name}/vector", array.reshape(-1))
                record(vector, "reshape", bias if bias.is_initializer() else None, shape=list(array.shape))
                bias = vector
            inputs.append(bias)
            last, output = reader, reader.outputs[0]
    gemm = ir.node("Gemm", inputs, {"transB": 1}, name=node.name)
    made = gemm.outputs[0]
    take_name(made, output)
    made.shape, made.type = output.shape, output.type
    model.graph.insert_before(last, gemm)
    output.replace_all_uses_with(made, replace_graph_outputs=True)
    model.graph.remove([last, node] if last is not node else node, safe=True)
