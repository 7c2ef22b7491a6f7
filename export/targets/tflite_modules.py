"""Lite residual modules as built-in operators of a TFLite file, beside the blocks that they belong to.

They compute in float32, also in an 8-bit file: what enters is dequantised, and the sum quantised again, within the
range that it trained in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as schema

from tinytl_edge.export.onnx_graph import Array, attribute, constant, sizes, weight_source
from tinytl_edge.export.passes.origin import file_value
from tinytl_edge.export.tinytl.lite_residual import EPSILON, added_modules, channels_per_group
from tinytl_edge.export.tinytl.trainables import LITE_RESIDUAL, ZEROS
from tinytl_edge.runtime.model_files.stored_numbers import Step

from .content import UnwritableError
from .tflite_editor import TFLiteEditor, dtype_of
from .tflite_ranges import LOWEST, set_range
from .tflite_source import EIGHT_BITS, Place

_VALID, _SAME = schema.Padding.VALID, schema.Padding.SAME
_RELU = schema.ActivationFunctionType.RELU
_HALF_PIXEL_VERSION = 3  # of RESIZE_BILINEAR


def insert_modules(file: TFLiteEditor, model: ir.Model, trainable: Mapping[str, str]) -> list[Place]:
    """Add the modules of a network graph to its file; returns the places of what trains in them.

    Raises:
        UnwritableError: the file has no such tensor as the one that a block begins or ends with.
    """
    sums: dict[ir.Value, int] = {}  # what a module's sum is in the file
    places: list[Place] = []
    for block, nodes in added_modules(model).items():
        writer = _Module(file, block, nodes, trainable, sums)
        sums[nodes[-1].outputs[0]] = writer.insert()
        places += writer.places
    return places


class _Module:
    """Writes the operators of one module behind the one that makes its block's output."""

    def __init__(
        self, file: TFLiteEditor, block: str, nodes: Sequence[ir.Node], trainable: Mapping[str, str],
        sums: Mapping[ir.Value, int],
    ) -> None:  # fmt: skip
        self.places: list[Place] = []
        self._file, self._block, self._trainable = file, block, trainable
        self._nodes = {(node.name or "").rsplit("/", 1)[-1]: node for node in nodes}
        total = self._nodes["sum"]
        self._entering, self._leaving = (
            self._tensor_of(value, sums) for value in (self._nodes["pool"].inputs[0], total.inputs[0])
        )
        self._size = sizes(total.outputs[0])[1:]
        maker = file.maker(self._leaving)
        if maker is None or self._leaving in list(file.graph.outputs):
            raise UnwritableError(f"the block '{block}' does not end inside of it")
        self._at = next(index for index, each in enumerate(file.graph.operators) if each is maker) + 1

    def insert(self) -> int:
        """Returns the tensor of the sum."""
        readers = self._file.readers(self._leaving)
        x = self._module(self._as_float(self._entering))
        options = schema.AddOptionsT()
        total = self._add("ADD", [self._as_float(self._leaving), x], self._shape_of(self._leaving), options, name="sum")
        if dtype_of(self._file.graph.tensors[self._leaving]) in EIGHT_BITS:
            total = self._as_codes(total)
        for reader, slot in readers:
            reader.inputs = list(reader.inputs)
            reader.inputs[slot] = total
        if dtype_of(self._file.graph.tensors[total]) in EIGHT_BITS:
            self._rescale_readers(total)
        return total

    # The module -------------------------------------------------------------------------------------------

    def _module(self, x: int) -> int:
        _, height, width, channels = self._shape_of(x)
        if self._nodes["pool"].op_type == "GlobalAveragePool":
            height, width = 1, 1
            reduce = schema.ReducerOptionsT()
            reduce.keepDims = True
            x = self._add("MEAN", [x, self._integers("axes", [1, 2])], (1, 1, 1, channels), reduce)
        else:
            height, width = height // 2, width // 2
            pool = schema.Pool2DOptionsT()
            pool.padding, pool.strideW, pool.strideH, pool.filterWidth, pool.filterHeight = _VALID, 2, 2, 2, 2
            x = self._add("AVERAGE_POOL_2D", [x], (1, height, width, channels), pool)
        x = self._convolution(x, "conv")
        x = self._group_norm(x, "norm1", activation=_RELU)
        x = self._convolution(x, "project")
        x = self._group_norm(x, "norm2")
        _, height, width, channels = self._shape_of(x)
        if (height, width) == self._size:
            return x
        resize = schema.ResizeBilinearOptionsT()
        resize.halfPixelCenters = True
        size = self._integers("size", self._size)
        return self._add("RESIZE_BILINEAR", [x, size], (1, *self._size, channels), resize, version=_HALF_PIXEL_VERSION)

    def _convolution(self, x: int, layer: str) -> int:
        node = self._nodes[layer]
        _, height, width, channels = self._shape_of(x)
        (stride, _), (pad, *_) = (attribute(node, name) for name in ("strides", "pads"))
        outputs, rows, columns = sizes(node.outputs[0])
        if pad and stride > 1:  # SAME would pad otherwise
            rim = self._constant("pads", np.array([[0, 0], [pad, pad], [pad, pad], [0, 0]], np.int32))
            x = self._add("PAD", [x, rim], (1, height + 2 * pad, width + 2 * pad, channels), schema.PadOptionsT())
            pad = 0
        options = schema.Conv2DOptionsT()
        options.padding, options.strideW, options.strideH = (_SAME if pad else _VALID), stride, stride
        options.dilationWFactor, options.dilationHFactor = 1, 1
        weight = self._parameter(f"{layer}.weight", (0, 2, 3, 1))
        name = f"{self._block}.{LITE_RESIDUAL}.{layer}{ZEROS}"
        bias = self._file.add_tensor(name, [outputs], "float32", np.zeros(outputs, np.float32))
        return self._add("CONV_2D", [x, weight, bias], (1, rows, columns, outputs), options)

    def _group_norm(self, x: int, layer: str, activation: int = 0) -> int:
        """(x - mean) / sqrt(variance + epsilon) over each group of channels, then a scale and a shift by channel."""
        _, height, width, channels = shape = self._shape_of(x)
        each = channels_per_group(channels)
        grouped, number = (1, height * width, channels // each, each), (1, 1, channels // each, 1)
        keep = schema.ReducerOptionsT()
        keep.keepDims = True
        axes = self._integers("groups", [1, 3])
        y = self._reshape(x, grouped)
        mean = self._add("MEAN", [y, axes], number, keep)
        squares = self._add("SQUARED_DIFFERENCE", [y, mean], grouped, schema.SquaredDifferenceOptionsT())
        variance = self._add("MEAN", [squares, axes], number, keep)
        epsilon = self._constant("epsilon", np.array([EPSILON], np.float32))
        above = self._add("ADD", [variance, epsilon], number, schema.AddOptionsT())
        scale = self._add("RSQRT", [above], number)
        centred = self._add("SUB", [y, mean], grouped, schema.SubOptionsT())
        y = self._reshape(self._add("MUL", [centred, scale], grouped, schema.MulOptionsT()), shape)
        y = self._add("MUL", [y, self._parameter(f"{layer}.weight", (0,))], shape, schema.MulOptionsT())
        add = schema.AddOptionsT()
        add.fusedActivationFunction = activation
        return self._add("ADD", [y, self._parameter(f"{layer}.bias", (0,))], shape, add)

    # Between floats and codes -----------------------------------------------------------------------------

    def _as_float(self, tensor: int) -> int:
        dtype = dtype_of(self._file.graph.tensors[tensor])
        if dtype == "float32":
            return tensor
        if dtype not in EIGHT_BITS:
            raise UnwritableError(f"the block '{self._block}' works on {dtype}")
        version = 2 if dtype == "int8" else 1
        return self._add("DEQUANTIZE", [tensor], self._shape_of(tensor), schema.DequantizeOptionsT(), version)

    def _as_codes(self, total: int) -> int:
        """The sum in codes of the range that it was trained in."""
        clamp = self._nodes.get("range")
        limits = [constant(value) for value in clamp.inputs[1:]] if clamp is not None else [None]
        if any(limit is None for limit in limits) or len(limits) != 2:
            raise UnwritableError(f"the sum behind the block '{self._block}' has no range")
        low, high = (float(limit) for limit in limits if limit is not None)
        dtype = dtype_of(self._file.graph.tensors[self._leaving])
        scale = (high - low) / 255
        name, shape = f"{self._block}.{LITE_RESIDUAL}/codes", self._shape_of(total)
        zero = round(LOWEST[dtype] - low / scale)
        made = self._file.add_tensor(name, shape, dtype, None, [scale], [zero])
        self._operator("QUANTIZE", [total], made, 1, schema.QuantizeOptionsT())
        return made

    def _rescale_readers(self, total: int) -> None:
        """Biases of the layers that read the sum instead of the block's output stay the same numbers."""
        found = self._file.graph.tensors[total].quantization
        scale, zero = float(found.scale[0]), int(found.zeroPoint[0])
        self._file.graph.tensors[total].quantization = self._file.graph.tensors[self._leaving].quantization
        set_range(self._file, total, scale, zero)

    # Tensors and operators --------------------------------------------------------------------------------

    def _tensor_of(self, value: ir.Value | None, sums: Mapping[ir.Value, int]) -> int:
        if value is None:
            raise UnwritableError(f"the block '{self._block}' has no beginning")
        if value in sums:
            return sums[value]
        name = file_value(value)
        index = int(name.removeprefix("tensor ")) if name.startswith("tensor ") else -1
        if not 0 <= index < len(self._file.graph.tensors):
            raise UnwritableError(f"there is no '{value.name}' in it")
        channels, height, width = sizes(value)
        if self._shape_of(index) != (1, height, width, channels):
            raise UnwritableError(f"'{value.name}' is of another shape in it")
        return index

    def _shape_of(self, tensor: int) -> tuple[int, ...]:
        return tuple(int(size) for size in self._file.graph.tensors[tensor].shape)

    def _add(
        self, kind: str, inputs: Sequence[int], shape: Sequence[int], options: Any = None, version: int = 1,
        name: str = "",
    ) -> int:  # fmt: skip
        label = f"{self._block}.{LITE_RESIDUAL}/{name or f'{kind.lower()}_{self._at}'}"
        made = self._file.add_tensor(label, shape)
        self._operator(kind, inputs, made, version, options)
        return made

    def _operator(self, kind: str, inputs: Sequence[int], output: int, version: int, options: Any) -> None:
        self._file.add_operator(kind, inputs, [output], self._at, version, options)
        self._at += 1

    def _reshape(self, x: int, shape: Sequence[int]) -> int:
        options = schema.ReshapeOptionsT()
        options.newShape = [-1, *shape[1:]]
        return self._add("RESHAPE", [x, self._integers("shape", [-1, *shape[1:]])], shape, options)

    def _integers(self, what: str, numbers: Sequence[int]) -> int:
        return self._constant(what, np.array(numbers, np.int32))

    def _constant(self, what: str, array: Array) -> int:
        name = f"{self._block}.{LITE_RESIDUAL}/{what}_{self._at}"
        return self._file.add_tensor(name, array.shape, str(array.dtype), array)

    def _parameter(self, name: str, axes: tuple[int, ...]) -> int:
        """A parameter of the module under its own name, its axes in the file's order."""
        whole = f"{self._block}.{LITE_RESIDUAL}.{name}"
        values = (weight_source(value) for node in self._nodes.values() for value in node.inputs)
        value = next(each for each in values if each is not None and each.name == whole)
        assert value.const_value is not None
        array = value.const_value.numpy()
        tensor = self._file.add_tensor(whole, array.transpose(axes).shape, "float32", array.transpose(axes))
        if whole in self._trainable:
            steps = (Step("permute", array.shape, axes),) if array.ndim > 1 else ()
            self.places.append(Place(whole, tensor, "data", array.size, "float32", steps))
        return tensor
