"""What a classifier makes of images that it has not learnt from: likely wrong labels, and mirror images.

The images are cut into two halves; each is looked at by the classifier that one pass over the other half finds.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinytl_edge.runtime.files.bundle import Bundle
from tinytl_edge.runtime.files.run import open_model
from tinytl_edge.runtime.images.dataset import SINGLE, Dataset
from tinytl_edge.runtime.images.findings import Finding
from tinytl_edge.runtime.images.mirrored import Mirrored
from tinytl_edge.runtime.images.packing import pack_part
from tinytl_edge.runtime.images.source import OnCount
from tinytl_edge.runtime.wording import counted, list_names

from .evaluate import Trained
from .options import TrainOptions
from .train import train

# As likely as its own class. Of eight labels that were made wrong in each of seven sets 35 of 56 are found, and 5 of
# 1,640 right ones doubted; at 5 times 40 and 18.
_MUCH_LIKELIER = 10


@dataclass(frozen=True)
class SecondLook:
    """Probabilities of each class for each image, as it is and mirrored, by its number in the dataset."""

    plain: dict[int, Sequence[float]]
    mirrored: dict[int, Sequence[float]]

    def accuracy(self, labels: Sequence[int]) -> float:
        """The share of images that are right."""
        return sum(_likeliest(row) == labels[index] for index, row in self.plain.items()) / len(self.plain)


def why_not(bundle: Bundle, dataset: Dataset) -> str | None:
    """Why the bundle's classifier cannot be fitted to each half of the images: a sentence, or None."""
    manifest, counts = bundle.manifest, [count for count in dataset.counts() if count]
    why = None
    if manifest.labels != SINGLE:
        why = "an image may have several classes"
    elif manifest.head is None:
        why = "one pass cannot fit it"
    elif not manifest.fits(dataset.classes):
        why = "it has other classes"
    elif len(counts) < 2 or min(counts) < 2:
        why = "for that there have to be two images of each class"
    return f"The bundle's classifier did not look at the images: {why}." if why else None


def second_look(bundle: Bundle, dataset: Dataset, folder: Path, on_progress: OnCount) -> SecondLook:
    """Look; `folder` is for files that may go afterwards.

    Raises:
        TinyTLError: of the kind that says what is wrong.
    """
    halves = _halves(dataset)
    seen = SecondLook({}, {})
    for number, half in enumerate(halves):
        on_progress(number, len(halves))
        learnt, run = folder / f"learnt-{number}.safetensors", folder / f"run-{number}"
        pack_part(dataset, halves[1 - number], learnt)
        train(bundle.path, learnt, out=run, options=TrainOptions(epochs=0, start="one-pass"))
        trained = Trained(*open_model(run, bundle.path), "auto", None)
        for mirrored, answers in ((False, seen.plain), (True, seen.mirrored)):
            asked = folder / "asked.safetensors"
            pack_part(dataset, half, asked, mirrored)
            answers.update(zip(half, trained.predict(asked)))
    on_progress(len(halves), len(halves))
    return seen


def _halves(dataset: Dataset) -> tuple[list[int], list[int]]:
    """Of each class half, by content."""
    by_class: dict[int, list[int]] = defaultdict(list)
    for index in sorted(range(dataset.count), key=lambda index: zlib.crc32(dataset.fingerprints[index])):
        by_class[dataset.labels[index]].append(index)
    first = sorted(index for images in by_class.values() for index in images[::2])
    return first, sorted(set(range(dataset.count)) - set(first))


def doubted_labels(seen: SecondLook, dataset: Dataset, paths: Sequence[Path]) -> list[Finding]:
    """Images that are much likelier of another class, the likeliest first."""
    doubted = []
    for index, row in sorted(seen.plain.items(), key=lambda item: item[1][dataset.labels[item[0]]] / max(item[1])):
        guess = _likeliest(row)
        if row[guess] >= _MUCH_LIKELIER * row[dataset.labels[index]]:
            doubted.append(f"{paths[index]} (rather {dataset.classes[guess]}: {row[guess]:.0%})")
    if not doubted:
        return []
    message = (
        f"{counted(len(doubted), 'image')} {'looks' if len(doubted) == 1 else 'look'} like another class to a "
        "classifier that learnt from other images: look whether the labels are right."
    )
    return [Finding("label", message, tuple(doubted))]


def mirror_images(seen: SecondLook, dataset: Dataset) -> list[Finding]:
    """Classes that are each other's mirror image."""
    lost: Counter[tuple[int, int]] = Counter()
    gained = 0
    for index, row in seen.plain.items():
        label, guess, turned = dataset.labels[index], _likeliest(row), _likeliest(seen.mirrored[index])
        gained += turned == label != guess
        if guess == label != turned:
            lost[label, turned] += 1
    mirrored = Mirrored(sum(lost.values()), gained, len(seen.plain))
    if not mirrored.harms:
        return []
    named = " taken for ".join(list_names([dataset.classes[label]]) for label in lost.most_common(1)[0][0])
    message = (
        f"Mirrored, {mirrored.lost - mirrored.gained} more of {mirrored.images} images are taken for another class, as "
        f"{named}: `train` does without mirroring where it finds the same, and --no-flip makes sure."
    )
    return [Finding("mirror", message)]


def _likeliest(row: Sequence[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)
