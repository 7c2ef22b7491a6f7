"""Which runtime computes, and what starts it."""

from __future__ import annotations

import sys

from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.files.bundle import Bundle

from .native_worker import find_trainer
from .ort_available import has_onnxruntime, no_ort_training

RUNTIMES = ("auto", "native", "onnxruntime-training")
_NO_TRAINER = "This installation came without the native trainer: install a wheel, or a C++ compiler first."


def choose_runtime(runtime: str, bundle: Bundle) -> str:
    """The runtime that `auto` stands for with this bundle.

    Raises:
        UsageError: the runtime is unknown, or the bundle holds nothing for it.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"'{runtime}' is no runtime: choose one of {', '.join(RUNTIMES)}.")
    held = bundle.manifest.runtimes
    if runtime == "auto":
        runtime = "native"  # of two, unless there is no trainer
        if "onnxruntime-training" in held and not ("native" in held and find_trainer()):
            runtime = "onnxruntime-training"
    if runtime not in held:
        raise UsageError(f"{bundle.path} holds nothing for {runtime}, only for {', '.join(held)}: choose that.")
    if runtime == "native" and find_trainer() is None:
        raise UsageError(_NO_TRAINER)
    if runtime == "onnxruntime-training" and not has_onnxruntime():
        raise UsageError(no_ort_training())
    return runtime


def worker_command(runtime: str) -> list[str]:
    """What starts a runtime's worker.

    Raises:
        UsageError: it is the native trainer, and there is none.
    """
    if runtime != "native":
        return [sys.executable, "-m", "tinytl_edge.runtime.workers.ort_worker"]
    trainer = find_trainer()
    if trainer is None:
        raise UsageError(_NO_TRAINER)
    return [str(trainer)]
