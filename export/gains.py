"""What it would bring to train a weight, measured: by how much its gradient says that the loss would fall.

"On-Device Training Under 256KB Memory" (Lin et al. 2022) and TinyTrain (Kwon et al. 2024) choose by such measures, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from tinytl_edge.runtime.files.bundle import Manifest
from tinytl_edge.runtime.first_pass import keeps_features
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import Dataset
from tinytl_edge.runtime.learning.discriminant import fit_discriminant
from tinytl_edge.runtime.options import NEW, TrainOptions

from .eager import EagerNetwork
from .eager_training import loss
from .kept_features import features_and_labels
from .packed_images import packed

_OF_A_CLASS, _IN_ALL = 50, 256  # images that the classifier is fitted to
_LOOKED_AT = 64  # that the gradient is of
_BATCH = 8


def measure_gains(
    model: ir.Model,
    manifest: Manifest,
    folders: Mapping[str, Sequence[Path]],
    weights: Collection[str],
    say: Callable[[str], None],
) -> dict[str, float]:
    """What each of the weights would bring, by name: how much of the loss the first step of training takes off.

    It is in units of the learning rate. Adam moves every number by as much, so that it is the sum of the gradient's
    absolute values; other optimizers move it by its gradient, so it is the sum of squares. The gradient is that of
    augmented images, at the classifier that training begins with.

    Args:
        model: as it trains, all weights float; its classifier is fitted where it is new.
    """
    say("what training its weights would bring")
    with packed(manifest, folders, _OF_A_CLASS, _IN_ALL) as dataset:
        if manifest.classifier == NEW and keeps_features(manifest):
            _fit(model, manifest, dataset, say)
        network = EagerNetwork(model, weights)
        looked_at = 0
        for batch in Batches(manifest, dataset).training(TrainOptions(), _BATCH, 0):
            if looked_at >= _LOOKED_AT:
                break
            logits = network(torch.from_numpy(batch.feeds["images"]))
            mean = loss(logits, torch.from_numpy(batch.feeds["targets"]), manifest)
            (mean * len(batch.labels)).backward()  # type: ignore[no-untyped-call]
            looked_at += len(batch.labels)
    gradients = {name: network.parameters_by_name[name].grad for name in weights}
    of_adam = manifest.optimizer == "adam"
    return {
        name: float((gradient / looked_at).abs().sum() if of_adam else (gradient / looked_at).square().sum())
        for name, gradient in gradients.items()
        if gradient is not None
    }


def _fit(model: ir.Model, manifest: Manifest, dataset: Dataset, say: Callable[[str], None]) -> None:
    """Give the classifier the rows that one pass finds."""
    assert manifest.head is not None
    features, labels = features_and_labels(model, manifest, dataset, say)
    found = fit_discriminant(features, labels, manifest.class_count, TrainOptions().label_smoothing)
    for name, rows in ((manifest.head.weight, found.weight), (manifest.head.bias, found.bias)):
        initializer = model.graph.initializers[name]
        assert initializer.const_value is not None
        content = initializer.const_value.numpy().copy()
        content.reshape(manifest.outputs, -1)[: len(rows)] = rows.reshape(len(rows), -1).astype(np.float32)
        initializer.const_value = ir.tensor(content, name=name)
