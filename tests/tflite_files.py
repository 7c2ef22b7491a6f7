"""Small TFLite files for tests, written with LiteRT's own schema; and what LiteRT computes with them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import interpreter as litert
from ai_edge_litert import schema_py_generated as schema

SAME, VALID = 0, 1
RELU, RELU6 = 1, 3
_TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "int16": 7, "int8": 9}


class FileWriter:
    """Collects tensors and operators of one graph; `tensor` and `constant` answer with an index."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "test"
        self.model.buffers = [schema.BufferT()]
        self.model.operatorCodes = []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.model.subgraphs = [self.graph]
        self.model.metadata = []

    def tensor(
        self,
        shape: Sequence[int],
        dtype: str = "float32",
        scale: Sequence[float] | float | None = None,
        zero: int = 0,
        axis: int = 0,
        name: str = "",
        signature: Sequence[int] | None = None,
        buffer: int = 0,
    ) -> int:
        made = schema.TensorT()
        made.shape, made.type, made.buffer = list(shape), _TYPES[dtype], buffer
        made.name = name or f"t{len(self.graph.tensors)}"
        made.shapeSignature = list(signature) if signature is not None else None
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = [float(one) for one in scales]
            made.quantization.zeroPoint = [zero] * len(scales)
            made.quantization.quantizedDimension = axis
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def constant(
        self, array: Any, scale: Sequence[float] | float | None = None, zero: int = 0, axis: int = 0, name: str = ""
    ) -> int:
        array = np.asarray(array)
        buffer = schema.BufferT()
        buffer.data = list(array.tobytes())
        self.model.buffers.append(buffer)
        return self.tensor(array.shape, array.dtype.name, scale, zero, axis, name, buffer=len(self.model.buffers) - 1)

    def operator(
        self,
        kind: str,
        inputs: Sequence[int],
        outputs: Sequence[int],
        options: str = "",
        custom: str = "",
        **values: Any,
    ) -> None:
        """`kind` such as "CONV_2D"; `options` such as "Conv2DOptions", with their fields as `values`."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = 1
        code.customCode = custom or None
        self.model.operatorCodes.append(code)
        made = schema.OperatorT()
        made.opcodeIndex = len(self.model.operatorCodes) - 1
        made.inputs, made.outputs = list(inputs), list(outputs)
        if options:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            made.builtinOptions = getattr(schema, f"{options}T")()
            for name, value in values.items():
                assert hasattr(made.builtinOptions, name), name
                setattr(made.builtinOptions, name, value)
        self.graph.operators.append(made)

    def version(self, number: int) -> None:
        """Of the last operator: LiteRT wants 8-bit ones to be of a later version."""
        self.model.operatorCodes[-1].version = number

    def write(
        self,
        path: Path,
        inputs: Sequence[int],
        outputs: Sequence[int],
        files: Mapping[str, str] | None = None,
        metadata: bytes = b"",
    ) -> Path:
        """`files` go into a zip archive behind the flatbuffer, `metadata` into TFLITE_METADATA."""
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)
        if metadata:
            buffer = schema.BufferT()
            buffer.data = list(metadata)
            self.model.buffers.append(buffer)
            entry = schema.MetadataT()
            entry.name, entry.buffer = "TFLITE_METADATA", len(self.model.buffers) - 1
            self.model.metadata = [entry]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        content = bytes(builder.Output())
        if files:
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as zipped:
                for name, text in files.items():
                    zipped.writestr(name, text)
            content += archive.getvalue()
        path.write_bytes(content)
        return path

    # Frequent layers --------------------------------------------------------------------------------------

    def conv(
        self, x: int, weight: int, bias: int, shape: Sequence[int], *, depthwise: bool = False, stride: int = 1,
        padding: int = SAME, activation: int = 0, dilation: int = 1, **quantised: Any,
    ) -> int:  # fmt: skip
        """CONV_2D or DEPTHWISE_CONV_2D to a tensor of `shape`; `quantised`: its dtype, scale, zero."""
        y = self.tensor(shape, **quantised)
        kind, options = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
        more = {"depthMultiplier": shape[3] // self.graph.tensors[x].shape[3]} if depthwise else {}
        self.operator(
            kind, [x, weight, bias], [y], options, padding=padding, strideW=stride, strideH=stride,
            dilationWFactor=dilation, dilationHFactor=dilation, fusedActivationFunction=activation, **more,
        )  # fmt: skip
        self.version(3 if quantised.get("dtype") == "int8" else 2 if depthwise else 1)
        return y

    def linear(self, x: int, weight: int, bias: int | None, shape: Sequence[int], **quantised: Any) -> int:
        activation, keep = quantised.pop("activation", 0), quantised.pop("keep", False)
        y = self.tensor(shape, **quantised)
        self.operator(
            "FULLY_CONNECTED", [x, weight, -1 if bias is None else bias], [y], "FullyConnectedOptions",
            fusedActivationFunction=activation, keepNumDims=keep,
        )  # fmt: skip
        self.version(4 if quantised.get("dtype") == "int8" else 6 if bias is None else 5 if keep else 1)
        return y

    def softmax(self, x: int, shape: Sequence[int], **quantised: Any) -> int:
        y = self.tensor(shape, **quantised)
        self.operator("SOFTMAX", [x], [y], "SoftmaxOptions", beta=1.0)
        self.version(2 if quantised else 1)
        return y


def litert_output(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What LiteRT's built-in kernels make of `x`, dequantised."""
    kinds = litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = litert.Interpreter(model_path=str(path), experimental_op_resolver_type=kinds, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    output = interpreter.get_output_details()[0]
    scale, zero = output["quantization"]
    found = interpreter.get_tensor(output["index"])
    return (found.astype(np.float64) - zero) * scale if scale else found.astype(np.float64)


LOWEST = {"int8": -128, "uint8": 0}


class Layers:
    """Layers with random weights, one behind the other: float32, or in codes with all that belongs to them.

    `dtype`: "float32", "int8" (weights scaled by channel) or "uint8" (by tensor). Tensors of codes are read and written
    by index; each has the range 0 to 6, or -6 to 6.
    """

    def __init__(self, dtype: str = "float32", seed: int = 0) -> None:
        self.writer, self.dtype, self.random = FileWriter(), dtype, np.random.default_rng(seed)

    def input(self, shape: Sequence[int], low: float = -1.0, high: float = 1.0, name: str = "image") -> int:
        return self._map(shape, low, high, name)

    def conv(
        self, x: int, channels: int, kernel: int = 3, stride: int = 1, depthwise: bool = False, relu6: bool = False,
        relu6_range: bool = False,
    ) -> int:  # fmt: skip
        """`relu6_range`: the activation is there as the range of the output's codes alone."""
        _, height, width, inputs = self.writer.graph.tensors[x].shape
        shape = (1, kernel, kernel, channels) if depthwise else (channels, kernel, kernel, inputs)
        taps = kernel * kernel * (1 if depthwise else inputs)
        weight, bias = self.weights(x, shape, 3 if depthwise else 0, 1.5 / np.sqrt(taps))
        size = (1, -(-height // stride), -(-width // stride), channels)
        y = self._map(size, 0.0 if relu6 or relu6_range else -6.0, 6.0)
        options: dict[str, Any] = {"depthMultiplier": channels // inputs} if depthwise else {}
        kind, of = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
        self.writer.operator(
            kind, [x, weight, bias], [y], of, padding=SAME, strideW=stride, strideH=stride, dilationWFactor=1,
            dilationHFactor=1, fusedActivationFunction=RELU6 if relu6 else 0, **options,
        )  # fmt: skip
        self.writer.version(3 if self.dtype == "int8" else 1)
        return y

    def add(self, x: int, y: int, relu6: bool = False) -> int:
        z = self._map(self.writer.graph.tensors[x].shape, 0.0 if relu6 else -6.0, 6.0)
        self.writer.operator("ADD", [x, y], [z], "AddOptions", fusedActivationFunction=RELU6 if relu6 else 0)
        self.writer.version(2 if self.dtype == "int8" else 1)
        return z

    def mean(self, x: int) -> int:
        """Over the pixels."""
        y = self._map((1, self.writer.graph.tensors[x].shape[3]), -6.0, 6.0)
        axes = self.writer.constant(np.array([1, 2], np.int32))
        self.writer.operator("MEAN", [x, axes], [y], "ReducerOptions", keepDims=False)
        self.writer.version(2 if self.dtype == "int8" else 1)
        return y

    def average_pool(self, x: int, side: int) -> int:
        """Over windows that do not overlap, to one pixel where `side` is the map's."""
        read = self.writer.graph.tensors[x]
        _, height, width, channels = read.shape
        y = self._map((1, height // side, width // side, channels), -6.0, 6.0)
        self.writer.operator(
            "AVERAGE_POOL_2D", [x], [y], "Pool2DOptions", padding=VALID, strideW=side, strideH=side, filterWidth=side,
            filterHeight=side, fusedActivationFunction=0,
        )  # fmt: skip
        self.writer.version(2 if self.dtype == "int8" else 1)
        return y

    def linear(self, x: int, outputs: int, bias: bool = True) -> int:
        width = int(np.prod(self.writer.graph.tensors[x].shape))
        weight, of = self.weights(x, (outputs, width), 0, 1.5 / np.sqrt(width))
        y = self._map((1, outputs), -7.68, 7.68)
        self.writer.operator(
            "FULLY_CONNECTED", [x, weight, of if bias else -1], [y], "FullyConnectedOptions", fusedActivationFunction=0
        )
        self.writer.version(4 if self.dtype == "int8" else 1 if bias else 6)
        return y

    def flat(self, x: int) -> int:
        """As Keras flattens: to a shape that is computed from the batch."""
        writer, read = self.writer, self.writer.graph.tensors[x]
        width = int(np.prod(read.shape[1:]))

        def number(*values: int) -> int:
            return writer.constant(np.array(values, np.int32))

        shape, batch, whole = writer.tensor((4,), "int32"), writer.tensor((), "int32"), writer.tensor((2,), "int32")
        writer.operator("SHAPE", [x], [shape], "ShapeOptions", outType=_TYPES["int32"])
        writer.operator(
            "STRIDED_SLICE", [shape, number(0), number(1), number(1)], [batch], "StridedSliceOptions", shrinkAxisMask=1
        )
        of_one = writer.constant(np.array(width, np.int32))
        writer.operator("PACK", [batch, of_one], [whole], "PackOptions", valuesCount=2, axis=0)
        y = self._map((1, width), -6.0, 6.0)
        writer.operator("RESHAPE", [x, whole], [y])
        return y

    def end(self, x: int, kind: str) -> int:
        """SOFTMAX or LOGISTIC; nothing for ''."""
        if not kind:
            return x
        shape = self.writer.graph.tensors[x].shape
        coded = self.dtype != "float32"
        y = self.writer.tensor(shape, self.dtype, 1 / 256 if coded else None, LOWEST.get(self.dtype, 0))
        if kind == "SOFTMAX":
            self.writer.operator(kind, [x], [y], "SoftmaxOptions", beta=1.0)
        else:
            self.writer.operator(kind, [x], [y])
        self.writer.version(2 if coded else 1)
        return y

    def weights(self, x: int, shape: tuple[int, ...], axis: int, size: float) -> tuple[int, int]:
        """A weight and its bias, for a layer that reads `x`."""
        real, shift = self.random.standard_normal(shape) * size, self.random.standard_normal(shape[axis]) * 0.2
        if self.dtype == "float32":
            return self.writer.constant(real.astype(np.float32)), self.writer.constant(shift.astype(np.float32))
        axes = tuple(other for other in range(len(shape)) if other != axis)
        scale, zero = np.abs(real).max() / 127, 128
        wide = scale
        if self.dtype == "int8":
            scale, zero = np.abs(real).max(axes) / 127, 0
            wide = scale.reshape([-1 if other == axis else 1 for other in range(len(shape))])
        weight = self.writer.constant((np.rint(real / wide) + zero).astype(self.dtype), scale, zero, axis)
        sums = float(self.writer.graph.tensors[x].quantization.scale[0]) * scale
        return weight, self.writer.constant(np.rint(shift / sums).astype(np.int32), sums)

    def _map(self, shape: Sequence[int], low: float, high: float, name: str = "") -> int:
        if self.dtype == "float32":
            return self.writer.tensor(shape, name=name)
        scale = (high - low) / 255
        return self.writer.tensor(shape, self.dtype, scale, round(LOWEST[self.dtype] - low / scale), name=name)
