"""Whether onnxruntime-training can be here, and what to say where it is not. Imports none of it."""

from __future__ import annotations

import sys

_LAST_PYTHON = (3, 11)  # that its last release has wheels for


def has_onnxruntime() -> bool:
    """Is onnxruntime-training (or plain onnxruntime, which has the same name) installed?"""
    import importlib.util

    return importlib.util.find_spec("onnxruntime") is not None


def no_ort_training() -> str:
    """Why it is not here, and what to do."""
    import platform

    machine, python = platform.machine(), sys.version_info[:2]
    if machine == "x86_64" and python <= _LAST_PYTHON:
        return "onnxruntime-training is not installed: pip install 'tinytl-edge[ort]'."
    where = f"{machine} processors" if machine != "x86_64" else f"Python {python[0]}.{python[1]}"
    return (
        f"onnxruntime-training has no wheel for {where} (only for x86-64 and CPython 3.8 to 3.11): "
        "use the native trainer, --runtime native."
    )
