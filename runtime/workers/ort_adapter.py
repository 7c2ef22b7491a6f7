"""Adapters as a session's parameters, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tinytl_edge.runtime.files.adapter import Adapter, write_adapter
from tinytl_edge.runtime.files.bundle import Bundle

from .ort_session import Array, OrtSession
from .ort_standing import Standing


def write_trained(path: Path, bundle: Bundle, session: OrtSession, at: Standing) -> None:
    """Write the adapter of a session's parameters as they are."""
    tensors = {name: (array.shape, array.tobytes()) for name, array in session.trainable.items()}
    below = at.unknown.below if at.unknown else None
    logits = at.sums.low, at.sums.high
    write_adapter(path, bundle, list(bundle.manifest.classes), at.step, tensors, logits, below)


def values_of(adapter: Adapter) -> Iterator[tuple[str, Array]]:
    """The parameters of an adapter by name, float32."""
    for name, entry in adapter.tensors.entries.items():
        yield name, np.frombuffer(adapter.tensors.read(name), np.float32).reshape(entry.shape)
