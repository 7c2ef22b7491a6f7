"""Trained parameters back into the tensors of a TFLite file: where each one's numbers go, and as what.

Eight-bit weights that train get codes, and scales, of their own: the largest weight of a channel (or of all, where the
file has one scale) becomes 127. Biases of eight-bit layers are whole numbers of their sums' scale. What reads and what
makes the tensors stays as it is, and so do the ranges of what flows between them, within which the network trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from ai_edge_litert import schema_py_generated as schema

from tinytl_edge.export.onnx_graph import Array, weight_source
from tinytl_edge.export.passes.origin import Stored, added_to, stored
from tinytl_edge.export.tinytl.classifier import find_classifier
from tinytl_edge.export.tinytl.parameters import Use, find_parameters
from tinytl_edge.runtime.model_files.stored_numbers import Step, as_stored
from tinytl_edge.runtime.model_files.template import Hole

from .content import UnwritableError
from .tflite_editor import Places, TFLiteEditor, dtype_of, name_of, quantisation

_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
LAYERS = frozenset(getattr(schema.BuiltinOperator, kind) for kind in _LAYERS)
EIGHT_BITS = {"int8": 0, "uint8": 128}  # the code of zero in a weight that is written anew


@dataclass(frozen=True)
class Place:
    """Numbers of a parameter: the tensor's `data`, `scale` or `zero`, and the steps that lead there."""

    parameter: str
    tensor: int
    part: str
    count: int
    dtype: str
    steps: tuple[Step, ...]

    def hole(self, places: Places) -> Hole:
        """Where that is in the file's bytes."""
        offset = getattr(places, self.part)(self.tensor)
        return Hole(self.parameter, offset, self.count, self.dtype, self.steps)


class SourceWriter:
    """Finds the places of one network's trainables in its file, which it changes where shapes do."""

    def __init__(self, file: TFLiteEditor, model: ir.Model, trainable: Mapping[str, str]) -> None:
        self._file, self._model, self._trainable = file, model, trainable
        self._used = find_parameters(model)
        self._owners: dict[int, str] = {}  # of tensors that are copies, the parameter
        classifier = find_classifier(model)
        self._resizable = {_way(value).name for value in (classifier.weight, classifier.bias) if value is not None}

    def places(self) -> list[Place]:
        """Of all that trains, but for what was added to the network.

        Raises:
            UnwritableError: one has no place in the file.
        """
        found: list[Place] = []
        for name in self._trainable:
            value = self._model.graph.initializers[name]
            if added_to(value) is None:
                found += self._places_of(name, value)
        taken = [(place.tensor, place.part) for place in found]
        twice = next((place for place in taken if taken.count(place) > 1), None)
        if twice is not None:
            raise UnwritableError(f"several parameters come from '{self._name(twice[0])}'")
        return found

    def _places_of(self, name: str, value: ir.Value) -> list[Place]:
        way = _way(value)
        if not way.name.startswith("tensor "):
            tensor = self._new_bias(self._used[name], value)
        else:
            tensor = self._own(name, int(way.name.removeprefix("tensor ")), way)
        dtype = dtype_of(self._file.graph.tensors[tensor])
        if dtype in EIGHT_BITS:
            return self._eight_bits(name, value, way, tensor, dtype)
        if dtype == "int32":
            return self._sums(name, value, way, tensor)
        if dtype not in ("float32", "float16"):
            raise UnwritableError(f"'{self._name(tensor)}' is of {dtype}")
        self._fit(tensor, way, self._stored(name, value, way.steps, dtype))
        return [Place(name, tensor, "data", _size(way), dtype, way.steps)]

    # Eight bits -------------------------------------------------------------------------------------------

    def _eight_bits(self, name: str, value: ir.Value, way: Stored, tensor: int, dtype: str) -> list[Place]:
        """Codes of a scale of their own, for each output or for all."""
        found = self._file.graph.tensors[tensor]
        outputs = _rows(value, way)
        by_channel = found.quantization is not None and len(found.quantization.scale) > 1
        count = _size(way)
        rows = outputs if by_channel else 1
        before, turns = _split(way.steps)
        inner = count // rows
        zero = EIGHT_BITS[dtype]
        codes = (*before, Step("over_scale", numbers=(1.0,), inner=inner), *turns)
        codes += (Step("add", numbers=(float(zero),), inner=count),) if zero else ()
        scale = (*before, Step("scale", inner=inner))
        self._fit(tensor, way, self._stored(name, value, codes, dtype))
        self._check_bias(tensor)
        axis = int(found.quantization.quantizedDimension) if by_channel else 0
        found.quantization = quantisation(self._stored(name, value, scale, "float32"), [zero] * rows, axis)
        self._file.change()
        return [
            Place(name, tensor, "data", count, dtype, codes),
            Place(name, tensor, "scale", rows, "float32", scale),
        ]

    def _sums(self, name: str, value: ir.Value, way: Stored, tensor: int) -> list[Place]:
        """A bias of the scale of its layer's sums: that of what it reads times that of its weights."""
        readers = self._file.readers(tensor)
        if len(readers) != 1 or self._file.kind(readers[0][0]) not in LAYERS or readers[0][1] != 2:
            raise UnwritableError(f"'{self._name(tensor)}' is no bias of one layer")
        layer = readers[0][0]
        reads, weight = (self._file.graph.tensors[layer.inputs[slot]] for slot in (0, 1))
        entering = float(reads.quantization.scale[0])
        count = _size(way)
        of = self._parameter_of(layer.inputs[1])
        if of is None:
            own = self._file.graph.tensors[tensor].quantization
            scales = (entering * np.asarray(weight.quantization.scale, np.float64)).tolist()
            if own is not None and own.scale is not None and len(own.scale) == len(scales):
                scales = [float(scale) for scale in own.scale]
            codes = (*way.steps, Step("multiply", numbers=tuple(1 / one for one in scales), inner=count // len(scales)))
            places = []
        else:
            other, weights = of, self._model.graph.initializers[of]
            back = _way(weights)
            before, _ = _split(back.steps)
            if any(step.kind != "difference" for step in before):
                raise UnwritableError(f"'{other}' is scaled in it")
            first = "difference" if before else ""
            by_channel = len(weight.quantization.scale) > 1
            rows = _rows(weights, back) if by_channel else 1
            inner = _size(back) // rows
            codes = (*way.steps, Step("over_scale", numbers=(entering,), inner=inner, other=other, first=first))
            scale = (*before, Step("scale", inner=inner), Step("multiply", numbers=(entering,), inner=rows))
            scales = self._stored(other, weights, scale, "float32").tolist()
            places = [Place(other, tensor, "scale", rows, "float32", scale)]
            self._file.graph.tensors[tensor].quantization = quantisation(scales, [0] * len(scales))
        self._fit(tensor, way, self._stored(name, value, codes, "int32"))
        return [Place(name, tensor, "data", count, "int32", codes), *places]

    def _check_bias(self, weight: int) -> None:
        """A bias that stays would be of the scale that the weights had."""
        for layer, slot in self._file.readers(weight):
            if slot == 1 and self._file.kind(layer) in LAYERS and len(layer.inputs) > 2 and layer.inputs[2] >= 0:
                bias = int(layer.inputs[2])
                if dtype_of(self._file.graph.tensors[bias]) == "int32" and self._parameter_of(bias) is None:
                    raise UnwritableError(f"'{self._name(weight)}' trains, but the bias beside it does not")

    def _parameter_of(self, tensor: int) -> str | None:
        """The trained parameter whose numbers a tensor holds."""
        if tensor in self._owners:
            return self._owners[tensor]
        for name in self._trainable:
            if _way(self._model.graph.initializers[name]).name == f"tensor {tensor}":
                return name
        return None

    # The file's tensors -----------------------------------------------------------------------------------

    def _fit(self, tensor: int, way: Stored, array: Array) -> None:
        """Give a tensor's constant the shape that it needs, and a buffer of its own."""
        found, shape = self._file.graph.tensors[tensor], way.shape
        readers = self._file.readers(tensor)
        if len(readers) != 1:
            raise UnwritableError(f"'{self._name(tensor)}' is read in {len(readers)} places")
        old = tuple(int(size) for size in found.shape)
        if old != shape:
            if way.name not in self._resizable or len(old) != len(shape):
                raise UnwritableError(f"'{self._name(tensor)}' has the shape {list(old)}, not {list(shape)}")
            self._file.set_data(tensor, array.reshape(shape))
        elif self._file.is_shared(tensor):
            self._file.set_data(tensor, array.reshape(shape))

    def _own(self, name: str, tensor: int, way: Stored) -> int:
        """The tensor that holds a parameter, or a copy for its layer where others read it too."""
        readers = self._file.readers(tensor)
        if way.reader is None or len(readers) < 2:
            return tensor
        makes, slot = way.reader
        layer = self._file.maker(int(makes.removeprefix("tensor ")))
        copy = self._file.copy_tensor(tensor, f"{self._name(tensor)}/{len(self._file.graph.tensors)}")
        layer.inputs = [copy if place == slot else read for place, read in enumerate(layer.inputs)]
        self._owners[copy] = name
        return copy

    def _new_bias(self, use: Use, value: ir.Value) -> int:
        """The file's layer has no bias: it gets one."""
        weight = weight_source(use.node.inputs[1]) if use.kind == "bias" and len(use.node.inputs) > 1 else None
        way = _way(weight) if weight is not None else None
        if way is None or not way.name.startswith("tensor "):
            raise UnwritableError(f"there is no '{value.name}' in it")
        of = int(way.name.removeprefix("tensor "))
        readers = self._file.readers(of)
        if len(readers) != 1 or self._file.kind(readers[0][0]) not in LAYERS or readers[0][1] != 1:
            raise UnwritableError(f"'{self._name(of)}' is read in {len(readers)} places")
        layer = readers[0][0]
        weights, reads = (self._file.graph.tensors[layer.inputs[slot]] for slot in (1, 0))
        in_codes = dtype_of(weights) in EIGHT_BITS and dtype_of(reads) in EIGHT_BITS
        count = int(value.shape.numpy()[0]) if value.shape is not None else 0
        data = np.zeros(count, np.int32 if in_codes else np.float32)
        name = f"{self._name(of)}/bias"
        scales = float(reads.quantization.scale[0]) * np.asarray(weights.quantization.scale) if in_codes else ()
        tensor = self._file.add_tensor(name, [count], str(data.dtype), data, scales, [0] * len(scales))
        layer.inputs = [*list(layer.inputs)[:2], tensor]
        return tensor

    def _name(self, tensor: int) -> str:
        return name_of(self._file.graph.tensors[tensor])

    def _stored(self, name: str, value: ir.Value, steps: tuple[Step, ...], dtype: str) -> Array:
        """What a board would write of the parameter as it is."""

        def read(parameter: str) -> bytes:
            tensor = self._model.graph.initializers[parameter].const_value
            assert tensor is not None
            return tensor.numpy().astype("<f4").tobytes()

        return np.frombuffer(as_stored(name, read, steps, dtype), np.dtype(dtype).newbyteorder("<"))


def _way(value: ir.Value) -> Stored:
    """Back to the file's real numbers; what its codes were does not count."""
    try:
        way = stored(value, passing_over="dequantise")
    except ValueError as error:
        raise UnwritableError(str(error)) from None
    if way.computed:
        raise UnwritableError(f"'{value.name}' is computed in it")
    if any(step.other for step in way.steps):
        raise UnwritableError(f"'{value.name}' is made of several parameters")
    return way if way.dtype != "float16" else replace(way, dtype="float32")


def _split(steps: tuple[Step, ...]) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """What changes the numbers, and what only turns their array."""
    turns = [index for index, step in enumerate(steps) if step.kind == "permute"]
    first = turns[0] if turns else len(steps)
    if any(step.kind != "permute" for step in steps[first:]):
        raise UnwritableError("weights are scaled in it after they were turned")
    return steps[:first], steps[first:]


def _size(way: Stored) -> int:
    return int(np.prod(way.shape, dtype=np.int64))


def _rows(value: ir.Value, way: Stored) -> int:
    """Outputs of a weight, as the file has them."""
    assert value.const_value is not None
    rows = int(value.const_value.numpy().shape[0])
    return rows // 2 if any(step.kind == "difference" for step in way.steps) else rows
