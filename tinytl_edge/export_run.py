"""`export`: the adapted classifier of a run as a model file for any inference runtime."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.files.bundle import FORWARD
from tinytl_edge.runtime.files.run import open_model
from tinytl_edge.runtime.files.tensors import atomic_write

FORMATS = ("onnx",)


def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str = "onnx",
    bundle: str | os.PathLike[str] | None = None,
    raw_pixels: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the classifier of a run (or of a bundle as prepared) as `format` to `out`.

    Args:
        raw_pixels: take uint8 [batch, H, W, C] pixels instead of normalised float32 [batch, C, H, W].

    Returns:
        out, format, bytes, classes, input (as the bundle's manifest has it).

    Raises:
        TinyTLError: of the kind that says what is wrong.
    """
    if format not in FORMATS:
        raise UsageError(f"'{format}' is no format: choose one of {', '.join(FORMATS)}.")
    target = Path(out)
    if target.exists() and not overwrite:
        raise UsageError(f"{target} already exists: add --overwrite, or choose another --out.")
    try:
        import numpy as np
        import onnx_ir as ir

        from tinytl_edge.export.targets.onnx_model import inference_model
    except ImportError:
        raise UsageError("Exporting needs the package onnx-ir: pip install 'tinytl-edge[prepare]'.") from None

    opened, adapter = open_model(model, bundle)
    classes = adapter.classes if adapter else opened.manifest.classes
    parameters = {}
    if adapter is not None:
        for name, entry in adapter.tensors.entries.items():
            parameters[name] = np.frombuffer(adapter.tensors.read(name), np.float32).reshape(entry.shape)
    forward = ir.load(opened.file(FORWARD))
    content = inference_model(forward, opened.manifest, parameters, classes, raw_pixels).SerializeToString()
    with atomic_write(target) as file:
        file.write(content)
    return {
        "out": os.fspath(target),
        "format": format,
        "bytes": len(content),
        "classes": list(classes),
        "input": asdict(opened.manifest.input),
    }
