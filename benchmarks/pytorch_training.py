"""The recipe of `tinytl-edge train` in PyTorch eager, to compare with: a bundle's network, batches and rates.

    python benchmarks/pytorch_training.py BUNDLE --data train.safetensors --val val.safetensors --out RUN
                                          [--epochs 10] [--seed 0] [--threads 1]

Order, crops, flips and dropout are the very same. Writes
RUN/run.json with accuracy, peak memory (VmHWM) and the median step, as `tinytl-edge train` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.eager_training import train_eager
from tinytl_edge.runtime.files.bundle import FORWARD, Manifest, open_bundle
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.memory import peak_rss
from tinytl_edge.runtime.options import TrainOptions


def accuracy(network: EagerNetwork, manifest: Manifest, batches: Batches) -> float:
    """The share of a dataset that is right."""
    right = 0
    with torch.no_grad():
        for batch in batches.evaluation(manifest.batch_size):
            logits = network(torch.from_numpy(batch.feeds["images"])).numpy()
            right += int(np.sum(logits.argmax(1) == batch.labels))
    return right / batches.dataset.count


def main() -> None:
    """Train, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    for name in ("--data", "--val", "--out"):
        parser.add_argument(name, type=Path, required=True)
    for name, default in (("--epochs", None), ("--seed", 0), ("--threads", 1)):
        parser.add_argument(name, type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bundle = open_bundle(given.bundle)
    manifest = bundle.manifest
    network = EagerNetwork(bundle.file(FORWARD), manifest.trainable)
    options = TrainOptions(epochs=given.epochs, seed=given.seed).check()
    durations = [step.ms for step in train_eager(bundle, open_dataset(given.data), options, network)]
    result = {
        "val_accuracy": accuracy(network, manifest, Batches(manifest, open_dataset(given.val))),
        "step_ms_median": statistics.median(durations),
        "peak_rss_bytes": peak_rss(),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "run.json").write_text(json.dumps({"runtime": "pytorch", "result": result}))


if __name__ == "__main__":
    main()
