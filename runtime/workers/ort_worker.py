"""The onnxruntime-training worker: a process that reads one job on standard input and says events.

Run as `python -m tinytl_edge.runtime.workers.ort_worker`. A job is a JSON object with `command` (train, align, evaluate
or predict) and what `runtime/train.py` puts beside it. Imports numpy and onnxruntime-training's extension
module, never torch or onnx.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tinytl_edge.runtime.errors import TinyTLError, WorkerError
from tinytl_edge.runtime.files.adapter import open_adapter
from tinytl_edge.runtime.files.bundle import Bundle, open_bundle
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import MULTI, open_dataset
from tinytl_edge.runtime.memory import peak_rss

from .events import emit
from .measuring import evaluated, measure, probabilities
from .ort_adapter import values_of
from .ort_aligning import align_classifier
from .ort_session import OrtSession, out_of_memory, reason
from .ort_training import Training
from .stopping import StopRequest


def main() -> int:
    """Do the job on standard input; the exit code is the design's."""
    try:
        job = json.loads(sys.stdin.read())
        stop = StopRequest() if job["command"] in ("train", "align") else None
        bundle = open_bundle(job["bundle"]).with_classes(job["classes"])
        if stop is not None and job["command"] == "align":
            align_classifier(job, bundle, stop)
        elif stop is not None:
            Training(job, bundle, stop).run()
        elif job["command"] == "evaluate":
            _evaluate(job, bundle)
        else:
            _predict(job, bundle)
    except TinyTLError as error:
        return _fail(error)
    except BrokenPipeError:
        return WorkerError.exit_code
    except Exception as error:  # the extension's own kinds: no traceback for the person at the board
        if out_of_memory(error):
            return _fail(WorkerError("There is not enough memory: use a smaller batch or resolution."))
        return _fail(WorkerError(f"The onnxruntime-training worker failed: {reason(error)}."))
    return 0


def _fail(error: TinyTLError) -> int:
    emit("error", message=str(error), exit_code=error.exit_code, peak_rss_bytes=peak_rss())
    return error.exit_code


def _adapted(job: dict[str, Any], bundle: Bundle) -> OrtSession:
    session = OrtSession(bundle, job["threads"], training=False)
    if job["adapter"]:
        session.load_parameters(dict(values_of(open_adapter(Path(job["adapter"]), bundle))))
    return session


def _evaluate(job: dict[str, Any], bundle: Bundle) -> None:
    session = _adapted(job, bundle)
    batches = Batches(bundle.manifest, open_dataset(job["data"]))
    found = measure(session, batches, job["batch_size"], _progress, job["unknown_below"])
    emit("done", runtime="onnxruntime-training", **found, peak_rss_bytes=peak_rss())


def _predict(job: dict[str, Any], bundle: Bundle) -> None:
    session = _adapted(job, bundle)
    batches = Batches(bundle.manifest, open_dataset(job["data"]))
    for _, _, logits in evaluated(session, batches, job["batch_size"], _progress):
        for row in probabilities(logits, bundle.manifest.labels == MULTI).tolist():
            emit("prediction", probabilities=row)
    emit("done", runtime="onnxruntime-training", images=batches.dataset.count, peak_rss_bytes=peak_rss())


def _progress(done: int, total: int) -> None:
    emit("evaluating", done=done, total=total)


if __name__ == "__main__":
    sys.exit(main())
