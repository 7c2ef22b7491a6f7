"""What is to be trained on, and how: the run's folder claimed, the images packed, everything checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tinytl_edge.runtime.files.adapter import ALL_ADAPTERS
from tinytl_edge.runtime.files.adapter import FILE as ADAPTER
from tinytl_edge.runtime.files.bundle import STEP, Bundle, open_bundle
from tinytl_edge.runtime.files.features import FILE as FEATURES
from tinytl_edge.runtime.files.features import which_to_keep
from tinytl_edge.runtime.files.run import CHECKPOINTS, EVENTS, RUN, FirstPass, Record, is_run, open_run
from tinytl_edge.runtime.files.tensors import make_folder
from tinytl_edge.runtime.images.balance import uneven
from tinytl_edge.runtime.images.dataset import SINGLE, Dataset, open_dataset
from tinytl_edge.runtime.images.duplicates import (
    in_two_classes_said,
    learnt_and_judged,
    learnt_and_judged_said,
    of_two_classes,
    same_images,
)
from tinytl_edge.runtime.images.held_out import Known
from tinytl_edge.runtime.images.new_classes import with_new_classes
from tinytl_edge.runtime.images.source import check_exists, dataset_for
from tinytl_edge.runtime.workers.event_log import EventLog
from tinytl_edge.runtime.workers.runtimes import choose_runtime, worker_command

from .course import Course, choose_held_out, plan_course
from .errors import DamagedFileError, DataError, MemoryLimitError, StorageError, UsageError
from .first_pass import Begin, can_be_fitted, keeps_features, plan_first_pass
from .going_on import Earlier, bring_adapters, open_earlier, with_further
from .memory import megabytes
from .old_place import KEPT_FILE, NOT_MEASURED, with_kept_images
from .options import KEPT, LOG_EVERY, NEW, ONE_PASS, PREPARED, RUN_START, TrainOptions
from .phases import Phases
from .threads import THREAD_BYTES, threads_for
from .wording import list_names

TRAIN_FILE = "train.safetensors"
VAL_FILE = "val.safetensors"
FEW = "Nothing is held out: for that there have to be ten images of a class on the average."
FEW_ALONE = (
    "The classifier alone is fitted, unless --epochs says more: of few images nothing tells whether training makes a "
    "deployed classifier better, and it may make it worse."
)
FURTHER_FILE = "further.safetensors"


@dataclass(frozen=True)
class Asked:
    """What `train` was called with; see there."""

    model: str | os.PathLike[str]
    data: str | os.PathLike[str] | None = None
    val: str | os.PathLike[str] | None = None
    out: str | os.PathLike[str] = "run"
    runtime: str = "auto"
    options: TrainOptions = field(default_factory=TrainOptions)
    resume: bool = False
    bundle: str | os.PathLike[str] | None = None
    unlabelled: str | os.PathLike[str] | None = None
    keep_images: str | os.PathLike[str] | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """A training that may begin."""

    bundle: Bundle
    run: Path
    runtime: str
    command: list[str]  # what starts its worker
    options: TrainOptions
    train_file: Path
    val_file: Path | None
    course: Course
    first_pass: FirstPass | None
    to_keep: list[int]  # images whose features are kept in the end
    resume: bool
    memory: dict[str, Any]  # the `measure`, and the peaks of the phases before, in bytes

    def record(self) -> dict[str, Any]:
        """For run.json: files relative to the run."""
        run = self.run.resolve()
        return {
            "runtime": self.runtime,
            "options": asdict(self.options),
            "data": os.path.relpath(self.train_file.resolve(), run),
            "val": os.path.relpath(self.val_file.resolve(), run) if self.val_file else None,
            "held_out": list(self.course.held_out),
            "first_pass": asdict(self.first_pass.relative_to(run)) if self.first_pass else None,
            "executable": Path(self.command[0]).name,
        }

    def job(self) -> dict[str, Any]:
        """For the worker."""
        bundle, manifest = self.bundle, self.bundle.manifest
        batch_size = self.options.batch_size or manifest.batch_size
        return {
            "command": "align" if self.first_pass and self.first_pass.aligned else "train",
            "bundle": os.fspath(bundle.path.resolve()),
            "bundle_identity": bundle.identity,
            "program": os.fspath(bundle.file(STEP).resolve()),
            "classes": manifest.classes,
            "batch_size": batch_size,
            "memory": manifest.memory_limit,
            "learning_rates": self.options.learning_rates(manifest),
            "run": os.fspath(self.run.resolve()),
            "train": os.fspath(self.train_file.resolve()),
            "val": os.fspath(self.val_file.resolve()) if self.val_file else None,
            "options": asdict(self.options),
            **self.course.job(self.run),
            "first_pass": asdict(self.first_pass) if self.first_pass else None,
            "features_of": self.to_keep,
            "resume": self.resume,
        }


def plan_training(asked: Asked, log: EventLog) -> TrainingPlan:
    """Claim the run's folder and pack the images; `log` is open from there on.

    Raises:
        TinyTLError: of the kind that says what is wrong.
    """
    phases = Phases()
    model, run = Path(asked.model), Path(asked.out)
    before = open_run(model, asked.bundle) if is_run(model) else None
    bundle = before.bundle if before else open_bundle(model)
    options = asked.options.check()
    resumed = open_run(run, bundle.path).record if asked.resume else None
    earlier = open_earlier(before) if before and not resumed else None
    bundle = bundle.with_classes(earlier.classes) if earlier else bundle
    data: Path | None
    if resumed:
        if resumed.first_pass and resumed.first_pass.aligned:
            raise UsageError(f"{run} has nothing to go on with: begin again with --unlabelled.")
        runtime, options, data, val = _as_recorded(run, resumed, bundle, options)
    else:
        runtime, data, val = choose_runtime(asked.runtime, bundle), *_sources(asked, earlier)
        threads = threads_for(bundle, options.threads)
        options = replace(options, threads=threads, log_every=options.log_every or LOG_EVERY)
        options = replace(options, start=start_of(bundle, options, earlier))
    keep_images = Path(asked.keep_images) if asked.keep_images is not None and not resumed else None
    if keep_images is not None:
        check_exists(keep_images)
    command = worker_command(runtime)
    check_memory(bundle, runtime, options)
    if not resumed:
        claim(run)
    log.open(run / EVENTS)
    phases.end("start")
    if earlier and options.start == RUN_START:
        bring_adapters(earlier, run)
    train_file, val_file = _datasets(run, bundle, data, val, earlier, log)
    kept_file = None
    if keep_images is not None:
        kept_file = _packed(bundle, bundle.manifest.classes, keep_images, run / KEPT_FILE, log, partly=True)
    validated = val_file is not None
    with open_dataset(train_file) as dataset:
        known, bundle = bundle.manifest.class_count, bundle.with_classes(dataset.classes)
        if resumed:
            out = resumed.held_out
            first_pass = resumed.first_pass.inside(run.resolve()) if resumed.first_pass else None
        else:
            begin = _begin(bundle, known, options, dataset, earlier, val_file, kept_file)
            first_pass, options = begin.first_pass, replace(options, epochs=begin.epochs)
            judged = earlier.known(options.start or "") if earlier else Known()
            out = choose_held_out(options, dataset, validated, judged)
            unjudged = options.hold_out != 0 and not out and not validated
            few = [FEW] if options.hold_out and unjudged else []
            if unjudged and first_pass and first_pass.pulled and asked.options.epochs is None and options.epochs:
                options = replace(options, epochs=0)
                log.write({"event": "images", "message": FEW_ALONE})
            if first_pass and first_pass.pulled and options.epochs and not first_pass.kept_judged:
                log.write({"event": "images", "message": NOT_MEASURED})
            for warning in _doubts(dataset, val_file, begin.stood_in) + few:
                log.write({"event": "warning", "message": warning})
            for note in begin.notes:
                log.write({"event": "images", "message": note})
        course = plan_course(bundle.manifest, options, dataset, validated, out)
        to_keep = which_to_keep(dataset.labels) if keeps_features(bundle.manifest) else []
    phases.end("packing")
    return TrainingPlan(
        bundle, run, runtime, command, options, train_file, val_file, course, first_pass, to_keep, asked.resume,
        phases.record,
    )  # fmt: skip


def _begin(
    bundle: Bundle,
    known: int,
    options: TrainOptions,
    dataset: Dataset,
    earlier: Earlier | None,
    val_file: Path | None,
    kept_file: Path | None,
) -> Begin:
    """What comes first: features that stand in for images are those of the run that is begun with, or the bundle's."""
    if earlier is None or options.start != RUN_START:
        judged: Sequence[bytes] = ()
        if val_file is not None:
            with open_dataset(val_file) as val:
                judged = val.fingerprints
        begin = plan_first_pass(
            bundle, known, options, dataset, bundle.file(FEATURES), judged=judged, has_kept=kept_file is not None
        )
    else:
        begin = plan_first_pass(bundle, known, options, dataset, earlier.run.path / FEATURES, earlier.images is None)
    return begin if kept_file is None else with_kept_images(begin, kept_file, options)


def planned_bytes(bundle: Bundle, runtime: str, options: TrainOptions) -> int | None:
    """What the native trainer's process takes, by plan; onnxruntime plans at run time."""
    planned = bundle.manifest.planned_memory
    if runtime != "native" or not planned:
        return None
    return sum(planned.values()) + ((options.threads or 1) - 1) * THREAD_BYTES


def start_of(bundle: Bundle, options: TrainOptions, earlier: Earlier | None = None) -> str:
    """Where training begins; see TrainOptions.

    Raises:
        UsageError: where it cannot.
    """
    manifest = bundle.manifest
    can = can_be_fitted(manifest)
    usual = RUN_START if earlier else ONE_PASS if can and manifest.classifier in (NEW, KEPT) else PREPARED
    start = options.start or usual
    if start == ONE_PASS and not can:
        raise UsageError(
            f"The classifier of {bundle.path} cannot be fitted in one pass: it does not end in one linear layer with a "
            "bias."
        )
    if start == RUN_START and not earlier:
        raise UsageError(f"--start run goes on from a run, and {bundle.path} is a bundle: name the run in its place.")
    return start


def check_memory(bundle: Bundle, runtime: str, options: TrainOptions) -> None:
    """Find a limit that cannot be kept.

    Raises:
        MemoryLimitError: so many threads take more; says how many fit.
    """
    limit, planned = bundle.manifest.memory_limit, planned_bytes(bundle, runtime, options)
    if limit is not None and planned is not None and planned > limit:
        raise MemoryLimitError(
            f"With {options.threads} threads training takes {megabytes(planned)}, above the bundle's limit of "
            f"{megabytes(limit)}: --threads {threads_for(bundle, None)} fits."
        )


def _sources(asked: Asked, earlier: Earlier | None) -> tuple[Path | None, Path | None]:
    if asked.data is None and earlier is None:
        raise UsageError("Name the images to train on with --data.")
    data, val = (Path(source) if source is not None else None for source in (asked.data, asked.val))
    if val is None and earlier is not None:
        val = earlier.val
    for source in (data, val):
        if source is not None:
            check_exists(source)
    return data, val


def _doubts(dataset: Dataset, val_file: Path | None, stood_in: Collection[int]) -> list[str]:
    """What is odd about images that can be trained on; features stand in for those of some classes."""
    found = []
    lacking = [label for label, count in enumerate(dataset.counts()) if not count and label not in stood_in]
    if lacking:
        names = list_names([dataset.classes[label] for label in lacking])
        found.append(f"There are no usable images of {names}: training may unlearn what it knows of them.")
    if dataset.kind == SINGLE:
        if sentence := uneven(dataset.classes, dataset.counts()):
            found.append(sentence)
        if pairs := of_two_classes(dataset, same_images(dataset)):
            found.append(in_two_classes_said(dataset, pairs))
    if val_file is not None:
        with open_dataset(val_file) as val:
            if pairs := learnt_and_judged(dataset, val):
                found.append(learnt_and_judged_said(pairs, val))
    return found


def claim(run: Path) -> None:
    """Make the run's folder; what an earlier attempt left there may go, a trained adapter may not.

    Raises:
        UsageError: there is one, or something else.
        StorageError: it cannot be made.
    """
    if any((run / name).exists() for name in (ADAPTER, *CHECKPOINTS.values())):
        raise UsageError(
            f"{run} already holds a trained run: choose another --out. (--resume ends one that was stopped; with a run "
            "in the place of the bundle, training goes on from that.)"
        )
    try:
        make_folder(run)
        ours = {RUN, EVENTS, *ALL_ADAPTERS, TRAIN_FILE, VAL_FILE, FURTHER_FILE, KEPT_FILE, FEATURES}
        others = sorted(p.name for p in run.iterdir() if p.name not in ours and not p.name.startswith("."))
        if others:
            raise UsageError(f"{run} holds something else ({others[0]}): choose another --out.")
        (run / EVENTS).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{run} cannot be used as the run's folder: {error.strerror}.") from error


def _as_recorded(
    run: Path, record: Record, bundle: Bundle, given: TrainOptions
) -> tuple[str, TrainOptions, Path, Path | None]:
    """The runtime, the options and the dataset files of a run that is resumed."""
    runtime = choose_runtime(record.runtime, bundle)
    checkpoint = CHECKPOINTS[runtime]
    if (run / ADAPTER).exists() and not (run / checkpoint).exists():
        raise DamagedFileError(f"{run} has an adapter, but {checkpoint} is gone: it cannot be resumed.")
    recorded = TrainOptions.from_json(asdict(record.options), run / RUN)
    train_file = Path(os.path.normpath(run / record.data))
    val_file = Path(os.path.normpath(run / record.val)) if record.val is not None else None
    first = record.first_pass.inside(run) if record.first_pass else None
    kept_file = Path(first.kept_images) if first and first.kept_images else None
    for file in (train_file, val_file, kept_file):
        if file is not None and not file.is_file():
            raise DataError(f"{file}, on which {run} was trained, is gone: it cannot be resumed.")
    options = replace(
        recorded,
        threads=given.threads or recorded.threads,
        log_every=given.log_every or recorded.log_every,
        start=recorded.start or PREPARED,
    )
    return runtime, options, train_file, val_file


def _packed(
    bundle: Bundle, classes: Sequence[str], source: Path, out: Path, log: EventLog, partly: bool = False
) -> Path:
    """The dataset file of images that were named, checked, or made from a folder."""

    def progress(done: int, total: int) -> None:
        log.write({"event": "pack", "done": done, "total": total})

    def warn(message: str) -> None:
        log.write({"event": "warning", "message": message})

    return dataset_for(bundle.manifest, classes, source, out, warn, progress, partly)


def _datasets(
    run: Path, bundle: Bundle, data: Path | None, val: Path | None, earlier: Earlier | None, log: EventLog
) -> tuple[Path, Path | None]:
    """The dataset files of what is learnt from, and of what it is judged on."""

    def say(kind: str) -> Callable[[str], None]:
        return lambda message: log.write({"event": kind, "message": message})

    classes: Sequence[str] = bundle.manifest.classes
    if data is not None:
        check_exists(data)
        classes = with_new_classes(bundle.manifest, data)
    if earlier is None:
        assert data is not None
        train_file = _packed(bundle, classes, data, run / TRAIN_FILE, log, partly=True)
    else:
        further = None
        if data is not None:
            further = _packed(bundle, classes, data, run / FURTHER_FILE, log, partly=True)
        train_file = with_further(earlier, further, run / TRAIN_FILE, say("images"), say("warning"))
        if further == run / FURTHER_FILE != train_file:
            further.unlink()
    if val is None:
        return train_file, None
    with open_dataset(train_file) as dataset:
        classes = dataset.classes
    if val.is_file():  # it may have been packed before the further classes were there
        with open_dataset(val) as judged:
            if list(judged.classes) == list(classes[: len(judged.classes)]):
                classes = judged.classes
    return train_file, _packed(bundle, classes, val, run / VAL_FILE, log)
