"""The process in which `bench` measures PyTorch or onnxruntime-training: steps on noise, then inference.

Run as `python -m tinytl_edge.benchmark_worker`; it takes a job and says events as every worker does. The native
trainer's own bench (runtime/native/bench.cc) does the same steps on the same noise: the losses agree.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.errors import TinyTLError
from tinytl_edge.runtime.files.bundle import FORWARD, Bundle, Manifest, open_bundle
from tinytl_edge.runtime.images.dataset import MULTI
from tinytl_edge.runtime.images.sampling import draws, key
from tinytl_edge.runtime.memory import peak_rss
from tinytl_edge.runtime.workers.events import emit

Array = NDArray[np.float32]
T = TypeVar("T")
WARM_UP = 2  # steps that touch the memory for the first time; they are not measured
RATE = 1e-5  # any but zero: a step does all its work


class Runtime(Protocol):
    """What is measured."""

    def step(self, feeds: dict[str, Array]) -> float:
        """Forward, backward, update; returns the loss."""

    def infer(self, images: Array) -> object:
        """Forward alone."""


def main() -> int:
    """Do the job on standard input."""
    job = json.load(sys.stdin)
    try:
        bundle = open_bundle(job["bundle"])
        runtime: Runtime = _PyTorch(job, bundle) if job["runtime"] == "pytorch" else _OnnxRuntime(job, bundle)
    except TinyTLError as error:
        emit("error", message=str(error), exit_code=error.exit_code, peak_rss_bytes=peak_rss())
        return error.exit_code
    step_ms, loss = [], 0.0
    for number in range(WARM_UP + job["steps"]):
        feeds = noise(bundle.manifest, number)
        milliseconds, loss = _timed(lambda feeds=feeds: runtime.step(feeds))  # type: ignore[misc]
        step_ms.append(milliseconds)
        if number == 0:
            emit("step", step=1, loss=loss, ms=milliseconds)
    peak = peak_rss()
    image = noise(bundle.manifest, 0)["images"][:1]
    evaluation_ms = [_timed(lambda: runtime.infer(image))[0] for _ in range(WARM_UP + job["steps"])]
    emit(
        "done",
        step_ms=step_ms[WARM_UP:],
        evaluation_ms=evaluation_ms[WARM_UP:],
        loss=loss,
        peak_rss_bytes=peak,
    )
    return 0


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    begin = time.perf_counter()
    result = work()
    return 1e3 * (time.perf_counter() - begin), result


def noise(manifest: Manifest, step: int) -> dict[str, Array]:
    """What step `step` is fed: pixels in -1..1, one class each, nothing dropped."""
    shape = manifest.input.height, manifest.input.width, manifest.input.channels
    numbers = range(step * manifest.batch_size, (step + 1) * manifest.batch_size)
    uniform = [(draws(key(number), math.prod(shape)) >> np.uint64(40)) * 2.0**-24 for number in numbers]
    pixels = np.array([2 * u - 1 for u in uniform], np.float32).reshape(-1, *shape)
    return {
        "images": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)),
        "targets": np.eye(manifest.outputs, dtype=np.float32)[[number % manifest.class_count for number in numbers]],
        **{d.name: np.ones((len(numbers), *d.shape), np.float32) for d in manifest.dropouts},
    }


class _OnnxRuntime:
    """A training session of artifacts as generated or rewritten; an inference session of the exported model."""

    def __init__(self, job: dict[str, Any], bundle: Bundle) -> None:
        from tinytl_edge.runtime.workers.ort_session import OrtSession

        self._session = OrtSession(bundle, job["threads"], rewritten=job["rewritten"])
        self._rates = dict.fromkeys(self._session.trainable, RATE)
        self._job = job
        self._inference: Any = None

    def step(self, feeds: dict[str, Array]) -> float:
        return self._session.train_step(feeds, self._rates)[0]

    def infer(self, images: Array) -> object:
        if self._inference is None:
            self._inference = self._inference_session()
        return self._inference.run(["logits"], {"images": images}, None)

    def _inference_session(self) -> Any:
        from tinytl_edge.runtime.workers.ort_session import load_extension

        c = load_extension()
        options = c.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._job["threads"], 1
        session = c.InferenceSession(options, self._job["inference"], True, False)
        session.initialize_session([], [], set())
        return session


class _PyTorch:
    """Eager, NCHW, as PyTorch is by default: what is frozen requires no gradient, BatchNorm is folded."""

    def __init__(self, job: dict[str, Any], bundle: Bundle) -> None:
        import torch
        from torch.nn import functional

        from tinytl_edge.export.eager import EagerNetwork

        torch.set_num_threads(job["threads"])
        self._torch = torch
        manifest = bundle.manifest
        self._network = EagerNetwork(bundle.file(FORWARD), manifest.trainable)  # without masks nothing is dropped
        multi_label = manifest.labels == MULTI
        self._loss: Any = functional.binary_cross_entropy_with_logits if multi_label else functional.cross_entropy
        trained = [parameter for parameter in self._network.parameters() if parameter.requires_grad]
        self._optimizer: torch.optim.Optimizer
        if manifest.optimizer == "adam":
            self._optimizer = torch.optim.Adam(trained, RATE)
        else:
            self._optimizer = torch.optim.SGD(trained, RATE, 0.9 if manifest.optimizer == "momentum" else 0)

    def step(self, feeds: dict[str, Array]) -> float:
        images, targets = (self._torch.from_numpy(feeds[name]) for name in ("images", "targets"))
        self._optimizer.zero_grad()
        loss: Any = self._loss(self._network(images), targets)
        loss.backward()
        self._optimizer.step()
        return float(loss)

    def infer(self, images: Array) -> object:
        with self._torch.no_grad():
            return self._network(self._torch.from_numpy(images))


if __name__ == "__main__":
    sys.exit(main())
