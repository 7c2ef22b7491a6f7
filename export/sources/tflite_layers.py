"""TFLite's operators with weights, and its pools."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tinytl_edge.runtime.errors import UsageError

from .tflite_graph import ANY, Feature, GraphBuilder, Shape, Spread
from .tflite_reader import Array, Operator

_Pads = tuple[int, int, int, int]  # top, left, bottom, right
_SAME, _VALID = 0, 1


def _window(
    operator: Operator, size: tuple[int, int], kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)
) -> tuple[tuple[int, int], tuple[int, int], _Pads]:
    """Strides, output size and padding of a window that moves over a map of `size`."""
    strides = (int(operator.options["StrideH"]), int(operator.options["StrideW"]))
    outputs, before, after = [], [], []
    for length, taps, stride, gap in zip(size, kernel, strides, dilation):
        span = (taps - 1) * gap + 1
        if min(stride, taps, gap) < 1:
            raise ValueError(f"a kernel of {taps}, a stride of {stride}, a dilation of {gap}")
        if operator.options["Padding"] == _SAME:
            output = -(-length // stride)
            total = max((output - 1) * stride + span - length, 0)
        else:
            output, total = (length - span) // stride + 1, 0
        if output < 1:
            raise ValueError(f"a window of {span} in {length}")
        outputs.append(output)
        before.append(total // 2)
        after.append(total - total // 2)
    return strides, (outputs[0], outputs[1]), (before[0], before[1], after[0], after[1])


def conv_2d(graph: GraphBuilder, operator: Operator) -> None:
    """Weights [outputs, h, w, inputs / groups]."""
    weight = graph.constant(operator, 1, "weights")
    outputs, height, width, inputs = weight.codes.shape
    _convolution(graph, operator, (height, width), outputs, inputs, (0, 3, 1, 2))


def depthwise_conv_2d(graph: GraphBuilder, operator: Operator) -> None:
    """Weights [1, h, w, channels * multiplier], in ONNX's order of groups already."""
    weight = graph.constant(operator, 1, "weights")
    one, height, width, outputs = weight.codes.shape
    if one != 1:
        raise ValueError(f"depthwise weights {list(weight.codes.shape)}")
    _convolution(graph, operator, (height, width), outputs, 1, (3, 0, 1, 2))


def _convolution(
    graph: GraphBuilder, operator: Operator, kernel: tuple[int, int], outputs: int, inputs: int, layout: tuple[int, ...]
) -> None:
    held = graph.held(operator, 0)
    dilation = (int(operator.options["DilationHFactor"]), int(operator.options["DilationWFactor"]))
    if isinstance(held, Spread):
        x, strides, dilation, pads = _of_spread(graph, operator, held)
        size = _dilated_size(x, kernel, dilation, pads)
    else:
        whole = graph.map(operator)
        x, pads = _padded(graph, whole)
        strides, size, more = _window(operator, _sides(whole), kernel, dilation)
        pads = (pads[0] + more[0], pads[1] + more[1], pads[2] + more[2], pads[3] + more[3])
    channels = x.shape[3]
    groups = channels // inputs
    if groups * inputs != channels or outputs % groups:
        raise ValueError(f"{channels} channels in groups of {inputs}, {outputs} outputs")
    values = [x.value, graph.weight(graph.constant(operator, 1, "weights"), layout)]
    if graph.has(operator, 2):
        values.append(graph.bias(operator, outputs, _sum_scale(graph, operator)))
    attributes = {
        "kernel_shape": kernel, "strides": strides, "pads": pads, "dilations": dilation, "group": groups
    }  # fmt: skip
    value = graph.node("Conv", values, (outputs, *size), attributes)
    graph.finish(operator, Feature(value, (1, *size, outputs), True, True, ANY))


def _of_spread(
    graph: GraphBuilder, operator: Operator, spread: Spread
) -> tuple[Feature, tuple[int, int], tuple[int, int], _Pads]:
    """Map, strides, dilation and padding of what SPACE_TO_BATCH_ND, a convolution and BATCH_TO_SPACE_ND come to."""
    options = operator.options
    if options["Padding"] != _VALID or (options["StrideH"], options["StrideW"]) != (1, 1):
        raise UsageError("a padded or strided convolution of a map dealt out over the batch")
    readers = graph.readers(operator.outputs[0])
    while len(readers) == 1 and readers[0].kind in ("ADD", "RELU", "RELU6", "QUANTIZE"):
        readers = graph.readers(readers[0].outputs[0])
    if len(readers) != 1 or readers[0].kind != "BATCH_TO_SPACE_ND":
        raise UsageError("a map that stays dealt out over the batch")
    block = graph.integers(readers[0], 1, "a block")
    crops = graph.integers(readers[0], 2, "crops")
    if block != spread.dilation or len(crops) != 4:
        raise ValueError(f"blocks {spread.dilation} and {block}")
    top, left, bottom, right = (
        pad - crop for pad, crop in zip(spread.pads, (crops[0], crops[2], crops[1], crops[3]))
    )  # fmt: skip
    if min(top, left, bottom, right) < 0:
        raise UsageError("a dilated convolution that is cropped")
    return spread.feature, (1, 1), spread.dilation, (top, left, bottom, right)


def _dilated_size(x: Feature, kernel: tuple[int, int], dilation: tuple[int, int], pads: _Pads) -> tuple[int, int]:
    rows, columns = _sides(x)
    size = (
        rows + pads[0] + pads[2] - (kernel[0] - 1) * dilation[0],
        columns + pads[1] + pads[3] - (kernel[1] - 1) * dilation[1],
    )
    if min(size) < 1:
        raise ValueError(f"a map of {size}")
    return size


def space_to_batch_nd(graph: GraphBuilder, operator: Operator) -> None:
    """Comes to nothing: see Spread."""
    block = graph.integers(operator, 1, "a block")
    pads = graph.integers(operator, 2, "a padding")
    if len(block) != 2 or len(pads) != 4:
        raise ValueError(f"a block of {block}")
    spread = Spread(graph.map(operator), (block[0], block[1]), (pads[0], pads[2], pads[1], pads[3]))
    graph.keep(operator.outputs[0], spread)


def batch_to_space_nd(graph: GraphBuilder, operator: Operator) -> None:
    """The convolution in front has seen to it."""
    graph.finish(operator, graph.feature(operator))


def _sides(x: Feature) -> tuple[int, int]:
    return x.shape[1], x.shape[2]


def _padded(graph: GraphBuilder, x: Feature) -> tuple[Feature, _Pads]:
    """A map in front of the PAD that gave it a rim of zeros, and that rim."""
    return graph.paddings.get(x.value, (x, (0, 0, 0, 0)))


def _sum_scale(graph: GraphBuilder, operator: Operator) -> Array | None:
    """The scale of a quantised layer's sums: that of its input times those of its weights."""
    inputs, weights = (graph.tensor(operator.inputs[slot]).quantisation for slot in (0, 1))
    return None if inputs is None or weights is None else (inputs.scale[0] * weights.scale).astype(np.float32)


def fully_connected(graph: GraphBuilder, operator: Operator) -> None:
    """Weights [outputs, width]: whatever it reads is taken for rows of that width."""
    if operator.options.get("WeightsFormat", 0):
        raise UsageError("shuffled weights")
    weight = graph.constant(operator, 1, "weights")
    outputs, width = weight.codes.shape
    x = graph.feature(operator)
    total = math.prod(x.shape)
    if not width or total % width:
        raise ValueError(f"{total} numbers in rows of {width}")
    rows = total // width
    keep = operator.options.get("KeepNumDims", False) and x.shape[-1] == width
    shape: Shape = (*x.shape[:-1], outputs) if keep else (rows, outputs)
    matrix = graph.weight(weight, (0, 1))
    bias = graph.bias(operator, outputs, _sum_scale(graph, operator)) if graph.has(operator, 2) else None
    if rows == 1:
        flat = graph.reshaped(x, (1, width))
        values = [flat.value, matrix] if bias is None else [flat.value, matrix, bias]
        value = graph.node("Gemm", values, (outputs,), {"transB": 1})
        made = graph.reshaped(Feature(value, (1, outputs), True, False, ANY), shape)
    else:
        lines = graph.as_plain(x) if keep else graph.reshaped(x, (rows, width))
        made = Feature(lines.value, shape, lines.batched, False, ANY)
        turned = graph.transposed(matrix, (width, outputs))
        made = replace(made, value=graph.node("MatMul", [lines.value, turned], made.inner))
        if bias is not None:
            made = replace(made, value=graph.node("Add", [made.value, bias], made.inner))
    graph.finish(operator, made)


def average_pool_2d(graph: GraphBuilder, operator: Operator) -> None:
    """The mean over what of a window lies inside the map."""
    x = graph.map(operator)
    kernel = (int(operator.options["FilterHeight"]), int(operator.options["FilterWidth"]))
    strides, size, pads = _window(operator, _sides(x), kernel)
    shape = (x.shape[3], *size)
    if kernel == _sides(x) and size == (1, 1) and not any(pads):
        value = graph.node("GlobalAveragePool", [x.value], shape)
    else:
        attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads, "count_include_pad": 0}
        value = graph.node("AveragePool", [x.value], shape, attributes)
    graph.finish(operator, Feature(value, (1, *size, x.shape[3]), True, True, x.bounds))


def max_pool_2d(graph: GraphBuilder, operator: Operator) -> None:
    """A rim of zeros in front is its own padding where nothing is below zero."""
    whole = graph.map(operator)
    x, pads = _padded(graph, whole)
    kernel = (int(operator.options["FilterHeight"]), int(operator.options["FilterWidth"]))
    strides, size, more = _window(operator, _sides(whole), kernel)
    if whole.bounds[0] < 0 or any(pad >= side for pad, side in zip(pads, (*kernel, *kernel))):
        x, pads = whole, (0, 0, 0, 0)
    pads = (pads[0] + more[0], pads[1] + more[1], pads[2] + more[2], pads[3] + more[3])
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    value = graph.node("MaxPool", [x.value], (x.shape[3], *size), attributes)
    graph.finish(operator, Feature(value, (1, *size, x.shape[3]), True, True, x.bounds))


def _resize(graph: GraphBuilder, operator: Operator, attributes: dict[str, str]) -> None:
    x = graph.map(operator)
    height, width = graph.integers(operator, 1, "a size")
    if min(height, width) < 1:
        raise ValueError(f"a size of {height} x {width}")
    options = operator.options
    if options["AlignCorners"]:
        attributes["coordinate_transformation_mode"] = "align_corners"
    elif options["HalfPixelCenters"]:
        attributes["coordinate_transformation_mode"] = "half_pixel"
    else:
        attributes["coordinate_transformation_mode"] = "asymmetric"
    scales = [1.0, 1.0, *(_scale(old, new) for old, new in zip(_sides(x), (height, width)))]
    inputs = [x.value, None, graph.initializer(np.array(scales, np.float32), f"{x.value.name}/scales")]
    value = graph.node("Resize", inputs, (x.shape[3], height, width), attributes)
    graph.finish(operator, Feature(value, (1, height, width, x.shape[3]), True, True, x.bounds))


def _scale(old: int, new: int) -> float:
    """new / old as a float32, such that old times it is not just below new."""
    scale = np.float32(new / old)
    return float(scale if math.floor(old * float(scale)) == new else np.nextafter(scale, np.float32(np.inf)))


def resize_bilinear(graph: GraphBuilder, operator: Operator) -> None:
    _resize(graph, operator, {"mode": "linear"})


def resize_nearest_neighbor(graph: GraphBuilder, operator: Operator) -> None:
    """The index floor((i + 0.5) * old / new) with half-pixel centres is one rounded half up in ONNX's coordinates."""
    exact = operator.options["AlignCorners"] or operator.options["HalfPixelCenters"]
    _resize(graph, operator, {"mode": "nearest", "nearest_mode": "round_prefer_ceil" if exact else "floor"})


CONVERTERS: dict[str, Callable[[GraphBuilder, Operator], None]] = {
    "CONV_2D": conv_2d,
    "DEPTHWISE_CONV_2D": depthwise_conv_2d,
    "FULLY_CONNECTED": fully_connected,
    "AVERAGE_POOL_2D": average_pool_2d,
    "MAX_POOL_2D": max_pool_2d,
    "RESIZE_BILINEAR": resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest_neighbor,
    "SPACE_TO_BATCH_ND": space_to_batch_nd,
    "BATCH_TO_SPACE_ND": batch_to_space_nd,
}
