"""TFLite's operators that move numbers and change none: reshapes, pads, slices, concatenations, and quantisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tinytl_edge.runtime.errors import UsageError

from .tflite_graph import TO_MAP, TO_PLAIN, Constant, Feature, GraphBuilder, Shape
from .tflite_reader import Operator


def resolved(shape: Sequence[int], count: int) -> Shape:
    """A shape of `count` numbers in which one size may be -1."""
    known = 1
    for size in shape:
        known *= size if size != -1 else 1
    return tuple(count // known if size == -1 else int(size) for size in shape)


def squeezed(shape: Shape, dims: Sequence[int]) -> Shape:
    """Without the sizes of 1 at `dims`, or without all."""
    drop = {dim % len(shape) for dim in dims} or {axis for axis, size in enumerate(shape) if size == 1}
    if any(shape[axis] != 1 for axis in drop):
        raise ValueError(f"{list(shape)} without its dimensions {sorted(drop)}")
    return tuple(size for axis, size in enumerate(shape) if axis not in drop)


def window(
    operator: Operator, shape: Shape, begins: Sequence[int], ends: Sequence[int], strides: Sequence[int]
) -> list[slice]:
    """What STRIDED_SLICE takes along each axis; one number, as a slice of one, where it takes the axis away."""
    options = operator.options
    if options.get("EllipsisMask", 0) or options.get("NewAxisMask", 0):
        raise UsageError("an ellipsis or a new axis in a slice")
    if not len(begins) == len(ends) == len(strides) <= len(shape):
        raise ValueError(f"a slice of {len(begins)} axes of {list(shape)}")
    taken = []
    for axis, (begin, end, stride) in enumerate(zip(begins, ends, strides)):
        bit = 1 << axis
        if options.get("ShrinkAxisMask", 0) & bit:
            place = begin % shape[axis]
            taken.append(slice(place, place + 1, 1))
            continue
        first = None if options.get("BeginMask", 0) & bit else begin
        last = None if options.get("EndMask", 0) & bit else end
        start, stop, step = slice(first, last, stride).indices(shape[axis])
        taken.append(slice(start, None if stop < 0 else stop, step))
    return taken + [slice(0, size, 1) for size in shape[len(taken) :]]


def shrunk(operator: Operator, shape: Sequence[int]) -> Shape:
    """The shape of a STRIDED_SLICE without the axes that it takes away."""
    return tuple(size for axis, size in enumerate(shape) if not operator.options.get("ShrinkAxisMask", 0) >> axis & 1)


def new_shape(graph: GraphBuilder, operator: Operator, count: int) -> Shape:
    """What RESHAPE is told, as an input or as an option."""
    told = graph.integers(operator, 1, "a shape") if graph.has(operator, 1) else operator.options["NewShape"]
    return resolved(told, count)


def reshape(graph: GraphBuilder, operator: Operator) -> None:
    x = graph.feature(operator)
    graph.finish(operator, graph.reshaped(x, new_shape(graph, operator, int(np.prod(x.shape, dtype=object)))))


def squeeze(graph: GraphBuilder, operator: Operator) -> None:
    x = graph.feature(operator)
    graph.finish(operator, graph.reshaped(x, squeezed(x.shape, operator.options.get("SqueezeDims", ()))))


def expand_dims(graph: GraphBuilder, operator: Operator) -> None:
    x = graph.feature(operator)
    (axis,) = graph.integers(operator, 1, "an axis")
    axis %= len(x.shape) + 1
    graph.finish(operator, graph.reshaped(x, (*x.shape[:axis], 1, *x.shape[axis:])))


def transpose(graph: GraphBuilder, operator: Operator) -> None:
    x = graph.feature(operator)
    order = graph.integers(operator, 1, "an order of axes")
    if sorted(order) != list(range(len(x.shape))):
        raise ValueError(f"an order {order} of {list(x.shape)}")
    shape = tuple(x.shape[axis] for axis in order)
    if x.batched and order[0] != 0:
        raise UsageError("the image's dimension moved")
    if x.is_map and order == TO_MAP:
        graph.finish(operator, replace(x, shape=shape, is_map=False))
        return
    if not x.is_map and x.batched and order == TO_PLAIN:
        graph.finish(operator, replace(x, shape=shape, is_map=True))
        return
    x = graph.as_plain(x)
    perm = order if x.batched else (0, *(axis + 1 for axis in order))
    made = replace(x, shape=shape)
    graph.finish(operator, replace(made, value=graph.node("Transpose", [x.value], made.inner, {"perm": perm})))


def pad(graph: GraphBuilder, operator: Operator) -> None:
    """PAD and PADV2."""
    value = float(graph.constant(operator, 2, "a padding").real().reshape(())) if graph.has(operator, 2) else 0.0
    made, x = _pad(graph, operator, {"mode": "constant"}, value)
    low, high = x.bounds
    graph.finish(operator, replace(made, bounds=(min(low, value), max(high, value))))
    rims = graph.integers(operator, 1, "paddings")
    if made.is_map and value == 0 and not any((*rims[:2], *rims[6:])):
        graph.paddings[made.value] = (x, (rims[2], rims[4], rims[3], rims[5]))


def mirror_pad(graph: GraphBuilder, operator: Operator) -> None:
    symmetric = operator.options["Mode"] == 1
    if symmetric and max(graph.integers(operator, 1, "paddings")) > 1:
        raise UsageError("a symmetric padding of more than 1")
    made, _ = _pad(graph, operator, {"mode": "edge" if symmetric else "reflect"}, None)
    graph.finish(operator, made)


def _pad(
    graph: GraphBuilder, operator: Operator, attributes: dict[str, str], value: float | None
) -> tuple[Feature, Feature]:
    x = graph.feature(operator)
    rims = graph.integers(operator, 1, "paddings")
    pairs = [(rims[2 * axis], rims[2 * axis + 1]) for axis in range(len(x.shape))]
    if len(rims) != 2 * len(pairs) or min(rims) < 0:
        raise ValueError(f"paddings {rims} of {list(x.shape)}")
    if x.batched and any(pairs[0]):
        raise UsageError("a padding of the batch")
    rank = len(x.shape) + (not x.batched)
    before, after = [0] * rank, [0] * rank
    for axis, (first, last) in enumerate(pairs):
        before[x.axis(axis)], after[x.axis(axis)] = first, last
    made = replace(x, shape=tuple(size + sum(pair) for size, pair in zip(x.shape, pairs)))
    inputs = [x.value, graph.integer_list((*before, *after), "pads")]
    if value is not None:
        inputs.append(graph.number(value))
    return replace(made, value=graph.node("Pad", inputs, graph.graph_shape(made), attributes)), x


def concatenation(graph: GraphBuilder, operator: Operator) -> None:
    features = [graph.feature(operator, slot) for slot in range(len(operator.inputs))]
    axis = operator.options["Axis"] % len(features[0].shape)
    if any(feature.is_map for feature in features):
        features = [graph.as_map(feature) for feature in features]
    first = features[0]
    rests = {(*feature.shape[:axis], *feature.shape[axis + 1 :]) for feature in features}
    if len(rests) > 1 or len({feature.batched for feature in features}) > 1 or (first.batched and axis == 0):
        raise ValueError(f"shapes {[feature.shape for feature in features]} along axis {axis}")
    joined = sum(feature.shape[axis] for feature in features)
    bounds = (min(feature.bounds[0] for feature in features), max(feature.bounds[1] for feature in features))
    made = replace(first, shape=(*first.shape[:axis], joined, *first.shape[axis + 1 :]), bounds=bounds)
    values = [feature.value for feature in features]
    value = graph.node("Concat", values, graph.graph_shape(made), {"axis": first.axis(axis)})
    graph.finish(operator, replace(made, value=value))


def split(graph: GraphBuilder, operator: Operator) -> None:
    """The axis comes first."""
    x = graph.feature(operator, 1)
    (axis,) = graph.integers(operator, 0, "an axis")
    count = len(operator.outputs)
    _split(graph, operator, x, axis % len(x.shape), [x.shape[axis] // count] * count)


def split_v(graph: GraphBuilder, operator: Operator) -> None:
    x = graph.feature(operator)
    sizes = list(graph.integers(operator, 1, "sizes"))
    (axis,) = graph.integers(operator, 2, "an axis")
    if -1 in sizes:
        sizes[sizes.index(-1)] = x.shape[axis] - sum(size for size in sizes if size != -1)
    _split(graph, operator, x, axis % len(x.shape), sizes)


def _split(graph: GraphBuilder, operator: Operator, x: Feature, axis: int, sizes: list[int]) -> None:
    if sum(sizes) != x.shape[axis] or min(sizes) < 1 or len(sizes) != len(operator.outputs) or (x.batched and not axis):
        raise ValueError(f"{list(x.shape)} in parts of {sizes}")
    parts = [replace(x, shape=(*x.shape[:axis], size, *x.shape[axis + 1 :])) for size in sizes]
    inputs = [x.value, graph.integer_list(sizes, "parts")]
    values = graph.many("Split", inputs, [graph.graph_shape(part) for part in parts], {"axis": x.axis(axis)})
    for slot, (part, value) in enumerate(zip(parts, values)):
        graph.finish(operator, replace(part, value=value), slot)


def slice_(graph: GraphBuilder, operator: Operator) -> None:
    x = graph.feature(operator)
    begins, sizes = graph.integers(operator, 1, "a begin"), graph.integers(operator, 2, "a size")
    if not len(begins) == len(sizes) == len(x.shape):
        raise ValueError(f"a slice of {len(begins)} axes of {list(x.shape)}")
    taken = [
        slice(begin, length if size == -1 else begin + size, 1) for begin, size, length in zip(begins, sizes, x.shape)
    ]
    graph.finish(operator, _sliced(graph, x, taken))


def strided_slice(graph: GraphBuilder, operator: Operator) -> None:
    x = graph.feature(operator)
    bounds = [graph.integers(operator, slot, "a limit") for slot in (1, 2, 3)]
    part = _sliced(graph, x, window(operator, x.shape, *bounds))
    graph.finish(operator, graph.reshaped(part, shrunk(operator, part.shape)))


def _sliced(graph: GraphBuilder, x: Feature, taken: list[slice]) -> Feature:
    shape = tuple(len(range(*one.indices(size))) for one, size in zip(taken, x.shape))
    if 0 in shape:
        raise ValueError(f"nothing of {list(x.shape)}")
    cut = [axis for axis, one in enumerate(taken) if (one.start, one.stop, one.step) != (0, x.shape[axis], 1)]
    if not cut:
        return x
    made = replace(x, shape=shape)
    far = -(1 << 31)
    limits = [
        [taken[axis].start for axis in cut],
        [far if taken[axis].stop is None else taken[axis].stop for axis in cut],
        [x.axis(axis) for axis in cut],
        [taken[axis].step for axis in cut],
    ]
    words = ("starts", "ends", "axes", "steps")
    inputs = [x.value, *(graph.integer_list(numbers, word) for numbers, word in zip(limits, words))]
    return replace(made, value=graph.node("Slice", inputs, graph.graph_shape(made)))


def quantise(graph: GraphBuilder, operator: Operator) -> None:
    """QUANTIZE is a clamp to what the codes can hold; rounding is left out. Images are in range: theirs vanishes."""
    x = graph.feature(operator)
    maker = x.value.producer()
    while maker is not None and maker.op_type in ("Reshape", "Transpose") and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    codes = graph.code_range(operator.outputs[0])
    if maker is None:
        graph.keep(operator.outputs[0], replace(x, bounds=x.bounds if codes is None else codes[:2]))
    else:
        graph.finish(operator, x)


def as_it_is(graph: GraphBuilder, operator: Operator) -> None:
    """DEQUANTIZE, CAST: features are real numbers already, and a weight stays in its own 8 bits."""
    held = graph.held(operator, 0)
    graph.keep(operator.outputs[0], held if isinstance(held, Constant) else graph.feature(operator))


def shape_of(graph: GraphBuilder, operator: Operator) -> None:
    """SHAPE: of one image, whatever the batch."""
    held = graph.held(operator, 0)
    shape = held.codes.shape if isinstance(held, Constant) else graph.feature(operator).shape
    tensor = graph.tensor(operator.outputs[0])
    graph.keep(tensor.index, Constant(tensor.name, np.array(shape, np.int64)))


CONVERTERS: dict[str, Callable[[GraphBuilder, Operator], None]] = {
    "RESHAPE": reshape,
    "SQUEEZE": squeeze,
    "EXPAND_DIMS": expand_dims,
    "TRANSPOSE": transpose,
    "PAD": pad,
    "PADV2": pad,
    "MIRROR_PAD": mirror_pad,
    "CONCATENATION": concatenation,
    "SPLIT": split,
    "SPLIT_V": split_v,
    "SLICE": slice_,
    "STRIDED_SLICE": strided_slice,
    "QUANTIZE": quantise,
    "DEQUANTIZE": as_it_is,
    "CAST": as_it_is,
    "SHAPE": shape_of,
}
