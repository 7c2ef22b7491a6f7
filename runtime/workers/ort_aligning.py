"""A deployed classifier aligned with images without labels: what runtime/native/aligning.cc does, with numpy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.errors import InterruptedTrainingError
from tinytl_edge.runtime.files.adapter import FILE as ADAPTER
from tinytl_edge.runtime.files.bundle import Bundle
from tinytl_edge.runtime.files.run import FirstPass
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.learning.aligned import OldPlace
from tinytl_edge.runtime.memory import peak_rss

from .events import emit
from .ort_adapter import write_trained
from .ort_judge import Judge, Score, judged, said
from .ort_one_pass import classifier_rows, features_of
from .ort_session import Array, OrtSession
from .ort_standing import Standing
from .stopping import StopRequest


def align_classifier(job: dict[str, Any], bundle: Bundle, stop: StopRequest) -> None:
    """Do the job, and say how it goes."""
    begin = time.perf_counter()
    manifest, threads = bundle.manifest, job["options"]["threads"] or 1
    first = FirstPass(**job["first_pass"])
    images = Batches(manifest, open_dataset(job["train"]))
    judge = None
    if job["val"]:
        validation = Batches(manifest, open_dataset(job["val"]))
        judge = Judge("val", validation, range(validation.dataset.count))
    session = OrtSession(bundle, threads)
    count = images.dataset.count
    emit(
        "start", runtime="onnxruntime-training", step=0, total_steps=0, epochs=0, images=count, held_out=0,
        batch_size=1, learning_rates={}, threads=threads, peak_rss_bytes=peak_rss(),
    )  # fmt: skip

    def end_if_asked() -> None:
        if stop.asked:
            raise InterruptedTrainingError("Interrupted: nothing has changed.")

    def measured() -> Score | None:
        return judge.measure(session, _progress, end_if_asked) if judge else None

    def say(done: int) -> None:
        emit("fitting", done=done, total=count)
        end_if_asked()

    start = score = measured()
    features, labels, stood_in = features_of(session, manifest, images, range(count), first, job["batch_size"], say)
    here, kept, labels = features[:-stood_in], features[-stood_in:], labels[-stood_in:]
    rows = classifier_rows(session, manifest)
    before = rows[:, -1].copy()
    found = OldPlace(kept, labels, rows.astype(np.float64)).align(here)
    right_before = right = _right(rows, kept, labels)
    rows[:, -1] = (before - found.off).astype(np.float32)
    _set_biases(session, bundle, rows[:, -1])
    moved = measured()
    taken = found.helps if start is None or moved is None else moved.class_loss < start.class_loss
    if taken:
        score, right = moved, _right(rows, kept, labels)
    else:
        rows[:, -1] = before
        _set_biases(session, bundle, before)
    at = Standing()
    logits = features @ rows[:, :-1].T + rows[:, -1]
    at.sums.add_range(float(logits.min()), float(logits.max()))
    write_trained(Path(job["run"]) / ADAPTER, bundle, session, at)
    emit(
        "aligned",
        images=count,
        kept_images=stood_in,
        taken=taken,
        share=found.share,
        sure_before=found.sure_before,
        sure=found.sure,
        agreed_before=found.agreed_before,
        agreed=found.agreed,
        kept_accuracy_before=right_before,
        kept_accuracy=right,
        accuracy_before=start.accuracy if start else None,
        **said(moved),
        ms=1e3 * (time.perf_counter() - begin),
        peak_rss_bytes=peak_rss(),
    )
    emit(
        "done",
        runtime="onnxruntime-training",
        steps=0,
        step_ms_median=None,
        train_loss=None,
        left_out_accuracy=None,
        share=None,
        **judged(judge, manifest, start, score),
        kept_images=0,
        kept_accuracy_before=None,
        kept_accuracy=None,
        unknown=None,
        peak_rss_bytes=peak_rss(),
    )


def _right(rows: Array, kept: Array, labels: NDArray[np.int64]) -> float:
    return float(((kept @ rows[:, :-1].T + rows[:, -1]).argmax(1) == labels).mean())


def _set_biases(session: OrtSession, bundle: Bundle, biases: Array) -> None:
    assert bundle.manifest.head is not None
    session.trainable[bundle.manifest.head.bias].reshape(-1)[: len(biases)] = biases


def _progress(done: int, total: int) -> None:
    emit("evaluating", done=done, total=total)
