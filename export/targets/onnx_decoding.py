"""Which values of a quantised ONNX file are 8-bit codes, and of which scale."""

from __future__ import annotations

from onnx import NodeProto, helper

from .onnx_source import OnnxFile

# At which input the scale of an operator's codes stands; the zero point is behind it.
_SCALE_AT = {
    "QuantizeLinear": 1, "QLinearConv": 6, "QGemm": 7, "QLinearMatMul": 6, "QLinearAdd": 6, "QLinearMul": 6,
    "QLinearGlobalAveragePool": 3, "QLinearAveragePool": 3, "QLinearLeakyRelu": 3, "QLinearSigmoid": 3,
    "QLinearSoftmax": 3, "QLinearReduceMean": 3, "QLinearConcat": 0,
}  # fmt: skip
_SAME_CODES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "Identity", "Relu", "Clip", "Pad")


def scale_of(file: OnnxFile, name: str) -> tuple[str, str] | None:
    """The constants with scale and zero point of codes, or None where a value is of floats."""
    node = file.makers.get(name)
    while node is not None and node.op_type in _SAME_CODES:
        node = file.makers.get(node.input[0])
    if node is None or node.op_type not in _SCALE_AT or len(node.input) <= _SCALE_AT[node.op_type]:
        return None
    at = _SCALE_AT[node.op_type]
    return node.input[at], node.input[at + 1]


def decoder(file: OnnxFile, codes: str) -> NodeProto:
    """A new DequantizeLinear of a value of codes."""
    scale = scale_of(file, codes)
    assert scale is not None
    name = file.free_name(f"{codes}/floats")
    node = helper.make_node("DequantizeLinear", [codes, *scale], [name], name=name)
    return file.insert([node], file.makers[codes])[0]
