"""Replaces operators that onnxruntime-training 1.19 cannot differentiate by ones that it can.

1. Resize (linear or nearest, fixed sizes) -> two products with constant matrices.
2. InstanceNormalization (as which GroupNorm is exported) -> its elementary operations.
3. HardSwish and HardSigmoid -> multiply, add, clip.
4. AveragePool -> a depthwise convolution: its own gradient has the batch size built in.
5. MaxPool -> gathers what MaxPool's indices point at: its own gradient crashes where the batch is symbolic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from tinytl_edge.runtime.errors import UsageError

from .graph import Array, GraphEditor, attribute, static_shapes


def lower(model: ModelProto) -> ModelProto:
    """Lower in place and return the model.

    Raises:
        UsageError: a Resize of a kind that is no fixed matrix product.
    """
    shapes = static_shapes(model)
    editor = GraphEditor(model)
    lowerings = {
        "Resize": _lower_resize,
        "InstanceNormalization": _lower_instance_norm,
        "HardSwish": _lower_hard_swish,
        "HardSigmoid": _lower_hard_sigmoid,
        "AveragePool": _lower_average_pool,
        "MaxPool": _lower_max_pool,
    }
    for node in list(editor.nodes):
        if node.op_type in lowerings:
            editor.remove(node)
            lowerings[node.op_type](editor, node, shapes)
    return editor.finish()


def _lower_resize(editor: GraphEditor, node: NodeProto, shapes: dict[str, tuple[int | str, ...]]) -> None:
    source, result = shapes[node.input[0]], shapes[node.output[0]]
    rows = resize_matrix(node, int(source[2]), int(result[2]))
    columns = resize_matrix(node, int(source[3]), int(result[3]))
    left = editor.add_constant(f"{node.name}/rows", rows)
    right = editor.add_constant(f"{node.name}/columns", columns.T)
    tall = editor.add("MatMul", [left, node.input[0]], f"{node.name}/tall")
    editor.add("MatMul", [tall, right], node.name, output=node.output[0])


def resize_matrix(node: NodeProto, old: int, new: int) -> Array:
    """The float32 [new, old] matrix that a Resize node applies along one axis (ONNX operator reference).

    Raises:
        UsageError: the node's mode is neither linear nor nearest, or it crops or antialiases.
    """
    mode = bytes(attribute(node, "mode", b"nearest")).decode()
    coordinates = bytes(attribute(node, "coordinate_transformation_mode", b"half_pixel")).decode()
    scale = new / old
    position = np.arange(new, dtype=np.float64)
    if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and new > 1):
        position = (position + 0.5) / scale - 0.5
    elif coordinates == "pytorch_half_pixel":
        position = np.zeros(1)
    elif coordinates == "align_corners":
        position = position * (old - 1) / max(new - 1, 1)
    elif coordinates == "asymmetric":
        position = position / scale
    else:
        raise UsageError(f"Resize '{node.name}' uses {coordinates} coordinates, which cannot be trained through.")
    matrix = np.zeros((new, old))
    rows = np.arange(new)
    if mode == "linear":
        position = np.clip(position, 0, old - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, old - 1)
        np.add.at(matrix, (rows, low), 1 - (position - low))
        np.add.at(matrix, (rows, high), position - low)
    elif mode == "nearest":
        rounding = bytes(attribute(node, "nearest_mode", b"round_prefer_floor")).decode()
        roundings: dict[str, Callable[[Any], Any]] = {
            "round_prefer_floor": lambda x: np.ceil(x - 0.5),
            "round_prefer_ceil": lambda x: np.floor(x + 0.5),
            "floor": np.floor,
            "ceil": np.ceil,
        }
        nearest = roundings[rounding](position)
        matrix[rows, np.clip(nearest, 0, old - 1).astype(int)] = 1
    else:
        raise UsageError(f"Resize '{node.name}' is {mode}; linear and nearest can be trained through.")
    return matrix.astype(np.float32)


def _lower_instance_norm(editor: GraphEditor, node: NodeProto, shapes: dict[str, tuple[int | str, ...]]) -> None:
    """y = scale * (x - mean) / sqrt(var + epsilon) + bias over all but the first two axes."""
    x, scale, bias = node.input
    rank = len(shapes[x])
    axes = list(range(2, rank))
    name = node.name
    mean = editor.add("ReduceMean", [x], f"{name}/mean", axes=axes, keepdims=1)
    centred = editor.add("Sub", [x, mean], f"{name}/centred")
    squared = editor.add("Mul", [centred, centred], f"{name}/squared")
    variance = editor.add("ReduceMean", [squared], f"{name}/variance", axes=axes, keepdims=1)
    epsilon = editor.add_constant(f"{name}/epsilon", np.array(attribute(node, "epsilon", 1e-5), np.float32))
    deviation = editor.add("Sqrt", [editor.add("Add", [variance, epsilon], f"{name}/shifted")], f"{name}/deviation")
    constant_scale, constant_bias = editor.constant(scale), editor.constant(bias)
    plain = (
        constant_scale is not None
        and constant_bias is not None
        and bool((constant_scale == 1).all())
        and not constant_bias.any()
    )
    if plain:
        editor.add("Div", [centred, deviation], name, output=node.output[0])
        return
    target = editor.add_constant(f"{name}/shape", np.array([-1] + [1] * (rank - 2), np.int64))
    normal = editor.add("Div", [centred, deviation], f"{name}/normal")
    scaled = editor.add("Mul", [normal, editor.add("Reshape", [scale, target], f"{name}/scale")], f"{name}/scaled")
    editor.add("Add", [scaled, editor.add("Reshape", [bias, target], f"{name}/bias")], name, output=node.output[0])


def _hard_sigmoid(editor: GraphEditor, node: NodeProto, alpha: float, beta: float, output: str | None) -> str:
    name = node.name
    slope = editor.add_constant(f"{name}/alpha", np.array(alpha, np.float32))
    offset = editor.add_constant(f"{name}/beta", np.array(beta, np.float32))
    zero = editor.add_constant(f"{name}/zero", np.array(0, np.float32))
    one = editor.add_constant(f"{name}/one", np.array(1, np.float32))
    line = editor.add("Add", [editor.add("Mul", [node.input[0], slope], f"{name}/slope"), offset], f"{name}/line")
    return editor.add("Clip", [line, zero, one], f"{name}/gate", output=output)


def _lower_hard_sigmoid(editor: GraphEditor, node: NodeProto, shapes: dict[str, tuple[int | str, ...]]) -> None:
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    _hard_sigmoid(editor, node, float(alpha), float(beta), node.output[0])


def _lower_hard_swish(editor: GraphEditor, node: NodeProto, shapes: dict[str, tuple[int | str, ...]]) -> None:
    gate = _hard_sigmoid(editor, node, 1 / 6, 0.5, None)
    editor.add("Mul", [node.input[0], gate], node.name, output=node.output[0])


def _lower_average_pool(editor: GraphEditor, node: NodeProto, shapes: dict[str, tuple[int | str, ...]]) -> None:
    kernel = attribute(node, "kernel_shape")
    rank = len(kernel)
    strides = attribute(node, "strides", [1] * rank)
    pads = attribute(node, "pads", [0] * 2 * rank)
    channels, *sizes = (int(n) for n in shapes[node.input[0]][1:])
    results = [int(n) for n in shapes[node.output[0]][2:]]
    reach = list(pads)
    counts = []
    for axis, (size, result, stride, k) in enumerate(zip(sizes, results, strides, kernel)):
        before, after = pads[axis], pads[axis + rank]
        # ceil_mode: the last window may reach past the padding; what lies there never counts.
        reach[axis + rank] += max((result - 1) * stride + k - size - before - after, 0)
        low, high = (-before, size + after) if attribute(node, "count_include_pad", 0) else (0, size)
        starts = range(-before, result * stride - before, stride)
        counts.append(np.array([min(start + k, high) - max(start, low) for start in starts], np.float32))
        if counts[-1].min() <= 0:
            raise UsageError(f"AveragePool '{node.name}' has a window without any pixel: it cannot be trained through.")
    weight = np.full((channels, 1, *kernel), 1 / np.prod(kernel), np.float32)
    inputs = [node.input[0], editor.add_constant(f"{node.name}/weight", weight)]
    more: dict[str, Any] = {"group": channels, "kernel_shape": kernel, "strides": strides, "pads": reach}
    correction = np.prod(kernel) / np.multiply.outer(*counts)
    if (correction == 1).all():
        editor.add("Conv", inputs, node.name, output=node.output[0], **more)
        return
    average = editor.add("Conv", inputs, f"{node.name}/average", **more)
    factor = editor.add_constant(f"{node.name}/correction", correction.astype(np.float32))
    editor.add("Mul", [average, factor], node.name, output=node.output[0])


def _lower_max_pool(editor: GraphEditor, node: NodeProto, shapes: dict[str, tuple[int | str, ...]]) -> None:
    """The indices count through the whole flattened input."""
    name = node.name
    indices = f"{name}/indices"
    located = NodeProto()
    located.CopyFrom(node)
    located.output[:] = [f"{name}/largest", indices]
    editor.nodes.append(located)
    flat = editor.add("Reshape", [node.input[0], editor.add_constant(f"{name}/shape", np.array([-1], np.int64))], name)
    editor.add("Gather", [flat, indices], f"{name}/gathered", output=node.output[0], axis=0)
