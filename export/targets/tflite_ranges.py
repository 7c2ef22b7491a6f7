"""Ranges of a TFLite file's eight-bit tensors: given anew, with all that depends on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tinytl_edge.export.onnx_graph import Array

from .content import UnwritableError
from .tflite_editor import TFLiteEditor, dtype_of, quantisation
from .tflite_source import EIGHT_BITS, LAYERS

LOWEST = {"int8": -128, "uint8": 0}
# Their kernels want one scale and zero point for what they read and make.
_SAME_RANGE = frozenset(
    getattr(schema.BuiltinOperator, kind)
    for kind in (
        "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "PAD", "PADV2", "MAX_POOL_2D", "AVERAGE_POOL_2D",
        "CONCATENATION", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "SPLIT", "SLICE", "STRIDED_SLICE", "GATHER",
        "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "MAXIMUM", "MINIMUM", "MIRROR_PAD", "PACK",
        "UNPACK",
    )
)  # fmt: skip


def range_of(tensor: Any) -> tuple[float, float]:
    """The real numbers of an eight-bit tensor's first and last code."""
    scale, zero = float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])
    low = LOWEST[dtype_of(tensor)]
    return (low - zero) * scale, (low + 255 - zero) * scale


def of_one_range(file: TFLiteEditor, tensor: int) -> list[int]:
    """The eight-bit tensors that have to have a tensor's scale and zero point, itself first."""
    found = [tensor]
    for index in found:
        for neighbour in _neighbours(file, index):
            if neighbour not in found and is_eight_bit_map(file.graph.tensors[neighbour]):
                found.append(neighbour)
    return found


def _neighbours(file: TFLiteEditor, tensor: int) -> Iterator[int]:
    for operator in file.graph.operators:
        if file.kind(operator) in _SAME_RANGE and tensor in (*operator.inputs, *operator.outputs):
            yield from (int(index) for index in (*operator.inputs, *operator.outputs) if index >= 0)


def is_eight_bit_map(tensor: Any) -> bool:
    """Does it hold codes whose meaning is told?"""
    return dtype_of(tensor) in EIGHT_BITS and tensor.quantization is not None and tensor.quantization.scale is not None


def set_range(file: TFLiteEditor, tensor: int, scale: float, zero: int) -> None:
    """Give a tensor, and those that have to have the same, this scale and zero point.

    Biases of the layers that read them stay the same numbers.

    Raises:
        UnwritableError: one of these tensors is a constant.
    """
    file.change()
    for index in of_one_range(file, tensor):
        found = file.graph.tensors[index]
        if file.model.buffers[found.buffer].data is not None:
            raise UnwritableError("a constant has the range of what is changed")
        old = float(found.quantization.scale[0])
        found.quantization = quantisation([scale], [zero])
        for layer, slot in file.readers(index):
            if slot == 0 and file.kind(layer) in LAYERS and len(layer.inputs) > 2 and layer.inputs[2] >= 0:
                _rescale(file, int(layer.inputs[2]), old / scale)


def _rescale(file: TFLiteEditor, bias: int, factor: float) -> None:
    """The codes of a bias times a factor, its scales over it."""
    found = file.graph.tensors[bias]
    if dtype_of(found) != "int32":
        return
    codes = _codes(file, bias).astype(np.float64) * factor
    if np.abs(codes).max(initial=0) > np.iinfo(np.int32).max:
        raise UnwritableError("a bias does not fit the range of what is changed")
    file.set_data(bias, np.rint(codes).astype(np.int32))
    if found.quantization is not None and found.quantization.scale is not None:
        scales = np.asarray(found.quantization.scale, np.float64) / factor
        found.quantization = quantisation(scales, [0] * len(scales), int(found.quantization.quantizedDimension))


def _codes(file: TFLiteEditor, tensor: int) -> Array:
    found = file.graph.tensors[tensor]
    data = np.asarray(file.model.buffers[found.buffer].data, np.uint8)
    return np.frombuffer(data.tobytes(), "<i4").reshape([int(size) for size in found.shape])
