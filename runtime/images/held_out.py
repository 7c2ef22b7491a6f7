"""Images that training is not shown, so that they can tell how good it is."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from .dataset import Dataset
from .fingerprint import alike

_LEAST = 4  # images of a class of which one may be missed
ENOUGH = 10  # images a class, on average: where there are fewer, training needs each of them


@dataclass(frozen=True)
class Known:
    """Of a training that goes on: the first `images` were there before, and it was judged on those in `held_out`."""

    images: int = 0
    held_out: tuple[int, ...] = ()


def held_out(dataset: Dataset, share: float, seed: int, known: Known = Known()) -> list[int]:
    """The numbers of the images to hold out, in order: of each class `share` of its images, at least one; of all images
    where one may have several classes.

    Images that are nearly the same as one that is held out are held out with it. A class with very few images gives
    none; where all have few, nobody does, and the list is empty. What was held out before stays so, and what was learnt
    from is not held out later.
    """
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(dataset.labels or dataset.count * [0]):
        by_class[label].append(index)
    fresh = {label: images[-1] >= known.images for label, images in by_class.items()}
    classes = sum(fresh.values()) if dataset.labels else len(dataset.classes)
    few = dataset.count - known.images < ENOUGH * classes
    chosen = list(known.held_out)
    if any(fresh.values()) and (chosen or not few):
        for label, images in sorted(by_class.items()):
            if fresh[label] and len(images) >= _LEAST:
                chosen += _of_class(dataset, images, share, seed, known)
    return sorted(chosen)


def _of_class(dataset: Dataset, images: Sequence[int], share: float, seed: int, known: Known) -> list[int]:
    """Of its images that were not there before. Which, their content decides: further images change little of it."""
    groups = alike((index, dataset.fingerprints[index]) for index in images)
    if len(groups) < len(images) / 2:  # a camera that stands still: everything is alike
        groups = [[index] for index in images]
    judged = set(known.held_out)
    free: list[list[int]] = []
    chosen: list[int] = []
    for group in groups:
        new = [index for index in group if index >= known.images]
        if judged & set(group):
            chosen += new
        elif len(new) == len(group):
            free.append(group)
    least = 0 if judged & set(images) else 1
    wanted = max(least, round(share * sum(index >= known.images for index in images)))
    for group in sorted(free, key=lambda group: zlib.crc32(dataset.fingerprints[group[0]], seed & 0xFFFFFFFF)):
        if len(chosen) + len(group) <= wanted:
            chosen += group
    return chosen or min(free[: least * len(free)], key=len, default=[])
