"""The recipe of `tinytl-edge train` in PyTorch eager, to compare with: a bundle's network, batches and rates.

    python benchmarks/pytorch_training.py BUNDLE --data train.safetensors --val val.safetensors --out RUN
                                          [--epochs 10] [--seed 0] [--threads 1]

Order, crops and flips are the very same; dropout drops the same share, but by PyTorch's own numbers. Writes
RUN/run.json with accuracy, peak memory (VmHWM) and the median step, as `tinytl-edge train` does.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tinytl_edge.eager import eager_network
from tinytl_edge.runtime.batches import Batches
from tinytl_edge.runtime.bundle import Manifest, open_bundle
from tinytl_edge.runtime.dataset import open_dataset
from tinytl_edge.runtime.memory import peak_rss
from tinytl_edge.runtime.options import TrainOptions, rate_share


def optimizer_for(network: nn.Module, manifest: Manifest) -> torch.optim.Optimizer:
    """With a parameter group for each of ours, by name."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(manifest.trainable[name], []).append(parameter)
    content = [{"params": parameters, "group": group} for group, parameters in groups.items()]
    if manifest.optimizer == "adam":
        return torch.optim.Adam(content)
    return torch.optim.SGD(content, momentum=0.9 if manifest.optimizer == "momentum" else 0)


def train(network: nn.Module, manifest: Manifest, batches: Batches, options: TrainOptions) -> list[float]:
    """Returns how long each step took, in milliseconds."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    torch.manual_seed(options.seed)
    optimizer, rates = optimizer_for(network, manifest), options.learning_rates(manifest.optimizer, manifest.batch_size)
    total = math.ceil(batches.dataset.count / manifest.batch_size) * options.epochs
    durations: list[float] = []
    for epoch in range(options.epochs):
        for batch in batches.training(options, manifest.batch_size, epoch):
            begin = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rates[group["group"]] * rate_share(len(durations), total)
            optimizer.zero_grad()
            images, targets = (torch.from_numpy(batch.feeds[name]) for name in ("images", "targets"))
            functional.cross_entropy(network(images), targets).backward()
            optimizer.step()
            durations.append(1e3 * (time.perf_counter() - begin))
    return durations


def accuracy(network: nn.Module, manifest: Manifest, batches: Batches) -> float:
    """The share of a dataset that is right."""
    right = 0
    with torch.no_grad():
        for batch in batches.evaluation(manifest.batch_size):
            logits = network.eval()(torch.from_numpy(batch.feeds["images"])).numpy()
            right += int(np.sum(logits.argmax(1) == batch.labels))
    return right / batches.dataset.count


def main() -> None:
    """Train, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    for name in ("--data", "--val", "--out"):
        parser.add_argument(name, type=Path, required=True)
    for name, default in (("--epochs", 10), ("--seed", 0), ("--threads", 1)):
        parser.add_argument(name, type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bundle = open_bundle(given.bundle)
    manifest, network = bundle.manifest, eager_network(bundle).eval()
    options = TrainOptions(epochs=given.epochs, seed=given.seed).check()
    durations = train(network, manifest, Batches(manifest, open_dataset(given.data)), options)
    result = {
        "val_accuracy": accuracy(network, manifest, Batches(manifest, open_dataset(given.val))),
        "step_ms_median": statistics.median(durations),
        "peak_rss_bytes": peak_rss(),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "run.json").write_text(json.dumps({"runtime": "pytorch", "result": result}))


if __name__ == "__main__":
    main()
