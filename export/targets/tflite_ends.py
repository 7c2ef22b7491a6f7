"""From the classifier to the output of a TFLite file: its shapes, its ranges, and the activation at its end."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tinytl_edge.runtime.model_files.stored_numbers import LOGITS_RANGE, Step

from .content import UnwritableError
from .tflite_editor import TFLiteEditor, dtype_of, name_of, quantisation
from .tflite_ranges import LOWEST, of_one_range
from .tflite_source import EIGHT_BITS, LAYERS, Place


def _numbers(*kinds: str) -> frozenset[int]:
    return frozenset(getattr(schema.BuiltinOperator, kind) for kind in kinds)


_VIEWS = _numbers("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "QUANTIZE", "DEQUANTIZE", "CAST")
_POOLS = _numbers("AVERAGE_POOL_2D", "MAX_POOL_2D", "MEAN", "RELU", "RELU6")
_ENDS = _numbers("SOFTMAX", "LOGISTIC", "LOG_SOFTMAX")
# The one range that the kernels take for what they give, of codes from the lowest on.
_OF_SHARES = 1 / 256


class TFLiteEnd:
    """What stands behind the classifier, whose weight is the tensor `weight`.

    Raises:
        UnwritableError: there is something that is not known here.
    """

    def __init__(self, file: TFLiteEditor, weight: int) -> None:
        self._file = file
        self.layer = _layer_of(file, weight)
        self._scores = [int(self.layer.outputs[0])]  # in front of the activation
        self._pooled = 0  # so many of them stand in front of a mean over pixels
        self._behind: list[int] = []  # and behind it
        self._activation: Any = None
        tensor = self._scores[0]
        while tensor not in list(file.graph.outputs):
            readers = [(op, slot) for op, slot in file.readers(tensor) if file.kind(op) != schema.BuiltinOperator.SHAPE]
            kind = file.kind(readers[0][0]) if len(readers) == 1 and readers[0][1] == 0 else None
            if kind in _ENDS and self._activation is None:
                self._activation = readers[0][0]
            elif kind not in _VIEWS | _POOLS:
                raise UnwritableError("what stands behind its classifier is not known")
            if kind in _POOLS:
                self._pooled = len(self._scores)
            tensor = int(readers[0][0].outputs[0])
            (self._behind if self._activation is not None else self._scores).append(tensor)

    def give_outputs(self, before: int, after: int) -> None:
        """All that stands behind the classifier has so many outputs."""
        if before == after:
            return
        self._file.change()
        for tensor in (*self._scores, *self._behind):
            found = self._file.graph.tensors[tensor]
            found.shape = _resized(found.shape, before, after)
            if found.shapeSignature is not None:
                found.shapeSignature = _resized(found.shapeSignature, before, after)
            maker = self._file.maker(tensor)
            if self._file.kind(maker) == schema.BuiltinOperator.RESHAPE:
                self._reshape(maker, before, after)

    def _reshape(self, operator: Any, before: int, after: int) -> None:
        options = operator.builtinOptions
        if options is not None and getattr(options, "newShape", None) is not None:
            options.newShape = _resized(options.newShape, before, after)
        if len(operator.inputs) > 1 and operator.inputs[1] >= 0:
            old = self._file.graph.tensors[operator.inputs[1]]
            data = self._file.model.buffers[old.buffer].data
            made = self._file.graph.tensors[operator.outputs[0]].shape
            # One that is computed from the batch is that of one image.
            shape = made if data is None else np.frombuffer(np.asarray(data, np.uint8).tobytes(), "<i4")
            operator.inputs = list(operator.inputs)
            name = f"{name_of(old)}/classes"
            resized = np.array(_resized(shape, before, after), np.int32)
            operator.inputs[1] = self._file.add_tensor(name, resized.shape, "int32", resized)

    def change_to(self, end: str) -> None:
        """Exchange the activation: 'softmax' or 'sigmoid'."""
        if self._activation is None or end not in ("softmax", "sigmoid"):
            raise UnwritableError(f"what stands behind its scores cannot become {end}")
        self._file.set_kind(self._activation, "SOFTMAX" if end == "softmax" else "LOGISTIC")
        if end == "softmax":
            options = schema.SoftmaxOptionsT()
            options.beta = 1.0
            self._activation.builtinOptionsType = schema.BuiltinOptions.SoftmaxOptions
            self._activation.builtinOptions = options
        made = self._file.graph.tensors[int(self._activation.outputs[0])]
        if dtype_of(made) in EIGHT_BITS:
            made.quantization = quantisation([_OF_SHARES], [LOWEST[dtype_of(made)]])

    def ranges(self) -> list[Place]:
        """Where the range of the scores goes, which training moves: scale and zero point of all that hold them.

        Nowhere, where a pool has to have one range in front and behind: then scores were trained within it.
        """
        places = []
        scores = self._scores[self._pooled :]
        tensors = [tensor for tensor in scores if dtype_of(self._file.graph.tensors[tensor]) in EIGHT_BITS]
        of_one = {each for tensor in tensors for each in of_one_range(self._file, tensor)}
        if of_one - set(tensors):
            return []
        for tensor in tensors:
            found = self._file.graph.tensors[tensor]
            self._file.change()
            found.quantization = quantisation(found.quantization.scale, found.quantization.zeroPoint)
            lowest = (float(LOWEST[dtype_of(found)]),)
            places += [
                Place(LOGITS_RANGE, tensor, "scale", 1, "float32", (Step("range_scale"),)),
                Place(LOGITS_RANGE, tensor, "zero", 1, "int64", (Step("range_zero", numbers=lowest),)),
            ]
        return places


def _layer_of(file: TFLiteEditor, weight: int) -> Any:
    """The layer that reads a weight, perhaps behind a DEQUANTIZE."""
    while True:
        readers = file.readers(weight)
        if len(readers) != 1:
            raise UnwritableError("its classifier's weights are read in several places")
        operator, slot = readers[0]
        if file.kind(operator) in LAYERS and slot == 1:
            return operator
        if file.kind(operator) != schema.BuiltinOperator.DEQUANTIZE:
            raise UnwritableError("its classifier is no layer of its own")
        weight = int(operator.outputs[0])


def _resized(shape: Any, before: int, after: int) -> list[int]:
    """With `after` for `before`, the last of them."""
    sizes = [int(size) for size in shape]
    for axis in reversed(range(len(sizes))):
        if sizes[axis] == before:
            sizes[axis] = after
            break
    return sizes
