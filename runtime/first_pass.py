"""How the classifier is fitted in one pass, where training begins: what it knows, and what shows it what it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinytl_edge.runtime.files.bundle import Bundle, Manifest
from tinytl_edge.runtime.files.features import open_features
from tinytl_edge.runtime.files.run import FirstPass
from tinytl_edge.runtime.images.dataset import SINGLE, Dataset

from .errors import DataError, UsageError
from .options import ONE_PASS
from .wording import counted, list_names


@dataclass(frozen=True)
class Begin:
    """The first pass, if there is one; for which classes kept features stand in; and what to say about it."""

    first_pass: FirstPass | None
    stood_in: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


def can_be_fitted(manifest: Manifest) -> bool:
    """Can one pass fit the classifier?"""
    head = manifest.head
    if head is None or manifest.labels != SINGLE:
        return False
    return all(manifest.trainable.get(name) == "classifier" for name in (head.weight, head.bias))


def plan_first_pass(bundle: Bundle, known: int, start: str, dataset: Dataset, kept: Path) -> Begin:
    """What to do before training begins.

    Args:
        bundle: for the classes of the dataset.
        known: how many of them it knew before.
        start: where training begins; see TrainOptions.
        kept: where features of images would be that are not at hand.

    Raises:
        DataError: there are further classes, and nothing shows one of those before.
        UsageError: there are further classes, and the classifier cannot be fitted in one pass.
    """
    manifest = bundle.manifest
    if manifest.head is None or not can_be_fitted(manifest):
        return Begin(None)
    seen = {label for label, count in enumerate(dataset.counts()) if count}
    stands_in: tuple[int, ...] = ()
    if len(seen) < manifest.class_count and kept.is_file():
        stands_in = tuple(label for label in open_features(kept, manifest.head.features).labels if label not in seen)
    new = manifest.classes[known:]
    if new and not ((seen | set(stands_in)) & set(range(known))):
        raise DataError(
            f"There are images of {list_names(new)} alone, which the model does not know yet, and nothing that shows "
            f"what it knows ({list_names(manifest.classes[:known])}): add images of these, or prepare the bundle with "
            "--data."
        )
    notes = [_new(new, manifest.class_count, manifest.room)] if new else []
    if stands_in:
        notes.append(_stands_in(manifest.classes, stands_in))
    if start != ONE_PASS and not new and not stands_in:
        return Begin(None)
    first = FirstPass(0 if start == ONE_PASS else known, str(kept.resolve()) if stands_in else None)
    return Begin(first, frozenset(stands_in), tuple(notes))


def _new(new: Sequence[str], classes: int, room: int) -> str:
    are = "is a new class" if len(new) == 1 else "are new classes"
    more = f"room for {room} more" if room else "no room for more"
    return f"{list_names(new)} {are}: the classifier tells {classes} apart now, and there is {more}."


def _stands_in(classes: Sequence[str], labels: Sequence[int]) -> str:
    names = [classes[label] for label in sorted(set(labels))]
    return (
        f"There are no images here of {list_names(names)}: features kept of {counted(len(labels), 'image')} stand in "
        "for them, and the classifier alone is fitted, unless --epochs says more."
    )


def check_epochs(epochs: int | None, begin: Begin) -> None:
    """Refuse to do nothing.

    Raises:
        UsageError: there are no epochs, and no first pass.
    """
    if epochs == 0 and begin.first_pass is None:
        raise UsageError("--epochs 0 fits the classifier in one pass and stops there: say --start one-pass.")
