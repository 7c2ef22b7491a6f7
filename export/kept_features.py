"""What the classifier of a bundle reads of the images that it is prepared with: a board that has none of them can still
fit a classifier that knows their classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from tinytl_edge.runtime.files.bundle import Manifest
from tinytl_edge.runtime.files.features import IN_ALL, OF_A_CLASS, write_features
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import Dataset
from tinytl_edge.runtime.learning.kept_features import as_bfloat16

from .eager import EagerNetwork
from .packed_images import packed
from .tinytl.classifier import features_of, find_classifier

_BATCH = 8
_SAID = 100  # images


def keep_features(
    file: Path, model: ir.Model, manifest: Manifest, folders: Mapping[str, Sequence[Path]], say: Callable[[str], None]
) -> None:
    """Write the file of a network's features of images, by class; those that cannot be read are passed over.

    Raises:
        StorageError: it cannot be written.
    """
    say("what it sees in images")
    with packed(manifest, folders, OF_A_CLASS, IN_ALL) as dataset:
        features, labels = features_and_labels(model, manifest, dataset, say)
        fingerprints = list(dataset.fingerprints)
    usable = np.flatnonzero(np.isfinite(features).all(1))
    if len(usable):
        content, length = as_bfloat16(features[usable]), features.shape[1]
        bits = [fingerprints[image] for image in usable]
        write_features(file, manifest.classes, labels[usable].tolist(), content, length, bits)


def features_and_labels(
    model: ir.Model, manifest: Manifest, dataset: Dataset, say: Callable[[str], None]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What the classifier reads of images, [images, features], and their labels."""
    network, rows, done = EagerNetwork(_up_to_features(model)).eval(), [], 0
    with torch.no_grad(), np.errstate(over="ignore"):
        for batch in Batches(manifest, dataset).evaluation(_BATCH):
            rows.append(network(torch.from_numpy(batch.feeds["images"])).flatten(1).numpy())
            done += len(batch.labels)
            if done // _SAID > (done - len(batch.labels)) // _SAID:
                say(f"what it sees in images: {done} of {dataset.count}")
    return np.concatenate(rows), np.array(dataset.labels)


def _up_to_features(model: ir.Model) -> ir.Model:
    """A copy that ends with what the classifier reads."""
    copy = model.clone()
    features = features_of(find_classifier(copy))
    assert features is not None
    copy.graph.outputs[:] = [features]
    return copy
