"""Classes of which there are not as many images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinytl_edge.runtime.wording import list_names

_UNEVEN = 3  # times the images of another class: worth a word


def log_priors(counts: Sequence[int]) -> list[float]:
    """What is added to the logits while training, so that what is learnt weighs classes alike.

    The logarithm of each class's share of the images, the largest being 0: a classifier that fits the images with it
    is, without it, one of classes that are as likely (Menon et al., Long-tail learning via logit adjustment, 2021,
    equation 10 with tau 1). A class without images counts as one with one.
    """
    most = max([1, *counts])
    return [math.log(max(count, 1) / most) for count in counts]


def uneven(classes: Sequence[str], counts: Sequence[int]) -> str | None:
    """A sentence for the person, where a class has several times the images of another."""
    present = {name: count for name, count in zip(classes, counts) if count}
    if len(present) < 2:
        return None
    most, least = max(present.values()), min(present.values())
    if most <= _UNEVEN * least:
        return None
    large, small = ([name for name, count in present.items() if count == end] for end in (most, least))
    return (
        f"There are {most} images of {list_names(large)} and {least} of {list_names(small)}: classes are weighed "
        f"alike, and more images of {list_names(small)} would help most."
    )
