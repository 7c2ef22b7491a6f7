"""Computes what depends on no input, sizes among it: the batch is a number while this runs, and a symbol behind it.

- nodes of constants become initializers, but for other shapes of parameters (Transpose, Reshape, Unsqueeze, Squeeze),
  whose names must stay to be found, and DequantizeLinear;
- Shape and Size of known sizes become initializers;
- what is computed from one parameter alone (weight standardisation) becomes an initializer under that one's name.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from tinytl_edge.export.onnx_graph import Array, add_initializer, attribute, constant, weight_source

from .origin import record

_SHAPES = ("Transpose", "Reshape", "Unsqueeze", "Squeeze")
_LARGEST = 1 << 26  # elements worth computing


def fold_constants(model: ir.Model, parameters: set[str], batch: int) -> bool:
    """Fold in one pass over the nodes; returns whether there was anything to fold.

    Args:
        parameters: names of initializers that are parameters.
        batch: the number that stands for the batch in shapes; nothing is repeated so often.
    """
    folded = False
    for node in list(model.graph):
        value = _value(node, parameters, batch, model.graph.opset_imports.get("", 17))
        if value is not None:
            _replace(model, node, value, parameters)
            folded = True
    return folded


def _value(node: ir.Node, parameters: set[str], batch: int, opset: int) -> Array | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "BatchNormalization":
        return _standardised(node)
    if len(node.outputs) != 1:
        return None
    source = node.inputs[0] if node.inputs else None
    if node.op_type in ("Shape", "Size") and source is not None and source.shape is not None:
        shape = tuple(source.shape)
        if all(isinstance(size, int) for size in shape):
            numbers = np.array([int(size) for size in shape], np.int64)  # type: ignore[arg-type]
            first, end = attribute(node, "start", 0), attribute(node, "end")
            return numbers[first:end] if node.op_type == "Shape" else np.array(numbers.prod())
        return None
    if node.op_type == "CastLike" and node.inputs[1] is not None:  # the type of a map is known, its numbers are not
        number, like = constant(source), node.inputs[1].dtype
        return None if number is None or like is None else number.astype(like.numpy())
    if not node.inputs or node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        return None
    made = [weight_source(value) for value in node.inputs if value is not None]
    reads_parameter = any(m is not None and m.name in parameters for m in made)
    if node.op_type in _SHAPES and reads_parameter:
        return None
    inputs = {}
    for value in node.inputs:
        if value is None:
            continue
        found = constant(value)
        if found is None or value.name is None:
            return None
        inputs[value.name] = found
    if node.op_type in ("Expand", "ConstantOfShape", "Tile"):
        target = list(inputs.values())[-1]
        if (target == batch).any() or int(np.prod(np.maximum(target, 1).astype(np.float64))) > _LARGEST:
            return None
    return _computed(node, inputs, opset)


def _standardised(node: ir.Node) -> Array | None:
    """BatchNormalization of a constant: weight standardisation, which PyTorch's older exporter writes in training."""
    numbers, scale, bias, mean, variance = (constant(value) for value in node.inputs)
    if numbers is None or scale is None or bias is None or any(list(output.uses()) for output in node.outputs[1:]):
        return None
    by_channel = [-1 if axis == 1 else 1 for axis in range(numbers.ndim)]
    if len(node.outputs) > 1 or attribute(node, "training_mode", 0):
        axes = tuple(axis for axis in range(numbers.ndim) if axis != 1)
        mean, variance = numbers.mean(axes), numbers.var(axes)
    if mean is None or variance is None:
        return None
    deviation = np.sqrt(variance + np.float32(attribute(node, "epsilon", 1e-5)))
    normal = (numbers - mean.reshape(by_channel)) / deviation.reshape(by_channel)
    return np.asarray(normal * scale.reshape(by_channel) + bias.reshape(by_channel), np.float32)


def _computed(node: ir.Node, inputs: dict[str, Array], opset: int) -> Array | None:
    proto = ir.serde.serialize_node(node)
    given = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    result = onnx.helper.make_empty_tensor_value_info(node.outputs[0].name or "")
    graph = onnx.helper.make_graph([proto], "constant", given, [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    try:
        with np.errstate(all="ignore"):
            return np.asarray(ReferenceEvaluator(model).run(None, inputs)[0])  # type: ignore[index]
    except Exception:  # the evaluator lacks some operators and types, and says so in many ways: then it stays a node
        return None


def _replace(model: ir.Model, node: ir.Node, value: Array, parameters: set[str]) -> None:
    output = node.outputs[0]
    sources = {
        m.name for v in node.inputs if v is not None and (m := weight_source(v)) is not None and m.name in parameters
    }
    made = add_initializer(model, output.name or f"{node.name}/value", value)
    if len(sources) == 1:
        _inherit(model, made, next(iter(sources)), node, parameters)
    output.name = f"{output.name}/node"
    output.replace_all_uses_with(made, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def _inherit(model: ir.Model, made: ir.Value, name: str | None, node: ir.Node, parameters: set[str]) -> None:
    """What one parameter alone became bears its name, where nobody else reads that."""
    old = model.graph.initializers.get(name or "")
    if old is None or name is None or any(use.node is not node for use in old.uses()):
        if made.name is not None and made.const_value is not None and made.const_value.size > 1:
            parameters.add(made.name)
        return
    own = made.name
    record(made, "computed", old, of_value=own)
    old.name = f"{name}/source"
    made.name = name
    parameters.discard(own or "")
