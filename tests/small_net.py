"""A small network whose every ReLU6 and ReLU is far from its kinks, for whatever image it sees.

BatchNorm normalises each channel to deviations of about 0.1 around -3, 3 or 9: below, inside and above ReLU6's
linear range. So gradients are smooth by construction, and no tolerance has to forgive a kink.
"""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import torch
from torch import nn

from tinytl_edge.backbones import BlockSpec, InvertedResidualNetwork, NetworkSpec
from tinytl_edge.lite_residual import ATTRIBUTE, attach_lite_residuals
from tinytl_edge.transfer import choose_trainables, fold_batchnorm, uses_lite_residuals

SPEC = NetworkSpec(
    name="small",
    stem_channels=8,
    blocks=(
        BlockSpec(3, 1, 8, 1, False),
        BlockSpec(5, 3, 16, 2, False),
        BlockSpec(3, 3, 16, 1, True),
        BlockSpec(3, 2, 24, 2, False),
    ),
    head_channels=64,  # two chunks
    resolution=32,
    mean=(127.5,) * 3,
    std=(127.5,) * 3,
    same_padding=True,
    dropout=0.25,
)
CLASSES = 5


def images(count: int, seed: int = 0, size: int = SPEC.resolution) -> torch.Tensor:
    """float32 [count, 3, size, size]."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def smooth_network(method: str) -> InvertedResidualNetwork:
    """Prepared for `method`, float32, in evaluation mode."""
    torch.manual_seed(1)
    network = InvertedResidualNetwork(SPEC, CLASSES, SPEC.resolution)
    if uses_lite_residuals(method):
        attach_lite_residuals(network, [f"blocks.{i}" for i in range(1, len(SPEC.blocks))], images(1))
        for module in network.modules():
            lite = module._modules.get(ATTRIBUTE)
            if lite is not None:  # as if trained a little, and with ReLU's inputs around -1 or 1
                nn.init.normal_(lite.norm2.weight, std=0.02)
                nn.init.constant_(lite.norm1.weight, 0.1)
                with torch.no_grad():
                    lite.norm1.bias.copy_(_spread(lite.norm1.bias.numel(), (-1.0, 1.0)))
    nn.init.normal_(network.classifier.weight, std=0.2)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics of one pass, taken as they are
            nn.init.constant_(module.weight, 0.1)
            with torch.no_grad():
                module.bias.copy_(_spread(module.bias.numel(), (-3.0, 3.0, 3.0, 9.0)))
    with torch.no_grad():
        network(images(64, seed=7))
    network.eval()
    choose_trainables(network, method, "classifier")
    fold_batchnorm(network, images(1))
    return network


def _spread(count: int, values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([values[index % len(values)] for index in range(count)])


def least_distance_to_kink(network: nn.Module, x: torch.Tensor) -> float:
    """How near any input of a ReLU6 or ReLU comes to where its slope changes."""
    least = [float("inf")]

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        for kink in (0.0, 6.0) if isinstance(module, nn.ReLU6) else (0.0,):
            least.append(float((inputs[0] - kink).abs().min()))

    handles = [m.register_forward_hook(look) for m in network.modules() if isinstance(m, (nn.ReLU6, nn.ReLU))]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return min(least)


def run_onnx(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """All outputs of a model, by onnxruntime where it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnxruntime-training imports more than it needs
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feeds)
