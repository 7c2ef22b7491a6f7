"""Networks of inverted residual blocks (Sandler et al., MobileNetV2, CVPR 2018), built from one description.

MobileNetV2, ProxylessNAS and EfficientNet-Lite differ only in the numbers of a `NetworkSpec`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class BlockSpec:
    """One inverted residual: expand 1x1 (absent where `expand` is 1), depthwise k x k, project 1x1."""

    kernel: int
    expand: int
    out_channels: int
    stride: int
    skip: bool


@dataclass(frozen=True)
class NetworkSpec:
    """A whole classifier without its classes.

    `mean` and `std` are of pixels in 0..255, by channel: the network takes (pixel - mean) / std.
    `same_padding` pads as TensorFlow's SAME does: for stride 2 on an even size one pixel less before
    than after.
    """

    name: str
    stem_channels: int
    blocks: tuple[BlockSpec, ...]
    head_channels: int
    resolution: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    norm_eps: float = 1e-5
    same_padding: bool = False
    dropout: float = 0.2


class PaddedConv2d(nn.Conv2d):
    """A convolution without padding of its own, after `before` and `after` zeros at both spatial axes."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        groups: int,
        pads: tuple[int, int],
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
        self.pads = pads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, after = self.pads
        return super().forward(functional.pad(x, (before, after, before, after)))


def _convolution(
    spec: NetworkSpec,
    size: int,
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int,
    groups: int = 1,
) -> nn.Conv2d:
    """`size` is the input's height and width: SAME padding depends on it."""
    if spec.same_padding:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before, after = total // 2, total - total // 2
        if before != after:
            return PaddedConv2d(in_channels, out_channels, kernel, stride, groups, (before, after))
        padding = before
    else:
        padding = kernel // 2
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)


def _conv_norm(conv: nn.Conv2d, eps: float, activation: bool = True) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, norm=nn.BatchNorm2d(conv.out_channels, eps))
    if activation:
        layers["act"] = nn.ReLU6()
    return nn.Sequential(layers)


class InvertedResidual(nn.Module):
    """expand -> depthwise -> project, with the block's input added where `skip` is set."""

    def __init__(self, network: NetworkSpec, block: BlockSpec, in_channels: int, size: int) -> None:
        super().__init__()
        hidden = in_channels * block.expand
        eps = network.norm_eps
        self.skip = block.skip
        self.expand = (
            _conv_norm(_convolution(network, size, in_channels, hidden, 1, 1), eps)
            if block.expand != 1
            else nn.Identity()
        )
        depthwise = _convolution(network, size, hidden, hidden, block.kernel, block.stride, groups=hidden)
        self.depthwise = _conv_norm(depthwise, eps)
        project = _convolution(network, -(-size // block.stride), hidden, block.out_channels, 1, 1)
        self.project = _conv_norm(project, eps, activation=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


class InvertedResidualNetwork(nn.Module):
    """stem -> blocks -> head -> global average pool -> dropout -> classifier.

    Takes float32 [N, 3, resolution, resolution], normalised by the spec's mean and std; gives logits
    [N, classes].
    """

    def __init__(self, spec: NetworkSpec, classes: int, resolution: int) -> None:
        super().__init__()
        size = resolution
        stem = _convolution(spec, size, 3, spec.stem_channels, 3, 2)
        self.stem = _conv_norm(stem, spec.norm_eps)
        size = -(-size // 2)
        blocks = []
        channels = spec.stem_channels
        for block in spec.blocks:
            blocks.append(InvertedResidual(spec, block, channels, size))
            channels, size = block.out_channels, -(-size // block.stride)
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv_norm(_convolution(spec, size, channels, spec.head_channels, 1, 1), spec.norm_eps)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(spec.head_channels, classes)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(self.blocks(self.stem(x)))
        logits: torch.Tensor = self.classifier(self.dropout(self.pool(x).flatten(1)))
        return logits
