"""BatchNorm, frozen in its statistics, becomes a scale and a shift for each channel, and folds into what stands before.

Frozen, it is y = scale * x + shift with constants. Behind a convolution or linear layer that it alone reads, the scale
goes into the weight, and the shift becomes the bias: the bias that TinyTL trains. So does a product or sum with a
constant for each channel, as which other tools write it. Where only BatchNorm's scale trains (norm + last), the
statistics alone are folded, and scale and shift stay.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import (
    Array,
    add_initializer,
    attribute,
    constant,
    only_reader,
    set_initializer,
    sizes,
    weight_source,
)
from tinytl_edge.export.passes.origin import file_value, note_file_value, record

_LAYERS = ("Conv", "Gemm")


def fold_batchnorm(model: ir.Model, trainable: dict[str, str]) -> dict[str, str]:
    """Fold in place; returns the trainables under the names that they have afterwards."""
    trains = dict(trainable)
    for node in list(model.graph):
        if node.op_type == "BatchNormalization":
            _fold_norm(model, node, trains)
        elif node.op_type in ("Mul", "Add"):
            _fold_constant(model, node, trains)
    return trains


def _fold_norm(model: ir.Model, norm: ir.Node, trains: dict[str, str]) -> None:
    scale, bias, mean, variance = (_array(value) for value in norm.inputs[1:5])
    inverse = 1 / np.sqrt(variance.astype(np.float64) + float(attribute(norm, "epsilon", 1e-5)))
    offset = -mean * inverse
    names = [source.name if (source := weight_source(value)) is not None else None for value in norm.inputs[1:3]]
    layer = _layer_before(norm.inputs[0])
    weight = weight_source(layer.inputs[1]) if layer is not None else None
    scale_trains = names[0] in trains and not (weight is not None and weight.name in trains)
    if layer is None:
        _scale_and_shift(model, norm, scale, bias, trains, inverse, offset)
    elif scale_trains:
        _fold_into(model, layer, inverse, offset, trains)
        _scale_and_shift(model, norm, scale, bias, trains)
    else:
        _fold_into(model, layer, scale * inverse, scale * offset + bias, trains, weight_source(norm.inputs[2]), bias)
        note_file_value(layer.outputs[0], file_value(norm.outputs[0]))
        norm.outputs[0].replace_all_uses_with(layer.outputs[0], replace_graph_outputs=True)
        model.graph.remove(norm, safe=True)
        for name in names:
            trains.pop(name or "", None)


def _array(value: ir.Value | None) -> Array:
    array = constant(value)
    assert array is not None, "BatchNorm's numbers are constants in a network graph"
    return array.astype(np.float64)


def _layer_before(value: ir.Value | None) -> ir.Node | None:
    """The convolution or linear layer that alone makes a value, with a weight of its own."""
    node = value.producer() if value is not None else None
    if node is None or value is None or node.op_type not in _LAYERS or only_reader(value) is None:
        return None
    weight = weight_source(node.inputs[1])
    if weight is None or len(list(weight.uses())) != 1:
        return None
    return node


def _fold_into(
    model: ir.Model, layer: ir.Node, scale: Array, shift: Array, trains: dict[str, str],
    source: ir.Value | None = None, of_source: Array | None = None,
) -> None:  # fmt: skip
    """weight * scale, bias * scale + shift; the bias trains where it did, or where `source` does.

    Args:
        source: the parameter that is a part of `shift` with these numbers, if it is one.
    """
    weight = layer.inputs[1]
    initializer = weight_source(weight)
    assert weight is not None and initializer is not None and initializer.name is not None
    dequantise = weight.producer()
    if dequantise is not None and dequantise.op_type == "DequantizeLinear":
        old = np.broadcast_to(_array(dequantise.inputs[1]), scale.shape)
        # The scale may be another weight's, too.
        made = add_initializer(model, f"{initializer.name}/scale", (old * scale).astype(np.float32))
        dequantise.replace_input_with(1, made)
        _per_channel(model, dequantise, len(scale))
    else:
        array = _array(initializer)
        set_initializer(initializer, (array * scale.reshape(-1, *[1] * (array.ndim - 1))).astype(np.float32))
        # What is frozen may be rounded, and is zero where a channel is multiplied by zero, whatever it was before.
        factors = scale if initializer.name in trains else np.where(scale != 0, scale, 1)
        if (factors != 1).any():
            record(initializer, "channels", factors=factors.tolist())
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    shifted = (shift + (_array(bias) * scale if bias is not None else 0)).astype(np.float32)
    if bias is not None and bias.name is not None and len(list(bias.uses())) == 1:
        made = bias
        set_initializer(bias, shifted)
    else:
        made = add_initializer(model, _bias_name(initializer.name), shifted)
        layer.resize_inputs(3)
        layer.replace_input_with(2, made)
    group = trains.get(source.name or "") if source is not None else None
    assert made.name is not None
    if group is not None and source is not None and of_source is not None:
        trains.setdefault(made.name, group)
        # Written back there: that takes no division.
        shape = tuple(_array(source).shape)
        record(made, "reshape", source, shape=list(shape))
        # Of the rounded sum: what is not trained comes out as it was, to the bit.
        record(made, "shift", numbers=(shifted.astype(np.float64) - of_source.reshape(-1)).tolist())
    elif made.name in trains:
        record(made, "channels", factors=scale.tolist())
        record(made, "shift", numbers=shift.tolist())


def _per_channel(model: ir.Model, dequantise: ir.Node, channels: int) -> None:
    """A scale for each channel wants the axis named, and a zero point for each."""
    dequantise.attributes["axis"] = ir.AttrInt64("axis", 0)
    if len(dequantise.inputs) > 2 and dequantise.inputs[2] is not None:
        zero = constant(dequantise.inputs[2])
        assert zero is not None
        if zero.size == 1:
            name = f"{dequantise.inputs[2].name}/channels"
            dequantise.replace_input_with(2, add_initializer(model, name, np.full(channels, zero.item(), zero.dtype)))


def _bias_name(weight: str) -> str:
    return f"{weight[: -len('weight')]}bias" if weight.endswith("weight") else f"{weight}.bias"


def _scale_and_shift(
    model: ir.Model, norm: ir.Node, scale: Array, shift: Array, trains: dict[str, str],
    factor: Array | None = None, offset: Array | None = None,
) -> None:  # fmt: skip
    """BatchNorm as a product and a sum with its own two parameters: scale * factor, and shift + scale * offset."""
    x, output = norm.inputs[0], norm.outputs[0]
    assert x is not None
    one, zero = np.ones(len(scale)), np.zeros(len(scale))
    factor, offset = one if factor is None else factor, zero if offset is None else offset
    values, parameters = [], []
    for value, array in zip(norm.inputs[1:3], (scale * factor, shift + scale * offset)):
        initializer = weight_source(value)
        if initializer is None or len(list(initializer.uses())) != 1:
            made = add_initializer(model, f"{norm.name}/constant", array.astype(np.float32))
            record(made, "", initializer)
            initializer = made
        else:
            set_initializer(initializer, array.astype(np.float32))
        parameters.append(initializer)
        values.append(_by_channel(model, norm, initializer, len(sizes(output))))
    if {parameter.name for parameter in parameters} & set(trains) and (factor != 1).any():
        record(parameters[0], "channels", factors=factor.tolist())
        record(parameters[1], "shift_by", other=parameters[0].name, numbers=(offset / factor).tolist())
    product = ir.node("Mul", [x, values[0]], name=f"{norm.name}/scale")
    total = ir.node("Add", [product.outputs[0], values[1]], name=f"{norm.name}/shift")
    for node in (product, total):
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = node.name, output.shape, output.type
    model.graph.insert_before(norm, [product, total])
    output.replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
    model.graph.remove(norm, safe=True)


def _by_channel(model: ir.Model, before: ir.Node, initializer: ir.Value, rank: int) -> ir.Value:
    """[channels] as [channels, 1, 1], or as it is for a vector."""
    if rank == 1:
        return initializer
    axes = add_initializer(model, f"{initializer.name}/axes", np.arange(1, rank, dtype=np.int64))
    node = ir.node("Unsqueeze", [initializer, axes], name=f"{initializer.name}/channels")
    value = node.outputs[0]
    count = initializer.shape[0] if initializer.shape is not None else None
    value.name, value.shape, value.type = node.name, ir.Shape([count, *[1] * (rank - 1)]), initializer.type
    model.graph.insert_before(before, node)
    return value


def _fold_constant(model: ir.Model, node: ir.Node, trains: dict[str, str]) -> None:
    """A product or sum with a frozen constant for each channel, or a bias that trains, behind a layer."""
    constants = [index for index, value in enumerate(node.inputs) if constant(value) is not None]
    if len(constants) != 1:
        return
    value, source = node.inputs[constants[0]], node.inputs[1 - constants[0]]
    layer = _layer_before(source)
    array, name = _array(value), (weight_source(value) or value).name  # type: ignore[union-attr]
    if layer is None or (node.op_type == "Mul" and name in trains):
        return
    channels = sizes(node.outputs[0])[0]
    rank = len(sizes(node.outputs[0]))
    if array.size not in (1, channels) or (array.size > 1 and array.shape[-rank:] != (channels, *[1] * (rank - 1))):
        return
    numbers = np.broadcast_to(array.reshape(-1), (channels,))
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op_type == "Mul":
        _fold_into(model, layer, numbers, zero, trains)
    else:
        whole = weight_source(value) if array.size == channels else None
        _fold_into(model, layer, one, numbers, trains, whole, numbers)
        trains.pop(name or "", None)
    note_file_value(layer.outputs[0], file_value(node.outputs[0]))
    node.outputs[0].replace_all_uses_with(layer.outputs[0], replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
