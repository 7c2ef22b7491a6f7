"""Images of the place that a deployed classifier comes from: what is learnt from them, and what they tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tinytl_edge.runtime.images.dataset import SINGLE, Dataset, open_dataset
from tinytl_edge.runtime.images.held_out import held_out

from .errors import UsageError
from .first_pass import Begin
from .options import KEEP, TrainOptions
from .wording import counted

KEPT_FILE = "kept.safetensors"
NOT_MEASURED = (
    "Nothing tells what the classifier gives up where it comes from while it is trained: images of there, in "
    "--keep-images, would."
)
_LEARNT = 0.5  # of the images


def with_kept_images(begin: Begin, images: Path, options: TrainOptions) -> Begin:
    """What a training begins with, where there is a dataset of that place.

    Half of the images are learnt from, in the place of what the bundle has kept, which may be of anywhere; the others
    are judged. Of few all are.

    Raises:
        UsageError: the classifier does not come from anywhere.
    """
    first = begin.first_pass
    if first is None or not first.pulled:
        raise UsageError(
            "--keep-images are of the place that a deployed classifier comes from: this one is new, or goes on from "
            "elsewhere."
        )
    with open_dataset(images) as dataset:
        judged = _judged(dataset, options)
        learnt = tuple(sorted(set(range(dataset.count)) - set(judged)))
    keep = KEEP if options.keep is None else options.keep
    first = replace(
        first,
        keep=keep if learnt else 0.0,
        kept_images=str(images.resolve()),
        kept_learnt=learnt,
        kept_judged=judged,
    )
    note = f"{counted(len(judged), 'image')} of the place that the classifier comes from tell what it gives up there"
    if learnt:
        note += f", {len(learnt)} others are learnt from: their share is {keep:.0%} (--keep)"
    return replace(begin, first_pass=first, notes=(*begin.notes, f"{note}."))


def _judged(dataset: Dataset, options: TrainOptions) -> tuple[int, ...]:
    halved = options.keep != 0 and dataset.kind == SINGLE
    return tuple((halved and held_out(dataset, 1 - _LEARNT, options.seed)) or range(dataset.count))
