"""Images of class folders as a dataset, for as long as something is found out about them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tinytl_edge.runtime.errors import DataError
from tinytl_edge.runtime.files.bundle import Manifest
from tinytl_edge.runtime.files.features import spread
from tinytl_edge.runtime.images.dataset import SINGLE, Dataset, open_dataset
from tinytl_edge.runtime.images.decoding import UnusableImageError, read_image
from tinytl_edge.runtime.images.packing import write_dataset


@contextlib.contextmanager
def packed(
    manifest: Manifest, folders: Mapping[str, Sequence[Path]], of_a_class: int, in_all: int
) -> Iterator[Dataset]:
    """Of each class as many of its images, spread evenly, for a bundle's network; those that cannot be read are passed
    over.

    Raises:
        DataError: none can be read.
    """
    every = [(path, label) for label, name in enumerate(manifest.classes) for path in folders.get(name, ())]
    chosen = [every[index] for index in spread([label for _, label in every], of_a_class, in_all)]
    unreadable: list[str] = []

    def samples() -> Iterator[tuple[bytes, bytes]]:
        for path, label in chosen:
            try:
                yield label.to_bytes(4, "little", signed=True), read_image(path, manifest.input.framing)
            except UnusableImageError as error:
                unreadable.append(f"{path}: {error}")

    with tempfile.TemporaryDirectory(prefix="tinytl-edge-") as folder:
        file = Path(folder) / "images.safetensors"
        write_dataset(file, manifest.input.framing, manifest.classes, samples(), len(chosen), SINGLE)
        if len(unreadable) == len(chosen):
            raise DataError(f"None of the images can be read, as {unreadable[0]}.")
        with open_dataset(file) as dataset:
            yield dataset
