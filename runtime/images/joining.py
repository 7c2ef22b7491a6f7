"""Two datasets as one."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator

from .dataset import Dataset
from .packing import write_dataset


def join(first: Dataset, second: Dataset, out: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Write the images of `first`, in order, and behind them those of `second` that are others, into a dataset.

    An image that both have, to the pixel, keeps its place and takes the label that it has in `second`: there it may
    have been corrected.

    Returns:
        how many of `second` came to it, how many were there, and of these how many had another label.

    Raises:
        DamagedFileError: either cannot be read.
        StorageError: `out` cannot be written; what was there before stays.
    """
    by_print = defaultdict(list)
    for index, content in enumerate(first.fingerprints):
        by_print[content].append(index)
    labels = [first.label_bytes(index) for index in range(first.count)]
    others: list[int] = []
    again = relabelled = 0
    for index in range(second.count):
        near = by_print.get(second.fingerprints[index], ())
        pixels = second.image(index) if near else b""
        same = next((known for known in near if first.image(known) == pixels), None)
        if same is None:
            others.append(index)
            continue
        again += 1
        relabelled += labels[same] != second.label_bytes(index)
        labels[same] = second.label_bytes(index)

    def samples() -> Iterator[tuple[bytes, bytes]]:
        for index in range(first.count):
            yield labels[index], first.image(index)
        for index in others:
            yield second.label_bytes(index), second.image(index)

    classes = max(first.classes, second.classes, key=len)  # to which further ones may have come
    write_dataset(out, first.framing, classes, samples(), first.count + len(others), first.kind)
    return len(others), again, relabelled
