"""The backbones by name, and any ProxylessNAS-style network described by a .json file."""

from __future__ import annotations

import difflib
import json
import math
from pathlib import Path

from tinytl_edge.runtime.errors import DamagedFileError, UsageError

from .inverted_residual import BlockSpec, InvertedResidualNetwork, NetworkSpec

__all__ = ["NAMES", "BlockSpec", "InvertedResidualNetwork", "NetworkSpec", "network_spec"]

NAMES = (
    "mobilenet-v2",
    "proxylessnas-mobile",
    "efficientnet-lite0",
    "efficientnet-lite1",
    "efficientnet-lite2",
)

# (mean, std) of the pixels in 0..255 that the published weights were trained with.
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_SYMMETRIC = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
_TENSORFLOW = ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))


def network_spec(name: str) -> NetworkSpec:
    """The description of a backbone: one of `NAMES`, `mobilenet-v2-WIDTH`, or the path of a .json file.

    Raises:
        UsageError: no backbone has this name.
        DamagedFileError: the .json file does not describe a network of inverted residuals.
    """
    if name.endswith(".json"):
        return _proxyless_from_json(Path(name))
    if name == "proxylessnas-mobile":
        return _proxylessnas_mobile()
    if name in _EFFICIENTNET_LITE:
        return _efficientnet_lite(name)
    if name == "mobilenet-v2":
        return _mobilenet_v2(name, 1.0)
    if name.startswith("mobilenet-v2-"):
        try:
            width = float(name.removeprefix("mobilenet-v2-"))
        except ValueError:
            width = math.nan
        if 0.05 <= width <= 4:
            return _mobilenet_v2(name, width)
        raise UsageError(
            f"'{name}' is not a width of MobileNetV2: write mobilenet-v2-0.5, with a number from 0.05 to 4."
        )
    near = difflib.get_close_matches(name, NAMES, 1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(NAMES)}, or a .json description."
    raise UsageError(f"There is no backbone named '{name}': {hint}")


def _stages(rows: list[tuple[int, int, int, int, int]], in_channels: int) -> tuple[BlockSpec, ...]:
    """Blocks from rows of (kernel, expand, out_channels, stride of the first, repeats)."""
    blocks = []
    for kernel, expand, out_channels, stride, repeats in rows:
        for index in range(repeats):
            step = stride if index == 0 else 1
            skip = step == 1 and in_channels == out_channels
            blocks.append(BlockSpec(kernel, expand, out_channels, step, skip))
            in_channels = out_channels
    return tuple(blocks)


def _round_channels(channels: float) -> int:
    """To a multiple of 8, never more than 10 % down (Sandler et al.'s reference code)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _mobilenet_v2(name: str, width: float) -> NetworkSpec:
    """Sandler et al. 2018, table 2."""
    rows = [
        (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (3, 6, 32, 2, 3), (3, 6, 64, 2, 4),
        (3, 6, 96, 1, 3), (3, 6, 160, 2, 3), (3, 6, 320, 1, 1),
    ]  # fmt: skip
    stem = _round_channels(32 * width)
    scaled = [(k, e, _round_channels(c * width), s, n) for k, e, c, s, n in rows]
    head = _round_channels(1280 * max(1.0, width))
    return NetworkSpec(name, stem, _stages(scaled, stem), head, 224, *_IMAGENET)


def _proxylessnas_mobile() -> NetworkSpec:
    """Cai, Zhu, Han: ProxylessNAS, ICLR 2019, the network searched for a phone."""
    stages = [
        (16, 1, [(3, 1)]),
        (32, 2, [(5, 3), (3, 3)]),
        (40, 2, [(7, 3), (3, 3), (5, 3), (5, 3)]),
        (80, 2, [(7, 6), (5, 3), (5, 3), (5, 3)]),
        (96, 1, [(5, 6), (5, 3), (5, 3), (5, 3)]),
        (192, 2, [(7, 6), (7, 6), (7, 3), (7, 3)]),
        (320, 1, [(7, 6)]),
    ]
    blocks = [
        BlockSpec(kernel, expand, channels, stride if index == 0 else 1, index > 0)
        for channels, stride, members in stages
        for index, (kernel, expand) in enumerate(members)
    ]
    return NetworkSpec("proxylessnas-mobile", 32, tuple(blocks), 1280, 224, *_IMAGENET, norm_eps=1e-3)


# name: width multiplier, depth multiplier, resolution, dropout
_EFFICIENTNET_LITE = {
    "efficientnet-lite0": (1.0, 1.0, 224, 0.2),
    "efficientnet-lite1": (1.0, 1.1, 240, 0.2),
    "efficientnet-lite2": (1.1, 1.2, 260, 0.3),
}


def _efficientnet_lite(name: str) -> NetworkSpec:
    """EfficientNet (Tan and Le 2019) without squeeze-and-excite; stem, head and the end stages unscaled."""
    width, depth, resolution, dropout = _EFFICIENTNET_LITE[name]
    rows = [
        (3, 1, 16, 1, 1), (3, 6, 24, 2, 2), (5, 6, 40, 2, 2), (3, 6, 80, 2, 3),
        (5, 6, 112, 1, 3), (5, 6, 192, 2, 4), (3, 6, 320, 1, 1),
    ]  # fmt: skip
    scaled = []
    for index, (kernel, expand, channels, stride, repeats) in enumerate(rows):
        if 0 < index < len(rows) - 1:
            repeats = math.ceil(depth * repeats)
        scaled.append((kernel, expand, _round_channels(channels * width), stride, repeats))
    blocks = _stages(scaled, 32)
    return NetworkSpec(name, 32, blocks, 1280, resolution, *_TENSORFLOW, 1e-3, True, dropout)


def _proxyless_from_json(path: Path) -> NetworkSpec:
    """The format in which ProxylessNAS's authors publish their networks; 'ZeroLayer' blocks do nothing."""
    try:
        description = json.loads(path.read_text("utf-8"))
        stem, head = description["first_conv"], description["feature_mix_layer"]
        channels = stem_channels = _whole(stem, "out_channels")
        blocks = []
        for entry in description["blocks"]:
            conv = entry["mobile_inverted_conv"]
            skip = entry["shortcut"] is not None
            if conv["name"] == "ZeroLayer":
                if not skip:
                    raise ValueError("a ZeroLayer without a shortcut")
                continue
            _check_block(conv, channels)
            block = BlockSpec(
                _whole(conv, "kernel_size"),
                _whole(conv, "expand_ratio"),
                _whole(conv, "out_channels"),
                _whole(conv, "stride"),
                skip,
            )
            if skip and (block.stride != 1 or channels != block.out_channels):
                raise DamagedFileError(f"{path} asks for a skip connection across a change of shape.")
            blocks.append(block)
            channels = block.out_channels
        return NetworkSpec(
            name=path.stem,
            stem_channels=stem_channels,
            blocks=tuple(blocks),
            head_channels=_whole(head, "out_channels"),
            resolution=_resolution_in_name(path.stem),
            mean=_SYMMETRIC[0],
            std=_SYMMETRIC[1],
            norm_eps=float(description["bn"]["eps"]),
        )
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: name a backbone or a .json description.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(
            f"{path} does not describe a network of inverted residuals ({type(error).__name__}: {error})."
        ) from error


def _whole(layer: dict[str, object], key: str) -> int:
    value = layer[key]
    if type(value) is not int or value < 1 or (key == "kernel_size" and value % 2 == 0):
        raise ValueError(f"{key} {value!r}")
    return value


def _check_block(conv: dict[str, object], channels: int) -> None:
    """Raise ValueError where a block says that it computes something else than ours would."""
    hidden = channels * _whole(conv, "expand_ratio")
    for key, allowed in (
        ("name", ("MBInvertedConvLayer", "MBConvLayer")),
        ("in_channels", (channels,)),
        ("mid_channels", (None, hidden)),
        ("act_func", (None, "relu6")),
        ("use_se", (None, False)),
    ):
        if conv.get(key) not in allowed:
            raise ValueError(f"{key} {conv.get(key)!r}")


def _resolution_in_name(stem: str) -> int:
    """'...-r176...' says 176 pixels, as these files' names do; 224 otherwise."""
    for part in stem.replace("_", "-").split("-"):
        if part[:1] == "r" and part[1:].isdigit():
            return int(part[1:])
    return 224
