"""Our backbones for tests: small ones, described ones, with values as if trained."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinytl_edge.export.sources.backbones import BlockSpec, InvertedResidualNetwork, NetworkSpec, network_spec


def build(name: str, classes: int, resolution: int | None = None) -> InvertedResidualNetwork:
    spec = network_spec(name)
    return InvertedResidualNetwork(spec, classes, resolution or spec.resolution).eval()


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Every parameter and statistic gets values of its own; activations stay of moderate size."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            fan_in = tensor[0].numel() if tensor.dim() > 1 else 4
            tensor.copy_(noise / math.sqrt(fan_in) + (1 if name.endswith("norm.weight") else 0))


def tiny(same_padding: bool = False, blocks: tuple[BlockSpec, ...] = ()) -> NetworkSpec:
    return NetworkSpec("tiny", 4, blocks, 8, 16, (0.0,) * 3, (1.0,) * 3, 1e-3, same_padding)


def json_block(kernel: int, expand: int, into: int, out: int, stride: int = 1, skip: bool = False) -> dict[str, Any]:
    return {
        "name": "MobileInvertedResidualBlock",
        "mobile_inverted_conv": {
            "name": "MBInvertedConvLayer",
            "in_channels": into,
            "out_channels": out,
            "kernel_size": kernel,
            "stride": stride,
            "expand_ratio": expand,
        },
        "shortcut": {"name": "IdentityLayer", "in_channels": into, "out_channels": into} if skip else None,
    }


def description() -> dict[str, Any]:
    """A network of three blocks, with two that do nothing among them."""
    nothing = {
        "name": "MobileInvertedResidualBlock",
        "mobile_inverted_conv": {"name": "ZeroLayer", "stride": 1},
        "shortcut": {"name": "IdentityLayer"},
    }
    return {
        "name": "ProxylessNASNets",
        "bn": {"momentum": 0.1, "eps": 0.002},
        "first_conv": {"name": "ConvLayer", "out_channels": 8, "kernel_size": 3, "stride": 2},
        "feature_mix_layer": {"name": "ConvLayer", "out_channels": 24},
        "classifier": {"out_features": 1000},
        "blocks": [
            json_block(3, 1, 8, 4),
            json_block(7, 3, 4, 6, 2),
            nothing,
            nothing,
            json_block(5, 6, 6, 6, 1, True),
        ],
    }


def written(folder: Path, content: Any, name: str = "net-w1-r48_imagenet.json") -> str:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder / name)
