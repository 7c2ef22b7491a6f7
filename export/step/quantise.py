"""Frozen weights in 8 bits: which, and how."""

from __future__ import annotations

import numpy as np

from .ir import Array, Parameter


def is_quantised(parameter: Parameter, frozen_weights: str) -> bool:
    """Is it stored as int8? Biases, scales and whatever trains never are."""
    return frozen_weights == "int8" and not parameter.trains and parameter.layout != "vector"


def quantise(weight: Array) -> tuple[Array, Array]:
    """int8 values and a float32 scale for each output channel (the last axis): weight = values * scale.

    The scale is max |weight| / 127; weights that were rounded with it come back exactly.
    """
    largest = np.abs(weight).reshape(-1, weight.shape[-1]).max(0)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale
