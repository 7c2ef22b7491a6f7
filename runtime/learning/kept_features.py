"""Features of images in numpy: files/features.py says what they are for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.files.features import open_features


def as_bfloat16(numbers: NDArray[np.float32]) -> bytes:
    """Rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(numbers, "<f4").view("<u4")
    return (
        ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype("<u2").tobytes()
    )


def read_features(path: Path, length: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The features [images, length] in a file, and their labels.

    Raises:
        DamagedFileError: it is damaged, or of another network.
    """
    kept = open_features(path, length)
    stored = np.frombuffer(kept.tensors.read("features"), "<u2").astype(np.uint32) << np.uint32(16)
    return stored.view(np.float32).reshape(-1, length), np.array(kept.labels, np.int64)
