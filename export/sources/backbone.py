"""One of our own backbones, with its weights."""

from __future__ import annotations

import torch

from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.files.bundle import Input

from .backbones import InvertedResidualNetwork, network_spec
from .backbones.pretrained import has_imagenet_weights, imagenet_weights, load_backbone, read_state
from .network import Network
from .torch_module import from_module


def read_backbone(backbone: str, weights: str | None, resolution: int | None, classes: int, seed: int) -> Network:
    """Build, load and export a backbone.

    Args:
        weights: 'imagenet', 'random' or a file; None is imagenet where a package has them.
        classes: how many it gets where its weights bring no classifier for so many.

    Raises:
        UsageError: the backbone is unknown, or has no such weights.
        DamagedFileError: the weight file does not fit.
    """
    spec = network_spec(backbone)
    resolution = resolution or spec.resolution
    torch.manual_seed(seed)
    module = InvertedResidualNetwork(spec, classes, resolution)
    if weights is None and not has_imagenet_weights(backbone):
        raise UsageError(
            f"{spec.name} has no ImageNet weights of its own: give --weights FILE, or --weights random to start "
            "from noise."
        )
    is_new = True
    if weights == "random":
        note = "The weights are RANDOM: nothing was learnt before, and adapting biases cannot make up for it."
    else:
        imagenet = weights in (None, "imagenet")
        origin = f"ImageNet weights of {backbone}" if imagenet else str(weights)
        state = imagenet_weights(backbone) if imagenet else read_state(str(weights))
        if load_backbone(module, spec, state, origin):
            is_new = False
            note = f"Weights and classifier from {origin}."
        else:
            note = f"Weights from {origin}; the classifier is new, for {classes} classes."
    model, dropouts = from_module(module, (3, resolution, resolution))
    taken = Input(resolution, resolution, 3, spec.mean, spec.std)
    return Network(spec.name, model, taken, notes=[note], dropouts=tuple(dropouts), is_new=is_new)
