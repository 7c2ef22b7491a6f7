"""A small network whose every ReLU6 and ReLU is far from its kinks, for whatever image it sees.

BatchNorm normalises each channel to deviations of about 0.1 around -3, 3 or 9: below, inside and above ReLU6's
linear range. So gradients are smooth by construction, and no tolerance has to forgive a kink.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.onnx_graph import constant, set_initializer
from tinytl_edge.export.sources.backbones import BlockSpec, InvertedResidualNetwork, NetworkSpec
from tinytl_edge.export.sources.torch_module import from_module
from tinytl_edge.export.step.importers import import_network
from tinytl_edge.export.step.ir import Graph, Shape
from tinytl_edge.export.tinytl.dropout import DropoutInput
from tinytl_edge.export.tinytl.parameters import find_parameters
from tinytl_edge.export.tinytl.transform import transform

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


@dataclass
class SmallNetwork:
    """A network graph that was prepared, and what of it trains."""

    model: ir.Model
    dropouts: tuple[DropoutInput, ...]
    trainable: dict[str, str]

    @property
    def frozen(self) -> list[str]:
        """The parameters that do not train."""
        return [name for name in find_parameters(self.model) if name not in self.trainable]

    def graph(self, stored_image: Shape | None = None) -> Graph:
        """The compiler's."""
        return import_network(self.model, self.trainable, stored_image)

    def exact(self) -> EagerNetwork:
        """In float64, to compare with."""
        return EagerNetwork(self.model, self.trainable).double()


def prepared(module: nn.Module, method: str, size: int = SPEC.resolution) -> SmallNetwork:
    """A torch module for `method`, as `prepare` does it."""
    model, dropouts = from_module(module, (3, size, size))
    return SmallNetwork(model, tuple(dropouts), transform(model, method).trainable)


@lru_cache
def _smooth_model(classes: int) -> tuple[ir.Model, tuple[DropoutInput, ...]]:
    torch.manual_seed(1)
    module = InvertedResidualNetwork(SPEC, classes, SPEC.resolution)
    nn.init.normal_(module.classifier.weight, std=0.2)
    module.train()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # statistics of one pass, taken as they are
            nn.init.constant_(layer.weight, 0.1)
            with torch.no_grad():
                layer.bias.copy_(_spread(layer.bias.numel(), (-3.0, 3.0, 3.0, 9.0)))
    with torch.no_grad():
        module(images(64, seed=7))
    model, dropouts = from_module(module, (3, SPEC.resolution, SPEC.resolution))
    return model, tuple(dropouts)


def smooth_network(method: str, classes: int = CLASSES) -> SmallNetwork:
    """Prepared for `method`, float32."""
    model, dropouts = _smooth_model(classes)
    model = model.clone()
    network = SmallNetwork(model, dropouts, transform(model, method).trainable)
    random = np.random.default_rng(2)
    for name, value in network.model.graph.initializers.items():
        array = constant(value)
        assert array is not None
        # Lite residual modules as if trained a little, and with ReLU's inputs around -1 or 1.
        if name.endswith(".norm2.weight"):
            set_initializer(value, random.normal(0, 0.02, array.shape).astype(np.float32))
        elif name.endswith(".norm1.weight"):
            set_initializer(value, np.full_like(array, 0.1))
        elif name.endswith(".norm1.bias"):
            set_initializer(value, _spread(array.size, (-1.0, 1.0)).numpy())
    return network


def _spread(count: int, values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([values[index % len(values)] for index in range(count)])
