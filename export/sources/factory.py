"""A PyTorch classifier by 'package.module:factory'; 'torchvision.models:NAME' and 'timm:NAME' are such, too."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinytl_edge.runtime.errors import DamagedFileError, UsageError
from tinytl_edge.runtime.files.bundle import Input

from .backbones.pretrained import read_state
from .network import Network
from .torch_module import from_module

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
_SIZE = 224


def read_factory(reference: str, weights: str | None, size: tuple[int, int] | None) -> Network:
    """Build, load and export a module.

    Args:
        reference: 'package.module:factory', which takes no argument, or is a module already; 'timm:NAME'.
        weights: a PyTorch weight file; None or 'random' leave what the factory made.
        size: height and width of the input; default: what the module says of itself (as timm's do), or 224 x 224.

    Raises:
        UsageError: it cannot be imported, built, run or exported.
        DamagedFileError: the weight file does not fit.
    """
    module = _build(reference)
    notes = []
    if weights == "imagenet":
        raise UsageError(f"{reference} brings its own weights: leave --weights out, or name a file.")
    if weights not in (None, "random"):
        _load(module, str(weights), reference)
        notes.append(f"Weights from {weights}.")
    described = _description(module)
    height, width = size or tuple(described.get("input_size", (3, _SIZE, _SIZE))[1:])
    channels = described.get("input_size", (3,))[0]
    if channels not in (1, 3):
        raise UsageError(f"{reference} takes {channels} channels; an image has 3, or 1 where it is grey.")
    mean, std = (
        tuple(255 * float(number) for number in described[key])[:channels] if key in described else default[:channels]
        for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    shape = (channels, height, width)
    _check(module, shape, reference)
    model, dropouts = from_module(module, shape)
    end, taken = model.metadata_props.pop("tinytl-edge.end"), Input(height, width, channels, mean, std)
    return Network(reference, model, taken, end=end, notes=notes, dropouts=tuple(dropouts))


def _build(reference: str) -> nn.Module:
    package, _, attribute = reference.partition(":")
    if not package or not attribute:
        raise UsageError(f"'{reference}' is not of the form package.module:factory.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        if package == "timm":
            module = importlib.import_module(package).create_model(attribute)
        else:
            factory = getattr(importlib.import_module(package), attribute)
            module = factory if isinstance(factory, nn.Module) else factory()
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"{reference} failed with {_sentence(error)}") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{reference} gives a {type(module).__name__}, not a torch.nn.Module.")
    return module.eval()


def _description(module: nn.Module) -> dict[str, Any]:
    """What timm's networks say of their input."""
    for name in ("pretrained_cfg", "default_cfg"):
        found = getattr(module, name, None)
        if isinstance(found, dict) and found.get("input_size"):
            return found
    return {}


def _load(module: nn.Module, weights: str, reference: str) -> None:
    try:
        module.load_state_dict(read_state(weights))
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise DamagedFileError(f"{weights} does not fit {reference}: {lines[-1].strip()}") from error


def _check(module: nn.Module, shape: tuple[int, int, int], reference: str) -> None:
    """Run it once: an error of the user's code is the user's to read."""
    try:
        with torch.no_grad():
            logits = module(torch.zeros(2, *shape))
    except Exception as error:  # whatever the user's code raises
        size = f"{shape[1]} x {shape[2]}"
        raise UsageError(
            f"{reference} does not run on images of {size} ({_sentence(error)}): set --resolution."
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != 2:
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UsageError(f"{reference} gives {got} for two images, a classifier gives [2, classes].")


def _sentence(error: Exception) -> str:
    """Whatever the user's code raised, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
