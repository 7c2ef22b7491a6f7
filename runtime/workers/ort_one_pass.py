"""The classifier in one pass, in an onnxruntime-training session: what runtime/native/learning/one_pass.cc does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.files.bundle import Manifest
from tinytl_edge.runtime.files.run import FirstPass
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import MULTI, open_dataset
from tinytl_edge.runtime.learning.discriminant import fit_discriminant
from tinytl_edge.runtime.learning.kept_features import read_features
from tinytl_edge.runtime.learning.known_classes import keep_known
from tinytl_edge.runtime.learning.label_regression import fit_labels
from tinytl_edge.runtime.learning.linear_fit import LinearFit
from tinytl_edge.runtime.learning.pulled import Kept, fit_pulled
from tinytl_edge.runtime.unknown import Unknown, find_unknown

from .measuring import probabilities
from .ort_session import Array, OrtSession
from .ort_standing import Sums


@dataclass(frozen=True)
class Fitted:
    """What a fit came to; sums over all samples; of those of known classes (`known`) how many were right before, and
    are now; the accuracy before, where the classifier knew all classes."""

    found: LinearFit
    sums: Sums
    unknown: Unknown | None = None
    known: int = 0
    known_right_before: int = 0
    known_right: int = 0
    accuracy_before: float | None = None

    def said(self) -> dict[str, Any]:
        """For the event."""
        return {
            "known": self.known,
            "known_accuracy_before": self.known_right_before / self.known if self.known else None,
            "known_accuracy": self.known_right / self.known if self.known else None,
            "accuracy_before": self.accuracy_before,
            "shrinkage": self.found.shrinkage,
            "pull": self.found.pull,
            "kept_accuracy_before": self.found.kept[0] if self.found.kept else None,
            "kept_accuracy": self.found.kept[1] if self.found.kept else None,
            "left_out_loss": self.found.loss,
            "left_out_accuracy": self.found.accuracy,
        }


def features_of(
    session: OrtSession, manifest: Manifest, batches: Batches, images: Sequence[int], first: FirstPass | None,
    batch_size: int, say: Callable[[int], None],
) -> tuple[Array, NDArray[np.int64], int]:  # fmt: skip
    """What the classifier reads of images, [images, features], and their labels, or (multi-label) marks.

    Behind them what stands in for images that are not at hand, and how much that is. `say` is called with the number of
    images done.
    """
    rows: list[Array] = []
    labels: list[NDArray[np.int64]] = []
    done = stood_in = 0
    for batch in batches.evaluation(batch_size, images):
        rows.append(session.features(batch.feeds))
        labels.append(batch.labels)
        done += len(batch.labels)
        say(done)
    if first is not None and first.kept_learnt:
        assert first.kept_images is not None
        for batch in Batches(manifest, open_dataset(first.kept_images)).evaluation(batch_size, first.kept_learnt):
            rows.append(session.features(batch.feeds))
            labels.append(batch.labels)
        stood_in = len(first.kept_learnt)
    if first is not None and first.features is not None:
        assert manifest.head is not None
        kept, kept_labels = read_features(Path(first.features), manifest.head.features)
        wanted = np.array(first.others, np.int64)
        if not first.others:
            absent = ~np.isin(kept_labels, [] if first.of_all else batches.dataset.labels)
            wanted = np.flatnonzero(absent)
        rows.append(kept[wanted])
        labels.append(kept_labels[wanted])
        stood_in += len(wanted)
    return np.concatenate(rows), np.concatenate(labels), stood_in


def fit_classifier(
    session: OrtSession, manifest: Manifest, features: Array, labels: NDArray[np.int64], known: int, smoothing: float,
    towards: Array | None = None, kept: int = 0, keep: float = 0,
) -> Fitted:  # fmt: skip
    """Give a session's classifier its best weights for features [samples, features].

    Args:
        labels: [samples]; multi-label which classes each has [samples, classes].
        known: how many of the first classes it knows already.
        towards: rows, biases behind the weights, that it is pulled towards [classes, features + 1].
        kept, keep: so many of the last samples are of the place that the classifier comes from; their share.
    """
    before = classifier_rows(session, manifest)[:known].astype(np.float64)
    if towards is not None:
        own = len(features) - kept
        others = Kept(features[own:], labels[own:], keep) if kept else None
        found = fit_pulled(features[:own], labels[:own], towards.astype(np.float64), others)
    elif manifest.labels == MULTI:
        found = fit_labels(features, labels.astype(np.uint8), smoothing)
    else:
        found = fit_discriminant(features, labels, manifest.class_count, smoothing)
    rows = np.concatenate([found.weight, found.bias[:, None]], 1)
    if known:
        rows = keep_known(before, rows, np.bincount(labels, minlength=len(rows)) > 0)
    _set_rows(session, manifest, rows.astype(np.float32))
    homogeneous = np.concatenate([features, np.ones((len(features), 1), np.float32)], 1)
    logits = homogeneous @ rows.T.astype(np.float32)
    if manifest.labels == MULTI:
        losses = np.logaddexp(0, np.where(labels > 0, -logits, logits)).mean(1)
    else:
        losses = -np.log(probabilities(logits, multi_label=False)[np.arange(len(labels)), labels])
    is_right = _right(logits, labels)
    sums = Sums(float(losses.sum()), int(is_right.sum()), len(labels))
    sums.add_range(float(logits.min()), float(logits.max()))
    unknown = find_unknown(found.answers, manifest.class_count)
    if towards is not None:
        before_right = _right(homogeneous @ towards.T, labels)[: len(labels) - kept]
        return Fitted(found, sums, unknown, accuracy_before=float(before_right.mean()))
    if not known:
        return Fitted(found, sums, unknown)
    those = labels < known
    before_right = (homogeneous[those] @ before.T).argmax(1) == labels[those]
    return Fitted(found, sums, unknown, int(those.sum()), int(before_right.sum()), int(is_right[those].sum()))


def _right(logits: Array, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which answers are right: [samples], or multi-label [samples, classes]."""
    return np.asarray((logits > 0) == labels if labels.ndim == 2 else logits.argmax(1) == labels)


def classifier_rows(session: OrtSession, manifest: Manifest) -> Array:
    """The classifier's, [classes, features + 1], biases behind the weights."""
    head, outputs = manifest.head, manifest.outputs
    assert head is not None
    parts = [session.trainable[name].reshape(outputs, -1) for name in (head.weight, head.bias)]
    return np.concatenate(parts, 1)[: manifest.class_count]


def _set_rows(session: OrtSession, manifest: Manifest, rows: Array) -> None:
    head, outputs = manifest.head, manifest.outputs
    assert head is not None
    for name, part in ((head.weight, rows[:, :-1]), (head.bias, rows[:, -1:])):
        session.trainable[name].reshape(outputs, -1)[: len(rows)] = part
