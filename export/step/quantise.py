"""Frozen weights in 8 bits: which, and how."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .ir import Array, Parameter


@dataclass(frozen=True)
class Quantised:
    """weight = (codes - zero) * scale: int8 codes in the engine's layout, float32 scale [outputs in all, by group]."""

    codes: Array
    scale: Array
    zero: float = 0.0


def is_quantised(parameter: Parameter, frozen_weights: str) -> bool:
    """Is it stored as int8? Biases, scales and whatever trains never are; a source's own 8 bits always."""
    if parameter.trains or parameter.layout == "vector":
        return False
    return frozen_weights == "int8" or parameter.quantised is not None


def quantise(parameter: Parameter) -> Quantised:
    """The source's own 8 bits, or new ones: a scale for each output channel, max |weight| / 127.

    Weights that were rounded with such a scale come back exactly.
    """
    if parameter.quantised is not None:
        return parameter.quantised
    weight = parameter.value
    # [h, w, group, in, out] of a dense or grouped convolution: outputs are numbered group by group.
    outputs = (2, 4) if parameter.layout == "conv" else (weight.ndim - 1,)
    others = tuple(axis for axis in range(weight.ndim) if axis not in outputs)
    largest = np.abs(weight).max(others, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    codes = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    return Quantised(codes, np.ascontiguousarray(scale.reshape(-1)))
