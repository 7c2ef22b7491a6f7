"""From a dataset to what a step is fed: images, soft targets, dropout masks (numpy; workers only)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.files.bundle import Manifest
from tinytl_edge.runtime.options import TrainOptions
from tinytl_edge.runtime.unknown import JUNK

from .dataset import MULTI, Dataset
from .sampling import Crop, centre_crop, draws, dropout_mask, epoch_order, key, random_crop, resample

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """`feeds` by name: images [N, C, H, W], targets [N, outputs], masks; `labels` [N], multi-label [N, classes]."""

    feeds: dict[str, Array]
    labels: NDArray[np.int64]


class Batches:
    """The batches of a bundle over a dataset; an epoch's last one is smaller where they do not divide it."""

    def __init__(self, manifest: Manifest, dataset: Dataset) -> None:
        self.manifest = manifest
        self.dataset = dataset
        self._size = manifest.input.height, manifest.input.width
        self._mean = np.array(manifest.input.mean, np.float32)
        self._std = np.array(manifest.input.std, np.float32)

    @property
    def answers(self) -> int:
        """How many answers an image takes: one class, or (multi-label) every one."""
        return self.manifest.class_count if self.manifest.labels == MULTI else 1

    def training(
        self, options: TrainOptions, batch_size: int, epoch: int, first: int = 0, images: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """One epoch's batches of all samples or of `images`, augmented, from batch number `first` on."""
        seed, size, flip = options.seed, self.dataset.shape[:2], options.flip is not False
        images = range(self.dataset.count) if images is None else images
        count = len(images)
        order = [images[at] for at in epoch_order(seed, epoch, count)]
        for start in range(first * batch_size, count, batch_size):
            positions = range(start, min(start + batch_size, count))
            crops = [random_crop(seed, epoch, position, size, options.min_area, flip) for position in positions]
            batch = self._batch([order[position] for position in positions], crops, options.label_smoothing)
            for layer, dropout in enumerate(self.manifest.dropouts):
                rate = dropout.rate if options.dropout is None else options.dropout
                masks = [dropout_mask(seed, epoch, position, layer, dropout.shape, rate) for position in positions]
                batch.feeds[dropout.name] = np.stack(masks)
            yield batch

    def evaluation(
        self, batch_size: int, images: Sequence[int] | None = None, mirrored: bool = False
    ) -> Iterator[Batch]:
        """All samples or `images` once, in order, their centres, without dropout."""
        crop = replace(centre_crop(self.dataset.shape[:2], self._size), flip=mirrored)
        images = range(self.dataset.count) if images is None else images
        for start in range(0, len(images), batch_size):
            indices = list(images[start : start + batch_size])
            yield self._without_dropout(self._batch(indices, [crop] * len(indices), 0.0))

    def junk(self) -> Iterator[Batch]:
        """Images without anything on them, one by one: grey from black to white, then noise. No targets."""
        shape = self.dataset.shape
        crop = centre_crop(shape[:2], self._size)
        for number in range(JUNK):
            if number < JUNK // 2:
                pixels = np.full(shape, number * 255 // (JUNK // 2 - 1), np.uint8)
            else:
                pixels = (draws(key(number), math.prod(shape)) >> np.uint64(56)).astype(np.uint8).reshape(shape)
            feeds = {"images": self._normal(pixels, crop)[None], "targets": self._targets(np.array([-1]), 0.0)}
            if self.dataset.kind == MULTI:
                feeds["targets"] = np.zeros((1, self.manifest.class_count), np.float32)
            yield self._without_dropout(Batch(feeds, np.array([-1])))

    def _without_dropout(self, batch: Batch) -> Batch:
        for dropout in self.manifest.dropouts:
            batch.feeds[dropout.name] = np.ones((len(batch.labels), *dropout.shape), np.float32)
        return batch

    def _normal(self, pixels: NDArray[np.uint8], crop: Crop) -> Array:
        normal = (resample(pixels, crop, self._size) - self._mean) / self._std
        return np.ascontiguousarray(normal.transpose(2, 0, 1), np.float32)

    def _batch(self, indices: list[int], crops: list[Crop], label_smoothing: float) -> Batch:
        images = np.empty((len(indices), self.dataset.shape[2], *self._size), np.float32)
        for slot, (index, crop) in enumerate(zip(indices, crops)):
            pixels = np.frombuffer(self.dataset.image(index), np.uint8).reshape(self.dataset.shape)
            images[slot] = self._normal(pixels, crop)
        if self.dataset.kind == MULTI:
            labels = np.array([list(self.dataset.marks[index]) for index in indices], np.int64)
        else:
            labels = np.array([self.dataset.labels[index] for index in indices], np.int64)
        return Batch({"images": images, "targets": self._targets(labels, label_smoothing)}, labels)

    def _targets(self, labels: NDArray[np.int64], smoothing: float) -> Array:
        """(1 - smoothing) at the label and smoothing / classes everywhere; all zero without a label.

        Multi-label, 1 - smoothing / 2 and smoothing / 2.
        """
        classes = self.manifest.class_count
        if labels.ndim == 2:
            return np.where(labels == 1, np.float32(1 - smoothing / 2), np.float32(smoothing / 2))
        targets = np.zeros((len(labels), self.manifest.outputs), np.float32)
        targets[:, :classes] = smoothing / classes
        targets[np.arange(len(labels)), labels] += np.float32(1 - smoothing)
        targets[labels < 0] = 0
        return targets
