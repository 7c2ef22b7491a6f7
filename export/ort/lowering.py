"""Replaces operators that onnxruntime-training 1.19 cannot differentiate by ones that it can.

Most are written out in elementary operators. Padding, resizing and local response normalisation, which are linear maps,
become products with constant matrices. The rest is for a reason that does not meet the eye:

1. AveragePool -> a depthwise convolution: its own gradient has the batch size built in.
2. MaxPool -> gathers what MaxPool's indices point at: its own gradient crashes where the batch is symbolic.
3. ReduceMax and its kin -> the mean of the elements that equal the extreme: PyTorch's gradient, and one that exists.
4. DequantizeLinear of a weight -> the float weight, under the name that the file's 8 bits had.
5. Concat of what needs no gradient -> of a copy: the gradient is made anyway, by each Concat under the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import onnx_ir as ir

from tinytl_edge.runtime.errors import UsageError

from ..onnx_graph import Array, add_initializer, attribute, constant, sizes, weight_source
from ..resizing import resize_matrix
from .edit import Replacement


def lower(model: ir.Model, trainable: Collection[str] = ()) -> None:
    """Lower in place; what every value is stays as it was.

    `trainable` names the parameters whose gradients are wanted.

    Raises:
        UsageError: a Resize, pooling or padding of a kind that cannot be trained through.
    """
    _dequantise(model)
    for node in list(model.graph):
        if node.op_type in _LOWERINGS and (node.op_type != "Slice" or _runs_backwards(node)):
            replacement = Replacement(model, node)
            replacement.finish(_LOWERINGS[node.op_type](replacement, *node.inputs))
    _copy_what_needs_no_gradient(model, trainable)


def _copy_what_needs_no_gradient(model: ir.Model, trainable: Collection[str]) -> None:
    moving = set(trainable)
    for node in model.graph:
        if any(value is not None and value.name in moving for value in node.inputs):
            moving.update(str(output.name) for output in node.outputs)
    for node in [node for node in model.graph if node.op_type == "Concat" and node.outputs[0].name in moving]:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name not in moving and value.producer() is not None:
                new = Replacement(model, node)
                shape = new.constant(f"shape{index}", np.array([-1, *sizes(value)], np.int64))
                node.replace_input_with(index, new.add("Reshape", value, shape, stem=f"copy{index}"))


def _dequantise(model: ir.Model) -> None:
    graph = model.graph
    for node in [node for node in graph if node.op_type == "DequantizeLinear"]:
        weight, codes = constant(node.outputs[0]), weight_source(node.outputs[0])
        if weight is None or codes is None:
            continue
        made = add_initializer(model, f"{codes.name}/float", weight)
        ir.convenience.replace_all_uses_with(node.outputs[0], made)
        graph.remove(node, safe=True)
        if not codes.uses():
            name = str(codes.name)
            del graph.initializers[name], graph.initializers[str(made.name)]
            made.name = name
            graph.register_initializer(made)


def _number(new: Replacement, value: float) -> ir.Value:
    return new.constant("number", np.array(value, np.float32))


def _known(new: Replacement, value: ir.Value | None) -> Array:
    array = constant(value)
    if array is None:
        raise UsageError(f"{new.node.op_type} '{new.node.name}' has a setting that is not constant.")
    return array


# Linear maps along one axis.


def _mapped(new: Replacement, x: ir.Value, axis: int, matrix: Array, rank: int) -> ir.Value:
    """x with `matrix` [new, old] applied along `axis`."""
    if axis == rank - 1:
        return new.add("MatMul", x, new.constant("columns", matrix.T))
    if axis == rank - 2:
        return new.add("MatMul", new.constant("rows", matrix), x)
    order = [*range(rank)]
    order[axis], order[-1] = order[-1], order[axis]
    turned = new.add("Transpose", x, perm=order)
    return new.add("Transpose", new.add("MatMul", turned, new.constant("columns", matrix.T)), perm=order)


def _resize(new: Replacement, x: ir.Value, *_: object) -> ir.Value:
    before, after = sizes(x), sizes(new.node.outputs[0])
    result = x
    for axis, (old, size) in enumerate(zip(before, after), 1):
        if old != size:
            result = _mapped(new, result, axis, resize_matrix(new.node, old, size), len(before) + 1)
    return result


def _pad(new: Replacement, x: ir.Value, pads: ir.Value, fill: ir.Value | None = None, *_: object) -> ir.Value:
    """A constant margin is added behind the product: the gradient of Pad itself knows no negative amounts."""
    amounts = [int(n) for n in _known(new, pads)]
    mode, (before, after) = (
        attribute(new.node, "mode", "constant"),
        (amounts[: len(amounts) // 2], amounts[len(amounts) // 2 :]),
    )
    rank, margin = len(before), 0.0 if fill is None else float(_known(new, fill).reshape(-1)[0])
    if before[0] or after[0]:
        raise UsageError(f"Pad '{new.node.name}' pads the batch, which cannot be trained through.")
    result, inside = x, np.ones([1] * rank, bool)
    for axis, old in enumerate(sizes(x), 1):
        if not before[axis] and not after[axis]:
            continue
        place = np.arange(-before[axis], old + after[axis])
        source = {"reflect": (old - 1) - np.abs((old - 1) - np.abs(place)), "wrap": place % old}.get(mode, place)
        known = (place >= 0) & (place < old) if mode == "constant" else np.ones(len(place), bool)
        matrix = np.zeros((len(place), old), np.float32)
        matrix[np.arange(len(place)), np.clip(source, 0, old - 1)] = known
        result = _mapped(new, result, axis, matrix, rank)
        inside = inside & known.reshape([-1 if axis == other else 1 for other in range(rank)])
    if margin:
        result = new.add("Add", result, new.constant("margin", np.where(inside, 0, margin).astype(np.float32)))
    return result


def _local_response(new: Replacement, x: ir.Value) -> ir.Value:
    """x / (bias + alpha / size * the sum of `size` channels' squares) ** beta."""
    node, channels = new.node, sizes(x)[0]
    size = attribute(node, "size")
    away = np.arange(channels) - np.arange(channels)[:, None]
    band = ((away >= -((size - 1) // 2)) & (away <= size // 2)) * (attribute(node, "alpha", 1e-4) / size)
    weight = new.constant("weight", band.astype(np.float32)[:, :, None, None])
    sums = new.add("Conv", new.add("Mul", x, x), weight, kernel_shape=[1, 1])
    base = new.add("Add", sums, _number(new, attribute(node, "bias", 1.0)))
    return new.add("Mul", x, new.add("Pow", base, _number(new, -attribute(node, "beta", 0.75))))


# Pooling.


def _average_pool(new: Replacement, x: ir.Value) -> ir.Value:
    node = new.node
    kernel = attribute(node, "kernel_shape")
    rank = len(kernel)
    strides = attribute(node, "strides", (1,) * rank)
    pads = attribute(node, "pads", (0,) * 2 * rank)
    channels, *extent = sizes(x)
    reach, counts = list(pads), []
    for axis, (size, result, stride, k) in enumerate(zip(extent, sizes(node.outputs[0])[1:], strides, kernel)):
        before, after = pads[axis], pads[axis + rank]
        # ceil_mode: the last window may reach past the padding; what lies there never counts.
        reach[axis + rank] += max((result - 1) * stride + k - size - before - after, 0)
        low, high = (-before, size + after) if attribute(node, "count_include_pad", 0) else (0, size)
        starts = range(-before, result * stride - before, stride)
        counts.append(np.array([min(start + k, high) - max(start, low) for start in starts], np.float32))
        if counts[-1].min() <= 0:
            raise UsageError(f"AveragePool '{node.name}' has a window without any pixel: it cannot be trained through.")
    weight = new.constant("weight", np.full((channels, 1, *kernel), 1 / np.prod(kernel), np.float32))
    average = new.add("Conv", x, weight, group=channels, kernel_shape=kernel, strides=strides, pads=reach)
    area = counts[0] if rank == 1 else np.multiply.outer(*counts)
    correction = np.prod(kernel) / area
    if (correction == 1).all():
        return average
    return new.add("Mul", average, new.constant("correction", correction.astype(np.float32)))


def _reach_as_padding(node: ir.Node, x: ir.Value) -> list[int]:
    """Padding with which ceil_mode is not needed: versions differ in what a last window behind the map is."""
    kernel = attribute(node, "kernel_shape")
    ones = (1,) * len(kernel)
    strides, dilations = attribute(node, "strides", ones), attribute(node, "dilations", ones)
    pads = list(attribute(node, "pads", (0,) * 2 * len(kernel)))
    for axis, (size, result) in enumerate(zip(sizes(x)[1:], sizes(node.outputs[0])[1:])):
        last = (result - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        pads[axis + len(kernel)] = max(last - size - pads[axis], 0)
    return pads


def _max_pool(new: Replacement, x: ir.Value) -> ir.Value:
    """The indices count through the whole flattened input."""
    settings = {name: attribute(new.node, name) for name in new.node.attributes}
    pads = _reach_as_padding(new.node, x)
    if attribute(new.node, "ceil_mode", 0) and all(n < k for n, k in zip(pads, settings["kernel_shape"] * 2)):
        settings |= {"ceil_mode": 0, "pads": pads}
    largest = new.add("MaxPool", x, outputs=2, stem="largest", **settings)
    located = largest.producer()
    assert located is not None
    flat = new.add("Reshape", x, new.constant("shape", np.array([-1], np.int64)))
    return new.add("Gather", flat, located.outputs[1], axis=0)


def _axes(new: Replacement, x: ir.Value, given: ir.Value | None = None) -> list[int]:
    assert x.shape is not None
    axes = attribute(new.node, "axes") or (() if given is None else [int(n) for n in _known(new, given)])
    return [n % len(x.shape) for n in axes] or list(range(len(x.shape)))


def _reduce_sum(new: Replacement, x: ir.Value, axes: list[int], keep: int) -> ir.Value:
    return new.add("ReduceSum", x, new.constant("axes", np.array(axes, np.int64)), keepdims=keep)


def _extreme(new: Replacement, x: ir.Value, axes: list[int], op: str, keep: int) -> ir.Value:
    """Nothing flows back through Equal: the extreme itself is a constant to the gradient."""
    peak = new.add(op, x, axes=axes, keepdims=1)
    one = new.add("Cast", new.add("Equal", x, peak), to=int(ir.DataType.FLOAT))
    total = _reduce_sum(new, new.add("Mul", x, one), axes, keep)
    return new.add("Div", total, _reduce_sum(new, one, axes, keep))


def _reduce_extreme(new: Replacement, x: ir.Value, given: ir.Value | None = None) -> ir.Value:
    return _extreme(new, x, _axes(new, x, given), new.node.op_type, attribute(new.node, "keepdims", 1))


def _global_max_pool(new: Replacement, x: ir.Value) -> ir.Value:
    return _extreme(new, x, _axes(new, x)[2:], "ReduceMax", 1)


def _reduce_absolute(new: Replacement, x: ir.Value, given: ir.Value | None = None) -> ir.Value:
    return _reduce_sum(new, new.add("Abs", x), _axes(new, x, given), attribute(new.node, "keepdims", 1))


def _reduce_squares(new: Replacement, x: ir.Value, given: ir.Value | None = None) -> ir.Value:
    return _reduce_sum(new, new.add("Mul", x, x), _axes(new, x, given), attribute(new.node, "keepdims", 1))


def _reduce_l2(new: Replacement, x: ir.Value, given: ir.Value | None = None) -> ir.Value:
    return new.add("Sqrt", _reduce_squares(new, x, given))


# Normalisation.


def _centred(new: Replacement, x: ir.Value, axes: list[int]) -> tuple[ir.Value, ir.Value]:
    """x minus its mean, and its standard deviation."""
    centred = new.add("Sub", x, new.add("ReduceMean", x, axes=axes, keepdims=1, stem="mean"), stem="centred")
    variance = new.add("ReduceMean", new.add("Mul", centred, centred), axes=axes, keepdims=1, stem="variance")
    shifted = new.add("Add", variance, _number(new, attribute(new.node, "epsilon", 1e-5)))
    return centred, new.add("Sqrt", shifted, stem="deviation")


def _instance_norm(new: Replacement, x: ir.Value, scale: ir.Value, bias: ir.Value) -> ir.Value:
    axes = _axes(new, x)[2:]
    normal = new.add("Div", *_centred(new, x, axes), stem="normal")
    fixed_scale, fixed_bias = constant(scale), constant(bias)
    if fixed_scale is not None and fixed_bias is not None and (fixed_scale == 1).all() and not fixed_bias.any():
        return normal
    shape = new.constant("shape", np.array([-1] + [1] * len(axes), np.int64))
    return new.add(
        "Add", new.add("Mul", normal, new.add("Reshape", scale, shape)), new.add("Reshape", bias, shape), stem="shifted"
    )


def _layer_norm(new: Replacement, x: ir.Value, scale: ir.Value, bias: ir.Value | None = None) -> ir.Value:
    assert x.shape is not None
    axes = list(range(attribute(new.node, "axis", -1) % len(x.shape), len(x.shape)))
    scaled = new.add("Mul", new.add("Div", *_centred(new, x, axes), stem="normal"), scale)
    return scaled if bias is None else new.add("Add", scaled, bias)


def _batch_norm(
    new: Replacement, x: ir.Value, scale: ir.Value, bias: ir.Value, mean: ir.Value, variance: ir.Value
) -> ir.Value:
    """With its statistics frozen, (x - mean) / deviation * scale + bias."""
    assert x.shape is not None
    tail = [1] * (len(x.shape) - 2)
    inverse = 1 / np.sqrt(_known(new, variance).astype(np.float64) + attribute(new.node, "epsilon", 1e-5))
    factor = new.constant("inverse", inverse.astype(np.float32))
    shift = new.constant("shift", (-_known(new, mean) * inverse).astype(np.float32))
    shape = new.constant("shape", np.array([-1, *tail], np.int64))
    gain = new.add("Reshape", new.add("Mul", scale, factor), shape)
    offset = new.add("Reshape", new.add("Add", new.add("Mul", scale, shift), bias), shape)
    return new.add("Add", new.add("Mul", x, gain), offset, stem="shifted")


def _lp_norm(new: Replacement, x: ir.Value) -> ir.Value:
    axes = [_axes(new, x)[attribute(new.node, "axis", -1)]]
    if attribute(new.node, "p", 2) == 1:
        return new.add("Div", x, _reduce_sum(new, new.add("Abs", x), axes, 1))
    return new.add("Div", x, new.add("Sqrt", _reduce_sum(new, new.add("Mul", x, x), axes, 1)))


# Activations.


def _below(new: Replacement, x: ir.Value) -> ir.Value:
    """-min(x, 0)"""
    return new.add("Relu", new.add("Neg", x), stem="below")


def _exponential(new: Replacement, x: ir.Value, alpha: float, scale: float, gain: float) -> ir.Value:
    """gain * (max(x, 0) + alpha * (exp(min(x, 0) / scale) - 1))"""
    power = new.add("Exp", new.add("Mul", _below(new, x), _number(new, -1 / scale)))
    curve = new.add("Mul", new.add("Sub", power, _number(new, 1.0)), _number(new, alpha))
    result = new.add("Add", new.add("Relu", x, stem="above"), curve)
    return result if gain == 1 else new.add("Mul", result, _number(new, gain))


def _elu(new: Replacement, x: ir.Value) -> ir.Value:
    return _exponential(new, x, attribute(new.node, "alpha", 1.0), 1.0, 1.0)


def _celu(new: Replacement, x: ir.Value) -> ir.Value:
    alpha = attribute(new.node, "alpha", 1.0)
    return _exponential(new, x, alpha, alpha, 1.0)


def _selu(new: Replacement, x: ir.Value) -> ir.Value:
    alpha, gamma = attribute(new.node, "alpha", 1.6732632423543772), attribute(new.node, "gamma", 1.0507009873554805)
    return _exponential(new, x, alpha, 1.0, gamma)


def _prelu(new: Replacement, x: ir.Value, slope: ir.Value) -> ir.Value:
    return new.add("Sub", new.add("Relu", x, stem="above"), new.add("Mul", _below(new, x), slope))


def _softplus(new: Replacement, x: ir.Value) -> ir.Value:
    """max(x, 0) + log(1 + exp(-|x|)), written so that its gradient at 0 is 1/2."""
    above, below = new.add("Relu", x, stem="above"), _below(new, x)
    small = new.add("Exp", new.add("Neg", new.add("Add", above, below)))
    return new.add("Add", above, new.add("Log", new.add("Add", small, _number(new, 1.0))))


def _mish(new: Replacement, x: ir.Value) -> ir.Value:
    return new.add("Mul", x, new.add("Tanh", _softplus(new, x)))


def _softsign(new: Replacement, x: ir.Value) -> ir.Value:
    return new.add("Div", x, new.add("Add", new.add("Abs", x), _number(new, 1.0)))


def _thresholded_relu(new: Replacement, x: ir.Value) -> ir.Value:
    inside = new.add("Greater", x, _number(new, attribute(new.node, "alpha", 1.0)))
    return new.add("Where", inside, x, _number(new, 0.0))


def _hard_gate(new: Replacement, x: ir.Value, alpha: float, beta: float) -> ir.Value:
    line = new.add("Add", new.add("Mul", x, _number(new, alpha)), _number(new, beta))
    return new.add("Clip", line, _number(new, 0.0), _number(new, 1.0), stem="gate")


def _hard_sigmoid(new: Replacement, x: ir.Value) -> ir.Value:
    return _hard_gate(new, x, attribute(new.node, "alpha", 0.2), attribute(new.node, "beta", 0.5))


def _hard_swish(new: Replacement, x: ir.Value) -> ir.Value:
    return new.add("Mul", x, _hard_gate(new, x, 1 / 6, 0.5))


# What only needs other words.


def _clip(new: Replacement, x: ir.Value, low: ir.Value | None = None, high: ir.Value | None = None) -> ir.Value:
    """With both limits, as the gradient's rewriting expects it."""
    least = float(np.finfo(np.float32).min) if low is None else float(_known(new, low).reshape(()))
    most = float(np.finfo(np.float32).max) if high is None else float(_known(new, high).reshape(()))
    if least == 0 and most == np.finfo(np.float32).max:
        return new.add("Relu", x)
    return new.add("Clip", x, _number(new, least), _number(new, most))


def _reciprocal(new: Replacement, x: ir.Value) -> ir.Value:
    return new.add("Div", _number(new, 1.0), x)


def _pow(new: Replacement, x: ir.Value, exponent: ir.Value) -> ir.Value:
    """With a float exponent."""
    return new.add("Pow", x, new.constant("exponent", _known(new, exponent).astype(np.float32)))


def _slice(new: Replacement, x: ir.Value, *_: object) -> ir.Value:
    """Gathers where a step is negative: the gradient of Slice knows positive ones alone."""
    starts, ends, axes, steps = ([int(n) for n in _known(new, value)] for value in new.node.inputs[1:])
    assert x.shape is not None
    for start, end, axis, step in zip(starts, ends, axes, steps):
        axis %= len(x.shape)
        places = np.arange(sizes(x)[axis - 1])[start:end:step]
        x = new.add("Gather", x, new.constant("places", places), axis=axis)
    return x


def _runs_backwards(node: ir.Node) -> bool:
    steps = constant(node.inputs[4]) if len(node.inputs) > 4 else None
    return steps is not None and bool((steps < 0).any())


def _conv_transpose(new: Replacement, *_: object) -> ir.Value:
    raise UsageError(
        f"onnxruntime-training has no gradient of the operator ConvTranspose (at {new.node.name}) on a processor."
    )


def _sum(new: Replacement, first: ir.Value, *rest: ir.Value) -> ir.Value:
    for other in rest:
        first = new.add("Add", first, other)
    return first


def _concat(new: Replacement, *parts: ir.Value) -> ir.Value:
    """The gradient of a Concat of one operand is made twice."""
    return new.add("Concat", *parts, axis=attribute(new.node, "axis")) if len(parts) > 1 else parts[0]


def _mean(new: Replacement, *parts: ir.Value) -> ir.Value:
    return new.add("Mul", _sum(new, *parts), _number(new, 1 / len(parts)))


def _blocks(new: Replacement, x: ir.Value) -> ir.Value:
    """DepthToSpace and SpaceToDepth."""
    block, (channels, height, width) = attribute(new.node, "blocksize"), sizes(x)
    if new.node.op_type == "SpaceToDepth":
        split, order = [0, channels, height // block, block, width // block, block], [0, 3, 5, 1, 2, 4]
    elif attribute(new.node, "mode", "DCR") == "CRD":
        split, order = [0, channels // block**2, block, block, height, width], [0, 1, 4, 2, 5, 3]
    else:
        split, order = [0, block, block, channels // block**2, height, width], [0, 3, 4, 1, 5, 2]
    split[0] = -1
    planes = new.add("Transpose", new.add("Reshape", x, new.constant("split", np.array(split, np.int64))), perm=order)
    joined = np.array([-1, *sizes(new.node.outputs[0])], np.int64)
    return new.add("Reshape", planes, new.constant("joined", joined))


_LOWERINGS: dict[str, Callable[..., ir.Value]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Celu": _celu,
    "Clip": _clip,
    "Concat": _concat,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _blocks,
    "Elu": _elu,
    "GlobalMaxPool": _global_max_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "MaxPool": _max_pool,
    "Mean": _mean,
    "Mish": _mish,
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _pow,
    "Reciprocal": _reciprocal,
    "ReduceL1": _reduce_absolute,
    "ReduceL2": _reduce_l2,
    "ReduceMax": _reduce_extreme,
    "ReduceMin": _reduce_extreme,
    "ReduceSumSquare": _reduce_squares,
    "Resize": _resize,
    "Selu": _selu,
    "Slice": _slice,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "SpaceToDepth": _blocks,
    "Sum": _sum,
    "ThresholdedRelu": _thresholded_relu,
}
