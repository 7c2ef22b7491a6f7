"""Images that are nearly the same and should not be: in two classes, or learnt from and judged on.

Fingerprints find them; of hands in front of a wall, or shoes on a floor, some have the same too, so their pixels are
looked at once more.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tinytl_edge.runtime.wording import list_names

from .dataset import Dataset
from .fingerprint import alike

if TYPE_CHECKING:
    from PIL import Image

_APART = 6  # grey levels, on average over 16 x 16 pixels: saved anew, images differ by one or two

_Image = tuple[Dataset, int]


def in_two_classes(dataset: Dataset) -> str | None:
    """A sentence on images of which there is nearly the same in another class."""
    found: Counter[tuple[int, int]] = Counter()
    for first, *others in alike(enumerate(dataset.fingerprints)):
        label = dataset.labels[first]
        for other in others:
            if dataset.labels[other] != label and _same((dataset, first), (dataset, other)):
                found[label, dataset.labels[other]] += 1
    if not found:
        return None
    named = " and ".join(list_names([dataset.classes[label]]) for label in found.most_common(1)[0][0])
    return (
        f"{_images(sum(found.values()))} nearly the same as one of another class, as in {named}: they teach nothing, "
        "and are never right in both."
    )


def learnt_and_judged(train: Dataset, val: Dataset) -> str | None:
    """A sentence on images of `val` of which there is nearly the same in `train`."""
    known = 0
    for first, *others in alike(enumerate([*train.fingerprints, *val.fingerprints])):
        if first < train.count:
            judged = [index - train.count for index in others if index >= train.count]
            known += sum(_same((train, first), (val, index)) for index in judged)
    if not known:
        return None
    return (
        f"{_images(known)} judged on (of {val.count}) and learnt from, or nearly the same: on new images the accuracy "
        "will be lower."
    )


def _images(count: int) -> str:
    return "1 image is" if count == 1 else f"{count} images are"


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
