"""A classifier measured on a dataset, whatever computes its logits (numpy; workers and interpreters)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinytl_edge.runtime.images.batches import Array, Batch, Batches
from tinytl_edge.runtime.images.dataset import MULTI
from tinytl_edge.runtime.unknown import Unknown


class Session(Protocol):
    """What computes."""

    def evaluate(self, feeds: Mapping[str, Array]) -> tuple[float, Array]:
        """The mean loss over a batch, and its logits."""


OnBatch = Callable[[int, int], None]  # images done, in all


def right(batch: Batch, logits: Array) -> NDArray[np.bool_]:
    """Which answers are right: single-label [N]; multi-label one a class [N, classes]."""
    if batch.labels.ndim == 2:
        answers: NDArray[np.bool_] = (logits > 0) == (batch.labels == 1)
        return answers
    return np.asarray(logits.argmax(1) == batch.labels)


def evaluated(
    session: Session, batches: Batches, batch_size: int, on_batch: OnBatch, images: Sequence[int] | None = None
) -> Iterator[tuple[Batch, float, Array]]:
    """Each batch of a dataset, or of some of its images, with its mean loss and its logits."""
    done, total = 0, batches.dataset.count if images is None else len(images)
    for batch in batches.evaluation(batch_size, images):
        loss, logits = session.evaluate(batch.feeds)
        done += len(batch.labels)
        on_batch(done, total)
        yield batch, loss, logits


def measure(
    session: Session, batches: Batches, batch_size: int, on_batch: OnBatch, unknown_below: float | None = None
) -> dict[str, Any]:
    """images, loss, accuracy, unknown; and confusion[label][guess], or (multi-label) how often each class was right."""
    multi_label, classes = batches.manifest.labels == MULTI, batches.manifest.class_count
    count = batches.dataset.count
    confusion, often = np.zeros((classes, classes), np.int64), np.zeros(classes, np.int64)
    losses, correct = 0.0, 0
    unknown = None if unknown_below is None else Unknown(unknown_below)
    for batch, loss, logits in evaluated(session, batches, batch_size, on_batch):
        losses += loss * len(batch.labels)
        answers = right(batch, logits)
        correct += int(answers.sum())
        if multi_label:
            often += answers.sum(0)
        else:
            np.add.at(confusion, (batch.labels, logits.argmax(1)), 1)
        if unknown is not None:
            unknown = unknown.with_answers(zip(surest(logits).tolist(), answers.tolist()))
    return {
        "images": count,
        "loss": losses / count,
        "accuracy": correct / (count * batches.answers),
        "unknown": None if unknown is None else unknown.as_dict(),
        **({"right": often.tolist()} if multi_label else {"confusion": confusion.tolist()}),
    }


def surest(logits: Array) -> NDArray[np.float64]:
    """The probability of the likeliest class [N]."""
    exact = logits.astype(np.float64)
    return np.asarray(1 / np.exp(exact - exact.max(1, keepdims=True)).sum(1))


def probabilities(logits: Array, multi_label: bool) -> Array:
    """Of each class [N, classes]: a softmax, or (multi-label) sigmoids."""
    if multi_label:
        signed = np.exp(-np.abs(logits))  # never overflows
        return np.asarray(np.where(logits < 0, signed, np.float32(1)) / (1 + signed))
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(1, keepdims=True))
