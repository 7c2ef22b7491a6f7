"""Training on the board: a plan, and a worker that carries it out; or this process becomes that worker."""

from __future__ import annotations

import contextlib
import os
from typing import Any

from tinytl_edge.runtime.files.adapter import FILE as ADAPTER
from tinytl_edge.runtime.files.run import record_of, write_record
from tinytl_edge.runtime.workers.become import become_trainer
from tinytl_edge.runtime.workers.event_log import EventLog
from tinytl_edge.runtime.workers.events import Event, OnEvent

from .aligning import plan_aligning
from .errors import InterruptedTrainingError, StorageError, TinyTLError, UsageError
from .memory import megabytes
from .options import TrainOptions
from .training_plan import Asked, TrainingPlan, plan_training, planned_bytes

_PLAN_IS_KEPT = 1.03  # what a peak may take more than the plan before it is said
_OF_THE_SYSTEM = 250_000  # bytes: C libraries and kernels differ by as much


def train(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    val: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "run",
    *,
    runtime: str = "auto",
    options: TrainOptions | None = None,
    resume: bool = False,
    bundle: str | os.PathLike[str] | None = None,
    unlabelled: str | os.PathLike[str] | None = None,
    keep_images: str | os.PathLike[str] | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Train the bundle's trainable parameters on images; returns the `done` event.

    Args:
        model: a bundle's folder; or that of a run, to go on from, with further images or for more epochs.
        data, val: a folder with one sub-folder of images a class or with labels.csv, or a packed dataset. Where a run
            goes on, `data` are further images, and both may be left out.
        out: folder of the run; it must not hold a trained adapter yet unless `resume` is set.
        resume: go on from the run's checkpoint with the run's own options and data, as if nothing had
            happened; of `options` only `threads` and `log_every` are taken, where they are given.
        bundle: that of the run to go on from, if it has moved.
        unlabelled: in the place of `data`, a folder of images without labels, in folders or not, or a packed dataset:
            the biases of a deployed classifier follow what is otherwise here, where images of `val`, or without them
            how sure its answers are, say that this helps.
        keep_images: labelled images of the place that a deployed classifier comes from. What is chosen gives up no more
            than 3 points of its accuracy there, if anything does not; half of them are learnt from, too, in the place
            of what the bundle has kept.
        on_event: called with every event; for a live line also with `pack` and `evaluating` (done, total).

    Raises:
        TinyTLError: of the kind that says what is wrong; an adapter written before stays.
    """
    asked = Asked(model, data, val, out, runtime, options or TrainOptions(), resume, bundle, unlabelled, keep_images)
    return train_to_the_end(asked, on_event)


def train_to_the_end(asked: Asked, on_event: OnEvent | None, become: str = "") -> dict[str, Any]:
    """As `train`.

    Args:
        become: "text" or "json": the native trainer takes this process over and does not return. It says events on
            standard output ("json"), or what runtime/report.py makes of them, on standard error.
    """
    log = EventLog(on_event)
    try:
        plan = plan_training(asked, log) if asked.unlabelled is None else plan_aligning(asked, log)
        if become and plan.runtime == "native":
            write_record(plan.run, plan.bundle, status="running", **plan.record())
            try:
                become_trainer(plan.command, {**plan.job(), "front": _front(plan, become)})
            except UsageError as error:
                write_record(plan.run, plan.bundle, status="failed", error=str(error), **plan.record())
                raise
        return _by_a_worker(plan, log)
    except TinyTLError as error:
        with contextlib.suppress(StorageError):
            log.write({"event": "error", "message": str(error), "exit_code": error.exit_code})
        raise
    finally:
        log.close()


def _front(plan: TrainingPlan, lines: str) -> dict[str, Any]:
    """For a trainer that nobody waits for: what it says, and records, by itself."""
    return {
        "lines": lines,
        "record": record_of(plan.run, plan.bundle, **plan.record()),
        "planned_peak_bytes": planned_bytes(plan.bundle, plan.runtime, plan.options),
        "memory_limit": plan.bundle.manifest.memory_limit,
        "memory": plan.memory,
        "adapter": os.fspath(plan.run / ADAPTER),
    }


def _by_a_worker(plan: TrainingPlan, log: EventLog) -> dict[str, Any]:
    """Start a worker, record what it says and takes."""
    from tinytl_edge.runtime.workers.worker import run_worker

    record = plan.record()
    write_record(plan.run, plan.bundle, status="running", **record)

    first_pass = 0

    def log_event(event: Event) -> None:
        nonlocal first_pass
        first_pass = max(first_pass, event["peak_rss_bytes"] if event["event"] in ("one_pass", "aligned") else 0)
        log.write({**event, "executable": record["executable"]} if event["event"] == "start" else event)

    try:
        measured = run_worker(plan.command, plan.job(), log_event)
    except TinyTLError as error:
        status = "interrupted" if isinstance(error, InterruptedTrainingError) else "failed"
        with contextlib.suppress(StorageError):  # the first error tells more
            write_record(plan.run, plan.bundle, status=status, error=str(error), **record)
        raise
    done = {
        **measured.last,
        "peak_rss_bytes": measured.peak_rss_bytes,
        "planned_peak_bytes": planned_bytes(plan.bundle, plan.runtime, plan.options),
        "memory": {**plan.memory, "training": measured.peak_of_all},
        "adapter": os.fspath(plan.run / ADAPTER),
    }
    write_record(plan.run, plan.bundle, status="done", **record, result=done, rss_curve=measured.curve)
    if (warning := above_plan(done, plan.bundle.manifest.memory_limit, first_pass)) is not None:
        log.write({"event": "warning", "message": warning})
    log.write(done)
    return done


def above_plan(done: Event, limit: int | None, first_pass: int = 0) -> str | None:
    """A sentence where the trainer took more than its limit; or, without one, than its plan and the first pass."""
    peak, planned = done["peak_rss_bytes"], done["planned_peak_bytes"]
    if planned is None:
        return None
    planned = max(planned, first_pass)  # which without a limit takes what it likes
    if limit is not None:
        above = f"The trainer took {megabytes(peak)} at its peak, above the bundle's limit of {megabytes(limit)}."
        return above if peak > limit else None
    if peak > _PLAN_IS_KEPT * planned + _OF_THE_SYSTEM:
        return f"The trainer took {megabytes(peak)} at its peak, where {megabytes(planned)} were planned."
    return None
