"""A TFLite file's flatbuffer as plain Python values.

More tolerant than LiteRT, which refuses some files that boards run with other interpreters; but whatever the bytes are,
the answer is values in bounds, or a sentence.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tinytl_edge.runtime.errors import DamagedFileError, UsageError

Array = np.ndarray[Any, Any]
_Item = TypeVar("_Item")

# What reading past the end, or along a wrong offset, raises in flatbuffers, numpy and struct.
BROKEN = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError, struct.error)

_TYPES: dict[int, str] = {
    value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)
}
_OPTIONS: dict[int, str] = {
    value: name for name, value in vars(schema.BuiltinOptions).items() if isinstance(value, int)
}
_OPERATORS: dict[int, str] = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}
_NUMPY = {
    "float32": "<f4", "float16": "<f2", "float64": "<f8", "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2",
    "int32": "<i4", "uint32": "<u4", "int64": "<i8", "uint64": "<u8", "bool": "?",
}  # fmt: skip
_ACTIVATIONS = {0: "", 1: "relu", 2: "relu_n1_to_1", 3: "relu6", 4: "tanh"}
_FIELDS = (
    "Padding", "StrideW", "StrideH", "DilationWFactor", "DilationHFactor", "FilterWidth", "FilterHeight",
    "WeightsFormat", "KeepNumDims", "Beta", "Axis", "NumSplits", "AlignCorners", "HalfPixelCenters", "Mode", "Alpha",
    "Approximate", "KeepDims", "BeginMask", "EndMask", "EllipsisMask", "NewAxisMask", "ShrinkAxisMask", "BatchDims",
    "Num", "ValuesCount",
)  # fmt: skip
_LISTS = ("NewShape", "SqueezeDims")


@dataclass(frozen=True)
class Quantisation:
    """real = scale * (code - zero_point); one scale, or one an index of the dimension `axis`.

    `scale` float32 [n], `zero_point` int64 [n].
    """

    scale: Array
    zero_point: Array
    axis: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file: `dtype` such as 'int8'; -1 in `signature` where a size is left open; `data` the bytes of a
    constant, or None."""

    index: int
    name: str
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    dtype: str
    buffer: int
    data: bytes | None
    quantisation: Quantisation | None
    sparse: bool

    def codes(self) -> Array:
        """A constant's stored numbers, in `shape`; 4-bit ones as int8.

        Raises:
            DamagedFileError: there are fewer or more bytes than the shape says.
            UsageError: sparse, or of a type that holds no numbers.
        """
        if self.sparse:
            raise UsageError(f"The tensor {self.name!r} is sparse, which tinytl-edge does not read.")
        data = self.data or b""
        if self.dtype == "int4":
            flat = _nibbles(data)[: int(np.prod(self.shape, dtype=object))]
        elif self.dtype in _NUMPY:
            if len(data) % np.dtype(_NUMPY[self.dtype]).itemsize:
                raise DamagedFileError(f"The tensor {self.name!r} holds {len(data)} bytes, not whole {self.dtype}s.")
            flat = np.frombuffer(data, _NUMPY[self.dtype])
        else:
            raise UsageError(f"The tensor {self.name!r} is of type {self.dtype}, which holds no numbers.")
        if flat.size != int(np.prod(self.shape, dtype=object)):
            raise DamagedFileError(f"The tensor {self.name!r} of shape {list(self.shape)} holds {flat.size} numbers.")
        return flat.reshape(self.shape)


@dataclass(frozen=True)
class Operator:
    """An operator: `kind` such as 'CONV_2D', or 'custom NAME'; `inputs` and `outputs` index tensors, -1 is none;
    `activation` is '' or the fused one's name; `options` by the names of the schema, as Python values."""

    index: int
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    activation: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TFLiteModel:
    """A whole file with one graph. `metadata` by name."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: Mapping[str, bytes]


def parse(content: bytes, name: str) -> TFLiteModel:
    """The file `name` from its bytes.

    Raises:
        DamagedFileError: not a TFLite file, or cut or altered.
        UsageError: of several graphs.
    """
    if content[4:8] != b"TFL3":
        raise DamagedFileError(f"{name} is not a TFLite file.")
    try:
        return _parse(content, name)
    except BROKEN as error:
        raise DamagedFileError(f"{name} is damaged: its TFLite structure leads nowhere.") from error


def _parse(content: bytes, name: str) -> TFLiteModel:
    model = schema.Model.GetRootAs(content, 0)
    if model.SubgraphsLength() != 1:
        raise UsageError(f"{name} has {model.SubgraphsLength()} graphs; tinytl-edge reads classifiers of one.")
    graph = model.Subgraphs(0)
    limit = len(content) // 4  # every entry of a list takes at least an offset
    buffers = [_bytes(buffer, content) for buffer in _all(model.BuffersLength(), model.Buffers, limit)]
    codes = [_kind(code) for code in _all(model.OperatorCodesLength(), model.OperatorCodes, limit)]
    return TFLiteModel(
        tuple(
            _tensor(index, tensor, buffers)
            for index, tensor in enumerate(_all(graph.TensorsLength(), graph.Tensors, limit))
        ),
        tuple(
            _operator(index, operator, codes)
            for index, operator in enumerate(_all(graph.OperatorsLength(), graph.Operators, limit))
        ),
        _integers(graph.InputsAsNumpy()),
        _integers(graph.OutputsAsNumpy()),
        {
            _text(entry.Name()): buffers[entry.Buffer()] or b""
            for entry in _all(model.MetadataLength(), model.Metadata, limit)
        },
    )


def _all(count: int, entry: Callable[[int], _Item | None], limit: int) -> list[_Item]:
    if count > limit:
        raise ValueError(f"{count} entries")
    found = [entry(index) for index in range(count)]
    if any(item is None for item in found):
        raise ValueError("an entry that is not there")
    return found  # type: ignore[return-value]


def _bytes(buffer: Any, content: bytes) -> bytes | None:
    """A buffer's bytes, which large files keep behind the flatbuffer; None where it holds none."""
    if buffer.Offset() > 1:
        data = content[buffer.Offset() : buffer.Offset() + buffer.Size()]
        if len(data) != buffer.Size():
            raise ValueError("a buffer behind the end")
        return data
    if not buffer.DataLength():
        return None
    return bytes(buffer.DataAsNumpy().tobytes())


def _tensor(index: int, tensor: Any, buffers: list[bytes | None]) -> Tensor:
    shape = _integers(tensor.ShapeAsNumpy())
    if any(size < 0 for size in shape):
        raise ValueError("a negative size")
    return Tensor(
        index,
        _text(tensor.Name()) or f"tensor_{index}",
        shape,
        _integers(tensor.ShapeSignatureAsNumpy()) or shape,
        _TYPES[tensor.Type()],
        tensor.Buffer(),
        buffers[tensor.Buffer()],
        _quantisation(tensor.Quantization()),
        tensor.Sparsity() is not None,
    )


def _quantisation(parameters: Any) -> Quantisation | None:
    if parameters is None or not parameters.ScaleLength():
        return None
    scale = parameters.ScaleAsNumpy().astype(np.float32)
    zeros = parameters.ZeroPointAsNumpy().astype(np.int64) if parameters.ZeroPointLength() else np.zeros(1, np.int64)
    if not (np.isfinite(scale).all() and (scale >= 0).all() and np.abs(zeros).max() < 1 << 31):
        raise ValueError("a scale that cannot be")
    return Quantisation(scale, np.broadcast_to(zeros, scale.shape).copy(), parameters.QuantizedDimension())


def _kind(code: Any) -> str:
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    if number == schema.BuiltinOperator.CUSTOM:
        return f"custom {_text(code.CustomCode())}"
    return str(_OPERATORS.get(number, f"operator {number}"))


def _operator(index: int, operator: Any, kinds: list[str]) -> Operator:
    options = _options(operator)
    return Operator(
        index,
        kinds[operator.OpcodeIndex()],
        _integers(operator.InputsAsNumpy()),
        _integers(operator.OutputsAsNumpy()),
        _ACTIVATIONS[options.pop("FusedActivationFunction", 0)],
        options,
    )


def _options(operator: Any) -> dict[str, Any]:
    table = operator.BuiltinOptions()
    kind = getattr(schema, _OPTIONS.get(operator.BuiltinOptionsType(), ""), None)
    if table is None or kind is None:
        return {}
    options = kind()
    options.Init(table.Bytes, table.Pos)
    found = {name: getattr(options, name)() for name in (*_FIELDS, "FusedActivationFunction") if hasattr(options, name)}
    for name in _LISTS:
        if hasattr(options, name):
            found[name] = _integers(getattr(options, f"{name}AsNumpy")())
    return found


def _integers(found: Any) -> tuple[int, ...]:
    """Of a flatbuffer's vector; it gives the number 0 for none."""
    return tuple(int(value) for value in found) if isinstance(found, np.ndarray) else ()


def _text(text: bytes | None) -> str:
    return (text or b"").decode("utf-8", "replace")


def _nibbles(data: bytes) -> Array:
    """4-bit numbers, the lower half of a byte first, as int8."""
    both = np.frombuffer(data, np.uint8)
    halves = np.stack([both & 15, both >> 4], axis=-1).reshape(-1).astype(np.int8)
    return np.where(halves > 7, halves - 16, halves).astype(np.int8)
