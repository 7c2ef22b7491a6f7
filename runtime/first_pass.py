"""How the classifier is fitted in one pass, where training begins: what it knows, and what shows it what it knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinytl_edge.runtime.files.bundle import Bundle, Manifest
from tinytl_edge.runtime.files.features import Features, open_features
from tinytl_edge.runtime.files.run import FirstPass
from tinytl_edge.runtime.images.dataset import SINGLE, Dataset
from tinytl_edge.runtime.images.fingerprint import alike

from .errors import DataError, UsageError
from .options import KEEP, KEPT, ONE_PASS, TrainOptions
from .wording import counted, list_names

MOST_OTHERS = 256  # features of images of another place that a deployed classifier is fitted with


@dataclass(frozen=True)
class Begin:
    """The first pass, if there is one; how many epochs follow; for which classes features stand in; what to say."""

    first_pass: FirstPass | None
    epochs: int
    stood_in: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


def can_be_fitted(manifest: Manifest) -> bool:
    """Can one pass fit the classifier?"""
    head = manifest.head
    if head is None:
        return False
    return all(manifest.trainable.get(name) == "classifier" for name in (head.weight, head.bias))


def keeps_features(manifest: Manifest) -> bool:
    """Do a bundle and its runs keep features of images, to fit the classifier by where the images are not?"""
    return can_be_fitted(manifest) and manifest.labels == SINGLE


def plan_first_pass(
    bundle: Bundle,
    known: int,
    options: TrainOptions,
    dataset: Dataset,
    kept: Path,
    gone: bool = False,
    judged: Sequence[bytes] = (),
    has_kept: bool = False,
) -> Begin:
    """What to do before training begins.

    Args:
        bundle: for the classes of the dataset.
        known: how many of them it knew before.
        kept: where features would be of images that are not at hand.
        gone: the dataset has none of the images that these features are of.
        judged: fingerprints of further images, which are not to be learnt from.
        has_kept: there are images of the place that the classifier comes from, which say what features would.

    Raises:
        DataError: there are further classes, and nothing shows one of those before.
        UsageError: there is nothing to do: no first pass, and no epochs.
    """
    manifest, epochs = bundle.manifest, options.rounds(dataset.count)
    if manifest.head is None or not can_be_fitted(manifest):
        return _begin_as_it_is(epochs)
    seen = {label for label, count in enumerate(dataset.counts()) if count}
    new = manifest.classes[known:]
    is_new = options.start == ONE_PASS
    pulled = is_new and manifest.classifier == KEPT and not new
    stands_in: tuple[int, ...] = ()
    if not pulled and (gone or len(seen) < manifest.class_count) and kept.is_file():
        labels = open_features(kept, manifest.head.features).labels
        stands_in = tuple(label for label in labels if gone or label not in seen)
    if new and not ((seen | set(stands_in)) & set(range(known))):
        raise DataError(
            f"There are images of {list_names(new)} alone, which the model does not know yet, and nothing that shows "
            f"what it knows ({list_names(manifest.classes[:known])}): add images of these, or prepare the bundle with "
            "--data."
        )
    notes = [_new(new, manifest.class_count, manifest.room)] if new else []
    if stands_in:
        notes.append(_stands_in(manifest.classes, stands_in, gone))
    if options.start != ONE_PASS and not new and not stands_in:
        return _begin_as_it_is(epochs)
    others: list[int] = []
    if pulled and kept.is_file() and options.keep != 0 and not has_kept:
        others = of_another_place(open_features(kept, manifest.head.features), [*dataset.fingerprints, *judged])
    if options.keep and not others and not has_kept:
        raise UsageError(
            "--keep is of images that the bundle was prepared with, other than these, where its classifier knows their "
            "classes and training begins with one pass: there are none."
        )
    keep = (KEEP if options.keep is None else options.keep) if others else 0.0
    if others:
        notes.append(_says_what_it_knew(len(others), keep))
    features = str(kept.resolve()) if stands_in or others else None
    first = FirstPass(0 if is_new else known, features, gone, pulled=pulled, keep=keep, others=tuple(others))
    stays = pulled and manifest.labels == SINGLE
    stay = [label for label in range(manifest.class_count) if stays and label not in seen]
    if options.epochs is None and stay:
        notes.append(_stay([manifest.classes[label] for label in stay]))
    # Training would leave behind what the features were read by, and what is known of classes without images.
    alone = options.epochs is None and (stands_in or stay)
    return Begin(first, 0 if alone else epochs, frozenset((*stands_in, *stay) if alone else stands_in), tuple(notes))


def of_another_place(features: Features, fingerprints: Sequence[bytes]) -> list[int]:
    """The numbers of features of images that are none of those with these fingerprints: at most MOST_OTHERS of them."""
    seen, found = len(fingerprints), []
    for group in alike(enumerate([*fingerprints, *features.fingerprints])):
        if group[0] >= seen:
            found += [number - seen for number in group]
    found.sort()
    return found[:: max(-(-len(found) // MOST_OTHERS), 1)]


def _begin_as_it_is(epochs: int) -> Begin:
    if not epochs:
        raise UsageError("--epochs 0 fits the classifier in one pass and stops there: say --start one-pass.")
    return Begin(None, epochs)


def _stay(names: Sequence[str]) -> str:
    return (
        f"There are no images here of {list_names(names)}: what is known of them stays as it is, and the classifier "
        "alone is fitted, unless --epochs says more."
    )


def _says_what_it_knew(images: int, keep: float) -> str:
    return (
        f"Features of {counted(images, 'image')} that the bundle was prepared with say what the classifier knew: their "
        f"share is {keep:.0%} (--keep)."
    )


def _new(new: Sequence[str], classes: int, room: int) -> str:
    are = "is a new class" if len(new) == 1 else "are new classes"
    more = f"room for {room} more" if room else "no room for more"
    return f"{list_names(new)} {are}: the classifier tells {classes} apart now, and there is {more}."


def _stands_in(classes: Sequence[str], labels: Sequence[int], gone: bool) -> str:
    names = [classes[label] for label in sorted(set(labels))]
    why = "The images that the run learnt from are gone" if gone else f"There are no images here of {list_names(names)}"
    return (
        f"{why}: features kept of {counted(len(labels), 'image')} stand in for them, and the classifier alone is "
        "fitted, unless --epochs says more."
    )
