"""What Resize does along one axis, as a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from tinytl_edge.runtime.errors import UsageError

from .onnx_graph import Array, attribute

_ROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize_matrix(node: ir.Node, old: int, new: int) -> Array:
    """The float32 [new, old] matrix that a Resize node applies along one axis (ONNX operator reference).

    Raises:
        UsageError: the node crops, antialiases, or is of another mode than linear, nearest and cubic.
    """
    mode = attribute(node, "mode", "nearest")
    if attribute(node, "antialias", 0) or attribute(node, "exclude_outside", 0):
        raise UsageError(f"Resize '{node.name}' antialiases or excludes what is outside, which is not known here.")
    position = _positions(node, old, new)
    rows, matrix = np.arange(new), np.zeros((new, old))
    if mode == "linear":
        position = np.clip(position, 0, old - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, old - 1)
        np.add.at(matrix, (rows, low), 1 - (position - low))
        np.add.at(matrix, (rows, high), position - low)
    elif mode == "nearest":
        nearest = _ROUNDINGS[attribute(node, "nearest_mode", "round_prefer_floor")](position)
        matrix[rows, np.clip(nearest, 0, old - 1).astype(int)] = 1
    elif mode == "cubic":
        a = float(attribute(node, "cubic_coeff_a", -0.75))
        low = np.floor(position).astype(int)
        for tap in range(-1, 3):
            weight = _cubic(np.abs(position - (low + tap)), a)
            np.add.at(matrix, (rows, np.clip(low + tap, 0, old - 1)), weight)
    else:
        raise UsageError(f"Resize '{node.name}' is {mode}; linear, nearest and cubic are known.")
    return matrix.astype(np.float32)


def _positions(node: ir.Node, old: int, new: int) -> Array:
    """Where each output pixel's centre lies among the input's."""
    coordinates = attribute(node, "coordinate_transformation_mode", "half_pixel")
    place = np.arange(new, dtype=np.float64)
    scale = new / old
    if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and new > 1):
        return (place + 0.5) / scale - 0.5
    if coordinates == "pytorch_half_pixel":
        return np.zeros(1)
    if coordinates == "align_corners":
        return place * (old - 1) / max(new - 1, 1)
    if coordinates == "asymmetric":
        return place / scale
    raise UsageError(f"Resize '{node.name}' uses {coordinates} coordinates, which are not known here.")


def _cubic(distance: Array, a: float) -> Array:
    """Keys' kernel (1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def resize_scale(old: int, new: int) -> np.float32:
    """The scale of a Resize from `old` to `new` pixels: their product rounds down to `new` in float32 and in float64.

    Tools compute it in either: 7 / 3 as the nearest float32 gives 7 in the one and 6.9999998 in the other.
    """
    scale = np.float32(new / old)
    while float(scale) * old < new:
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale
