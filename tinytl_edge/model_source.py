"""Where the classifier comes from: a named backbone with its weights, or a factory of the user's own."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tinytl_edge.runtime.errors import DamagedFileError, UsageError

from .backbones import InvertedResidualNetwork, network_spec
from .backbones.pretrained import has_imagenet_weights, imagenet_weights, load_backbone, read_state

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Classifier:
    """A PyTorch classifier and what has to be known about it.

    `head` names the submodule that gives the logits; `blocks` the submodules that may get lite residual
    modules; `notes` tells the user what was done about its weights.
    """

    name: str
    model: nn.Module
    head: str
    blocks: tuple[str, ...]
    resolution: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    notes: tuple[str, ...]


def from_backbone(backbone: str, weights: str | None, classes: int, resolution: int | None, seed: int) -> Classifier:
    """One of our backbones.

    Args:
        weights: 'imagenet', 'random' or a file; None is imagenet where a package has them.

    Raises:
        UsageError: the backbone is unknown, or has no such weights.
        DamagedFileError: the weight file does not fit.
    """
    spec = network_spec(backbone)
    resolution = resolution or spec.resolution
    torch.manual_seed(seed)
    model = InvertedResidualNetwork(spec, classes, resolution)
    notes = []
    if weights is None and not has_imagenet_weights(backbone):
        raise UsageError(
            f"{spec.name} has no ImageNet weights of its own: give --weights FILE, or --weights random to start "
            "from noise."
        )
    if weights == "random":
        notes.append("The weights are RANDOM: nothing was learnt before, and adapting biases cannot make up for it.")
    else:
        imagenet = weights in (None, "imagenet")
        origin = f"ImageNet weights of {backbone}" if imagenet else str(weights)
        state = imagenet_weights(backbone) if imagenet else read_state(str(weights))
        if load_backbone(model, spec, state, origin):
            notes.append(f"Weights and classifier from {origin}.")
        else:
            notes.append(f"Weights from {origin}; the classifier is new, for {classes} classes.")
    blocks = tuple(f"blocks.{index}" for index in range(1, len(spec.blocks)))  # the paper: none on the first
    return Classifier(spec.name, model, "classifier", blocks, resolution, spec.mean, spec.std, tuple(notes))


def from_factory(
    reference: str,
    weights: str | None,
    classes: int,
    resolution: int | None,
    residual: tuple[str, ...],
    seed: int,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Classifier:
    """Any torch.nn.Module classifier, from 'package.module:factory'; the factory takes no argument.

    Its last linear layer (or 1x1 convolution) is the classifier, and is replaced where it has another
    number of outputs. `residual` holds name patterns of the submodules that get lite residual modules.

    Raises:
        UsageError: it cannot be imported, built or run, or a pattern matches nothing.
        DamagedFileError: the weight file does not fit.
    """
    import fnmatch

    model = _build(reference)
    resolution = resolution or 224
    if weights not in (None, "random"):
        if weights == "imagenet":
            raise UsageError(f"{reference} brings its own weights: leave --weights out, or name a file.")
        try:
            model.load_state_dict(read_state(str(weights)))
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise DamagedFileError(f"{weights} does not fit {reference}: {lines[-1].strip()}") from error
    model.eval()
    image = torch.zeros(1, 3, resolution, resolution)
    head = _find_head(model, image, reference)
    torch.manual_seed(seed)
    notes = [f"Classifier: {head}."]
    if _replace_head(model, head, classes):
        notes = [f"The classifier {head} is new, for {classes} classes."]
    names = [name for name, _ in model.named_modules() if name]
    blocks = []
    for pattern in residual:
        matches = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matches:
            raise UsageError(f"--residual '{pattern}' matches no submodule of {reference}.")
        # '*' matches dots too: of a module and its parts the module is meant.
        parts = {name for name in matches if any(name.startswith(f"{other}.") for other in matches)}
        blocks += [name for name in matches if name not in parts and name not in blocks]
    try:
        with torch.no_grad():
            logits = model(image)
    except Exception as error:  # whatever the user's code raises
        raise UsageError(
            f"{reference} does not run with {head} replaced for {classes} classes ({_sentence(error)}): "
            "its last layer is not its classifier."
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, classes):
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UsageError(f"{reference} gives {got} for one image, a classifier gives [1, {classes}].")
    return Classifier(
        reference,
        model,
        head,
        tuple(blocks),
        resolution,
        mean or IMAGENET_MEAN,
        std or IMAGENET_STD,
        tuple(notes),
    )


def _build(reference: str) -> nn.Module:
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"--model '{reference}' is not of the form package.module:factory.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
        model = factory if isinstance(factory, nn.Module) else factory()
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"--model {reference} failed with {_sentence(error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {reference} gives a {type(model).__name__}, not a torch.nn.Module.")
    return model


def _sentence(error: Exception) -> str:
    """Whatever the user's code raised, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _find_head(model: nn.Module, image: torch.Tensor, reference: str) -> str:
    called: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):

            def note(_: nn.Module, __: object, ___: object, name: str = name) -> None:
                called.append(name)

            handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            model(image)
    except Exception as error:  # whatever the user's code raises
        size = image.shape[-1]
        raise UsageError(
            f"{reference} does not run on one image of {size} x {size} ({_sentence(error)}): set --resolution."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    head = model.get_submodule(called[-1]) if called and called[-1] else None
    if isinstance(head, nn.Linear) or (isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1)):
        return called[-1]
    raise UsageError(f"{reference} does not end in a linear layer or a 1x1 convolution: no classifier to adapt.")


def _replace_head(model: nn.Module, name: str, classes: int) -> bool:
    head = model.get_submodule(name)
    if isinstance(head, nn.Linear):
        if head.out_features == classes:
            return False
        new: nn.Linear | nn.Conv2d = nn.Linear(head.in_features, classes)
    else:
        assert isinstance(head, nn.Conv2d)
        if head.out_channels == classes:
            return False
        new = nn.Conv2d(head.in_channels, classes, 1)
    nn.init.normal_(new.weight, std=0.01)
    assert new.bias is not None
    nn.init.zeros_(new.bias)
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent).add_module(child, new)
    return True
