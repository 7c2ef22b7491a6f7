"""The recipe of `tinytl-edge train` in PyTorch eager, on a bundle's network graph: what trainers are compared with."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from tinytl_edge.runtime.course import priors
from tinytl_edge.runtime.files.bundle import FORWARD, Bundle, Manifest
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import MULTI, Dataset
from tinytl_edge.runtime.options import TrainOptions, schedule

from .eager import EagerNetwork


@dataclass(frozen=True)
class EagerStep:
    """What a step came to: its loss, and how long it took in milliseconds."""

    loss: float
    ms: float


def train_eager(
    bundle: Bundle, dataset: Dataset, options: TrainOptions, network: EagerNetwork | None = None
) -> Iterator[EagerStep]:
    """Train step by step with the batches, dropout masks and learning rates that every trainer of ours takes.

    Args:
        network: that is trained; default: the bundle's, in float32.
    """
    manifest = bundle.manifest
    network = network or EagerNetwork(bundle.file(FORWARD), manifest.trainable)
    dtype = next(network.parameters()).dtype
    optimizer = _optimizer(network, manifest)
    batch_size = options.batch_size or manifest.batch_size
    rates = options.learning_rates(manifest)
    added = torch.zeros(manifest.outputs, dtype=dtype)  # outputs that wait for a class have no prior
    if weights := priors(manifest, dataset):
        added[: len(weights)] = torch.tensor(weights, dtype=dtype)
    epochs, step = options.rounds(dataset.count), 0
    total = math.ceil(dataset.count / batch_size) * epochs
    for epoch in range(epochs):
        for batch in Batches(manifest, dataset).training(options, batch_size, epoch):
            feeds = {name: torch.from_numpy(values).to(dtype) for name, values in batch.feeds.items()}
            begin = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = rates[group["group"]] * schedule(step, total)
            optimizer.zero_grad()
            found = loss(network(feeds["images"], feeds) + added, feeds["targets"], manifest)
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield EagerStep(float(found.detach()), 1e3 * (time.perf_counter() - begin))
            step += 1


def loss(logits: torch.Tensor, targets: torch.Tensor, manifest: Manifest) -> torch.Tensor:
    """The bundle's: of soft targets [batch, classes]; multi-label, a sigmoid each."""
    if manifest.labels == MULTI:
        return functional.binary_cross_entropy_with_logits(logits, targets)
    return functional.cross_entropy(logits, targets)


def _optimizer(network: EagerNetwork, manifest: Manifest) -> torch.optim.Optimizer:
    """With a parameter group for each of ours, by name."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.parameters_by_name.items():
        if parameter.requires_grad:
            groups.setdefault(manifest.trainable[name], []).append(parameter)
    content = [{"params": parameters, "group": group} for group, parameters in groups.items()]
    if manifest.optimizer == "adam":
        return torch.optim.Adam(content)
    return torch.optim.SGD(content, lr=1.0, momentum=0.9 if manifest.optimizer == "momentum" else 0)
