"""How a parameter of a file became one of the network graph, so that a trained one can be written back.

A list of steps as JSON stands in the metadata_props of an initializer's value, under the key ORIGIN, where there was
one:

    {"step": "transpose"}                                     a matrix was turned
    {"step": "reshape", "shape": [...]}                       it had this shape
    {"step": "scale", "factor": f}                            it was multiplied by f
    {"step": "cast", "dtype": "float16"}                      it was of this type
    {"step": "dequantise", "dtype", "scale", "zero", "axis"}  of codes, float = (code - zero) * scale along the axis
    {"step": "copy", "of": name}                              it is one reader's own copy of this initializer

What else changes a parameter (none here do, but for what is computed from one) leaves {"step": "computed"}.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array

ORIGIN = "tinytl-edge.origin"


def steps(value: ir.Value) -> list[dict[str, Any]]:
    """What was done to an initializer, in order."""
    found: list[dict[str, Any]] = json.loads(value.metadata_props.get(ORIGIN, "[]"))
    return found


def record(value: ir.Value, step: str, before: ir.Value | None = None, **details: Any) -> None:
    """Note what was done to `value`, after all that was done to `before`, which it was copied from."""
    past = steps(before if before is not None else value)
    if before is not None and before is not value:
        past.append({"step": "copy", "of": before.name})
    if step:
        past.append({"step": step, **details})
    value.metadata_props[ORIGIN] = json.dumps(past)


def as_in_file(value: ir.Value, numbers: Array) -> Array:
    """New numbers for an initializer, in the shape and type that its file has.

    Raises:
        ValueError: it was computed from the file's.
    """
    for step in reversed(steps(value)):
        kind = step["step"]
        if kind == "transpose":
            numbers = numbers.T
        elif kind == "reshape":
            numbers = numbers.reshape(step["shape"])
        elif kind == "scale":
            numbers = numbers / np.float32(step["factor"])
        elif kind == "cast":
            numbers = numbers.astype(step["dtype"])
        elif kind == "dequantise":
            shape = [-1 if axis == step["axis"] else 1 for axis in range(numbers.ndim)]
            scale, zero = (np.array(step[name]).reshape(-1) for name in ("scale", "zero"))
            scale, zero = (part.reshape(shape) if part.size > 1 else part.reshape(()) for part in (scale, zero))
            limits = np.iinfo(step["dtype"])
            numbers = np.clip(np.rint(numbers / scale) + zero, limits.min, limits.max).astype(step["dtype"])
        elif kind == "computed":
            raise ValueError(f"'{value.name}' was computed from what is in the file")
    return numbers
