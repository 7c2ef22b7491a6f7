"""What computes, and whether it is installed."""

from __future__ import annotations

import importlib.util

import pytest

from tinytl_edge.runtime.workers.native_worker import find_trainer

HAS_ORT = importlib.util.find_spec("onnxruntime") is not None and (
    importlib.util.find_spec("onnxruntime.training") is not None
)
needs_ort = pytest.mark.skipif(not HAS_ORT, reason="onnxruntime-training is not installed (CPython up to 3.11, x86-64)")
needs_trainer = pytest.mark.skipif(find_trainer() is None, reason="there is no native trainer")
RUNTIMES = [
    pytest.param("native", marks=needs_trainer),
    pytest.param("onnxruntime-training", marks=needs_ort),
]
