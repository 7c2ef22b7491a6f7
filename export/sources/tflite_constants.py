"""What TFLite's operators make of constants alone: computed here, so that the network graph has none of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .tflite_graph import CODES, FUSED, Constant, GraphBuilder
from .tflite_reader import Array, Operator
from .tflite_shapes import new_shape, shrunk, squeezed, window

_LARGEST = 1 << 26  # numbers; a damaged file may ask for any


def fold(graph: GraphBuilder, operator: Operator) -> None:
    """Compute an operator whose inputs are all constants."""
    slots = [slot for slot in range(len(operator.inputs)) if graph.has(operator, slot)]
    inputs = [graph.constant(operator, slot, "an input") for slot in slots]
    made = FOLDS[operator.kind](graph, operator, [constant.real() for constant in inputs])
    for slot, array in enumerate(made if isinstance(made, list) else [made]):
        tensor = graph.tensor(operator.outputs[slot])
        array = np.asarray(array)
        if operator.activation in FUSED and operator.activation not in ("", "tanh"):
            array = np.clip(array, *FUSED[operator.activation]).astype(array.dtype)
        quantisation = tensor.quantisation
        if quantisation is not None and tensor.dtype in CODES and array.dtype.kind == "f":
            codes = np.round(array / quantisation.scale[0]) + quantisation.zero_point[0]
            array = np.clip(codes, *CODES[tensor.dtype]).astype(np.int64)
            graph.keep(tensor.index, Constant(tensor.name, array, quantisation))
        else:
            graph.keep(tensor.index, Constant(tensor.name, array))


def _axes(graph: GraphBuilder, operator: Operator, x: Array) -> tuple[int, ...]:
    return tuple(axis % max(x.ndim, 1) for axis in graph.integers(operator, 1, "axes"))


def _reduce(function: Callable[..., Array]) -> Callable[[GraphBuilder, Operator, list[Array]], Array]:
    def computed(graph: GraphBuilder, operator: Operator, inputs: list[Array]) -> Array:
        keep = bool(operator.options.get("KeepDims", False))
        x = inputs[0]
        return np.asarray(function(x, axis=_axes(graph, operator, x), keepdims=keep)).astype(x.dtype)

    return computed


def _plain(function: Callable[..., Array]) -> Callable[[GraphBuilder, Operator, list[Array]], Array]:
    def computed(graph: GraphBuilder, operator: Operator, inputs: list[Array]) -> Array:
        _check(np.broadcast_shapes(*(x.shape for x in inputs)))
        with np.errstate(all="ignore"):
            return np.asarray(function(*inputs)).astype(np.result_type(*inputs))

    return computed


def _check(shape: tuple[int, ...]) -> None:
    size = 1
    for length in shape:
        size *= int(length)
    if not 0 <= size <= _LARGEST:
        raise ValueError(f"a constant of {size} numbers")


def _divide(a: Array, b: Array) -> Array:
    return a // b if a.dtype.kind in "iu" else a / b


def _cast(graph: GraphBuilder, operator: Operator, inputs: list[Array]) -> Array:
    return inputs[0].astype(np.float32 if "float" in graph.tensor(operator.outputs[0]).dtype else np.int64)


def _reshape(graph: GraphBuilder, operator: Operator, inputs: list[Array]) -> Array:
    return inputs[0].reshape(new_shape(graph, operator, inputs[0].size))


def _strided_slice(graph: GraphBuilder, operator: Operator, inputs: list[Array]) -> Array:
    limits = [graph.integers(operator, slot, "a limit") for slot in (1, 2, 3)]
    part = inputs[0][tuple(window(operator, inputs[0].shape, *limits))]
    return part.reshape(shrunk(operator, part.shape))


def _slice(graph: GraphBuilder, operator: Operator, inputs: list[Array]) -> Array:
    begins, sizes = graph.integers(operator, 1, "a begin"), graph.integers(operator, 2, "a size")
    return inputs[0][tuple(slice(b, None if s == -1 else b + s) for b, s in zip(begins, sizes))]


def _fill(graph: GraphBuilder, operator: Operator, inputs: list[Array]) -> Array:
    shape = graph.integers(operator, 0, "a shape")
    _check(shape)
    return np.full(shape, inputs[1].reshape(()))


def _broadcast_to(graph: GraphBuilder, operator: Operator, inputs: list[Array]) -> Array:
    shape = graph.integers(operator, 1, "a shape")
    _check(shape)
    return np.broadcast_to(inputs[0], shape)


def _tile(graph: GraphBuilder, operator: Operator, inputs: list[Array]) -> Array:
    times = graph.integers(operator, 1, "repeats")
    _check((inputs[0].size, *times))
    return np.tile(inputs[0], times)


def _range(graph: GraphBuilder, operator: Operator, inputs: list[Array]) -> Array:
    first, end, step = (float(x.reshape(())) for x in inputs)
    _check((int((end - first) / step) + 1,))
    return np.arange(first, end, step).astype(inputs[0].dtype)


def _unpack(graph: GraphBuilder, operator: Operator, inputs: list[Array]) -> list[Array]:
    axis = operator.options["Axis"]
    return [np.take(inputs[0], index, axis) for index in range(len(operator.outputs))]


def _split(graph: GraphBuilder, operator: Operator, inputs: list[Array]) -> list[Array]:
    return np.split(inputs[1], len(operator.outputs), int(inputs[0].reshape(())))


FOLDS: dict[str, Callable[[GraphBuilder, Operator, list[Array]], Array | list[Array]]] = {
    "ADD": _plain(np.add),
    "SUB": _plain(np.subtract),
    "MUL": _plain(np.multiply),
    "DIV": _plain(_divide),
    "FLOOR_DIV": _plain(np.floor_divide),
    "FLOOR_MOD": _plain(np.mod),
    "POW": _plain(np.power),
    "MAXIMUM": _plain(np.maximum),
    "MINIMUM": _plain(np.minimum),
    "SQUARED_DIFFERENCE": _plain(lambda a, b: np.square(a - b)),
    "SQRT": _plain(np.sqrt),
    "RSQRT": _plain(lambda x: 1 / np.sqrt(x)),
    "SQUARE": _plain(np.square),
    "EXP": _plain(np.exp),
    "LOG": _plain(np.log),
    "NEG": _plain(np.negative),
    "ABS": _plain(np.abs),
    "FLOOR": _plain(np.floor),
    "RELU": _plain(lambda x: np.maximum(x, 0)),
    "MEAN": _reduce(np.mean),
    "SUM": _reduce(np.sum),
    "REDUCE_MAX": _reduce(np.max),
    "REDUCE_MIN": _reduce(np.min),
    "REDUCE_PROD": _reduce(np.prod),
    "CAST": _cast,
    "QUANTIZE": lambda graph, operator, inputs: inputs[0],
    "RESHAPE": _reshape,
    "SQUEEZE": lambda graph, operator, inputs: inputs[0].reshape(
        squeezed(inputs[0].shape, operator.options.get("SqueezeDims", ()))
    ),
    "EXPAND_DIMS": lambda graph, operator, inputs: np.expand_dims(inputs[0], int(inputs[1].reshape(()))),
    "TRANSPOSE": lambda graph, operator, inputs: inputs[0].transpose(graph.integers(operator, 1, "an order of axes")),
    "PACK": lambda graph, operator, inputs: np.stack(inputs, operator.options["Axis"]),
    "UNPACK": _unpack,
    "SPLIT": _split,
    "CONCATENATION": lambda graph, operator, inputs: np.concatenate(inputs, operator.options["Axis"]),
    "GATHER": lambda graph, operator, inputs: np.take(inputs[0], inputs[1].astype(np.int64), operator.options["Axis"]),
    "STRIDED_SLICE": _strided_slice,
    "SLICE": _slice,
    "FILL": _fill,
    "BROADCAST_TO": _broadcast_to,
    "TILE": _tile,
    "RANGE": _range,
}
