"""A quantised ONNX network -> the network of floats that it stands for, whose weights keep their 8 bits.

- quantise_dynamic (DynamicQuantizeLinear, ConvInteger, MatMulInteger): Conv and MatMul with 8-bit weights;
- QDQ: pairs of QuantizeLinear and DequantizeLinear become a clamp to the range of their codes, where it can bite;
- QOperator (QLinearConv, QGemm, ...): the operator on floats, and such a clamp: often the only trace of a ReLU.

8-bit weights are read through DequantizeLinear; all other constants become floats under their own names.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, add_initializer, attribute, only_reader, set_initializer
from tinytl_edge.runtime.errors import UsageError

from .onnx_codes import Rewriter, along, array_of, zero_of


def undo_quantisation(model: ir.Model) -> None:
    """Rewrite in place; constants must be initializers.

    Raises:
        UsageError: the scale or zero point of something is no constant, or of a form that is not known here.
    """
    float_weights_to_codes(model)
    rewriter = Rewriter(model)
    for node in list(model.graph):
        rule = _RULES.get(node.op_type)
        if attribute(node, "channels_last", 0):
            raise UsageError(f"{node.op_type} '{node.name}' has its channels last, which is not known here.")
        if rule is not None and node.graph is not None:
            rule(rewriter, node)
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear":
            rewriter.keep_or_dequantise(node)


def float_weights_to_codes(model: ir.Model) -> None:
    """QuantizeLinear of a constant, as quantisation-aware training exports it, becomes its codes."""
    for node in list(model.graph):
        value = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        if value is None or value.const_value is None:
            continue
        scale, zero = array_of(node.inputs[1]), zero_of(node, 2)
        axis = attribute(node, "axis", 1) % max(value.const_value.numpy().ndim, 1)
        wide = [along(number, value.const_value.numpy().ndim, axis) for number in (scale, zero.astype(np.float64))]
        limits = np.iinfo(zero.dtype)
        codes = np.clip(np.rint(value.const_value.numpy() / wide[0]) + wide[1], limits.min, limits.max).astype(
            zero.dtype
        )
        if len(list(value.uses())) == 1 and value.name is not None:
            set_initializer(value, codes)
            made = value
        else:
            made = add_initializer(model, f"{value.name}/codes", codes)
        node.outputs[0].replace_all_uses_with(made)
        model.graph.remove(node, safe=True)


def _quantize(rewriter: Rewriter, node: ir.Node) -> None:
    value = node.inputs[0]
    if value is not None and value.const_value is None:
        rewriter.replace(node, rewriter.clamped(node, value, 1))


def _dequantize(rewriter: Rewriter, node: ir.Node) -> None:
    if node.inputs[0] is not None and node.inputs[0].const_value is None:
        rewriter.replace(node, rewriter.real(node, 0))


def _conv(rewriter: Rewriter, node: ir.Node) -> None:
    """x, scale, zero, w, scale, zero, y scale, y zero, bias."""
    bias = rewriter.bias(node, 8, array_of(node.inputs[1]) * array_of(node.inputs[4]))
    inputs = [rewriter.real(node, 0), rewriter.weight(node, 3), *([bias] if bias is not None else [])]
    made = rewriter.op(node, "Conv", list(inputs), **_attributes(node))
    rewriter.replace(node, rewriter.clamped(node, made, 6))


def _gemm(rewriter: Rewriter, node: ir.Node) -> None:
    """a, scale, zero, b, scale, zero, bias, y scale, y zero; floats without a y scale."""
    alpha = np.float32(attribute(node, "alpha", 1.0))
    bias = rewriter.bias(node, 6, alpha * array_of(node.inputs[1]) * array_of(node.inputs[4]))
    weight = rewriter.weight(node, 3, axis=0 if attribute(node, "transB", 0) else 1)
    inputs = [rewriter.real(node, 0), weight, *([bias] if bias is not None else [])]
    made = rewriter.op(node, "Gemm", list(inputs), **_attributes(node))
    quantised = len(node.inputs) > 7 and node.inputs[7] is not None
    rewriter.replace(node, rewriter.clamped(node, made, 7) if quantised else made)


def _matmul(rewriter: Rewriter, node: ir.Node) -> None:
    """a, scale, zero, b, scale, zero, y scale, y zero."""
    constant = node.inputs[3] is not None and node.inputs[3].const_value is not None
    right = rewriter.weight(node, 3, axis=1) if constant else rewriter.real(node, 3)
    made = rewriter.op(node, "MatMul", [rewriter.real(node, 0), right])
    rewriter.replace(node, rewriter.clamped(node, made, 6))


def _binary(rewriter: Rewriter, node: ir.Node) -> None:
    """a, scale, zero, b, scale, zero, y scale, y zero."""
    made = rewriter.op(node, node.op_type.removeprefix("QLinear"), [rewriter.real(node, 0), rewriter.real(node, 3)])
    rewriter.replace(node, rewriter.clamped(node, made, 6))


def _unary(rewriter: Rewriter, node: ir.Node) -> None:
    """x, scale, zero, y scale, y zero."""
    attributes = {name: value for name, value in _attributes(node).items() if name not in ("channels_last", "opset")}
    made = rewriter.op(node, node.op_type.removeprefix("QLinear"), [rewriter.real(node, 0)], **attributes)
    rewriter.replace(node, rewriter.clamped(node, made, 3))


def _concat(rewriter: Rewriter, node: ir.Node) -> None:
    """y scale, y zero, and x, scale, zero for each part."""
    parts = [rewriter.real(node, index) for index in range(2, len(node.inputs), 3)]
    made = rewriter.op(node, "Concat", list(parts), **_attributes(node))
    rewriter.replace(node, rewriter.clamped(node, made, 0))


def _limits_of_codes(rewriter: Rewriter, node: ir.Node) -> None:
    """The fill of Pad and the limits of Clip, given as codes, as floats."""
    for index, value in enumerate(node.inputs):
        if index == 0 or value is None or value.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
            continue
        step, middle = rewriter.codes(node.inputs[0], node)
        number = (float(array_of(value).item()) - middle) * step
        node.replace_input_with(index, rewriter.number(node, number))
    rewriter.same_codes(node)


def _same_codes(rewriter: Rewriter, node: ir.Node) -> None:
    rewriter.same_codes(node)


def _dynamic(rewriter: Rewriter, node: ir.Node) -> None:
    """Its numbers stay as they are, codes of the scale 1 around 0."""
    codes, scale, zero = node.outputs
    one = add_initializer(rewriter.model, f"{node.name}/one", np.array(1, np.float32))
    none = add_initializer(rewriter.model, f"{node.name}/none", np.array(0, np.uint8))
    for old, new in ((codes, node.inputs[0]), (scale, one), (zero, none)):
        if new is not None:
            old.replace_all_uses_with(new)
    rewriter.model.graph.remove(node, safe=True)


def _integer(rewriter: Rewriter, node: ir.Node) -> None:
    """x, w, x zero, w zero; behind it Cast, a product with x's scale (1 by now) and w's, perhaps a sum with a bias."""
    op_type = node.op_type.removesuffix("Integer")
    weight = rewriter.weight(node, 1, np.ones((), np.float32))
    made = rewriter.op(node, op_type, [node.inputs[0], weight], **_attributes(node))
    rewriter.replace(node, made)
    decoder, layer = weight.producer(), made.producer()
    assert decoder is not None and layer is not None
    while (reader := only_reader(made)) is not None and reader.op_type == "Cast":
        rewriter.replace(reader, made)
    outputs = _outputs(decoder, op_type)
    factor: Array = np.ones(1, np.float32)
    while (reader := only_reader(made)) is not None and reader.op_type == "Mul":
        numbers = _numbers(_other(reader, made))
        if numbers is None or numbers.size not in (1, outputs):
            break
        factor = factor * numbers.reshape(-1)
        rewriter.replace(reader, made)
    rewriter.rescale(decoder, factor.astype(np.float32), array_of(decoder.inputs[2]), 0 if op_type == "Conv" else 1)
    reader = only_reader(made)
    if op_type == "Conv" and reader is not None and reader.op_type == "Add":
        bias = _other(reader, made)
        numbers = _numbers(bias)
        if numbers is not None and bias is not None and numbers.size == outputs:
            layer.resize_inputs(3)
            layer.replace_input_with(2, rewriter.vector(bias, numbers))
            rewriter.replace(reader, made)


def _outputs(decoder: ir.Node, op_type: str) -> int:
    """How many outputs a layer has, by its weight."""
    codes = array_of(decoder.inputs[0])
    return int(codes.shape[0 if op_type == "Conv" else -1])


def _dynamic_matmul(rewriter: Rewriter, node: ir.Node) -> None:
    """com.microsoft: a, b, b scale, b zero, bias; or a, b, a scale, b scale, a zero, b zero, bias."""
    scale, zero, bias = (2, 3, 4) if node.op_type == "DynamicQuantizeMatMul" else (3, 5, 6)
    codes = node.inputs[1]
    if codes is None:
        raise UsageError(f"{node.op_type} '{node.name}' lacks a weight.")
    weight = rewriter.decoder(node, codes, array_of(node.inputs[scale]), zero_of(node, zero, codes), 1)
    made = rewriter.op(node, "MatMul", [node.inputs[0], weight])
    if len(node.inputs) > bias and node.inputs[bias] is not None:
        made = rewriter.op(node, "Add", [made, node.inputs[bias]])
    rewriter.replace(node, made)


def _attributes(node: ir.Node) -> dict[str, object]:
    return {name: entry.value for name, entry in node.attributes.items()}


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return next((other for other in node.inputs if other is not value), None)


def _numbers(value: ir.Value | None) -> Array | None:
    """What a constant, a product of constants, or a constant of another shape holds, as a vector."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy().reshape(-1)
    node = value.producer()
    if node is None or node.op_type not in ("Mul", "Reshape", "Unsqueeze", "Squeeze", "Cast"):
        return None
    numbers = _numbers(node.inputs[0])
    if node.op_type == "Mul" and numbers is not None:
        others = _numbers(node.inputs[1])
        return None if others is None else numbers * others
    return numbers


_SAME_CODES = (
    "MaxPool",
    "Reshape",
    "Transpose",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Slice",
    "Gather",
    "Relu",
    "Split",
    "Resize",
    "Expand",
    "Tile",
    "DepthToSpace",
    "SpaceToDepth",
)
_RULES: dict[str, Callable[[Rewriter, ir.Node], None]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "QLinearConv": _conv,
    "QGemm": _gemm,
    "QLinearMatMul": _matmul,
    "QLinearAdd": _binary,
    "QLinearMul": _binary,
    "QLinearGlobalAveragePool": _unary,
    "QLinearAveragePool": _unary,
    "QLinearSigmoid": _unary,
    "QLinearLeakyRelu": _unary,
    "QLinearSoftmax": _unary,
    "QLinearReduceMean": _unary,
    "QLinearConcat": _concat,
    "Pad": _limits_of_codes,
    "Clip": _limits_of_codes,
    "DynamicQuantizeLinear": _dynamic,
    "ConvInteger": _integer,
    "MatMulInteger": _integer,
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "MatMulIntegerToFloat": _dynamic_matmul,
    **dict.fromkeys(_SAME_CODES, _same_codes),
}
