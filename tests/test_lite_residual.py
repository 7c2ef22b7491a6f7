"""The lite residual module computes the paper's formula, and joins a block without changing anything at first."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from tinytl_edge.backbones import InvertedResidualNetwork, network_spec
from tinytl_edge.lite_residual import ATTRIBUTE, LiteResidual, attach_lite_residuals, kernel_size
from tinytl_edge.runtime.errors import UsageError


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def train_a_little(model: nn.Module) -> None:
    """Give every parameter of every lite residual module a value of its own."""
    for name, parameter in model.named_parameters():
        if ATTRIBUTE in name.split(".") or isinstance(model, LiteResidual):
            nn.init.normal_(parameter, mean=0.1, std=0.5)


# The module ---------------------------------------------------------------------------------------------


# in, out, kernel, stride, input size, output size; groups of the convolution; channels a group of both norms
MODULES = [
    (8, 16, 5, 2, (16, 16), (8, 8), 2, (8, 8)),
    (16, 24, 5, 1, (14, 14), (14, 14), 2, (8, 8)),
    (24, 24, 3, 1, (7, 7), (7, 7), 2, (8, 8)),  # an odd map: the pooling leaves the last row out
    (16, 40, 3, 2, (10, 14), (5, 7), 2, (8, 8)),
    (32, 8, 1, 2, (2, 2), (1, 1), 2, (8, 8)),
    (32, 8, 1, 1, (1, 1), (1, 1), 2, (8, 8)),
    (8, 8, 1, 2, (6, 4), (3, 2), 2, (8, 8)),
    (12, 20, 3, 1, (6, 6), (6, 6), 2, (6, 5)),  # 8 does not divide these
    (7, 9, 3, 1, (6, 6), (6, 6), 1, (7, 3)),  # an odd number has no two groups
    (11, 13, 1, 1, (1, 1), (1, 1), 1, (11, 13)),  # nor have these any but all: one alone would be lost
    (2, 3, 3, 2, (5, 5), (3, 3), 2, (2, 3)),
]


def bilinear(y: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pixels are areas: output pixel i lies at (i + 1/2) * in / out - 1/2, clamped to the map."""

    def matrix(into: int, out: int) -> torch.Tensor:
        weights = torch.zeros(out, into, dtype=y.dtype)
        for i in range(out):
            position = max((i + 0.5) * into / out - 0.5, 0.0)
            low = min(int(position), into - 1)
            high = min(low + 1, into - 1)
            weights[i, low] += 1 - (position - low)
            weights[i, high] += position - low
        return weights

    rows, columns = matrix(y.shape[2], size[0]), matrix(y.shape[3], size[1])
    return torch.einsum("ph,nchw,qw->ncpq", rows, y, columns)


def group_norm(y: torch.Tensor, per_group: int, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    pieces = []
    for piece in y.split(per_group, dim=1):
        mean = piece.mean((1, 2, 3), keepdim=True)
        variance = ((piece - mean) ** 2).mean((1, 2, 3), keepdim=True)
        pieces.append((piece - mean) / torch.sqrt(variance + 1e-5))
    return torch.cat(pieces, 1) * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_the_formula_step_by_step(case: Any) -> None:
    into, out, kernel, stride, size, out_size, groups, per_group = case
    module = LiteResidual(into, out, kernel, stride, out_size).double()
    train_a_little(module)
    x = torch.randn(3, into, *size, dtype=torch.float64)

    if kernel == 1:
        y = x.mean((2, 3), keepdim=True)
        stride = 1
    else:
        y = x[:, :, : size[0] // 2 * 2, : size[1] // 2 * 2]
        y = (y[:, :, ::2, ::2] + y[:, :, 1::2, ::2] + y[:, :, ::2, 1::2] + y[:, :, 1::2, 1::2]) / 4
    pieces, filters = y.chunk(groups, 1), module.conv.weight.chunk(groups, 0)
    y = torch.cat([functional.conv2d(p, f, stride=stride, padding=kernel // 2) for p, f in zip(pieces, filters)], 1)
    y = group_norm(y, per_group[0], module.norm1.weight, module.norm1.bias)
    y = torch.where(y > 0, y, 0)
    y = torch.einsum("oc,nchw->nohw", module.project.weight[:, :, 0, 0], y)
    y = group_norm(y, per_group[1], module.norm2.weight, module.norm2.bias)
    y = bilinear(y, out_size)

    assert y.shape == (3, out, *out_size)
    torch.testing.assert_close(module(x), y, rtol=1e-9, atol=1e-9)
    # The batch is its samples one by one: nothing is shared between them.
    torch.testing.assert_close(module(x[1:2]), y[1:2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_a_fresh_module_gives_exactly_nothing(case: Any) -> None:
    into, out, kernel, stride, size, out_size, *_ = case
    module = LiteResidual(into, out, kernel, stride, out_size)
    assert torch.equal(module(torch.randn(1, into, *size)), torch.zeros(1, out, *out_size))
    assert {name for name, p in module.named_parameters() if not p.any()} == {
        "norm1.bias",
        "norm2.weight",
        "norm2.bias",
    }
    assert torch.equal(module.norm1.weight, torch.ones(into))


def test_parameters_of_a_module() -> None:
    module = LiteResidual(16, 24, 5, 2, (4, 4))
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "conv.weight": (16, 8, 5, 5),
        "norm1.weight": (16,),
        "norm1.bias": (16,),
        "project.weight": (24, 16, 1, 1),
        "norm2.weight": (24,),
        "norm2.bias": (24,),
    }


def test_where_the_map_is_one_pixel_the_pooling_is_global() -> None:
    module = LiteResidual(8, 8, 1, 1, (4, 4))
    train_a_little(module)
    x = torch.randn(1, 8, 4, 4)
    y = module(x)
    assert torch.equal(y, y[:, :, :1, :1].expand_as(y))
    torch.testing.assert_close(module(x.flip(2, 3)), y)


# The kernel rule ----------------------------------------------------------------------------------------

# Nominal maps of ProxylessNAS-Mobile's blocks 1 to 19: 128 behind the stem, halved by blocks 1, 3, 7 and 15.
NOMINAL = [128] + [64] * 2 + [32] * 4 + [16] * 8 + [8] * 4
KERNELS = [5 if nominal >= 16 else 3 for nominal in NOMINAL]  # of 16 a module sees 8, of 8 it sees 4


@pytest.mark.parametrize(
    ("nominal", "kernel"),
    [(128, 5), (64, 5), (32, 5), (16, 5), (8, 3), (4, 1), (2, 1), (1, 1)],
)
def test_the_kernel_fits_half_the_nominal_map(nominal: int, kernel: int) -> None:
    assert kernel_size(nominal, 256) == kernel


def test_a_map_that_lost_its_rim_has_the_same_nominal_size() -> None:
    """Without padding an image of 224 pixels gives maps of 111, 55, 27, 13 and 6, or a little less."""
    assert [kernel_size(size, 224) for size in (111, 54, 26, 12, 5)] == [5, 5, 5, 5, 3]


def test_a_map_of_one_pixel_is_pooled_globally_whatever_its_nominal_size() -> None:
    assert kernel_size(1, 32) == 1
    assert kernel_size(2, 64) == 3


@pytest.mark.parametrize("resolution", [96, 224, 320])
def test_every_block_of_proxylessnas_mobile(resolution: int) -> None:
    spec = network_spec("proxylessnas-mobile")
    model = InvertedResidualNetwork(spec, 2, resolution).eval()
    names = [f"blocks.{i}" for i in range(1, len(spec.blocks))]
    attach_lite_residuals(model, names, torch.zeros(1, 3, resolution, resolution))
    modules = [model.get_submodule(f"{name}.{ATTRIBUTE}") for name in names]
    assert [m.conv.kernel_size[0] for m in modules] == KERNELS
    assert [m.conv.padding[0] for m in modules] == [kernel // 2 for kernel in KERNELS]
    assert [m.conv.stride[0] for m in modules] == [block.stride for block in spec.blocks[1:]]
    assert [m.conv.out_channels for m in modules] == [block.out_channels for block in spec.blocks[:-1]]
    assert [m.project.out_channels for m in modules] == [block.out_channels for block in spec.blocks[1:]]
    sizes, size = [], resolution // 2
    for block in spec.blocks[1:]:
        size //= block.stride
        sizes.append((size, size))
    assert [m.out_size for m in modules] == sizes
    assert all(isinstance(m.pool, nn.AvgPool2d) and m.conv.groups == 2 for m in modules)
    assert not hasattr(model.blocks[0], ATTRIBUTE)


def test_kernels_do_not_depend_on_the_resolution() -> None:
    strides = [block.stride for block in network_spec("proxylessnas-mobile").blocks]
    for resolution in range(96, 321):
        maps, size = [], math.ceil(resolution / 2)
        for stride in strides:
            maps.append(size)
            size = math.ceil(size / stride)
        assert [kernel_size(size, resolution) for size in maps[1:]] == KERNELS, resolution


# Joining a block ----------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, 3, stride, 1)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.hardswish(self.norm(self.conv(x)))


class Net(nn.Module):
    """Blocks of several kinds: a module, a Sequential, a nested Sequential, a bare convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.first = Block(8, 16, 2)
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.third = nn.Sequential(Block(16, 24, 1), nn.Sequential(Block(24, 24, 2), nn.ReLU()))
        self.fourth = nn.Conv2d(24, 15, 3, padding=1)
        self.never = Block(8, 8, 1)
        self.fc = nn.Linear(15, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fourth(self.third(self.second(self.first(self.stem(x)))))
        return self.fc(x.mean((2, 3)))


BLOCKS = ["first", "second", "third", "third.1", "fourth"]


def test_attaching_changes_no_output_and_no_name() -> None:
    model = Net().eval()
    x = torch.randn(2, 3, 32, 32)
    before, names = model(x), [name for name, _ in model.named_parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert attach_lite_residuals(model, BLOCKS, x[:1]) == BLOCKS
    assert torch.equal(model(x), before)
    assert [n for n, _ in model.named_parameters() if ATTRIBUTE not in n.split(".")] == names
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    owners = {n.rpartition(f".{ATTRIBUTE}.")[0] for n in after if ATTRIBUTE in n.split(".")}
    assert owners == set(BLOCKS)


@pytest.mark.parametrize("name", ["proxylessnas-mobile", "efficientnet-lite0"])
def test_attaching_to_a_backbone_changes_no_output_and_no_name(name: str) -> None:
    spec = network_spec(name)
    model = InvertedResidualNetwork(spec, 5, 64).eval()
    x = torch.randn(2, 3, 64, 64)
    before, names = model(x), [name for name, _ in model.named_parameters()]
    attach_lite_residuals(model, [f"blocks.{i}" for i in range(1, len(spec.blocks))], x[:1])
    assert torch.equal(model(x), before)
    assert [n for n, _ in model.named_parameters() if ATTRIBUTE not in n.split(".")] == names


def test_a_trained_module_adds_what_it_gives_for_the_block_s_input() -> None:
    plain = Net().eval()
    model = copy.deepcopy(plain)
    x = torch.randn(2, 3, 32, 32)
    attach_lite_residuals(model, BLOCKS, x)
    train_a_little(model)

    def lite(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return model.get_submodule(f"{name}.{ATTRIBUTE}")

    with torch.no_grad():
        y = plain.stem(x)
        y = plain.first(y) + lite("first")(y)
        y = plain.second(y) + lite("second")(y)
        inner = plain.third[0](y)
        y = plain.third[1](inner) + lite("third.1")(inner) + lite("third")(y)
        y = plain.fourth(y) + lite("fourth")(y)
        torch.testing.assert_close(model(x), plain.fc(y.mean((2, 3))))


def test_a_copy_has_modules_of_its_own() -> None:
    model = Net().eval()
    x = torch.randn(1, 3, 32, 32)
    attach_lite_residuals(model, BLOCKS, x)
    other = copy.deepcopy(model)
    before = model(x)
    train_a_little(other)
    assert torch.equal(model(x), before)
    assert not torch.allclose(other(x), before)
    reloaded = Net().eval()
    attach_lite_residuals(reloaded, BLOCKS, x)
    reloaded.load_state_dict(other.state_dict())
    assert torch.equal(reloaded(x), other(x))


def test_gradients_reach_a_fresh_module() -> None:
    """Its last scale starts at zero, so only that and the shift behind it move at first."""
    model = Net().eval()
    x = torch.randn(2, 3, 32, 32)
    attach_lite_residuals(model, ["first"], x)
    model(x).square().sum().backward()
    lite = model.first.get_submodule(ATTRIBUTE)
    moving = {name for name, p in lite.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moving == {"norm2.weight", "norm2.bias"}


class TwoInputs(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Tuple(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (x,)


class Resize(nn.Module):
    def __init__(self, *size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(x, size=self.size)


class Doubled(nn.Sequential):
    """Runs whatever it contains, in an order of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = x + layer(x)
        return x


class Around(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block(x, x) if isinstance(self.block, TwoInputs) else self.block(x)
        return y[0] if isinstance(y, tuple) else y


def test_a_block_that_hands_on_its_input_leaves_it_as_it_is() -> None:
    model = Around(nn.Identity())
    x = torch.randn(2, 4, 8, 8)
    attach_lite_residuals(model, ["block"], x)
    train_a_little(model)
    before = x.clone()
    y = model(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(y, x + model.block.get_submodule(ATTRIBUTE)(x))


NOT_4D = r"'block' cannot have a lite residual module: it must map one \[N, C, H, W\] tensor to another"


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        (TwoInputs(), NOT_4D),
        (Tuple(), NOT_4D),
        (nn.Flatten(), NOT_4D),
        (nn.Upsample(scale_factor=2), "it maps 8 x 8 to 16 x 16, which is no one stride"),
        (Resize(9, 9), "it maps 8 x 8 to 9 x 9"),
        (Resize(8, 15), "it maps 8 x 8 to 8 x 15"),
        (nn.MaxPool2d((2, 1)), "it maps 8 x 8 to 4 x 8, which is no one stride"),
        (nn.Conv2d(4, 1, 1), "'block' cannot have a lite residual module: a single channel"),
        (nn.BatchNorm2d(4), "it is a BatchNorm, name the block around it"),
        (Doubled(nn.ReLU()), "a Doubled with a forward of its own"),
    ],
)
def test_what_cannot_have_a_module(block: nn.Module, sentence: str) -> None:
    model = Around(block).eval()
    with pytest.raises(UsageError, match=sentence):
        attach_lite_residuals(model, ["block"], torch.randn(2, 4, 8, 8))


def test_a_block_that_is_not_run_cannot_have_a_module() -> None:
    with pytest.raises(UsageError, match="'never' cannot have a lite residual module"):
        attach_lite_residuals(Net().eval(), ["first", "never"], torch.randn(1, 3, 32, 32))
