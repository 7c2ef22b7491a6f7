"""A deployed classifier in a place of which there are images without labels: what is to be done, everything checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tinytl_edge.runtime.files.bundle import Bundle, open_bundle
from tinytl_edge.runtime.files.features import FILE as FEATURES
from tinytl_edge.runtime.files.features import open_features
from tinytl_edge.runtime.files.run import EVENTS, FirstPass, is_run
from tinytl_edge.runtime.images.dataset import SINGLE, open_dataset
from tinytl_edge.runtime.images.source import check_exists, dataset_for, unlabelled_for
from tinytl_edge.runtime.workers.event_log import EventLog
from tinytl_edge.runtime.workers.runtimes import choose_runtime, worker_command

from .course import Course
from .errors import UsageError
from .first_pass import can_be_fitted, of_another_place
from .options import KEPT, LOG_EVERY, ONE_PASS
from .phases import Phases
from .threads import threads_for
from .training_plan import TRAIN_FILE, VAL_FILE, Asked, TrainingPlan, check_memory, claim
from .wording import list_names

_NOTHING_TO_TRAIN = Course((), (), (1.0,), keeps_best=False, log_priors=())


def plan_aligning(asked: Asked, log: EventLog) -> TrainingPlan:
    """Claim the run's folder and pack the images; `log` is open from there on.

    Raises:
        TinyTLError: of the kind that says what is wrong.
    """
    phases = Phases()
    assert asked.unlabelled is not None
    bundle, source, run = _checked(asked), Path(asked.unlabelled), Path(asked.out)
    val = Path(asked.val) if asked.val is not None else None
    for images in (source, val):
        if images is not None:
            check_exists(images)
    runtime = choose_runtime(asked.runtime, bundle)
    given = asked.options.check()
    threads = threads_for(bundle, given.threads)
    options = replace(given, threads=threads, log_every=given.log_every or LOG_EVERY, epochs=0, start=ONE_PASS)
    command = worker_command(runtime)
    check_memory(bundle, runtime, options)
    claim(run)
    log.open(run / EVENTS)
    phases.end("start")

    def warn(message: str) -> None:
        log.write({"event": "warning", "message": message})

    def progress(done: int, total: int) -> None:
        log.write({"event": "pack", "done": done, "total": total})

    train_file = unlabelled_for(bundle.manifest, source, run / TRAIN_FILE, warn, progress)
    val_file = None
    if val is not None:
        val_file = dataset_for(bundle.manifest, bundle.manifest.classes, val, run / VAL_FILE, warn, progress, True)
    with open_dataset(train_file) as dataset:
        others = _of_the_old_place(bundle, dataset.fingerprints)
    first_pass = FirstPass(0, str(bundle.file(FEATURES).resolve()), aligned=True, others=tuple(others))
    phases.end("packing")
    return TrainingPlan(
        bundle, run, runtime, command, options, train_file, val_file, _NOTHING_TO_TRAIN, first_pass, [], False,
        phases.record,
    )  # fmt: skip


def _checked(asked: Asked) -> Bundle:
    """The bundle, if its classifier can be aligned."""
    if asked.data is not None:
        raise UsageError(
            "--data and --unlabelled are two ways: with labelled images train without --unlabelled; or name them with "
            "--val, to judge by."
        )
    if asked.keep_images is not None:
        raise UsageError(
            "--keep-images are for training: with --unlabelled what the bundle has kept says what is given up."
        )
    if asked.resume:
        raise UsageError("--resume goes on with a training that was stopped: with --unlabelled there is none.")
    if is_run(Path(asked.model)):
        raise UsageError(f"--unlabelled goes with a bundle, and {asked.model} is a run: name its bundle.")
    bundle = open_bundle(asked.model)
    manifest = bundle.manifest
    if manifest.classifier != KEPT:
        raise UsageError(f"The classifier of {bundle.path} is new and knows nothing yet: it needs labelled images.")
    if not can_be_fitted(manifest) or manifest.labels != SINGLE:
        raise UsageError(
            f"Images without labels tell the classifier of {bundle.path} nothing: for that it has to end in one linear "
            "layer with a bias, and an image has to have one class."
        )
    return bundle


def _of_the_old_place(bundle: Bundle, fingerprints: Sequence[bytes]) -> list[int]:
    """The numbers of what the bundle has kept of other images, which say what the classifier knows.

    Raises:
        UsageError: that is not enough.
    """
    manifest = bundle.manifest
    assert manifest.head is not None
    lacking = list(manifest.classes)
    if bundle.file(FEATURES).is_file():
        features = open_features(bundle.file(FEATURES), manifest.head.features)
        others = of_another_place(features, fingerprints)
        shown = {features.labels[number] for number in others}
        lacking = [name for label, name in enumerate(manifest.classes) if label not in shown]
        if not lacking:
            return others
    raise UsageError(
        "Images without labels are compared with those that the classifier was trained on, and the bundle has kept "
        f"nothing of such images of {list_names(lacking)}: prepare it with --data on a few of each class."
    )
