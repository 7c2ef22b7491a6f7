"""What a file does not say, found by trying the classifier on labelled images: by its own accuracy.

How pixels become the numbers that it was trained on, and which of its outputs is which class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.runtime.files.bundle import Input
from tinytl_edge.runtime.images.decoding import UnusableImageError, read_image

from .class_names import listed

IMAGES_A_CLASS = 12
_MOST_IMAGES = 240
_BATCH = 16
# What networks are trained on: the name that a person reads, mean and std of pixels in 0..255.
_CANDIDATES: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = (
    ("-1..1", (127.5,) * 3, (127.5,) * 3),
    ("0..1", (0.0,) * 3, (255.0,) * 3),
    ("0..255", (0.0,) * 3, (1.0,) * 3),
    ("ImageNet's mean and deviation", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ("-128..127", (128.0,) * 3, (1.0,) * 3),
)


@dataclass(frozen=True)
class Found:
    """What the images told: the input with its mean and std, the outputs' names in their order, and sentences."""

    input: Input
    names: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Tried:
    """A candidate, and how well the classifier did with it: accuracy, and the mean log-probability of the right class.

    `order` holds each class's output.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: tuple[int, ...]
    accuracy: float
    likelihood: float


def try_out(
    model: ir.Model,
    taken: Input,
    names: tuple[str, ...],
    folders: dict[str, list[Path]],
    any_range: bool,
    any_order: bool,
) -> Found:
    """Let the classifier answer on labelled images, and take what makes it right most often.

    Args:
        names: the outputs' names; folders of other names are passed over.
        folders: images by class.
        any_range: the pixels' range is not known: try those that networks are trained on.
        any_order: it is not known which output is whose: try what the classifier answers most for each class.
    """
    pixels, labels = _load(taken, names, folders)
    if not labels:
        return Found(taken, names, ())
    network = EagerNetwork(model).eval()
    candidates = [("the file's own", taken.mean, taken.std)]
    if any_range:
        ranges = [(name, m[: taken.channels], s[: taken.channels]) for name, m, s in _CANDIDATES]
        candidates += [c for c in ranges if c[1:] != candidates[0][1:]]
    tried = [_try(network, pixels, labels, len(names), candidate, any_order) for candidate in candidates]
    best = max(tried, key=lambda t: (t.accuracy, t.likelihood))
    if best.accuracy - tried[0].accuracy < 1.5 / len(labels):  # not by a single image
        best = tried[0]
    notes = []
    if any_range:
        others = ", ".join(f"{t.name} {t.accuracy:.0%}" for t in tried if t is not best)
        numbers = f"mean {_numbers(best.mean)}, std {_numbers(best.std)}"
        notes.append(
            f"Input range: {best.name} ({numbers}), right on {best.accuracy:.0%} of {len(labels)} images; {others}."
        )
    ordered = tuple(names[best.order.index(output)] for output in range(len(names)))
    if ordered != names:
        notes.append(
            f"The classifier's {len(names)} outputs are not in the order of the folders' names: by its answers on "
            f"{len(labels)} images they are {listed(ordered)}. If that is wrong, say --labels FILE."
        )
    return Found(replace(taken, mean=best.mean, std=best.std), ordered, tuple(notes))


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in (values if len(set(values)) > 1 else values[:1]))


def _load(taken: Input, classes: Sequence[str], folders: dict[str, list[Path]]) -> tuple[torch.Tensor, list[int]]:
    """Images as evaluation sees them, float32 [N, C, H, W] of 0..255, and the numbers of their classes."""
    framing = replace(taken.framing, margin=False)
    known = [(classes.index(name), files) for name, files in folders.items() if name in classes]
    each = max(1, min(IMAGES_A_CLASS, _MOST_IMAGES // max(len(known), 1)))
    images, labels = [], []
    for label, files in known:
        for file in files[:: max(1, len(files) // each)][:each]:
            try:
                content = read_image(file, framing)
            except UnusableImageError:
                continue
            images.append(np.frombuffer(content, np.uint8).reshape(framing.stored))
            labels.append(label)
    stacked = np.stack(images) if images else np.zeros((0, *framing.stored), np.uint8)
    return torch.from_numpy(stacked.transpose(0, 3, 1, 2).astype(np.float32)), labels


def _try(
    network: EagerNetwork, pixels: torch.Tensor, labels: list[int], outputs: int,
    candidate: tuple[str, tuple[float, ...], tuple[float, ...]], any_order: bool,
) -> _Tried:  # fmt: skip
    name, mean, std = candidate
    centre, spread = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean, std))
    with torch.no_grad():
        logits = torch.cat([network((batch - centre) / spread) for batch in torch.split(pixels, _BATCH)])
    answers = logits.argmax(1).tolist()
    order = tuple(range(outputs))
    if any_order and (found := _by_majority(answers, labels, outputs)) is not None:
        gained = sum(found[label] == answer for label, answer in zip(labels, answers))
        gained -= sum(label == answer for label, answer in zip(labels, answers))
        if gained > 1:  # not for a single image
            order = found
    right = torch.tensor([order[label] for label in labels])
    logged = logits.log_softmax(1)[torch.arange(len(labels)), right].clamp_min(-20).nan_to_num(-20)
    accuracy = float((logits.argmax(1) == right).float().mean())
    return _Tried(name, mean, std, order, accuracy, float(logged.mean()))


def _by_majority(answers: list[int], labels: list[int], outputs: int) -> tuple[int, ...] | None:
    """For each class the output that its images get most; None where two classes share one, or one has no image."""
    counts = np.zeros((outputs, outputs), np.int64)
    np.add.at(counts, (labels, answers), 1)
    order = tuple(counts.argmax(1).tolist())
    return order if len(set(order)) == outputs and counts.any(1).all() else None


def looks_like_regression(model: ir.Model, taken: Input) -> bool:
    """Do two outputs behave as the sine and cosine of an angle, whatever the image?"""
    random = np.random.default_rng(0)
    shades = random.uniform(0, 255, (12, 1, 1, 1)) * np.ones((12, taken.channels, taken.height, taken.width))
    noise = random.uniform(0, 255, (12, taken.channels, taken.height, taken.width))
    pixels = torch.from_numpy(np.concatenate([shades, noise]).astype(np.float32))
    centre, spread = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (taken.mean, taken.std))
    with torch.no_grad():
        length = EagerNetwork(model).eval()((pixels - centre) / spread).norm(dim=1)
    return bool((length.sub(1).abs() < 0.3).float().mean() > 0.8)
