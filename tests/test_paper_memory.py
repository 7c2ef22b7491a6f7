"""The paper's own figures for ProxylessNAS-Mobile, and its rules on networks small enough to count by hand."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tinytl_edge.backbones import BlockSpec, InvertedResidualNetwork, NetworkSpec, network_spec
from tinytl_edge.backbones.inverted_residual import InvertedResidual
from tinytl_edge.lite_residual import attach_lite_residuals
from tinytl_edge.paper_memory import PaperMemory, paper_memory
from tinytl_edge.transfer import METHODS, choose_trainables


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


# The paper's figures ------------------------------------------------------------------------------------


@functools.cache
def counted(resolution: int) -> dict[str, PaperMemory]:
    """By method; the lite residual modules are there for every method, as in the paper's count."""
    spec = network_spec("proxylessnas-mobile")
    model = InvertedResidualNetwork(spec, 102, resolution).eval()
    image = torch.zeros(1, 3, resolution, resolution)
    attach_lite_residuals(model, [f"blocks.{i}" for i in range(1, len(spec.blocks))], image)
    found = {}
    for method in METHODS:
        choose_trainables(model, method, "classifier")
        found[method] = paper_memory(model, image)
    return found


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
    assert all(counted(320)[m].parameters == counted(224)[m].parameters for m in METHODS)


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


IMAGE = torch.zeros(1, 3, 8, 8)
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
    model = small()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained
    memory = paper_memory(model, IMAGE)
    assert memory.activations == peak
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert memory.parameters == sum(PARAMETERS) + 3 * sum(sizes[name] for name in trained)


@pytest.mark.parametrize("smooth", [nn.Sigmoid(), nn.Tanh(), nn.Hardswish(), nn.Hardsigmoid(), nn.SiLU()])
def test_smooth_activations_keep_their_input(smooth: nn.Module) -> None:
    def peak(activation: nn.Module) -> float:
        return paper_memory(nn.Sequential(nn.Conv2d(3, 4, 1), activation, nn.Conv2d(4, 8, 1)), IMAGE).activations

    assert peak(smooth) == 768 + 1024 + 1024 + 2048
    assert peak(nn.ReLU()) == 768 + 1024 / 32 + 1024 + 2048


@pytest.mark.parametrize("skip", [False, True])
def test_a_skip_connection_holds_the_block_s_input(skip: bool) -> None:
    spec = NetworkSpec("tiny", 4, (), 8, 8, (0.0,) * 3, (1.0,) * 3)
    block = InvertedResidual(spec, BlockSpec(3, 1, 4, 1, skip), 4, 8).eval()
    model = nn.Sequential(block, nn.Conv2d(4, 1, 1))
    for parameter in model.parameters():
        parameter.requires_grad = False
    # 4 x 64 numbers: the 1x1 convolution has 1024 bytes in and out, inside the block.
    assert paper_memory(model, torch.zeros(1, 4, 8, 8)).activations == 1024 + 1024 + 1024 * skip
    # Behind the block its input is gone: 1024 in, 8192 out.
    model[1] = nn.Conv2d(4, 32, 1).requires_grad_(False)
    assert paper_memory(model, torch.zeros(1, 4, 8, 8)).activations == 1024 + 8192


def test_total_is_for_a_batch() -> None:
    memory = PaperMemory(activations=1000.5, parameters=300)
    assert (memory.total(1), memory.total(8)) == (1300.5, 8304.0)


def test_counting_leaves_the_model_as_it_was() -> None:
    spec = network_spec("mobilenet-v2-0.1")
    model = InvertedResidualNetwork(spec, 2, 32).eval()
    choose_trainables(model, "bias", "classifier")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    first = paper_memory(model, torch.zeros(1, 3, 32, 32))
    assert paper_memory(model, torch.zeros(1, 3, 32, 32)) == first
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert all(p.grad is None for p in model.parameters())
