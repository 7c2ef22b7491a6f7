"""The network of a bundle in PyTorch again, as `prepare` had it: same weights, same trainables, BatchNorm folded."""

from __future__ import annotations

import os

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from tinytl_edge.runtime.bundle import FORWARD, Bundle
from tinytl_edge.runtime.errors import UsageError

from .lite_residual import ATTRIBUTE
from .model_source import from_backbone, from_factory
from .preparation import transform


def eager_network(bundle: Bundle) -> nn.Module:
    """Built from its source once more; the values of its parameters are those of forward.onnx.

    Raises:
        UsageError: its source is gone, or makes another network now.
    """
    manifest = bundle.manifest
    forward = onnx.load(os.fspath(bundle.file(FORWARD)))
    values = {tensor.name: tensor for tensor in forward.graph.initializer}
    inside = f".{ATTRIBUTE}."
    if ":" in manifest.backbone:
        blocks = tuple(dict.fromkeys(name.partition(inside)[0] for name in values if inside in name))
        classifier = from_factory(
            manifest.backbone, None, manifest.class_count, manifest.resolution, blocks, 0, manifest.mean, manifest.std
        )
    else:
        classifier = from_backbone(manifest.backbone, "random", manifest.class_count, manifest.resolution, 0)
    # Parameters of `prepare --train` among them: what trains decides what is folded.
    also = tuple(name for name, _ in classifier.model.named_parameters() if name in manifest.trainable)
    transform(classifier, manifest.method, also)
    parameters = dict(classifier.model.named_parameters())
    if not manifest.trainable.keys() <= parameters.keys() & values.keys():
        raise UsageError(f"{manifest.backbone} is no longer the network that {bundle.path} was prepared from.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.requires_grad = name in manifest.trainable
            if name in values:
                parameter.copy_(torch.from_numpy(numpy_helper.to_array(values[name]).copy()))
    return classifier.model
