"""features.safetensors: what a classifier reads of images, kept of them where they themselves are not.

A bundle has it of the images that it was prepared with, a run of those that it learnt from. For a class of which no
images are at hand these features stand in where the classifier is fitted in one pass: what it knows is not lost when
classes come to it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinytl_edge.runtime.errors import DamagedFileError
from tinytl_edge.runtime.images.fingerprint import BYTES

from .tensors import TensorFile, open_tensors, write_tensors

FILE = "features.safetensors"
FORMAT = "tinytl-edge-features"
VERSION = "1"
OF_A_CLASS, IN_ALL = 50, 2048  # images of which features are kept at most


@dataclass(frozen=True)
class Features:
    """An opened file: bfloat16 `features` [images, features], `labels` i32 [images]; the classes' names; a bundle's has
    the images' fingerprints (u8 [images, 8]), a run's not."""

    tensors: TensorFile
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    fingerprints: tuple[bytes, ...]

    def shown(self) -> set[int]:
        """The labels of which there are any."""
        return set(self.labels)


def which_to_keep(labels: Sequence[int]) -> list[int]:
    """The numbers of the images whose features are kept, in order."""
    return spread(labels, OF_A_CLASS, IN_ALL)


def spread(labels: Sequence[int], of_a_class: int, in_all: int) -> list[int]:
    """The numbers of at most so many images, in order: of each class as many, spread evenly."""
    by_class: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        by_class[label].append(index)
    most = max(min(of_a_class, in_all // max(len(by_class), 1)), 1)
    kept = []
    for images in by_class.values():
        count = min(len(images), most)
        kept += [images[at * len(images) // count] for at in range(count)]
    return sorted(kept)


def open_features(path: Path, features: int) -> Features:
    """Open a file of features of a network that has so many.

    Raises:
        DamagedFileError: it is damaged, or of another network.
    """
    tensors = open_tensors(path)
    if tensors.metadata.get("format") != FORMAT or tensors.metadata.get("version") != VERSION:
        raise DamagedFileError(f"{path} is no file of features of tinytl-edge (version {VERSION}).")
    kinds = {name: (entry.dtype, entry.shape) for name, entry in tensors.entries.items()}
    count = kinds.get("labels", ("", (0,)))[1][0]
    told = kinds.pop("fingerprints", None)
    if told not in (None, ("U8", (count, BYTES))) or kinds != {
        "labels": ("I32", (count,)),
        "features": ("BF16", (count, features)),
    }:
        raise DamagedFileError(f"{path} is damaged: its features are not those of this network.")
    content = tensors.read("labels")
    labels = tuple(int.from_bytes(content[at : at + 4], "little", signed=True) for at in range(0, len(content), 4))
    try:
        classes = tuple(str(name) for name in json.loads(tensors.metadata["classes"]))
    except (KeyError, TypeError, ValueError):
        raise DamagedFileError(f"{path} has damaged metadata.") from None
    if not all(0 <= label < len(classes) for label in labels):
        raise DamagedFileError(f"{path} is damaged: a label is none of its {len(classes)} classes.")
    bits = tensors.read("fingerprints") if told else b""
    return Features(tensors, classes, labels, tuple(bits[at : at + BYTES] for at in range(0, len(bits), BYTES)))


def write_features(
    path: Path,
    classes: Sequence[str],
    labels: Sequence[int],
    features: bytes,
    length: int,
    fingerprints: Sequence[bytes] = (),
) -> None:
    """Write bfloat16 features [images, length], atomically; with the images' fingerprints, where these are given.

    Raises:
        StorageError: it cannot be written.
    """
    numbers = b"".join(label.to_bytes(4, "little", signed=True) for label in labels)
    tensors = [("labels", "I32", (len(labels),), numbers), ("features", "BF16", (len(labels), length), features)]
    if fingerprints:
        tensors.append(("fingerprints", "U8", (len(labels), BYTES), b"".join(fingerprints)))
    write_tensors(
        path,
        tensors,
        {"format": FORMAT, "version": VERSION, "classes": json.dumps(list(classes), ensure_ascii=False)},
    )
