"""How good a session's parameters are on labelled images that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.files.bundle import Manifest
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import MULTI
from tinytl_edge.runtime.images.mirrored import Mirrored
from tinytl_edge.runtime.intervals import likely
from tinytl_edge.runtime.learning.scaled import scaled_losses

from .measuring import evaluated, right, surest
from .ort_session import Array, OrtSession


@dataclass(frozen=True)
class Score:
    """Means over images, and over those classes of which there are images (multi-label both are the same)."""

    loss: float = 0.0
    accuracy: float = 0.0
    class_loss: float = 0.0
    class_accuracy: float = 0.0


def said(score: Score | None, prefix: str = "val") -> dict[str, float | None]:
    """For an event."""
    names = ("loss", "accuracy", "class_accuracy")
    return {f"{prefix}_{name}": getattr(score, name) if score else None for name in names}


def judged(judge: Judge | None, manifest: Manifest, start: Score | None, score: Score | None) -> dict[str, Any]:
    """For an event: on what, where it began, and how good it is."""
    single = manifest.labels != MULTI
    return {
        "judge": judge.what if judge else None,
        "val_images": len(judge.images) if judge else 0,
        **said(start, "start"),
        **said(score),
        "val_interval": likely(score.accuracy, len(judge.images)) if judge and score and single else None,
    }


class Judge:
    """Looks at `images` of a dataset; `what`: "val" or "held-out"."""

    def __init__(self, what: str, batches: Batches, images: Sequence[int]) -> None:
        self.what = what
        self.images = images
        self._batches = batches

    def mirrored(self, session: OrtSession, between: Callable[[], None]) -> Mirrored:
        """What mirroring does to the answers about the images."""
        answers = []
        for mirrored in (False, True):
            rights = []
            for batch in self._batches.evaluation(1, self.images, mirrored):
                rights.append(bool(right(batch, session.evaluate(batch.feeds)[1]).all()))
                between()
            answers.append(np.array(rights))
        plain, turned = answers
        return Mirrored(int((plain & ~turned).sum()), int((~plain & turned).sum()), len(plain))

    def shares(self) -> NDArray[np.float64]:
        """Of images in a mean over classes; multi-label, over images."""
        labels = self._batches.dataset.labels
        own = np.array([labels[image] if labels else 0 for image in self.images])
        _, place, counts = np.unique(own, return_inverse=True, return_counts=True)
        return np.asarray(1 / (counts[place] * len(counts)))

    def losses_at_best_scale(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of each image, of logits [images, classes] times the one number by which their mean, by shares, is least."""
        dataset = self._batches.dataset
        if dataset.kind == MULTI:
            targets = np.array([list(dataset.marks[image]) for image in self.images], np.float64)
        else:
            targets = np.eye(logits.shape[1])[[dataset.labels[image] for image in self.images]]
        return scaled_losses(logits, targets, self.shares(), dataset.kind == MULTI)

    def measure(
        self,
        session: OrtSession,
        on_batch: Callable[[int, int], None],
        between: Callable[[], None],
        sure: list[tuple[float, bool]] | None = None,
        raw: list[Array] | None = None,
    ) -> Score:
        """Of the parameters as they are; `between` is called after each image.

        `sure` takes how sure answers are, `raw` the logits of each image.
        """
        losses, rights, classes = [], [], []
        for batch, loss, logits in evaluated(session, self._batches, 1, on_batch, self.images):
            losses.append(loss)
            answer = right(batch, logits)
            rights.append(float(answer.mean()))
            if sure is not None:
                sure.append((float(np.float32(surest(logits)[0])), bool(answer.any())))
            if raw is not None:
                raw.append(logits[0])
            classes.append(int(batch.labels[0]) if batch.labels.ndim == 1 else 0)
            between()
        by_class = [np.array(classes) == label for label in sorted(set(classes))]
        each = np.array([losses, rights])
        (loss, accuracy), of_classes = each.mean(1), np.mean([each[:, own].mean(1) for own in by_class], 0)
        return Score(float(loss), float(accuracy), *of_classes.tolist())
