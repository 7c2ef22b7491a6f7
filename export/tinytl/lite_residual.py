"""The lite residual module of TinyTL (Cai et al., NeurIPS 2020, section 3.2) and how it joins a block.

`upsample(norm2(conv1x1(relu(norm1(conv_kxk_grouped(avgpool2(x)))))))` is added to what the block makes of x. norm2's
scale starts at zero, so that a fresh module adds nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, add_initializer, nodes_between, only_reader, sizes, weight_source
from tinytl_edge.export.passes.origin import FILE_MAPS, added_to, file_value, mark_added
from tinytl_edge.export.resizing import resize_scale
from tinytl_edge.runtime.errors import UsageError

from .blocks import Block
from .trainables import LITE_RESIDUAL

CHANNELS_PER_GROUP = 8
MAX_KERNEL = 5
WIDEST_GROUP = 160  # channels of a group of the first convolution: two groups up to 320, the most that the paper has
NOMINAL_INPUT = 256  # the kernel rule reckons with a map of 128 behind the stem, whatever the resolution
EPSILON = 1e-5
_BEYOND = 0.25  # of a block's range, that the sum with its module may leave it on either side


def kernel_size(map_size: int, image_size: int) -> int:
    """The paper's kernel rule for a block whose input is `map_size` wide when the image is `image_size`.

    The nominal map of the block is the power of two that stands for this fraction of the image (128 behind
    a stride-2 stem); the module sees half of it, and takes 5, less 2 until it fits.
    """
    nominal = 2 ** max(0, round(math.log2(NOMINAL_INPUT * map_size / image_size)))
    kernel = MAX_KERNEL
    while kernel > max(1, nominal // 2):
        kernel -= 2
    return kernel if map_size > 1 else 1


def channels_per_group(channels: int) -> int:
    """8; the largest divisor of `channels` below that where 8 does not divide them.

    Where only 1 divides them all channels are one group: on a 1 x 1 map a channel alone has nothing to be
    normalised by.
    """
    per_group = max(n for n in range(1, CHANNELS_PER_GROUP + 1) if channels % n == 0)
    return per_group if per_group > 1 else channels


def convolution_groups(channels: int) -> int:
    """2, as in the paper; of maps wider than the paper's, so many that no group is wider than there.

    The weights of a wide block's module would outgrow the network's own.
    """
    if channels <= 2 * WIDEST_GROUP:
        return 2 if channels % 2 == 0 else 1
    return min(n for n in range(2, channels + 1) if channels % n == 0 and channels // n <= WIDEST_GROUP)


def attach_lite_residuals(model: ir.Model, blocks: Sequence[Block], seed: int) -> None:
    """Give each block a lite residual module, whose parameters are named `BLOCK.lite_residual.LAYER.weight` (or bias).

    A block that has one, from an earlier adaptation, keeps it.

    Raises:
        UsageError: there is no block.
    """
    if not blocks:
        raise UsageError(
            "The model has no blocks that a lite residual module could stand beside: choose another --train."
        )
    image_size = sizes(model.graph.inputs[0])[1]
    random = np.random.default_rng(seed)
    sums: dict[ir.Value, ir.Value] = {}  # a block's own output, and with what its module adds
    for block in [_in_file(model, block) for block in blocks if not _has_module(block)]:
        entering = sums.get(block.entering, block.entering)
        sums[block.leaving] = _Module(model, block, entering, image_size, random).attach()


def added_modules(model: ir.Model) -> dict[str, list[ir.Node]]:
    """The nodes of each module that was attached, in order, by its block; the last makes what the block gives now."""
    found: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        block = added_to(node)
        if block is not None:
            found.setdefault(block, []).append(node)
    return found


def _has_module(block: Block) -> bool:
    inside = nodes_between(block.entering, block.leaving)
    return any(_is_of_module(value) for node in inside for value in node.inputs)


def _is_of_module(value: ir.Value | None) -> bool:
    source = weight_source(value)
    return source is not None and LITE_RESIDUAL in (source.name or "").split(".")


def _in_file(model: ir.Model, block: Block) -> Block:
    """The block between values that its file has: behind the activations that are fused into what it begins and ends
    with."""
    maps = json.loads(model.metadata_props.get(FILE_MAPS, "null"))

    def behind(value: ir.Value) -> ir.Value:
        reader = only_reader(value)
        fused = maps is not None and file_value(value) not in maps
        return reader.outputs[0] if fused and reader is not None and reader.op_type in ("Relu", "Clip") else value

    return replace(block, entering=behind(block.entering), leaving=behind(block.leaving))


def _range_of(model: ir.Model, value: ir.Value) -> tuple[float, float] | None:
    """Of the 8-bit codes that a value is in its file, if it is."""
    ranges = json.loads(model.metadata_props.get(FILE_MAPS, "{}"))
    found = ranges.get(file_value(value))
    return None if found is None else (found[0], found[1])


class _Module:
    """Builds one module in front of what reads its block's output."""

    def __init__(
        self, model: ir.Model, block: Block, entering: ir.Value, image_size: int, random: np.random.Generator
    ) -> None:
        self._model, self._block, self._entering, self._random = model, block, entering, random
        self._nodes: list[ir.Node] = []
        self._kernel = kernel_size(min(sizes(block.entering)[1:]), image_size)
        self._name = f"{block.name}.{LITE_RESIDUAL}"

    def attach(self) -> ir.Value:
        """Returns the sum of the block's output and the module's."""
        entering, leaving = self._entering, self._block.leaving
        channels, *size = sizes(entering)
        out_channels, *out_size = sizes(leaving)
        stride = max(round(before / after) for before, after in zip(size, out_size))
        groups = convolution_groups(channels)
        if self._kernel == 1:
            size, stride = [1, 1], 1
            x = self._add("GlobalAveragePool", [entering], "pool", [channels, 1, 1])
        else:
            size = [n // 2 for n in size]
            x = self._add("AveragePool", [entering], "pool", [channels, *size], kernel_shape=[2, 2], strides=[2, 2])
        size = [(n + 2 * (self._kernel // 2) - self._kernel) // stride + 1 for n in size]
        weight = self._uniform("conv.weight", (channels, channels // groups, self._kernel, self._kernel))
        pads = [self._kernel // 2] * 4
        x = self._add("Conv", [x, weight], "conv", [channels, *size], group=groups, kernel_shape=[self._kernel] * 2,
                      strides=[stride] * 2, pads=pads, dilations=[1, 1])  # fmt: skip
        x = self._add("Relu", [self._group_norm(x, "norm1", 1.0)], "act", [channels, *size])
        weight = self._uniform("project.weight", (out_channels, channels, 1, 1))
        x = self._add("Conv", [x, weight], "project", [out_channels, *size], group=1, kernel_shape=[1, 1],
                      strides=[1, 1], pads=[0] * 4, dilations=[1, 1])  # fmt: skip
        x = self._group_norm(x, "norm2", 0.0)
        x = self._upsample(x, size, out_size)
        readers = list(leaving.uses())
        total = self._add("Add", [leaving, x], "sum", [out_channels, *out_size])
        if (within := _range_of(self._model, leaving)) is not None:
            total = self._within_range(total, *within)
        maker = leaving.producer()
        assert maker is not None
        self._model.graph.insert_after(maker, self._nodes)
        for reader, index in readers:
            reader.replace_input_with(index, total)
        return total

    def _within_range(self, total: ir.Value, low: float, high: float) -> ir.Value:
        """The sum will be of 8-bit codes, as the block's own output is: within that range, and somewhat beyond."""
        beyond = _BEYOND * (high - low)
        limits = [
            self._initializer(name, np.array(limit, np.float32))
            for name, limit in (("low", low - beyond), ("high", high + beyond))
        ]
        return self._add("Clip", [total, *limits], "range", sizes(total))

    def _add(
        self, op: str, inputs: Sequence[ir.Value | None], name: str, shape: Sequence[int], **attributes: object
    ) -> ir.Value:
        node = ir.node(op, inputs, attributes or None, name=f"{self._name}/{name}")  # type: ignore[arg-type]
        mark_added(node, self._block.name)
        value = node.outputs[0]
        value.name, value.shape, value.type = node.name, ir.Shape(["batch", *shape]), ir.TensorType(ir.DataType.FLOAT)
        self._nodes.append(node)
        return value

    def _uniform(self, name: str, shape: tuple[int, ...]) -> ir.Value:
        """As PyTorch initialises a convolution: uniform within 1 / sqrt(inputs)."""
        bound = 1 / math.sqrt(np.prod(shape[1:]))
        return self._initializer(name, self._random.uniform(-bound, bound, shape).astype(np.float32))

    def _initializer(self, name: str, value: Array) -> ir.Value:
        parameter = add_initializer(self._model, f"{self._name}.{name}", value)
        mark_added(parameter, self._block.name)
        return parameter

    def _group_norm(self, x: ir.Value, name: str, scale: float) -> ir.Value:
        """Groups of channels as the channels of an InstanceNormalization, then a scale and a shift for each channel."""
        channels, height, width = sizes(x)
        groups = channels // channels_per_group(channels)
        per_group = channels // groups * height * width
        to_groups = self._initializer(f"{name}.groups", np.array([0, groups, -1], np.int64))
        back = self._initializer(f"{name}.channels", np.array([0, channels, height, width], np.int64))
        ones = self._initializer(f"{name}.ones", np.ones(groups, np.float32))
        zeros = self._initializer(f"{name}.zeros", np.zeros(groups, np.float32))
        y = self._add("Reshape", [x, to_groups], f"{name}.grouped", [groups, per_group])
        y = self._add("InstanceNormalization", [y, ones, zeros], f"{name}.normal", [groups, per_group], epsilon=EPSILON)
        y = self._add("Reshape", [y, back], f"{name}.whole", [channels, height, width])
        axes = self._initializer(f"{name}.axes", np.array([1, 2], np.int64))
        for op, parameter, value in (("Mul", "weight", scale), ("Add", "bias", 0.0)):
            numbers = self._initializer(f"{name}.{parameter}", np.full(channels, value, np.float32))
            by_channel = ir.node("Unsqueeze", [numbers, axes], name=f"{self._name}/{name}.{parameter}_by_channel")
            mark_added(by_channel, self._block.name)
            made = by_channel.outputs[0]
            made.name, made.shape, made.type = by_channel.name, ir.Shape([channels, 1, 1]), numbers.type
            self._nodes.append(by_channel)
            y = self._add(op, [y, made], f"{name}.{op.lower()}", [channels, height, width])
        return y

    def _upsample(self, x: ir.Value, old: Sequence[int], new: Sequence[int]) -> ir.Value:
        """Bilinear, with half-pixel centres."""
        if list(old) == list(new):
            return x
        channels = sizes(x)[0]
        scales = np.array([1, 1, *map(resize_scale, old, new)], np.float32)
        inputs = [x, None, self._initializer("scales", scales)]
        return self._add("Resize", inputs, "upsample", [channels, *new], mode="linear",
                         coordinate_transformation_mode="half_pixel")  # fmt: skip
