"""Images that are nearly the same and should not be: in two classes, or learnt from and judged on.

Fingerprints find them; of hands in front of a wall, or shoes on a floor, some have the same too, so their pixels are
looked at once more.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tinytl_edge.runtime.wording import are, list_names

from .dataset import Dataset
from .fingerprint import alike

if TYPE_CHECKING:
    from PIL import Image

_APART = 6  # grey levels, on average over 16 x 16 pixels: saved anew, images differ by one or two

_Image = tuple[Dataset, int]
Pairs = list[tuple[int, int]]  # numbers of images


def same_images(dataset: Dataset) -> Pairs:
    """Images that are nearly the same as an earlier one; that first."""
    return [
        (first, other)
        for first, *others in alike(enumerate(dataset.fingerprints))
        for other in others
        if _same((dataset, first), (dataset, other))
    ]


def of_two_classes(dataset: Dataset, pairs: Pairs) -> Pairs:
    """Those of `same_images` that are of two classes."""
    return [pair for pair in pairs if dataset.labels[pair[0]] != dataset.labels[pair[1]]]


def learnt_and_judged(train: Dataset, val: Dataset) -> Pairs:
    """Images of `train`, and of `val`, that are nearly the same."""
    pairs = []
    for first, *others in alike(enumerate([*train.fingerprints, *val.fingerprints])):
        judged = [index - train.count for index in others if index >= train.count] if first < train.count else []
        pairs += [(first, index) for index in judged if _same((train, first), (val, index))]
    return pairs


def in_two_classes_said(dataset: Dataset, pairs: Pairs) -> str:
    """`of_two_classes` in a sentence."""
    found = Counter(tuple(dataset.labels[index] for index in pair) for pair in pairs)
    named = " and ".join(list_names([dataset.classes[label]]) for label in found.most_common(1)[0][0])
    return (
        f"{are(len(pairs), 'image')} nearly the same as one of another class, as in {named}: they teach nothing, "
        "and are never right in both."
    )


def learnt_and_judged_said(pairs: Pairs, val: Dataset) -> str:
    """`learnt_and_judged` in a sentence."""
    return (
        f"{are(len(pairs), 'image')} judged on (of {val.count}) and learnt from, or nearly the same: on new images the "
        "accuracy will be lower."
    )


def _same(one: _Image, other: _Image) -> bool:
    """Are they the same but for how they were saved?"""
    from PIL import ImageChops, ImageStat

    difference = ImageChops.difference(_small(*one), _small(*other))
    return bool(ImageStat.Stat(difference).mean[0] < _APART)


def _small(dataset: Dataset, index: int) -> Image.Image:
    from PIL import Image

    height, width, channels = dataset.shape
    image = Image.frombytes("RGB" if channels == 3 else "L", (width, height), dataset.image(index))
    return image.convert("L").resize((16, 16), Image.Resampling.BOX)
