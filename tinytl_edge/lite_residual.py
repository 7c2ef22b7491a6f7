"""The lite residual module of TinyTL (Cai et al., NeurIPS 2020, section 3.2) and how it joins a block."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional

from tinytl_edge.runtime.errors import UsageError

CHANNELS_PER_GROUP = 8
MAX_KERNEL = 5
NOMINAL_INPUT = 256  # the kernel rule reckons with a map of 128 behind the stem, whatever the resolution
ATTRIBUTE = "lite_residual"  # the name under which a block owns its module
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class LiteResidual(nn.Module):
    """`upsample(norm2(conv1x1(relu(norm1(conv_kxk_grouped(avgpool2(x)))))))`, added to its block's output.

    Takes the block's input [N, in_channels, H, W]; gives [N, out_channels, *out_size]. norm2's scale starts
    at zero, so that a fresh module adds nothing. Where the pooled nominal map is 1 x 1 (`kernel` is 1) the
    pooling is global.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, out_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1) if kernel == 1 else nn.AvgPool2d(2)
        self.conv = nn.Conv2d(
            in_channels,
            in_channels,
            kernel,
            stride if kernel > 1 else 1,
            padding=kernel // 2,
            groups=2 if in_channels % 2 == 0 else 1,
            bias=False,
        )
        self.norm1 = _group_norm(in_channels)
        self.act = nn.ReLU()
        self.project = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm2 = _group_norm(out_channels)
        nn.init.zeros_(self.norm2.weight)
        self.out_size = out_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm1(self.conv(self.pool(x))))
        x = self.norm2(self.project(x))
        return functional.interpolate(x, size=self.out_size, mode="bilinear", align_corners=False)


def _group_norm(channels: int) -> nn.GroupNorm:
    """8 channels a group; the largest divisor of `channels` below that where 8 does not divide them.

    Where only 1 divides them all channels are one group: on a 1 x 1 map a channel alone has nothing to be
    normalised by.
    """
    per_group = max(n for n in range(1, CHANNELS_PER_GROUP + 1) if channels % n == 0)
    return nn.GroupNorm(channels // per_group if per_group > 1 else 1, channels)


class _SequentialBlock(nn.Sequential):
    """A Sequential with its lite residual module beside the other layers, not behind them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, layer in self._modules.items():
            if name != ATTRIBUTE:
                assert layer is not None
                x = layer(x)
        return x


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


def attach_lite_residuals(model: nn.Module, names: Iterable[str], image: torch.Tensor) -> list[str]:
    """Give each named submodule a lite residual module; the model is run once on `image` to find its shapes.

    Names of existing parameters stay as they are; a block's module is its submodule `lite_residual`.

    Raises:
        UsageError: a submodule does not map one [N, C, H, W] to another or enlarges its input, has a single
            channel, or is a BatchNorm or a container with a forward of its own.
    """
    names = list(names)
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def remember(_: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if len(inputs) == 1 and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
                shapes[name] = (inputs[0].shape, output.shape)

        return module.register_forward_hook(remember)

    handles = [watch(name, model.get_submodule(name)) for name in names]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()

    for name in names:
        entering, leaving = shapes.get(name, ((), ()))
        if len(entering) != 4 or len(leaving) != 4:
            raise UsageError(
                f"'{name}' cannot have a lite residual module: it must map one [N, C, H, W] tensor to another."
            )
        stride = round(entering[2] / leaving[2])
        enlarges = leaving[2] > entering[2] or leaving[3] > entering[3]
        if enlarges or round(entering[3] / leaving[3]) != stride:
            raise UsageError(
                f"'{name}' cannot have a lite residual module: it maps {entering[2]} x {entering[3]} "
                f"to {leaving[2]} x {leaving[3]}, which is no one stride."
            )
        if min(entering[1], leaving[1]) < 2:
            raise UsageError(f"'{name}' cannot have a lite residual module: a single channel cannot be normalised.")
        kernel = kernel_size(min(entering[2:]), image.shape[2])
        block = model.get_submodule(name)
        if isinstance(block, nn.BatchNorm2d):
            raise UsageError(
                f"'{name}' cannot have a lite residual module: it is a BatchNorm, name the block around it."
            )
        if isinstance(block, _CONTAINERS):
            if type(block).forward is not nn.Sequential.forward:
                raise UsageError(
                    f"'{name}' cannot have a lite residual module: a {type(block).__name__} with a forward of "
                    "its own would run it as one of its layers; name the block around it."
                )
            block.__class__ = _SequentialBlock
        block.add_module(ATTRIBUTE, LiteResidual(entering[1], leaving[1], kernel, stride, (leaving[2], leaving[3])))
        block.register_forward_hook(_add_lite_residual)
    return names


def _add_lite_residual(block: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    lite: torch.Tensor = block.get_submodule(ATTRIBUTE)(inputs[0])
    return output + lite
