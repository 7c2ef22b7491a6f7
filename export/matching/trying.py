"""What a file does not say, found by trying the classifier on labelled images.

How pixels become the numbers that it was trained on, in which order their colours come, how an image becomes its
input's shape, and which of its outputs is which class.

Candidates are compared by their loss, not by accuracy: a wrong range often keeps the best class and only flattens the
scores. Where the classifier errs, flat scores have the smaller loss; so losses are compared at each candidate's best
temperature first, and as they are only where that does not tell two candidates apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.onnx_graph import add_initializer
from tinytl_edge.export.sources.network import Network
from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.files.bundle import Input
from tinytl_edge.runtime.images.decoding import UnusableImageError, read_image
from tinytl_edge.runtime.images.framing import FITS

from .class_names import listed

IMAGES_A_CLASS = 12
_MOST_IMAGES = 120
_BATCH = 16
# What networks are trained on: the name that a person reads, mean and std of pixels in 0..255.
_RANGES: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = (
    ("-1..1", (127.5,) * 3, (127.5,) * 3),
    ("0..1", (0.0,) * 3, (255.0,) * 3),
    ("0..255", (0.0,) * 3, (1.0,) * 3),
    ("ImageNet's mean and deviation", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ("-128..127", (128.0,) * 3, (1.0,) * 3),
)
_FIT_WORDS = {"crop": "its centre cut out", "squash": "squashed", "pad": "padded"}
_TEMPERATURES = np.geomspace(0.05, 50, 31)
_SURE = 3.0  # standard errors of a mean difference
_PROBABLE = 2.0
_SMALLEST_GAIN = 0.01  # of a mean log-probability


@dataclass(frozen=True)
class Unknown:
    """What the file does not say of its images and its outputs."""

    range: bool = False
    colours: bool = False
    fit: bool = False
    order: bool = False

    @property
    def anything(self) -> bool:
        """Is there something to try?"""
        return self.range or self.colours or self.fit or self.order


@dataclass(frozen=True)
class Found:
    """What the images told: the input, is it blue first, the outputs' names in their order, and sentences.

    `order_told`: for each class most of its images get an output of its own.
    """

    input: Input
    takes_bgr: bool
    names: tuple[str, ...]
    notes: tuple[str, ...]
    order_told: bool = False


@dataclass(frozen=True)
class _Candidate:
    """A way to make the input of an image."""

    input: Input
    takes_bgr: bool = False


@dataclass(frozen=True)
class _Tried:
    """How well the classifier did with a candidate, image by image: log-probability of the right class, as it is and at
    the best temperature; is it right. `order` holds each class's output, `told` says if the answers told it."""

    candidate: _Candidate
    order: tuple[int, ...]
    told: bool
    logged: Any
    tempered: Any
    right: Any


def try_out(
    model: ir.Model, taken: Input, names: tuple[str, ...], folders: dict[str, list[Path]], unknown: Unknown
) -> Found:
    """Let the classifier answer on labelled images; what is known stays as it is.

    Args:
        names: the outputs' names; folders of other names are passed over.
        folders: images by class.
    """
    trial = _Trial(model, names, folders, unknown.order)
    best = trial.of(_Candidate(taken))
    if best is None:
        return Found(taken, False, names, ())
    notes = []
    for question, is_open in ((_RANGE, unknown.range), (_COLOURS, unknown.colours), (_SHAPE, unknown.fit)):
        tried = [best]
        for candidate in question.others(best.candidate) if is_open else ():
            again = trial.of(candidate)
            if again is not None and not trial.same_images(candidate, best.candidate):
                tried.append(again)
        if len(tried) > 1:
            best = _best(tried)
            notes.append(_said(question, best, tried))
    ordered = tuple(names[best.order.index(output)] for output in range(len(names)))
    if ordered != names:
        notes.append(
            f"The classifier's {len(names)} outputs are not in the order of the folders' names: by its answers on "
            f"{len(best.right)} images they are {listed(ordered)}. If that is wrong, say --labels FILE."
        )
    return Found(best.candidate.input, best.candidate.takes_bgr, ordered, tuple(notes), best.told)


@dataclass(frozen=True)
class _Question:
    """Something that a file may leave open: the other answers than a candidate's, and a candidate's in words."""

    title: str
    others: Callable[[_Candidate], list[_Candidate]]
    words: Callable[[_Candidate], str]


def _other_ranges(of: _Candidate) -> list[_Candidate]:
    taken = of.input
    known = [(mean[: taken.channels], std[: taken.channels]) for _, mean, std in _RANGES]
    return [
        replace(of, input=replace(taken, mean=mean, std=std))
        for mean, std in known if (mean, std) != (taken.mean, taken.std)
    ]  # fmt: skip


def _range_in_words(of: _Candidate) -> str:
    taken = of.input
    known = ((name, mean[: taken.channels], std[: taken.channels]) for name, mean, std in _RANGES)
    return next((name for name, mean, std in known if (mean, std) == (taken.mean, taken.std)), "the file's own")


def _other_colours(of: _Candidate) -> list[_Candidate]:
    return [replace(of, takes_bgr=not of.takes_bgr)] if of.input.channels == 3 else []


def _other_shapes(of: _Candidate) -> list[_Candidate]:
    return [replace(of, input=replace(of.input, fit=fit)) for fit in FITS if fit != of.input.fit]


_RANGE = _Question("Input range", _other_ranges, _range_in_words)
_COLOURS = _Question("Colours", _other_colours, lambda of: "blue first (BGR)" if of.takes_bgr else "red first (RGB)")
_SHAPE = _Question("Shape", _other_shapes, lambda of: _FIT_WORDS[of.input.fit])


def _best(tried: Sequence[_Tried]) -> _Tried:
    """The first, unless another is better by more than chance."""
    best = tried[0]
    for other in tried[1:]:
        gain = _standard_errors(best.tempered, other.tempered)
        if abs(gain) < _PROBABLE:  # not told apart by what they know: by how sure they are of it
            gain = _standard_errors(best.logged, other.logged)
        if gain >= _PROBABLE:
            best = other
    return best


def _standard_errors(before: Any, after: Any) -> float:
    """By how many standard errors the mean rises; nothing where it hardly moves."""
    gains = after - before
    mean = float(gains.mean())
    if abs(mean) < _SMALLEST_GAIN:
        return 0.0
    return mean / max(float(gains.std()) / math.sqrt(len(gains)), 1e-9)


def _said(question: _Question, chosen: _Tried, tried: Sequence[_Tried]) -> str:
    def result(of: _Tried) -> str:
        return f"{question.words(of.candidate)} {of.right.mean():.0%} right, loss {abs(of.logged.mean()):.2f}"

    others = [other for other in tried if other is not chosen]
    next_best = max(others, key=lambda other: float(other.tempered.mean()))
    margin = max(abs(_standard_errors(next_best.tempered, chosen.tempered)),
                 abs(_standard_errors(next_best.logged, chosen.logged)))  # fmt: skip
    certainty = "surely" if margin >= _SURE else "probably" if margin >= _PROBABLE else "these images do not tell"
    results = "; ".join(map(result, tried))
    return (
        f"{question.title}: {question.words(chosen.candidate)}, {certainty}. On {len(chosen.right)} images: {results}."
    )


class _Trial:
    """The classifier on images, which are read once for each way to fit them."""

    def __init__(
        self, model: ir.Model, names: tuple[str, ...], folders: dict[str, list[Path]], any_order: bool
    ) -> None:
        self._network = EagerNetwork(model).eval()
        self._outputs, self._any_order = len(names), any_order
        known = [(names.index(name), files) for name, files in folders.items() if name in names]
        each = max(1, min(IMAGES_A_CLASS, _MOST_IMAGES // max(len(known), 1)))
        self._files = [(label, file) for label, files in known for file in files[:: max(1, len(files) // each)][:each]]
        self._loaded: dict[str, tuple[torch.Tensor, list[int]]] = {}

    def of(self, candidate: _Candidate) -> _Tried | None:
        """None where no image can be read."""
        pixels, labels = self._images(candidate.input)
        if not labels:
            return None
        taken = candidate.input
        if candidate.takes_bgr:
            pixels = pixels.flip(1)
        centre, spread = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (taken.mean, taken.std))
        with torch.no_grad():
            logits = torch.cat([self._network((batch - centre) / spread) for batch in torch.split(pixels, _BATCH)])
        logits = logits.double().nan_to_num(0.0, 1e4, -1e4)
        answers = logits.argmax(1).tolist()
        order = tuple(range(self._outputs))
        found = _by_majority(answers, labels, self._outputs)
        if self._any_order and found is not None:
            gained = sum(found[label] == answer for label, answer in zip(labels, answers))
            gained -= sum(label == answer for label, answer in zip(labels, answers))
            if gained > 1:  # not for a single image
                order = found
        wanted = torch.tensor([order[label] for label in labels])

        def logged(temperature: float) -> Any:
            at = torch.arange(len(labels))
            return (logits / temperature).log_softmax(1)[at, wanted].clamp_min(-20).numpy()

        tempered = max((logged(temperature) for temperature in _TEMPERATURES), key=lambda each: float(each.mean()))
        right = (logits.argmax(1) == wanted).double().numpy()
        return _Tried(candidate, order, found is not None, logged(1.0), tempered, right)

    def same_images(self, one: _Candidate, other: _Candidate) -> bool:
        """Do two ways to fit images give the same pixels, as those of square images do?"""
        if one.input.fit == other.input.fit:
            return False
        return torch.equal(self._images(one.input)[0], self._images(other.input)[0])

    def _images(self, taken: Input) -> tuple[torch.Tensor, list[int]]:
        """Images as evaluation sees them, float32 [N, C, H, W] of 0..255, and the numbers of their classes."""
        if taken.fit not in self._loaded:
            framing = replace(taken.framing, margin=False)
            images, labels = [], []
            for label, file in self._files:
                try:
                    content = read_image(file, framing)
                except UnusableImageError:
                    continue
                images.append(np.frombuffer(content, np.uint8).reshape(framing.stored))
                labels.append(label)
            stacked = np.stack(images) if images else np.zeros((0, *framing.stored), np.uint8)
            pixels = torch.from_numpy(stacked.transpose(0, 3, 1, 2).astype(np.float32))
            self._loaded[taken.fit] = pixels, labels
        return self._loaded[taken.fit]


def _by_majority(answers: list[int], labels: list[int], outputs: int) -> tuple[int, ...] | None:
    """For each class the output that its images get most; None where two classes share one, or one has no image."""
    counts = np.zeros((outputs, outputs), np.int64)
    np.add.at(counts, (labels, answers), 1)
    order = tuple(counts.argmax(1).tolist())
    return order if len(set(order)) == outputs and counts.any(1).all() else None


def exchange_colours(network: Network) -> None:
    """The file takes the other of RGB and BGR than was thought: the network, which takes RGB, changes it by itself."""
    if network.input.channels != 3:
        raise UsageError("The model takes grey images, whose colours have no order.")
    images = network.model.graph.inputs[0]
    order = add_initializer(network.model, "colours", np.array([2, 1, 0], np.int64))
    node = ir.node("Gather", [images, order], {"axis": 1}, name="colours")
    made = node.outputs[0]
    made.name, made.shape, made.type = "images/exchanged", images.shape, images.type
    images.replace_all_uses_with(made)
    node.replace_input_with(0, images)
    network.model.graph.insert_before(network.model.graph[0], node)
    network.takes_bgr = not network.takes_bgr


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
