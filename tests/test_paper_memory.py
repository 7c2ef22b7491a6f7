"""The paper's own figures for ProxylessNAS-Mobile, and its rules on networks small enough to count by hand."""

from __future__ import annotations

import functools

import pytest
from torch import nn

from tinytl_edge.export.sources.backbones import InvertedResidualNetwork, network_spec
from tinytl_edge.export.sources.torch_module import from_module
from tinytl_edge.export.tinytl.blocks import find_blocks
from tinytl_edge.export.tinytl.lite_residual import attach_lite_residuals
from tinytl_edge.export.tinytl.methods import METHODS
from tinytl_edge.export.tinytl.paper_memory import PaperMemory, paper_memory
from tinytl_edge.export.tinytl.trainables import choose_trainables

# The paper's figures ------------------------------------------------------------------------------------


@functools.cache
def counted(resolution: int) -> dict[str, PaperMemory]:
    """By method; the lite residual modules are there for every method, as in the paper's count."""
    module = InvertedResidualNetwork(network_spec("proxylessnas-mobile"), 102, resolution)
    model, _ = from_module(module, (3, resolution, resolution))
    attach_lite_residuals(model, find_blocks(model), 0)
    classifier = ["classifier.weight", "classifier.bias"]
    return {method: paper_memory(model, choose_trainables(model, method, classifier)) for method in METHODS}


@pytest.mark.parametrize(
    ("resolution", "method", "megabytes"),
    [
        (224, "last", 30.8),
        (224, "bias", 31.7),
        (224, "lite-residual+bias", 37.1),
        (224, "norm+last", 192.4),
        (224, "full", 390.8),
        (320, "last", 57.6),
        (320, "bias", 59.3),
        (320, "lite-residual+bias", 64.7),
        (320, "norm+last", 387.5),
    ],
)
def test_totals_at_batch_8(resolution: int, method: str, megabytes: float) -> None:
    assert round(counted(resolution)[method].total(8) / 1e6, 1) == megabytes


@pytest.mark.parametrize(
    ("resolution", "batch_8", "batch_1"),
    [
        (160, 24.2, 12.3),
        (192, 30.1, 13.1),
        (224, 37.1, 13.9),
        (256, 45.2, 15.0),
        (288, 54.4, 16.1),
        (320, 64.7, 17.4),
    ],
)
def test_figure_5(resolution: int, batch_8: float, batch_1: float) -> None:
    memory = counted(resolution)["lite-residual+bias"]
    assert (round(memory.total(8) / 1e6, 1), round(memory.total(1) / 1e6, 1)) == (batch_8, batch_1)


def test_parameters() -> None:
    assert counted(224)["lite-residual+bias"].parameters == 10_633_520
    assert counted(224)["full"].parameters == 18_986_360
    assert all(
        counted(320)[m].parameters == counted(224)[m].parameters for m in METHODS if m != "auto"
    )  # which depends on it


# Counted by hand ----------------------------------------------------------------------------------------


def small() -> nn.Sequential:
    """On an image of 8 x 8: maps of 3 x 64, then 8 x 16 numbers, at 4 bytes."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),  # 768 + 512 bytes
        nn.ReLU6(),  # 512; a bit for each of 128 is 16
        nn.Conv2d(8, 8, 3, 1, 1, groups=8),  # 512 + 512 / 8
        nn.Tanh(),  # 512
        nn.GroupNorm(2, 8),  # 512
        nn.Flatten(),
        nn.Linear(128, 100),  # 512 + 400
    )


PARAMETERS = (216 + 8, 72 + 8, 8 + 8, 12_800 + 100)


@pytest.mark.parametrize(
    ("trained", "peak"),
    [
        # Nothing is kept: the first convolution needs most.
        ((), 768 + 512),
        # What only the last layer keeps comes too late to stand beside anything.
        (("6.weight", "6.bias"), 768 + 512),
        # A bias keeps a bit for each input of ReLU6 above it, and Tanh's whole input.
        (("0.bias",), 16 + 512 + 512 + 400),
        (("2.bias",), 512 + 512 + 400),
        (("4.bias",), 768 + 512),
        # A weight keeps its layer's input.
        (("4.weight",), 512 + 512 + 400),
        (("2.weight",), 512 + 512 + 512 + 400),
        (("0.weight",), 768 + 16 + 512 + 512 + 400),
        (tuple(small().state_dict()), 768 + 16 + 512 + 512 + 512 + 512 + 400),
    ],
)
def test_what_is_kept(trained: tuple[str, ...], peak: int) -> None:
    model, _ = from_module(small(), (3, 8, 8))
    memory = paper_memory(model, trained)
    assert memory.activations == peak
    sizes = {name: p.numel() for name, p in small().named_parameters()}
    assert memory.parameters == sum(PARAMETERS) + 3 * sum(sizes[name] for name in trained)


def activations(*layers: nn.Module, channels: int = 3) -> float:
    """Of layers that train, with a classifier behind them that takes less than they."""
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    model, _ = from_module(module, (channels, 8, 8))
    names = [name for name, _ in module.named_parameters() if int(name.split(".")[0]) < len(layers)]
    return paper_memory(model, names).activations


@pytest.mark.parametrize("smooth", [nn.Sigmoid(), nn.Tanh(), nn.Hardswish(), nn.Hardsigmoid(), nn.SiLU()])
def test_smooth_activations_keep_their_input(smooth: nn.Module) -> None:
    def peak(activation: nn.Module) -> float:
        return activations(nn.Conv2d(3, 4, 1), activation, nn.Conv2d(4, 8, 1))

    assert peak(smooth) == 768 + 1024 + 1024 + 2048
    assert peak(nn.ReLU()) == 768 + 1024 / 32 + 1024 + 2048


def test_total_is_for_a_batch() -> None:
    memory = PaperMemory(activations=1000.5, parameters=300)
    assert (memory.total(1), memory.total(8)) == (1300.5, 8304.0)
