"""The lite residual module computes the paper's formula, and joins a block without changing anything at first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn
from torch.nn import functional

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.onnx_graph import constant, set_initializer, sizes
from tinytl_edge.export.resizing import resize_scale
from tinytl_edge.export.sources.backbones import InvertedResidualNetwork, network_spec
from tinytl_edge.export.sources.torch_module import from_module
from tinytl_edge.export.tinytl.blocks import Block, find_blocks
from tinytl_edge.export.tinytl.lite_residual import attach_lite_residuals, convolution_groups, kernel_size
from tinytl_edge.runtime.errors import UsageError

IMAGE = 256  # for which the kernel rule takes a map's own size


def beside_nothing(
    into: int, out: int, stride: int, size: tuple[int, int], image: int = IMAGE
) -> tuple[ir.Model, list[str]]:
    """A graph in which a lite residual module stands beside a block that gives zeros; the names of its parameters.

    The graph is one of a network on an image of `image` pixels, of which the block's input is cut out.
    """
    block = nn.Conv2d(into, out, 3, stride, 1)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    model, _ = from_module(_OneBlock(block, into, size), (into, image, image))
    conv = next(node for node in model.graph if node.op_type == "Conv")
    before = set(model.graph.initializers)
    attach_lite_residuals(model, [Block("block", conv.inputs[0], conv.outputs[0])], seed=0)  # type: ignore[arg-type]
    return model, [n for n in model.graph.initializers if n not in before and n.endswith((".weight", ".bias"))]


class _OneBlock(nn.Module):
    """The block's input is the upper left corner of the image; all of its output comes out."""

    def __init__(self, block: nn.Module, channels: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.block, self.size = block, size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.block(x[:, :, : self.size[0], : self.size[1]])
        return y.flatten(1)


def train_a_little(model: ir.Model, names: list[str]) -> dict[str, torch.Tensor]:
    """Give every parameter of the modules a value of its own."""
    random = np.random.default_rng(0)
    for name in names:
        value = model.graph.initializers[name]
        array = constant(value)
        assert array is not None
        set_initializer(value, random.normal(0.1, 0.5, array.shape).astype(np.float32))
    return {name: torch.from_numpy(_array(model, name)).double() for name in names}


def _array(model: ir.Model, name: str) -> np.ndarray[Any, Any]:
    array = constant(model.graph.initializers[name])
    assert array is not None
    return array.copy()


# The module ---------------------------------------------------------------------------------------------


# in, out, kernel, stride, input size, output size; groups of the convolution; channels a group of both norms
MODULES = [
    (8, 16, 5, 2, (16, 16), (8, 8), 2, (8, 8)),
    (16, 24, 5, 1, (18, 18), (18, 18), 2, (8, 8)),
    (24, 24, 3, 1, (7, 7), (7, 7), 2, (8, 8)),  # an odd map: the pooling leaves the last row out
    (16, 40, 3, 2, (10, 14), (5, 7), 2, (8, 8)),
    (32, 8, 1, 2, (2, 2), (1, 1), 2, (8, 8)),
    (8, 8, 1, 2, (4, 4), (2, 2), 2, (8, 8)),
    (12, 20, 3, 1, (6, 6), (6, 6), 2, (6, 5)),  # 8 does not divide these
    (7, 9, 3, 1, (6, 6), (6, 6), 1, (7, 3)),  # an odd number has no two groups
    (2, 3, 3, 2, (7, 7), (4, 4), 2, (2, 3)),
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
    model, names = beside_nothing(into, out, stride, size)
    fresh = EagerNetwork(model).double()
    x = torch.randn(3, into, IMAGE, IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert not fresh(x).any()  # a fresh module gives exactly nothing
    of = {name.removeprefix("block.lite_residual."): value for name, value in train_a_little(model, names).items()}

    y = x[:, :, : size[0], : size[1]]
    if kernel == 1:
        y = y.mean((2, 3), keepdim=True)
        stride = 1
    else:
        y = y[:, :, : size[0] // 2 * 2, : size[1] // 2 * 2]
        y = (y[:, :, ::2, ::2] + y[:, :, 1::2, ::2] + y[:, :, ::2, 1::2] + y[:, :, 1::2, 1::2]) / 4
    pieces, filters = y.chunk(groups, 1), of["conv.weight"].chunk(groups, 0)
    y = torch.cat([functional.conv2d(p, f, stride=stride, padding=kernel // 2) for p, f in zip(pieces, filters)], 1)
    y = group_norm(y, per_group[0], of["norm1.weight"], of["norm1.bias"])
    y = torch.where(y > 0, y, 0)
    y = torch.einsum("oc,nchw->nohw", of["project.weight"][:, :, 0, 0], y)
    y = group_norm(y, per_group[1], of["norm2.weight"], of["norm2.bias"])
    y = bilinear(y, out_size)

    network = EagerNetwork(model).double()
    torch.testing.assert_close(network(x), y.flatten(1), rtol=1e-6, atol=1e-6)
    # The batch is its samples one by one: nothing is shared between them.
    torch.testing.assert_close(network(x[1:2]), y[1:2].flatten(1), rtol=1e-6, atol=1e-6)


def test_parameters_of_a_module() -> None:
    model, names = beside_nothing(16, 24, 2, (16, 16))
    assert {name.removeprefix("block.lite_residual."): _array(model, name).shape for name in names} == {
        "conv.weight": (16, 8, 5, 5),
        "norm1.weight": (16,),
        "norm1.bias": (16,),
        "project.weight": (24, 16, 1, 1),
        "norm2.weight": (24,),
        "norm2.bias": (24,),
    }
    assert {name for name in names if not _array(model, name).any()} == {
        f"block.lite_residual.{zeros}" for zeros in ("norm1.bias", "norm2.weight", "norm2.bias")
    }


@pytest.mark.parametrize(
    ("channels", "groups"), [(3, 1), (16, 2), (24, 2), (320, 2), (512, 4), (1024, 8), (2048, 16), (331, 331)]
)
def test_groups_of_the_convolution(channels: int, groups: int) -> None:
    assert convolution_groups(channels) == groups


def test_the_seed_decides_the_weights() -> None:
    def weights(seed: int) -> np.ndarray[Any, Any]:
        model, _ = from_module(Net(), (3, 32, 32))
        attach_lite_residuals(model, find_blocks(model), seed)
        return _array(model, next(n for n in model.graph.initializers if n.endswith("lite_residual.conv.weight")))

    assert np.array_equal(weights(1), weights(1)) and not np.array_equal(weights(1), weights(2))


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
    model, _ = from_module(InvertedResidualNetwork(spec, 2, resolution), (3, resolution, resolution))
    blocks = find_blocks(model)
    assert [block.name for block in blocks] == [f"blocks.{i}" for i in range(1, len(spec.blocks))]
    attach_lite_residuals(model, blocks, 0)
    shapes = [_array(model, f"{block.name}.lite_residual.conv.weight").shape for block in blocks]
    assert [shape[2:] for shape in shapes] == [(kernel, kernel) for kernel in KERNELS]
    assert [shape[0] for shape in shapes] == [block.out_channels for block in spec.blocks[:-1]]
    assert all(shape[0] == 2 * shape[1] for shape in shapes)
    projects = [_array(model, f"{block.name}.lite_residual.project.weight").shape[0] for block in blocks]
    assert projects == [block.out_channels for block in spec.blocks[1:]]
    expected, size = [], resolution // 2
    for described in spec.blocks[1:]:
        size //= described.stride
        expected.append((size, size))
    assert [sizes(block.leaving)[1:] for block in blocks] == expected


def test_kernels_do_not_depend_on_the_resolution() -> None:
    strides = [block.stride for block in network_spec("proxylessnas-mobile").blocks]
    for resolution in range(96, 321):
        maps, size = [], math.ceil(resolution / 2)
        for stride in strides:
            maps.append(size)
            size = math.ceil(size / stride)
        assert [kernel_size(size, resolution) for size in maps[1:]] == KERNELS, resolution


# Joining a block ----------------------------------------------------------------------------------------


class Unit(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(into, 2 * out, 3, stride, 1), nn.BatchNorm2d(2 * out)
        self.project = nn.Conv2d(2 * out, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.project(functional.hardswish(self.norm(self.conv(x))))
        return y + x if y.shape == x.shape else y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Unit(3, 8, 2)
        self.layers = nn.Sequential(Unit(8, 16, 2), Unit(16, 16, 1), Unit(16, 24, 1))
        self.fc = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.layers(self.stem(x)).mean((2, 3)))
        return logits


def test_attaching_changes_no_output_and_no_name() -> None:
    torch.manual_seed(0)
    model, _ = from_module(Net(), (3, 32, 32))
    names, blocks = list(model.graph.initializers), find_blocks(model)
    assert [block.name for block in blocks] == ["layers.0", "layers.1"]  # behind the last no convolution stands
    x = torch.randn(2, 3, 32, 32)
    before = EagerNetwork(model)(x)
    attach_lite_residuals(model, blocks, 0)
    assert torch.equal(EagerNetwork(model)(x), before)
    assert list(model.graph.initializers)[: len(names)] == names


def test_a_trained_module_adds_what_it_gives_for_the_blocks_input() -> None:
    torch.manual_seed(0)
    module = Net().eval()
    model, _ = from_module(module, (3, 32, 32))
    attach_lite_residuals(model, find_blocks(model)[1:2], 0)
    names = [n for n in model.graph.initializers if ".lite_residual." in n and n.endswith((".weight", ".bias"))]
    of = {name.rpartition("lite_residual.")[2]: v for name, v in train_a_little(model, names).items()}
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        module.double()
        before = module.layers[0](module.stem(x))
        y = functional.conv2d(functional.avg_pool2d(before, 2), of["conv.weight"], padding=2, groups=2)
        y = functional.relu(functional.group_norm(y, 2, of["norm1.weight"], of["norm1.bias"]))
        y = functional.group_norm(functional.conv2d(y, of["project.weight"]), 2, of["norm2.weight"], of["norm2.bias"])
        lite = functional.interpolate(y, scale_factor=2, mode="bilinear")
        expected = module.fc(module.layers[2](module.layers[1](before) + lite).mean((2, 3)))
        torch.testing.assert_close(EagerNetwork(model).double()(x), expected, rtol=1e-5, atol=1e-6)


def test_a_module_sees_what_the_one_before_has_added() -> None:
    """A block's input is the sum of the block before and its module (Cai et al., equation 3)."""
    model, _ = from_module(Net(), (3, 32, 32))
    attach_lite_residuals(model, find_blocks(model), 0)
    made = {str(node.name): node for node in model.graph}
    (source, *_), (total,) = made["layers.1.lite_residual/pool"].inputs, made["layers.0.lite_residual/sum"].outputs
    assert source is total


def test_gradients_reach_a_fresh_module() -> None:
    """Its last scale starts at zero, so only that and the shift behind it move at first."""
    model, _ = from_module(Net(), (3, 32, 32))
    attach_lite_residuals(model, find_blocks(model)[:1], 0)
    names = [n for n in model.graph.initializers if ".lite_residual." in n and n.endswith((".weight", ".bias"))]
    network = EagerNetwork(model, names)
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    gradients = {name: network.parameters_by_name[name].grad for name in names}
    assert {name.rpartition("lite_residual.")[2] for name, g in gradients.items() if g is not None and g.any()} == {
        "norm2.weight", "norm2.bias",
    }  # fmt: skip


def test_a_network_without_blocks_is_refused() -> None:
    model, _ = from_module(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4)), (3, 8, 8))
    with pytest.raises(UsageError, match="no blocks"):
        attach_lite_residuals(model, find_blocks(model), 0)


@pytest.mark.parametrize("size", [(1, 5), (3, 7), (6, 14), (5, 9), (13, 28)])
def test_scales_round_to_the_size_in_either_precision(size: tuple[int, int]) -> None:
    for old in range(1, 40):
        for new in range(old, 120):
            scale = resize_scale(old, new)
            assert int(scale * np.float32(old)) == int(float(scale) * old) == new
    model, _ = beside_nothing(4, 4, 1, (2 * size[1], 2 * size[1]))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
