"""Every backbone is the published network: its numbers, its blocks, its padding, its description."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_nets import build, description, json_block, randomise, tiny, written
from torch import nn
from torch.nn import functional

from tinytl_edge.export.sources.backbones import NAMES, BlockSpec, InvertedResidualNetwork, NetworkSpec, network_spec
from tinytl_edge.export.sources.backbones.inverted_residual import InvertedResidual
from tinytl_edge.runtime.errors import DamagedFileError, UsageError

pytestmark = pytest.mark.usefixtures("reproducible")


# Numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("mobilenet-v2", 1000, 3_504_872),
        ("efficientnet-lite0", 1000, 4_652_008),
        ("efficientnet-lite1", 1000, 5_416_680),
        ("efficientnet-lite2", 1000, 6_092_072),
        ("proxylessnas-mobile", 102, 2_930_174),
    ],
)
def test_parameter_counts(name: str, classes: int, parameters: int) -> None:
    assert sum(p.numel() for p in build(name, classes).parameters()) == parameters


@pytest.mark.parametrize(
    ("width", "millions", "channels"),  # as published with the Keras and timm weights
    [
        ("0.35", 1.68, (16, 8, 8, 16, 24, 32, 56, 112, 1280)),
        ("0.5", 1.97, (16, 8, 16, 16, 32, 48, 80, 160, 1280)),
        ("0.75", 2.64, (24, 16, 24, 24, 48, 72, 120, 240, 1280)),
        ("1.0", 3.50, (32, 16, 24, 32, 64, 96, 160, 320, 1280)),
        ("1.4", 6.11, (48, 24, 32, 48, 88, 136, 224, 448, 1792)),
    ],
)
def test_widths_of_mobilenet(width: str, millions: float, channels: tuple[int, ...]) -> None:
    name = f"mobilenet-v2-{width}"
    spec = network_spec(name)
    stages = [spec.blocks[i].out_channels for i in (0, 1, 3, 6, 10, 13, 16)]
    assert (spec.stem_channels, *stages, spec.head_channels) == channels
    assert round(sum(p.numel() for p in build(name, 1000).parameters()) / 1e6, 2) == millions


def test_input_of_each_backbone() -> None:
    seen = {name: network_spec(name) for name in NAMES}
    assert {name: (s.resolution, s.norm_eps, s.same_padding, s.dropout) for name, s in seen.items()} == {
        "mobilenet-v2": (224, 1e-5, False, 0.2),
        "proxylessnas-mobile": (224, 1e-3, False, 0.2),
        "efficientnet-lite0": (224, 1e-3, True, 0.2),
        "efficientnet-lite1": (240, 1e-3, True, 0.2),
        "efficientnet-lite2": (260, 1e-3, True, 0.3),
    }
    assert {(s.mean, s.std) for n, s in seen.items() if "lite" in n} == {((127.0,) * 3, (128.0,) * 3)}
    imagenet = seen["mobilenet-v2"]
    assert [m / 255 for m in imagenet.mean] == pytest.approx([0.485, 0.456, 0.406])
    assert [s / 255 for s in imagenet.std] == pytest.approx([0.229, 0.224, 0.225])


@pytest.mark.parametrize("name", [*NAMES, "mobilenet-v2-0.25"])
@pytest.mark.parametrize("resolution", [32, 75])
def test_shapes(name: str, resolution: int) -> None:
    """Each stride-2 layer halves, rounding up, whatever the padding; logits are [N, classes]."""
    model = build(name, 7, resolution)
    spec = network_spec(name)
    seen: list[tuple[int, ...]] = []
    for module in (model.stem, *model.blocks, model.head):
        module.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape)))
    with torch.no_grad():
        logits = model(torch.randn(2, 3, resolution, resolution))
    assert logits.shape == (2, 7)
    size = math.ceil(resolution / 2)
    expected = [(2, spec.stem_channels, size, size)]
    for block in spec.blocks:
        size = math.ceil(size / block.stride)
        expected.append((2, block.out_channels, size, size))
    assert seen == [*expected, (2, spec.head_channels, size, size)]
    assert math.prod(block.stride for block in spec.blocks) == 16


def test_only_equal_shapes_are_added() -> None:
    for name in NAMES:
        spec = network_spec(name)
        channels = spec.stem_channels
        for block in spec.blocks:
            assert block.skip == (block.stride == 1 and channels == block.out_channels), name
            channels = block.out_channels


# One block ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("same_padding", [False, True])
@pytest.mark.parametrize(("expand", "stride", "skip"), [(1, 1, True), (3, 1, True), (3, 1, False), (2, 2, False)])
def test_a_block_computes_its_formula(same_padding: bool, expand: int, stride: int, skip: bool) -> None:
    block = InvertedResidual(tiny(same_padding), BlockSpec(5, expand, 4, stride, skip), 4, 8).double().eval()
    randomise(block)
    values = block.state_dict()

    def norm(y: torch.Tensor, part: str) -> torch.Tensor:
        mean, var, weight, bias = (
            values[f"{part}.norm.{n}"].view(-1, 1, 1) for n in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / torch.sqrt(var + 1e-3) * weight + bias

    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    y = x
    if expand > 1:
        y = torch.einsum("oc,nchw->nohw", values["expand.conv.weight"][:, :, 0, 0], y)
        y = norm(y, "expand").clamp(0, 6)
    # 8 pixels, stride 2: SAME needs 3 rows, of which 1 before; otherwise 2 before and after.
    before, after = (1, 2) if same_padding and stride == 2 else (2, 2)
    y = functional.pad(y, (before, after, before, after))
    y = functional.conv2d(y, values["depthwise.conv.weight"], stride=stride, groups=4 * expand)
    y = norm(y, "depthwise").clamp(0, 6)
    y = norm(torch.einsum("oc,nchw->nohw", values["project.conv.weight"][:, :, 0, 0], y), "project")
    torch.testing.assert_close(block(x), x + y if skip else y, rtol=1e-12, atol=1e-12)


# size, kernel, stride -> zeros before and after, counted by hand: the last window of TensorFlow's SAME begins
# at (ceil(size / stride) - 1) * stride; what the windows reach beyond the map is split, the larger half after.
HAND_PADDED = [
    (6, 3, 1, 1, 1),
    (6, 3, 2, 0, 1),
    (7, 3, 2, 1, 1),
    (224, 3, 2, 0, 1),
    (8, 5, 2, 1, 2),
    (9, 5, 2, 2, 2),
    (65, 5, 2, 2, 2),
    (8, 7, 2, 2, 3),
    (2, 5, 2, 1, 2),
    (1, 5, 1, 2, 2),
    (1, 3, 2, 1, 1),
]


@pytest.mark.parametrize(("size", "kernel", "stride", "before", "after"), HAND_PADDED)
def test_same_padding_counted_by_hand(size: int, kernel: int, stride: int, before: int, after: int) -> None:
    """Against one multiplication at a time, in float64, along one axis: the kernel is an outer product."""
    block = InvertedResidual(tiny(True), BlockSpec(kernel, 1, 1, stride, False), 1, size)
    conv = block.depthwise.get_submodule("conv").double()
    ramp = torch.arange(1, kernel + 1, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(ramp[:, None] * ramp.flip(0)[None, :])
    rows = torch.sin(torch.arange(size, dtype=torch.float64) + 1)
    columns = torch.cos(torch.arange(size, dtype=torch.float64) * 2)
    seen = conv(torch.outer(rows, columns)[None, None])[0, 0]

    def correlate(values: list[float], taps: list[float]) -> torch.Tensor:
        padded = [0.0] * before + values + [0.0] * after
        starts = range(0, math.ceil(size / stride) * stride, stride)
        return torch.tensor(
            [sum(padded[start + i] * tap for i, tap in enumerate(taps)) for start in starts],
            dtype=torch.float64,
        )

    expected = torch.outer(correlate(rows.tolist(), ramp.tolist()), correlate(columns.tolist(), ramp.flip(0).tolist()))
    assert seen.shape == (math.ceil(size / stride),) * 2
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-12)


def test_without_same_padding_the_middle_of_the_kernel_begins_at_the_first_pixel() -> None:
    for kernel in (3, 5, 7):
        block = InvertedResidual(tiny(), BlockSpec(kernel, 1, 1, 2, False), 1, 8)
        conv = block.depthwise.get_submodule("conv")
        nn.init.zeros_(conv.weight)
        with torch.no_grad():
            conv.weight[0, 0, kernel // 2, kernel // 2] = 1
        x = torch.randn(1, 1, 8, 8)
        assert torch.equal(conv(x), x[:, :, ::2, ::2])


# Names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("mobilenetv2", "no backbone named 'mobilenetv2': did you mean mobilenet-v2?"),
        ("efficientnet-lite3", "did you mean efficientnet-lite"),
        ("proxyless-mobile", "did you mean proxylessnas-mobile?"),
        ("", "choose one of mobilenet-v2, proxylessnas-mobile, .* or a .json description"),
        ("vgg", "choose one of mobilenet-v2"),
        ("mobilenet-v2-", "'mobilenet-v2-' is not a width of MobileNetV2"),
        ("mobilenet-v2-wide", "write mobilenet-v2-0.5, with a number from 0.05 to 4"),
        ("mobilenet-v2-nan", "is not a width"),
        ("mobilenet-v2-inf", "is not a width"),
        ("mobilenet-v2--1", "is not a width"),
        ("mobilenet-v2-0", "is not a width"),
        ("mobilenet-v2-4.1", "is not a width"),
        ("nowhere.json", "nowhere.json does not exist: name a backbone or a .json description"),
    ],
)
def test_unknown_names(name: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        network_spec(name)


# Descriptions -------------------------------------------------------------------------------------------


def test_a_description_is_read(tmp_path: Path) -> None:
    spec = network_spec(written(tmp_path, description()))
    assert spec == NetworkSpec(
        name="net-w1-r48_imagenet",
        stem_channels=8,
        blocks=(
            BlockSpec(3, 1, 4, 1, False),
            BlockSpec(7, 3, 6, 2, False),
            BlockSpec(5, 6, 6, 1, True),
        ),
        head_channels=24,
        resolution=48,
        mean=(127.5,) * 3,
        std=(127.5,) * 3,
        norm_eps=0.002,
    )
    model = InvertedResidualNetwork(spec, 3, 48).eval()
    assert model(torch.zeros(1, 3, 48, 48)).shape == (1, 3)
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.002}


@pytest.mark.parametrize(
    ("name", "resolution"),
    [("proxyless-w0.3-r176_imagenet", 176), ("r112", 112), ("resnet", 224), ("net-rx", 224), ("net-r", 224)],
)
def test_the_resolution_is_in_the_name(tmp_path: Path, name: str, resolution: int) -> None:
    assert network_spec(written(tmp_path, description(), f"{name}.json")).resolution == resolution


MALFORMED: dict[str, Any] = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "null": "null",
    "a number": "3",
    "no blocks": ("blocks", None),
    "a block without a convolution": ("blocks", [{"shortcut": None}]),
    "a block without a word on its shortcut": (
        "blocks",
        [{"mobile_inverted_conv": json_block(3, 1, 8, 4)["mobile_inverted_conv"]}],
    ),
    "a zero layer that is no identity": (
        "blocks",
        [{"mobile_inverted_conv": {"name": "ZeroLayer", "stride": 1}, "shortcut": None}],
    ),
    "no stem": ("first_conv", None),
    "a stem without channels": ("first_conv", {}),
    "no head": ("feature_mix_layer", None),
    "no epsilon": ("bn", {"momentum": 0.1}),
    "an epsilon that is no number": ("bn", {"eps": "small"}),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_descriptions(tmp_path: Path, case: str) -> None:
    content = MALFORMED[case]
    if isinstance(content, tuple):
        content = {**description(), content[0]: content[1]}
    path = written(tmp_path, content)
    with pytest.raises(DamagedFileError, match=re.escape(f"{path} does not describe a network")):
        network_spec(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stride", 0),
        ("stride", "2"),
        ("stride", None),
        ("kernel_size", 4),
        ("kernel_size", 0),
        ("kernel_size", 3.5),
        ("kernel_size", math.inf),
        ("expand_ratio", 0),
        ("out_channels", -8),
        ("out_channels", True),
        ("in_channels", 24),  # what comes in has 4
        ("name", "SomeOtherLayer"),
        ("act_func", "h_swish"),
        ("use_se", True),
        ("mid_channels", 20),
    ],
)
def test_a_block_that_ours_cannot_be_is_refused(tmp_path: Path, key: str, value: object) -> None:
    content = description()
    content["blocks"][1]["mobile_inverted_conv"][key] = value
    with pytest.raises(DamagedFileError, match=f"inverted residuals .ValueError: {key} "):
        network_spec(written(tmp_path, content))


@pytest.mark.parametrize("block", [json_block(3, 3, 4, 6, 1, True), json_block(3, 3, 4, 4, 2, True)])
def test_a_skip_connection_keeps_the_shape(tmp_path: Path, block: dict[str, Any]) -> None:
    content = description()
    content["blocks"][1:] = [block]
    with pytest.raises(DamagedFileError, match="skip connection across a change of shape"):
        network_spec(written(tmp_path, content))


def test_a_description_that_is_a_folder_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name in ("folder.json", "bytes.json"):
        with pytest.raises(DamagedFileError, match=f"{name} does not describe"):
            network_spec(str(tmp_path / name))
