"""The course of a training: on what it is judged, which images it learns from and when, and what it may end with."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinytl_edge.runtime.files.adapter import BEFORE, BEFORE_JUDGED
from tinytl_edge.runtime.files.bundle import Manifest
from tinytl_edge.runtime.images.balance import log_priors
from tinytl_edge.runtime.images.dataset import SINGLE, Dataset
from tinytl_edge.runtime.images.held_out import Known, held_out

from .options import BLEND, BLEND_OF_DEPLOYED, HELD_OUT, KEPT, RUN_START, TrainOptions

# What may be kept: shares of what was trained, the rest being where training began (Wortsman et al., Robust
# fine-tuning of zero-shot models, 2022). 0: training brought nothing.
SHARES = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
_TRIAL = 0.5  # of the epochs


@dataclass(frozen=True)
class Stage:
    """Epochs over the images that are not held out, or over all. It begins where the training began, or with the
    adapter `start`, a file of the run's folder."""

    epochs: int
    with_held_out: bool
    start: str | None = None


@dataclass(frozen=True)
class Course:
    """`held_out`: numbers of images; `shares`: of what was trained, to choose from by what the result is judged on;
    `keeps_best`: or the best epoch, as it was trained. `log_priors`: added to the logits while training, or nothing."""

    held_out: tuple[int, ...]
    stages: tuple[Stage, ...]
    shares: tuple[float, ...]
    keeps_best: bool
    log_priors: tuple[float, ...]

    def job(self, run: Path) -> dict[str, Any]:
        """For the worker."""
        stages = [
            {**asdict(stage), "start": os.fspath(run.resolve() / stage.start) if stage.start else None}
            for stage in self.stages
        ]
        return {
            "held_out": list(self.held_out),
            "course": stages,
            "shares": list(self.shares),
            "keeps_best": self.keeps_best,
            "log_priors": list(self.log_priors),
        }


def choose_held_out(options: TrainOptions, dataset: Dataset, validated: bool, known: Known) -> tuple[int, ...]:
    """Without images of its own to be judged on (`validated`), a share of the training's is held out."""
    share = HELD_OUT if options.hold_out is None else options.hold_out
    if not share or validated or not options.rounds(dataset.count):
        return ()
    return tuple(held_out(dataset, share, options.seed, known))


def plan_course(
    manifest: Manifest, options: TrainOptions, dataset: Dataset, validated: bool, out: tuple[int, ...]
) -> Course:
    """What to do, images `out` being held out.

    A shorter training on the others tells how good it is and what to keep; then all images are learnt from in the same
    way.
    """
    epochs = options.rounds(dataset.count)
    judged = validated or bool(out)
    goes_on = options.start == RUN_START
    stages = []
    if out:
        stages.append(Stage(math.ceil(_TRIAL * epochs), with_held_out=False, start=BEFORE_JUDGED if goes_on else None))
    if epochs or goes_on:
        stages.append(Stage(epochs, with_held_out=True, start=BEFORE if goes_on else None))
    keeps_best = validated and options.blend is None
    shares = _shares(manifest, options, judged)
    return Course(out, tuple(stages), shares, keeps_best, tuple(priors(manifest, dataset)))


def priors(manifest: Manifest, dataset: Dataset) -> list[float]:
    """What is added to the logits while training, by class; nothing where there is no bias to learn it with."""
    weighs = manifest.head is not None and manifest.labels == SINGLE
    return log_priors(dataset.counts()) if weighs else []


def _shares(manifest: Manifest, options: TrainOptions, judged: bool) -> tuple[float, ...]:
    if options.blend is not None:
        return (options.blend,)
    if not options.begins_knowing(manifest):
        return (1.0,)
    if judged:
        return SHARES
    return (BLEND_OF_DEPLOYED if manifest.classifier == KEPT else BLEND,)
