"""The network graph while it grows out of a TFLite file: constants, features, layouts and ranges.

TFLite's maps are [1, height, width, channels]; the network graph's are [batch, channels, height, width]. A feature says
in which of the two orders it is, and changes only where an operator needs the other one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.passes.origin import begin, file_value, note_file_value
from tinytl_edge.runtime.errors import DamagedFileError, UsageError

from .tflite_reader import Array, Operator, Quantisation, Tensor

Shape = tuple[int, ...]
Bounds = tuple[float, float]
_BIAS = 2  # the input of a layer
ANY: Bounds = (-math.inf, math.inf)
TO_MAP, TO_PLAIN = (0, 3, 1, 2), (0, 2, 3, 1)
FUSED: dict[str, Bounds] = {
    "": ANY, "tanh": ANY, "relu": (0.0, math.inf), "relu6": (0.0, 6.0), "relu_n1_to_1": (-1.0, 1.0),
    "relu_0_to_1": (0.0, 1.0),
}  # fmt: skip
CODES = {
    "int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "int32": (-(1 << 31), (1 << 31) - 1),
    "int4": (-8, 7),
}  # fmt: skip


@dataclass(frozen=True)
class Constant:
    """An array of the file, or one computed from such (`source` None). `codes` are what is stored."""

    name: str
    codes: Array
    quantisation: Quantisation | None = None
    source: Tensor | None = None

    def real(self) -> Array:
        """What it means: float32, or integers that stand for themselves.

        Raises:
            DamagedFileError: its scales are not one, or one an index of an axis.
        """
        if self.quantisation is None:
            return self.codes.astype(np.float32) if self.codes.dtype.kind == "f" else self.codes
        scale, zeros = self.quantisation.scale, self.quantisation.zero_point
        if scale.size > 1:
            along = [1] * self.codes.ndim
            along[self.axis] = scale.size
            scale, zeros = scale.reshape(along), zeros.reshape(along)
        return ((self.codes.astype(np.float64) - zeros) * scale.astype(np.float64)).astype(np.float32)

    @property
    def axis(self) -> int:
        """The axis with a scale an index. Some converters write that of the weight into a bias, which has one axis."""
        if self.quantisation is None or self.quantisation.scale.size == 1:
            return 0
        axis = self.quantisation.axis if self.codes.ndim > 1 else 0
        if not (0 <= axis < self.codes.ndim and self.codes.shape[axis] == self.quantisation.scale.size):
            raise DamagedFileError(f"The scales of the tensor {self.name!r} do not fit its shape.")
        return axis


@dataclass(frozen=True)
class Feature:
    """A tensor that depends on the image.

    `shape` is TFLite's, for one image. `batched`: its first size is the image's own; else it has none (nine rows of one
    image), and `value` has the batch in front of all of `shape`. `is_map`: `value` is [batch, C, H, W]; else it is in
    TFLite's order. No number leaves `bounds`.
    """

    value: ir.Value
    shape: Shape
    batched: bool
    is_map: bool
    bounds: Bounds

    @property
    def inner(self) -> Shape:
        """The shape without the image's dimension, in TFLite's order."""
        return self.shape[1:] if self.batched else self.shape

    def axis(self, axis: int) -> int:
        """Where one of TFLite's axes is in `value`."""
        axis = axis + len(self.shape) if axis < 0 else axis
        if not 0 <= axis < len(self.shape):
            raise IndexError(f"axis {axis} of {list(self.shape)}")
        if self.is_map:
            return (0, 2, 3, 1)[axis]
        return axis if self.batched else axis + 1


@dataclass(frozen=True)
class Spread:
    """A map that SPACE_TO_BATCH_ND dealt out over the batch: a convolution of it is a dilated one of `feature`.

    `dilation` of rows and columns; `pads` top, left, bottom, right.
    """

    feature: Feature
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]


Held = Constant | Feature | Spread


class GraphBuilder:
    """Collects nodes and initializers. `free` tensors are not clamped to their quantised range: the logits."""

    def __init__(self, tensors: Sequence[Tensor], operators: Sequence[Operator], free: Iterable[int]) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self.paddings: dict[ir.Value, tuple[Feature, tuple[int, int, int, int]]] = {}  # PADs that a convolution may do
        self._tensors = tensors
        self._operators = operators
        self._free = frozenset(free)
        self._held: dict[int, Held] = {}
        self._names: set[str] = {"images", "logits"}
        self._parameters: dict[tuple[int, tuple[int, ...], bool], ir.Value] = {}
        self._numbers: dict[float, ir.Value] = {}
        self._layer = "input"

    # Reading ----------------------------------------------------------------------------------------------

    def begin(self, operator: Operator) -> None:
        """Names of what follows come from this operator."""
        if operator.outputs:
            self._layer = self.tensor(operator.outputs[0]).name.split(";")[0]

    def tensor(self, index: int) -> Tensor:
        if not 0 <= index < len(self._tensors):
            raise IndexError(f"tensor {index}")
        return self._tensors[index]

    def has(self, operator: Operator, slot: int) -> bool:
        """Is there such an input? Optional ones are left out, or -1."""
        return slot < len(operator.inputs) and operator.inputs[slot] >= 0

    def held(self, operator: Operator, slot: int) -> Held:
        index = operator.inputs[slot]
        if index not in self._held:
            tensor = self.tensor(index)
            if tensor.data is None and 0 not in tensor.shape:
                raise DamagedFileError(f"the tensor {tensor.name!r} is read before it is computed")
            self._held[index] = Constant(tensor.name, tensor.codes(), tensor.quantisation, tensor)
        return self._held[index]

    def result(self, index: int) -> Held:
        """What the operators have made of the tensor `index`."""
        return self._held[index]

    def constant(self, operator: Operator, slot: int, what: str) -> Constant:
        found = self.held(operator, slot)
        if not isinstance(found, Constant):
            raise UsageError(f"{what} that is computed from the image")
        return found

    def integers(self, operator: Operator, slot: int, what: str) -> tuple[int, ...]:
        """A constant of sizes, axes or the like."""
        codes = self.constant(operator, slot, what).codes
        if codes.dtype.kind not in "iu":
            raise TypeError(f"{what} of {codes.dtype}")
        return tuple(int(value) for value in codes.reshape(-1))

    def feature(self, operator: Operator, slot: int = 0) -> Feature:
        found = self.held(operator, slot)
        if not isinstance(found, Feature):
            kind = "a constant" if isinstance(found, Constant) else "a map dealt out over the batch"
            raise UsageError(f"{kind} where it reads a map")
        return found

    def map(self, operator: Operator, slot: int = 0) -> Feature:
        """What an operator reads, as [batch, C, H, W]."""
        return self.as_map(self.feature(operator, slot))

    def readers(self, index: int) -> list[Operator]:
        return [operator for operator in self._operators if index in operator.inputs]

    # Writing ----------------------------------------------------------------------------------------------

    def node(
        self, kind: str, inputs: Sequence[ir.Value | None], shape: Shape, attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        """A node with one output of [batch, *shape]."""
        return self.many(kind, inputs, [shape], attributes)[0]

    def many(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        shapes: Sequence[Shape],
        attributes: Mapping[str, Any] | None = None,
    ) -> list[ir.Value]:
        """A node with several outputs."""
        name = self.unique(f"{self._layer}/{kind}")
        outputs = [
            ir.Value(
                name=self.unique(f"{name}/{number}" if number else f"{name}/output"),
                shape=ir.Shape(["batch", *shape]),
                type=ir.TensorType(ir.DataType.FLOAT),
            )
            for number, shape in enumerate(shapes)
        ]
        self.nodes.append(ir.node(kind, inputs, attributes or {}, outputs=outputs, name=name))
        return outputs

    def initializer(self, array: Array, name: str) -> ir.Value:
        """An array as a constant of the graph, under its name or one like it."""
        name = self.unique(name)
        tensor = ir.tensor(np.array(array, order="C"), name=name)
        shape = ir.Shape(tuple(array.shape))
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.initializers[name] = value
        return value

    def integer_list(self, values: Sequence[int], what: str) -> ir.Value:
        return self.initializer(np.array(values, np.int64), f"{self._layer}/{what}")

    def number(self, value: float) -> ir.Value:
        """A float32 scalar; one initializer a number."""
        if value not in self._numbers:
            self._numbers[value] = self.initializer(np.array(value, np.float32), f"number_{value:g}")
        return self._numbers[value]

    def unique(self, name: str) -> str:
        found, number = name, 1
        while found in self._names:
            number += 1
            found = f"{name}.{number}"
        self._names.add(found)
        return found

    def weight(self, constant: Constant, layout: tuple[int, ...]) -> ir.Value:
        """A weight with its outputs in front after permuting by `layout`: its own 8 bits behind a DequantizeLinear
        wherever that can say what they mean, else float32."""
        quantisation = constant.quantisation
        in_bytes = (
            quantisation is not None
            and constant.codes.dtype in (np.int8, np.uint8)
            and (quantisation.scale.size == 1 or layout[0] == constant.axis)
            and bool((quantisation.zero_point == quantisation.zero_point[0]).all())
            and CODES["int8"][0] <= quantisation.zero_point[0] <= CODES["uint8"][1]
        )
        if not in_bytes or quantisation is None:
            return self.parameter(constant, layout)
        key = (constant.source.index, layout, True) if constant.source is not None else None
        if key is not None and key in self._parameters:
            return self._parameters[key]
        turned = constant.codes.transpose(layout)
        codes = self.initializer(turned, constant.name)
        scale, zeros = quantisation.scale, quantisation.zero_point.astype(constant.codes.dtype)
        if scale.size == 1:
            scale, zeros = scale.reshape(()), zeros.reshape(())
        if constant.source is not None:
            self._remember(codes, constant, layout, real=False)
        name = self.unique(f"{constant.name}/real")
        output = ir.Value(name=name, shape=ir.Shape(turned.shape), type=ir.TensorType(ir.DataType.FLOAT))
        inputs = [
            codes, self.initializer(scale, f"{constant.name}/scale"), self.initializer(zeros, f"{constant.name}/zero")
        ]  # fmt: skip
        name = self.unique(f"{constant.name}/DequantizeLinear")
        self.nodes.append(ir.node("DequantizeLinear", inputs, {"axis": 0}, outputs=[output], name=name))
        if key is not None:
            self._parameters[key] = output
        return output

    def parameter(self, constant: Constant, layout: tuple[int, ...], shape: Shape | None = None) -> ir.Value:
        """A constant as a float32 initializer, its axes permuted, then in another shape."""
        key = (constant.source.index, (*layout, *(shape or ())), False) if constant.source is not None else None
        if key is not None and key in self._parameters:
            return self._parameters[key]
        real = constant.real().astype(np.float32)
        vector = real.ndim != len(layout)
        array = (real.reshape(-1) if vector else real).transpose(layout)
        value = self.initializer(array if shape is None else array.reshape(shape), constant.name)
        if key is not None:
            self._remember(value, constant, layout, shape)
            self._parameters[key] = value
        return value

    def transposed(self, matrix: ir.Value, shape: tuple[int, int]) -> ir.Value:
        """A weight matrix turned for MatMul."""
        value = self.node("Transpose", [matrix], (), {"perm": (1, 0)})
        value.shape = ir.Shape(shape)
        return value

    def bias(self, operator: Operator, outputs: int, scale: Array | None) -> ir.Value:
        """Of a layer with so many outputs; whole numbers without a scale of their own have that of the sums.

        Each layer has its own, also where converters let several read one constant of zeros.
        """
        constant = self.constant(operator, _BIAS, "a bias")
        if constant.codes.size != outputs:
            raise DamagedFileError(f"the bias {constant.name!r} holds {constant.codes.size} numbers, not {outputs}")
        if constant.quantisation is None and constant.codes.dtype.kind in "iu":
            if scale is None:
                raise DamagedFileError(f"the bias {constant.name!r} has no scale")
            constant = replace(constant, quantisation=Quantisation(scale, np.zeros(scale.shape, np.int64), 0))
        if constant.codes.ndim != 1:
            constant = replace(constant, codes=constant.codes.reshape(-1))
        value = self.initializer(constant.real().astype(np.float32), constant.name)
        if constant.source is not None:
            self._remember(value, constant, (0,), reader=operator)
        return value

    def _remember(
        self, value: ir.Value, constant: Constant, layout: tuple[int, ...], shape: Shape | None = None,
        real: bool = True, reader: Operator | None = None,
    ) -> None:  # fmt: skip
        """Note how a tensor's array became an initializer; not `real`: of codes, which stay what they are; `reader`:
        whose bias it is."""
        source, quantisation = constant.source, constant.quantisation
        assert source is not None and value.const_value is not None
        steps: list[dict[str, Any]] = []
        if reader is not None:
            steps.append({"step": "reader", "makes": f"tensor {reader.outputs[0]}", "input": _BIAS})
        if quantisation is not None and real:
            scale, zero = quantisation.scale.tolist(), quantisation.zero_point.tolist()
            axis = constant.axis if len(scale) > 1 else 0
            steps.append({"step": "dequantise", "dtype": source.dtype, "scale": scale, "zero": zero, "axis": axis})
        elif source.dtype != "float32" and real:
            steps.append({"step": "cast", "dtype": source.dtype})
        if len(source.shape) != len(layout):
            steps.append({"step": "reshape", "shape": list(source.shape)})
        if layout != tuple(range(len(layout))):
            steps.append({"step": "permute", "axes": list(layout)})
        if shape is not None:
            permuted = [source.shape[axis] for axis in layout] if len(source.shape) == len(layout) else [-1]
            steps.append({"step": "reshape", "shape": permuted})
        begin(value, f"tensor {source.index}", steps)

    # Layouts ----------------------------------------------------------------------------------------------

    def as_map(self, feature: Feature) -> Feature:
        """In the order [batch, C, H, W]."""
        if feature.is_map:
            return feature
        if not (feature.batched and len(feature.shape) == 4):
            raise UsageError(f"a tensor of shape {list(feature.shape)} where it reads a map")
        _, height, width, channels = feature.shape
        inner = (channels, height, width)
        if height * width == 1 or channels == 1:
            value = self._reshape(feature.value, inner)
        else:
            value = self.node("Transpose", [feature.value], inner, {"perm": TO_MAP})
        return replace(feature, value=value, is_map=True)

    def as_plain(self, feature: Feature) -> Feature:
        """In TFLite's order."""
        if not feature.is_map:
            return feature
        _, height, width, channels = feature.shape
        if height * width == 1 or channels == 1:
            value = self._reshape(feature.value, feature.inner)
        else:
            value = self.node("Transpose", [feature.value], feature.inner, {"perm": TO_PLAIN})
        return replace(feature, value=value, is_map=False)

    def reshaped(self, feature: Feature, shape: Shape) -> Feature:
        """The same numbers in TFLite's order in another shape; the image's dimension is first where that is 1."""
        if math.prod(shape) != math.prod(feature.shape):
            raise ValueError(f"{list(feature.shape)} as {list(shape)}")
        if shape == feature.shape:
            return feature
        batched = len(shape) > 1 and shape[0] == 1
        inner = shape[1:] if batched else shape
        *_, channels = feature.shape
        if not (feature.is_map and channels in (1, math.prod(feature.shape))):
            feature = self.as_plain(feature)
            if inner == feature.inner:
                return replace(feature, shape=shape, batched=batched)
        return Feature(self._reshape(feature.value, inner), shape, batched, False, feature.bounds)

    def _reshape(self, value: ir.Value, inner: Shape) -> ir.Value:
        return self.node("Reshape", [value, self.integer_list((-1, *inner), "shape")], inner)

    # Ranges -----------------------------------------------------------------------------------------------

    def finish(self, operator: Operator, feature: Feature, slot: int = 0) -> None:
        """An operator's result, after its fused activation, within the range of its output's codes."""
        if operator.activation == "tanh":
            value = self.node("Tanh", [feature.value], self.graph_shape(feature))
            feature = replace(feature, value=value, bounds=(-1.0, 1.0))
        index = operator.outputs[slot]
        low, high = FUSED[operator.activation]
        feature = self.clamped(feature, low, high, self.code_range(index))
        self.keep(index, feature)

    def keep(self, index: int, held: Held) -> None:
        """`held` is the tensor `index`."""
        self._held[index] = held
        producer = held.value.producer() if isinstance(held, Feature) else None
        if not isinstance(held, Feature) or producer is None:
            return
        self._note(held.value, index)
        if (held.value.name or "").startswith(f"{producer.name}/"):  # still without a name of its own
            held.value.name = self.unique(self.tensor(index).name.split(";")[0])

    def _note(self, value: ir.Value, index: int) -> None:
        """Of several tensors that are the same numbers the first stands for them, or one of 8 bits."""
        known = file_value(value).removeprefix("tensor ")
        if not known.isdigit() or self.tensor(int(known)).quantisation is None:
            note_file_value(value, f"tensor {index}")

    def code_range(self, index: int) -> tuple[float, float, float] | None:
        """What a quantised tensor can hold, and the step between two of its codes."""
        tensor = self.tensor(index)
        quantisation = tensor.quantisation
        if quantisation is None or tensor.dtype not in CODES or index in self._free:
            return None
        scale, zero = float(quantisation.scale[0]), int(quantisation.zero_point[0])
        least, most = CODES[tensor.dtype]
        return (least - zero) * scale, (most - zero) * scale, scale

    def clamped(
        self, feature: Feature, low: float, high: float, codes: tuple[float, float, float] | None = None
    ) -> Feature:
        """`feature` within [low, high] and the range of its codes, where it could leave them by more than rounding."""
        step = 0.0
        if codes is not None:
            step = codes[2] / 2
            low = low if low > codes[0] - step else codes[0]
            high = high if high < codes[1] + step else codes[1]
        bites_low, bites_high = low > feature.bounds[0] + step, high < feature.bounds[1] - step
        if not (bites_low or bites_high):
            return feature
        if codes is None:
            low, high = (low if bites_low else -math.inf), (high if bites_high else math.inf)
        bounds = (max(low, feature.bounds[0]), min(high, feature.bounds[1]))
        if (low, high) == (0.0, math.inf):
            value = self.node("Relu", [feature.value], self.graph_shape(feature))
        else:
            limits = [self.number(limit) if math.isfinite(limit) else None for limit in (low, high)]
            limits = limits[:1] if limits[1] is None else limits
            value = self.node("Clip", [feature.value, *limits], self.graph_shape(feature))
        return replace(feature, value=value, bounds=bounds)

    @staticmethod
    def graph_shape(feature: Feature) -> Shape:
        """The shape of `value` behind the batch."""
        if feature.is_map:
            _, height, width, channels = feature.shape
            return channels, height, width
        return feature.inner
