"""A TFLite file as objects that can be changed, and back as bytes; where numbers lie in those bytes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tinytl_edge.export.onnx_graph import Array
from tinytl_edge.runtime.model_files.associated import archive_start

_ALIGNMENT = 16  # of a buffer's data, as the schema asks for
_OLD_CODES = 127  # operators up to here have their number in a second, older field too
_DATA, _SCALE, _ZERO_POINT = 4, 8, 10  # fields of the tables Buffer and QuantizationParameters, as flatbuffers counts
_NUMBERS = {name.lower(): number for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
_NAMES = {number: name for name, number in _NUMBERS.items()}


class _Buffer(schema.BufferT):  # type: ignore[misc]
    """Packs its data aligned, which the generated class does not."""

    def Pack(self, builder: Any) -> Any:  # noqa: N802
        data = None
        if self.data is not None:
            content = np.asarray(self.data, np.uint8).tobytes()
            builder.StartVector(1, len(content), _ALIGNMENT)
            builder.head -= len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class TFLiteEditor:
    """The objects of a file with one graph: `graph.tensors`, `graph.operators`, ... as the schema names them.

    Indices of tensors stay; `content` is the file, byte for byte the old one where nothing was changed.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._changed = False
        self.model = schema.ModelT.InitFromPackedBuf(content, 0)
        self.graph = self.model.subgraphs[0]

    # Reading ----------------------------------------------------------------------------------------------

    def kind(self, operator: Any) -> int:
        """The number of an operator, as `schema.BuiltinOperator` has it."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))

    def readers(self, tensor: int) -> list[tuple[Any, int]]:
        """The operators that read a tensor, and at which input."""
        return [(op, slot) for op in self.graph.operators for slot, read in enumerate(op.inputs) if read == tensor]

    def maker(self, tensor: int) -> Any:
        """The operator that makes a tensor, or None."""
        return next((operator for operator in self.graph.operators if tensor in operator.outputs), None)

    def is_shared(self, tensor: int) -> bool:
        """Do other tensors have its buffer, or several operators read it?"""
        buffer = self.graph.tensors[tensor].buffer
        users = sum(other.buffer == buffer for other in self.graph.tensors)
        return users > 1 or len(self.readers(tensor)) > 1

    # Changing ---------------------------------------------------------------------------------------------

    def change(self) -> None:
        """What follows changes more than numbers in their places: the file is written anew."""
        if self._changed:
            return
        self._changed = True
        for index, buffer in enumerate(self.model.buffers):
            data = buffer.data
            if buffer.offset > 1:  # behind the flatbuffer, as large files have it
                data = np.frombuffer(self._content, np.uint8, int(buffer.size), int(buffer.offset))
            self.model.buffers[index] = _Buffer(data)
        for tensor in self.graph.tensors:  # some converters write the weight's axis into a bias, which LiteRT refuses
            shape = [] if tensor.shape is None else list(tensor.shape)
            if tensor.quantization is not None and tensor.quantization.quantizedDimension >= max(len(shape), 1):
                tensor.quantization.quantizedDimension = 0

    def add_tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str = "float32",
        data: Array | None = None,
        scale: Sequence[float] | Array = (),
        zero: Sequence[int] = (),
        axis: int = 0,
    ) -> int:
        """A new tensor, constant with `data`; its index."""
        self.change()
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name.encode(), list(shape), _NUMBERS[dtype]
        tensor.buffer = self.add_buffer(None if data is None else _bytes(data))
        tensor.hasRank = True
        if len(scale):
            tensor.quantization = quantisation(scale, zero, axis)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def copy_tensor(self, tensor: int, name: str) -> int:
        """Another tensor with the same numbers, which it shares until it gets its own; its index."""
        self.change()
        made = copy.deepcopy(self.graph.tensors[tensor])
        made.name = name.encode()
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def set_data(self, tensor: int, data: Array) -> None:
        """Give a constant other numbers, in a buffer of its own."""
        self.change()
        found = self.graph.tensors[tensor]
        found.shape = list(data.shape)
        if found.shapeSignature is not None:
            found.shapeSignature = list(data.shape)
        found.buffer = self.add_buffer(_bytes(data))

    def add_buffer(self, data: Array | None) -> int:
        """A new buffer of bytes, or an empty one; its index."""
        self.change()
        self.model.buffers.append(_Buffer(data))
        return len(self.model.buffers) - 1

    def add_operator(
        self, kind: str, inputs: Sequence[int], outputs: Sequence[int], at: int, version: int = 1, options: Any = None
    ) -> None:
        """A new operator, such as 'CONV_2D', as the `at`-th; `options` an object of the schema."""
        self.change()
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(getattr(schema.BuiltinOperator, kind), version)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType, operator.builtinOptions = getattr(schema.BuiltinOptions, name), options
        self.graph.operators.insert(at, operator)

    def set_kind(self, operator: Any, kind: str) -> None:
        """Make another operator, without options, of one."""
        self.change()
        operator.opcodeIndex = self._code(getattr(schema.BuiltinOperator, kind), 1)
        operator.builtinOptionsType, operator.builtinOptions = 0, None

    def _code(self, number: int, version: int) -> int:
        """The index of an operator code of at least this version, added where there is none."""
        for index, code in enumerate(self.model.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number and code.version >= version:
                return index
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = number, min(number, _OLD_CODES), version
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    # Writing ----------------------------------------------------------------------------------------------

    def content(self) -> bytes:
        """The flatbuffer, without the files that stood behind it."""
        if not self._changed:
            return self._content[: archive_start(self._content)]
        import flatbuffers

        builder = flatbuffers.Builder(len(self._content) + (1 << 16))
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def quantisation(scale: Iterable[float], zero: Iterable[int], axis: int = 0) -> Any:
    """real = scale * (code - zero), one for all or one an index of `axis`."""
    found = schema.QuantizationParametersT()
    found.scale, found.zeroPoint = np.array(scale, np.float32), np.array(zero, np.int64)
    found.quantizedDimension = axis
    return found


def name_of(tensor: Any) -> str:
    """Whatever its bytes are."""
    return tensor.name.decode(errors="replace") if isinstance(tensor.name, bytes) else str(tensor.name or "")


def dtype_of(tensor: Any) -> str:
    """Such as 'int8'."""
    return str(_NAMES[tensor.type])


def _bytes(data: Array) -> Array:
    return np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)


class Places:
    """Where a file's numbers lie: offsets of their first bytes."""

    def __init__(self, content: bytes) -> None:
        self._model = schema.Model.GetRootAs(content, 0)
        self._graph = self._model.Subgraphs(0)

    def data(self, tensor: int) -> int:
        """Of a constant's codes."""
        buffer = self._model.Buffers(self._graph.Tensors(tensor).Buffer())
        if buffer.Offset() > 1:
            return int(buffer.Offset())
        return self._vector(buffer, _DATA)

    def scale(self, tensor: int) -> int:
        """Of its scales, float32."""
        return self._vector(self._graph.Tensors(tensor).Quantization(), _SCALE)

    def zero(self, tensor: int) -> int:
        """Of its zero points, int64."""
        return self._vector(self._graph.Tensors(tensor).Quantization(), _ZERO_POINT)

    @staticmethod
    def _vector(table: Any, field: int) -> int:
        found = table._tab.Offset(field)
        assert found, "a constant without data, or a scale that is not there"
        return int(table._tab.Vector(found))
