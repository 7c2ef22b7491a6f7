"""What each ONNX operator means, as torch functions: of a node and the tensors that it reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from .onnx_graph import attribute
from .resizing import resize_matrix


def _numbers(tensor: Tensor | None) -> list[Any]:
    return [] if tensor is None else tensor.detach().reshape(-1).tolist()


# Windows: convolutions and pools of any rank.


def _window(
    node: ir.Node, x: Tensor, kernel: tuple[int, ...]
) -> tuple[list[int], list[int], tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each axis, strides and dilations."""
    rank = len(kernel)
    strides = attribute(node, "strides", (1,) * rank)
    dilations = attribute(node, "dilations", (1,) * rank)
    mode = attribute(node, "auto_pad", "NOTSET")
    pads = attribute(node, "pads", (0,) * 2 * rank)
    if mode.startswith("SAME"):
        total = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations)
        ]
        less, more = [n // 2 for n in total], [n - n // 2 for n in total]
        return (less, more, strides, dilations) if mode == "SAME_UPPER" else (more, less, strides, dilations)
    if mode == "VALID":
        pads = (0,) * 2 * rank
    return list(pads[:rank]), list(pads[rank:]), strides, dilations


def _padded(x: Tensor, before: list[int], after: list[int], fill: float = 0.0) -> Tensor:
    """Padded (cropped where negative) on the last axes."""
    amounts = [n for pair in zip(reversed(before), reversed(after)) for n in pair]
    return functional.pad(x, amounts, value=fill) if any(amounts) else x


_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_MAX_POOLS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE_POOLS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _conv(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = tuple(weight.shape[2:])
    before, after, strides, dilations = _window(node, x, kernel)
    padding = before if before == after else [0] * len(kernel)
    if before != after:
        x = _padded(x, before, after)
    groups = attribute(node, "group", 1)
    return _CONVOLUTIONS[len(kernel)](x, weight, bias, strides, padding, dilations, groups)


def _conv_transpose(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = tuple(weight.shape[2:])
    before, after, strides, dilations = _window(node, x, kernel)
    more = attribute(node, "output_padding", (0,) * len(kernel))
    groups = attribute(node, "group", 1)
    sizes = attribute(node, "output_shape")
    if sizes is None and attribute(node, "auto_pad", "NOTSET").startswith("SAME"):
        sizes = tuple(n * s for n, s in zip(x.shape[2:], strides))
    y = _TRANSPOSED[len(kernel)](x, weight, bias, strides, 0, more, groups, dilations)
    if sizes is not None:
        total = [n - size for n, size in zip(y.shape[2:], sizes[-len(kernel) :])]
        less, rest = [n // 2 for n in total], [n - n // 2 for n in total]
        upper = attribute(node, "auto_pad", "NOTSET") == "SAME_UPPER"
        before, after = (less, rest) if upper else (rest, less)
    return _padded(y, [-n for n in before], [-n for n in after])


def _past(
    node: ir.Node, x: Tensor, kernel: tuple[int, ...], before: list[int], after: list[int], strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> list[int]:  # fmt: skip
    """How far the last window of ceil_mode reaches past the padding of each axis; it starts inside the map."""
    if not attribute(node, "ceil_mode", 0):
        return [0] * len(kernel)
    reach = []
    for n, k, left, right, s, d in zip(x.shape[2:], kernel, before, after, strides, dilations):
        spare = n + left + right - (k - 1) * d - 1
        windows = -(-spare // s) + 1
        if (windows - 1) * s >= n + left:
            windows -= 1
        reach.append(max((windows - 1) * s - spare, 0))
    return reach


def _max_pool(node: ir.Node, x: Tensor) -> Tensor:
    kernel = attribute(node, "kernel_shape")
    before, after, strides, dilations = _window(node, x, kernel)
    extra = _past(node, x, kernel, before, after, strides, dilations)
    pool = _MAX_POOLS[len(kernel)]
    if before == after and not any(extra) and all(2 * n <= k for n, k in zip(before, kernel)):
        return pool(x, kernel, strides, before, dilations)
    x = _padded(x, before, [n + more for n, more in zip(after, extra)], -torch.inf)
    return pool(x, kernel, strides, 0, dilations)


def _average_pool(node: ir.Node, x: Tensor) -> Tensor:
    kernel = attribute(node, "kernel_shape")
    before, after, strides, dilations = _window(node, x, kernel)
    extra = _past(node, x, kernel, before, after, strides, dilations)
    pool = _AVERAGE_POOLS[len(kernel)]
    counted = bool(attribute(node, "count_include_pad", 0))
    if before == after and not any(extra) and all(2 * n <= k for n, k in zip(before, kernel)):
        return pool(x, kernel, strides, before, False, counted)
    ends = [n + more for n, more in zip(after, extra)]
    pixels = x.new_ones((1, 1, *x.shape[2:]))
    counts = _padded(_padded(pixels, before, after, 1.0), [0] * len(extra), extra) if counted else None
    weights = pool(_padded(pixels, before, ends) if counts is None else counts, kernel, strides)
    return pool(_padded(x, before, ends), kernel, strides) / weights


# Arithmetic.


def _gemm(node: ir.Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    a = a.T if attribute(node, "transA", 0) else a
    b = b if attribute(node, "transB", 0) else b.T
    if alpha == 1 and beta == 1 and (c is None or c.ndim == 1):
        linear: Tensor = functional.linear(a, b, c)
        return linear
    y: Tensor = alpha * (a @ b.T)
    return y if c is None else y + beta * c


def _div(node: ir.Node, a: Tensor, b: Tensor) -> Tensor:
    whole = not a.is_floating_point() and not b.is_floating_point()
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def _clip(node: ir.Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    least, most = (None if limit is None else float(limit.detach()) for limit in (low, high))
    if not x.is_floating_point():
        return x.clamp(least, most)
    if least == 0 and (most is None or most == torch.inf):
        return functional.relu(x)
    return functional.hardtanh(x, -torch.inf if least is None else least, torch.inf if most is None else most)


def _hard_sigmoid(node: ir.Node, x: Tensor) -> Tensor:
    return functional.hardtanh(x * attribute(node, "alpha", 0.2) + attribute(node, "beta", 0.5), 0.0, 1.0)


def _prelu(node: ir.Node, x: Tensor, slope: Tensor) -> Tensor:
    per_channel = slope.ndim == x.ndim - 1 and slope.numel() == slope.shape[0] == x.shape[1]
    if slope.numel() == 1 or per_channel:
        return functional.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def _gelu(node: ir.Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=attribute(node, "approximate", "none"))


def _selu(node: ir.Node, x: Tensor) -> Tensor:
    alpha, gamma = attribute(node, "alpha", 1.6732632423543772), attribute(node, "gamma", 1.0507009873554805)
    scaled: Tensor = functional.elu(x, alpha) * gamma
    return scaled


def _cast(node: ir.Node, x: Tensor) -> Tensor:
    """Between kinds of number alone: floats keep the dtype in which the network runs."""
    kind = ir.DataType(attribute(node, "to"))
    if kind in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return x if x.is_floating_point() else x.float()
    return x.to(torch.bool if kind == ir.DataType.BOOL else torch.int64)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Of any number of operands."""

    def apply(node: ir.Node, first: Tensor, *rest: Tensor) -> Tensor:
        for other in rest:
            first = function(first, other)
        return first

    return apply


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator without attributes that torch has as it is."""
    return lambda node, *inputs: function(*inputs)


def _reduce(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    def apply(node: ir.Node, x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = tuple(attribute(node, "axes") or _numbers(given))
        if not axes and attribute(node, "noop_with_empty_axes", 0):
            return x
        return function(x, axes or tuple(range(x.ndim)), bool(attribute(node, "keepdims", 1)))

    return apply


# Normalisation.


def _batch_norm(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return functional.batch_norm(
        x, mean.detach(), variance.detach(), weight, bias, False, 0.0, attribute(node, "epsilon", 1e-5)
    )


def _layer_norm(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[attribute(node, "axis", -1) :]
    normal = functional.layer_norm(x, shape, eps=attribute(node, "epsilon", 1e-5)) * weight
    return normal if bias is None else normal + bias


def _instance_norm(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # As groups of one channel: instance_norm itself refuses maps of one pixel.
    return functional.group_norm(x, x.shape[1], weight, bias, attribute(node, "epsilon", 1e-5))


def _lp_norm(node: ir.Node, x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, attribute(node, "p", 2), attribute(node, "axis", -1), keepdim=True)
    return x / norms


def _lrn(node: ir.Node, x: Tensor) -> Tensor:
    size = attribute(node, "size")
    squares: Tensor = functional.pad((x * x).transpose(1, -1), ((size - 1) // 2, size // 2)).transpose(1, -1)
    sums: Tensor = squares.unfold(1, size, 1).sum(-1)
    alpha, beta, bias = (attribute(node, n, d) for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    divided: Tensor = x / (bias + alpha / size * sums) ** beta
    return divided


# Shapes.


def _reshape(node: ir.Node, x: Tensor, target: Tensor) -> Tensor:
    sizes = _numbers(target)
    if not attribute(node, "allowzero", 0):
        sizes = [n or x.shape[axis] for axis, n in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(node: ir.Node, x: Tensor) -> Tensor:
    axis = attribute(node, "axis", 1)
    rows = int(torch.Size(x.shape[: axis if axis >= 0 else axis + x.ndim]).numel())
    return x.reshape(rows, -1)


def _transpose(node: ir.Node, x: Tensor) -> Tensor:
    return x.permute(attribute(node, "perm", tuple(reversed(range(x.ndim)))))


def _squeeze(node: ir.Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_numbers(axes)))


def _unsqueeze(node: ir.Node, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(n % rank for n in _numbers(axes)):
        x = x.unsqueeze(axis)
    return x


def _shape(node: ir.Node, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[attribute(node, "start", 0) : attribute(node, "end")])


def _split(node: ir.Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = attribute(node, "axis", 0)
    return tuple(torch.split(x, _numbers(sizes) or -(-x.shape[axis] // len(node.outputs)), axis))


def _slice(
    node: ir.Node, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    first, last = _numbers(starts), _numbers(ends)
    for start, end, axis, step in zip(
        first, last, _numbers(axes) or range(len(first)), _numbers(steps) or [1] * len(first)
    ):
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
        else:
            x = x.index_select(axis, torch.tensor(range(x.shape[axis])[start:end:step], dtype=torch.int64))
    return x


def _gather(node: ir.Node, x: Tensor, index: Tensor) -> Tensor:
    axis = attribute(node, "axis", 0) % x.ndim
    taken = x.index_select(axis, index.reshape(-1).long() % x.shape[axis])
    return taken.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _pad(node: ir.Node, x: Tensor, pads: Tensor, fill: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    amounts, mode = _numbers(pads), attribute(node, "mode", "constant")
    before, after = [0] * x.ndim, [0] * x.ndim
    for axis, left, right in zip(_numbers(axes) or range(x.ndim), amounts, amounts[len(amounts) // 2 :]):
        before[axis], after[axis] = left, right
    if mode == "constant":
        return _padded(x, before, after, 0.0 if fill is None else float(fill.detach()))
    for axis, n in enumerate(x.shape):
        if before[axis] or after[axis]:
            place = torch.arange(-before[axis], n + after[axis])
            if mode == "reflect":
                place = (n - 1) - ((n - 1) - place.abs()).abs()
            x = x.index_select(axis, place % n if mode == "wrap" else place.clamp(0, n - 1))
    return x


def _resize(node: ir.Node, x: Tensor, *_: object) -> Tensor:
    """To the size that the graph says: a scale's last bit may decide it."""
    for axis, size in enumerate(node.outputs[0].shape or ()):
        if isinstance(size, int) and axis > 0 and size != x.shape[axis]:
            matrix = _resize_matrix(node, x.shape[axis], size, x.dtype)
            x = (x.transpose(axis, -1) @ matrix.T).transpose(axis, -1)
    return x


@lru_cache(maxsize=64)
def _resize_matrix(node: ir.Node, old: int, new: int, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(resize_matrix(node, old, new)).to(dtype)


def _depth_to_space(node: ir.Node, x: Tensor) -> Tensor:
    block, (batch, channels, height, width) = attribute(node, "blocksize"), x.shape
    rest = channels // block**2
    if attribute(node, "mode", "DCR") == "CRD":
        planes = x.reshape(batch, rest, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        planes = x.reshape(batch, block, block, rest, height, width).permute(0, 3, 4, 1, 5, 2)
    return planes.reshape(batch, rest, height * block, width * block)


def _space_to_depth(node: ir.Node, x: Tensor) -> Tensor:
    block, (batch, channels, height, width) = attribute(node, "blocksize"), x.shape
    planes = x.reshape(batch, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return planes.reshape(batch, channels * block**2, height // block, width // block)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Ceil": _plain(torch.ceil),
    "Celu": lambda node, x: functional.celu(x, attribute(node, "alpha", 1.0)),
    "Clip": _clip,
    "Concat": lambda node, *parts: torch.cat(parts, attribute(node, "axis")),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _plain(torch.cos),
    "DepthToSpace": _depth_to_space,
    "Div": _div,
    "Dropout": lambda node, x, *_: x,
    "Einsum": lambda node, *parts: torch.einsum(attribute(node, "equation"), *parts),
    "Elu": lambda node, x: functional.elu(x, attribute(node, "alpha", 1.0)),
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": lambda node, x, shape: torch.broadcast_to(x, np.broadcast_shapes(x.shape, _numbers(shape))),
    "Flatten": _flatten,
    "Floor": _plain(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda node, x: x.mean(tuple(range(2, x.ndim)), True),
    "GlobalMaxPool": lambda node, x: x.amax(tuple(range(2, x.ndim)), True),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "Identity": lambda node, x: x,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda node, x: functional.leaky_relu(x, attribute(node, "alpha", 0.01)),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Log": _plain(torch.log),
    "LogSoftmax": lambda node, x: x.log_softmax(attribute(node, "axis", -1)),
    "LpNormalization": _lp_norm,
    "MatMul": _plain(torch.matmul),
    "Max": _fold(torch.maximum),
    "MaxPool": _max_pool,
    "Mean": lambda node, *parts: _fold(torch.add)(node, *parts) / len(parts),
    "Min": _fold(torch.minimum),
    "Mish": _plain(functional.mish),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _plain(torch.pow),
    "Reciprocal": _plain(torch.reciprocal),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceLogSumExp": _reduce(lambda x, axes, keep: x.logsumexp(axes, keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Relu": _plain(functional.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _plain(torch.round),
    "Selu": _selu,
    "Shape": _shape,
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Slice": _slice,
    "Softmax": lambda node, x: x.softmax(attribute(node, "axis", -1)),
    "Softplus": _plain(functional.softplus),
    "Softsign": _plain(functional.softsign),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Sum": _fold(torch.add),
    "Tanh": _plain(torch.tanh),
    "ThresholdedRelu": lambda node, x: functional.threshold(x, attribute(node, "alpha", 1.0), 0.0),
    "Tile": lambda node, x, repeats: x.repeat(*_numbers(repeats)),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
}
