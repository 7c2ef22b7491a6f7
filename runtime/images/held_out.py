"""Images that training is not shown, so that they can tell how good it is."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence

from .dataset import Dataset
from .fingerprint import alike

_LEAST = 4  # images of a class of which one may be missed
_ENOUGH = 10  # images a class, on average: where there are fewer, training needs each of them


def held_out(dataset: Dataset, share: float, seed: int) -> list[int]:
    """The numbers of the images to hold out, in order: of each class `share` of its images, at least one.

    Images that are nearly the same as one that is held out are held out with it. A class with very few images gives
    none; where all have few, nobody does, and the list is empty.
    """
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(dataset.labels):
        by_class[label].append(index)
    if not by_class or dataset.count < _ENOUGH * len(by_class):
        return []
    chosen: list[int] = []
    for _, images in sorted(by_class.items()):
        if len(images) >= _LEAST:
            chosen += _of_class(dataset, images, share, seed)
    return sorted(chosen)


def _of_class(dataset: Dataset, images: Sequence[int], share: float, seed: int) -> list[int]:
    """Which, their content decides: further images change little of it."""
    wanted = max(1, round(share * len(images)))
    groups = alike((index, dataset.fingerprints[index]) for index in images)
    if len(groups) < len(images) / 2:  # a camera that stands still: everything is alike
        groups = [[index] for index in images]
    chosen: list[int] = []
    for group in sorted(groups, key=lambda group: zlib.crc32(dataset.fingerprints[group[0]], seed & 0xFFFFFFFF)):
        if len(chosen) + len(group) <= wanted:
            chosen += group
    return chosen or min(groups, key=len)
