"""What the classifier of a bundle reads of the images that it is prepared with: a board that has none of them can still
fit a classifier that knows their classes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from tinytl_edge.runtime.files.bundle import Manifest
from tinytl_edge.runtime.files.features import which_to_keep, write_features
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import SINGLE, open_dataset
from tinytl_edge.runtime.images.decoding import UnusableImageError, read_image
from tinytl_edge.runtime.images.packing import write_dataset
from tinytl_edge.runtime.learning.kept_features import as_bfloat16

from .eager import EagerNetwork
from .tinytl.classifier import features_of, find_classifier

_BATCH = 8


def keep_features(
    file: Path, model: ir.Model, manifest: Manifest, folders: Mapping[str, Sequence[Path]], say: Callable[[str], None]
) -> None:
    """Write the file of a network's features of images, by class; those that cannot be read are passed over.

    Raises:
        StorageError: it cannot be written.
    """
    every = [(path, label) for label, name in enumerate(manifest.classes) for path in folders.get(name, ())]
    chosen = [every[index] for index in which_to_keep([label for _, label in every])]

    def samples() -> Iterator[tuple[bytes, bytes]]:
        for done, (path, label) in enumerate(chosen):
            if done % 100 == 0 and done:
                say(f"what it sees in images: {done} of {len(chosen)}")
            try:
                yield label.to_bytes(4, "little", signed=True), read_image(path, manifest.input.framing)
            except UnusableImageError:
                continue

    say("what it sees in images")
    with tempfile.TemporaryDirectory(prefix="tinytl-edge-") as folder:
        packed = Path(folder) / "images.safetensors"
        write_dataset(packed, manifest.input.framing, manifest.classes, samples(), len(chosen), SINGLE)
        with open_dataset(packed) as dataset, torch.no_grad(), np.errstate(over="ignore"):
            network = EagerNetwork(_up_to_features(model)).eval()
            batches = Batches(manifest, dataset).evaluation(_BATCH)
            rows = [network(torch.from_numpy(batch.feeds["images"])).flatten(1).numpy() for batch in batches]
            features, labels = np.concatenate(rows), np.array(dataset.labels)
    usable = np.isfinite(features).all(1)
    if usable.any():
        content, length = as_bfloat16(features[usable]), features.shape[1]
        write_features(file, manifest.classes, labels[usable].tolist(), content, length)


def _up_to_features(model: ir.Model) -> ir.Model:
    """A copy that ends with what the classifier reads."""
    copy = model.clone()
    features = features_of(find_classifier(copy))
    assert features is not None
    copy.graph.outputs[:] = [features]
    return copy
