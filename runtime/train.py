"""Training on the board: keeps the run's folder, starts the worker, records what it says and takes."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from tinytl_edge.runtime.files.adapter import FILE as ADAPTER
from tinytl_edge.runtime.files.bundle import STEP, Bundle, open_bundle
from tinytl_edge.runtime.files.run import CHECKPOINTS, EVENTS, RUN, open_run, write_record
from tinytl_edge.runtime.files.tensors import make_folder
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.images.source import check_exists, dataset_for
from tinytl_edge.runtime.workers.events import PASSING, Event, encode
from tinytl_edge.runtime.workers.worker import OnEvent, choose_runtime, run_worker, worker_command

from .errors import (
    DamagedFileError,
    DataError,
    InterruptedTrainingError,
    StorageError,
    TinyTLError,
    UsageError,
)
from .memory import megabytes, peak_rss
from .options import LOG_EVERY, TrainOptions
from .threads import THREAD_BYTES, threads_for

TRAIN_FILE = "train.safetensors"
VAL_FILE = "val.safetensors"
_PLAN_IS_KEPT = 1.03  # what a peak may take more than the plan before it is said
_OF_THE_SYSTEM = 250_000  # bytes: C libraries and kernels differ by as much


def train(
    bundle: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    val: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "run",
    *,
    runtime: str = "auto",
    options: TrainOptions | None = None,
    resume: bool = False,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Train the bundle's trainable parameters on images; returns the `done` event.

    Args:
        bundle: folder that `prepare` wrote.
        data, val: a folder with one sub-folder of images a class or with labels.csv, or a packed dataset.
        out: folder of the run; it must not hold a trained adapter yet unless `resume` is set.
        resume: go on from the run's checkpoint with the run's own options and data, as if nothing had
            happened; of `options` only `threads` and `log_every` are taken, where they are given.
        on_event: called with every event; for a live line also with `pack` and `evaluating` (done, total).

    Raises:
        TinyTLError: of the kind that says what is wrong; an adapter written before stays.
    """
    run = Path(out)
    log = _EventLog(on_event or (lambda event: None))
    try:
        opened = open_bundle(bundle)
        options = (options or TrainOptions()).check()
        if resume:
            plan = _resumed_plan(run, opened, options, log)
        else:
            plan = _new_plan(run, opened, choose_runtime(runtime, opened), options, data, val, log)
        command = worker_command(plan.runtime)
        record = {**plan.record(run), "executable": Path(command[0]).name}
        write_record(run, opened, status="running", **record)

        def log_event(event: Event) -> None:
            log.write({**event, "executable": record["executable"]} if event["event"] == "start" else event)

        try:
            measured = run_worker(command, plan.job(run, opened, resume), log_event)
        except TinyTLError as error:
            status = "interrupted" if isinstance(error, InterruptedTrainingError) else "failed"
            with contextlib.suppress(StorageError):  # the first error tells more
                write_record(run, opened, status=status, error=str(error), **record)
            raise
        done = {
            **measured.last,
            "peak_rss_bytes": measured.peak_rss_bytes,
            "planned_peak_bytes": plan.planned_bytes(opened),
            "parent_peak_rss_bytes": peak_rss(),
            "adapter": os.fspath(run / ADAPTER),
        }
        write_record(run, opened, status="done", **record, result=done, rss_curve=measured.curve)
        if (warning := _above_plan(opened, done)) is not None:
            log.write({"event": "warning", "message": warning})
        log.write(done)
    except TinyTLError as error:
        with contextlib.suppress(StorageError):
            log.write({"event": "error", "message": str(error), "exit_code": error.exit_code})
        raise
    finally:
        log.close()
    return done


def _above_plan(bundle: Bundle, done: Event) -> str | None:
    """A sentence where the process took more than its limit or its plan."""
    peak, limit, planned = done["peak_rss_bytes"], bundle.manifest.memory_limit, done["planned_peak_bytes"]
    if planned is None:
        return None
    if limit is not None and peak > limit:
        return f"The trainer took {megabytes(peak)} at its peak, above the bundle's limit of {megabytes(limit)}."
    if peak > _PLAN_IS_KEPT * planned + _OF_THE_SYSTEM:
        return f"The trainer took {megabytes(peak)} at its peak, where {megabytes(planned)} were planned."
    return None


@dataclass(frozen=True)
class _Plan:
    """What is to be trained on, and how."""

    runtime: str
    options: TrainOptions
    train_file: Path
    val_file: Path | None

    def record(self, run: Path) -> dict[str, Any]:
        """For run.json: files relative to the run."""
        return {
            "runtime": self.runtime,
            "options": asdict(self.options),
            "data": os.path.relpath(self.train_file.resolve(), run.resolve()),
            "val": os.path.relpath(self.val_file.resolve(), run.resolve()) if self.val_file else None,
        }

    def job(self, run: Path, bundle: Bundle, resume: bool) -> dict[str, Any]:
        """For the worker."""
        manifest = bundle.manifest
        batch_size = self.options.batch_size or manifest.batch_size
        return {
            "command": "train",
            "bundle": os.fspath(bundle.path.resolve()),
            "bundle_identity": bundle.identity,
            "program": os.fspath(bundle.file(STEP).resolve()),
            "batch_size": batch_size,
            "learning_rates": self.options.learning_rates(manifest.optimizer, batch_size),
            "run": os.fspath(run.resolve()),
            "train": os.fspath(self.train_file.resolve()),
            "val": os.fspath(self.val_file.resolve()) if self.val_file else None,
            "options": asdict(self.options),
            "resume": resume,
        }

    def planned_bytes(self, bundle: Bundle) -> int | None:
        """What the native trainer's plan takes; onnxruntime plans at run time."""
        planned = bundle.manifest.planned_memory
        if self.runtime != "native" or not planned:
            return None
        return sum(planned.values()) + ((self.options.threads or 1) - 1) * THREAD_BYTES


def _new_plan(
    run: Path,
    bundle: Bundle,
    runtime: str,
    options: TrainOptions,
    data: str | os.PathLike[str] | None,
    val: str | os.PathLike[str] | None,
    log: _EventLog,
) -> _Plan:
    if data is None:
        raise UsageError("Name the images to train on with --data.")
    train_source, val_source = Path(data), Path(val) if val is not None else None
    for source in (train_source, val_source):
        if source is not None:
            check_exists(source)
    _claim(run)
    log.open(run / EVENTS)
    options = replace(options, threads=threads_for(bundle, options.threads), log_every=options.log_every or LOG_EVERY)
    return _Plan(runtime, options, *_datasets(run, bundle, train_source, val_source, log))


def _claim(run: Path) -> None:
    """Make the run's folder; what an earlier attempt left there may go, a trained adapter may not."""
    if any((run / name).exists() for name in (ADAPTER, *CHECKPOINTS.values())):
        raise UsageError(f"{run} already holds a trained run: go on with --resume, or choose another --out.")
    try:
        make_folder(run)
        ours = {RUN, EVENTS, TRAIN_FILE, VAL_FILE}
        others = sorted(p.name for p in run.iterdir() if p.name not in ours and not p.name.startswith("."))
        if others:
            raise UsageError(f"{run} holds something else ({others[0]}): choose another --out.")
        (run / EVENTS).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{run} cannot be used as the run's folder: {error.strerror}.") from error


def _resumed_plan(run: Path, bundle: Bundle, given: TrainOptions, log: _EventLog) -> _Plan:
    record = open_run(run, bundle.path).record
    runtime = choose_runtime(record.runtime, bundle)
    checkpoint = CHECKPOINTS[runtime]
    if (run / ADAPTER).exists() and not (run / checkpoint).exists():
        raise DamagedFileError(f"{run} has an adapter, but {checkpoint} is gone: it cannot be resumed.")
    recorded = TrainOptions.from_json(asdict(record.options), run / RUN)
    train_file = Path(os.path.normpath(run / record.data))
    val_file = Path(os.path.normpath(run / record.val)) if record.val is not None else None
    for file in (train_file, val_file):
        if file is not None and not file.is_file():
            raise DataError(f"{file}, on which {run} was trained, is gone: it cannot be resumed.")
    log.open(run / EVENTS)
    options = replace(
        recorded, threads=given.threads or recorded.threads, log_every=given.log_every or recorded.log_every
    )
    return _Plan(runtime, options, *_datasets(run, bundle, train_file, val_file, log))


def _datasets(run: Path, bundle: Bundle, data: Path, val: Path | None, log: _EventLog) -> tuple[Path, Path | None]:
    """The dataset files: those named, checked, or made from folders."""

    def progress(done: int, total: int) -> None:
        log.write({"event": "pack", "done": done, "total": total})

    def warn(message: str) -> None:
        log.write({"event": "warning", "message": message})

    manifest = bundle.manifest
    train_file = dataset_for(manifest, manifest.classes, data, run / TRAIN_FILE, warn, progress)
    if val is None:
        return train_file, None
    with open_dataset(train_file) as dataset:
        classes = manifest.classes or dataset.classes
    return train_file, dataset_for(manifest, classes, val, run / VAL_FILE, warn, progress)


class _EventLog:
    """Hands events to whoever watches, and once opened appends them to events.jsonl."""

    def __init__(self, watcher: OnEvent) -> None:
        self._watcher = watcher
        self._file: IO[str] | None = None

    def open(self, path: Path) -> None:
        """Log from now on."""
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path} could not be written: {error.strerror}.") from error

    def write(self, event: Event) -> None:
        """Show an event, and log it if it is worth it."""
        self._watcher(event)
        if self._file is None or event["event"] in PASSING:
            return
        try:
            self._file.write(encode(event) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"{self._file.name} could not be written: {error.strerror}.") from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written has been reported
                self._file.close()
