"""`evaluate` and `predict` with a model file itself, as the app that has it (numpy, and onnxruntime or LiteRT)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.files.bundle import Bundle, Input, Manifest, open_bundle
from tinytl_edge.runtime.images.batches import Array, Batches
from tinytl_edge.runtime.images.dataset import MULTI, open_dataset
from tinytl_edge.runtime.workers.measuring import evaluated, measure, probabilities

from .about import MIDDLE
from .deployed import BEFORE
from .interpreter import open_interpreter
from .template import read_template

_BATCH = 8
_SMALLEST = 1e-7


class ModelFile:
    """A model file with what is known of its images and its scores: from a bundle, or from what it says itself.

    Raises:
        UsageError: nobody says how images become its input, or its interpreter is not installed.
        DamagedFileError: it cannot be run.
    """

    def __init__(self, path: Path, bundle: str | Path | None = None) -> None:
        self.path = path
        if bundle is not None:
            self._use_bundle(open_bundle(bundle))
        else:
            self.interpreter = open_interpreter(path)
            self._use_metadata(self.interpreter.metadata)

    def _use_bundle(self, bundle: Bundle) -> None:
        template = read_template(bundle, Path(self.path.name.removesuffix(BEFORE)).suffix)
        self.interpreter = open_interpreter(self.path, template.output.name if template.source else None)
        self._end, self._is_bgr = template.end, template.colours == "BGR"
        manifest = bundle.manifest
        if template.raw_pixels:
            channels = manifest.input.channels
            taken = replace(manifest.input, mean=(0.0,) * channels, std=(1.0,) * channels)
            manifest = replace(manifest, input=taken)
        self.manifest = manifest
        outputs = self._outputs(manifest.input)
        if outputs < manifest.class_count:  # as it was before it got more
            self.manifest = replace(manifest, classes=manifest.classes[:outputs], class_count=outputs)
        elif outputs > manifest.class_count:
            raise UsageError(
                f"{self.path} gives {outputs} numbers, the bundle has {manifest.class_count} classes: they do not fit."
            )

    def _use_metadata(self, about: Mapping[str, str]) -> None:
        try:
            taken = Input(
                int(about["height"]), int(about["width"]), int(about["channels"]), tuple(json.loads(about["mean"])),
                tuple(json.loads(about["std"])), about["fit"], about["take"] == MIDDLE,
            )  # fmt: skip
            classes, self._end = tuple(json.loads(about["classes"])), about["output"]
            self._is_bgr = about["colours"] == "BGR"
            self.manifest = Manifest(
                backbone=about["backbone"], method=about["method"], classes=classes, class_count=max(len(classes), 1),
                input=taken, optimizer="sgd", batch_size=1, dropouts=(), trainable={}, parameter_count=1,
                trainable_count=0, paper_memory={}, runtimes=(), created_by="", labels=about["labels"],
            )  # fmt: skip
        except (KeyError, ValueError, TypeError):
            raise UsageError(
                f"{self.path} does not say how images become its input and what its classes are: name the bundle that "
                "was prepared from it with --bundle."
            ) from None
        if not classes:
            self.manifest = replace(self.manifest, class_count=self._outputs(taken))

    def _outputs(self, taken: Input) -> int:
        """How many classes its scores tell apart."""
        found = self.interpreter.scores(np.zeros((1, taken.channels, taken.height, taken.width), np.float32)).shape[1]
        return 2 if found == 1 and self._end == "sigmoid" else int(found)

    def logits(self, images: Array) -> Array:
        """Of normalised RGB or grey images [N, C, H, W]: the file's scores as if nothing stood behind them."""
        scores = self.interpreter.scores(images[:, ::-1] if self._is_bgr else images)
        if self._end == "softmax":
            return np.log(np.maximum(scores, _SMALLEST))
        if self._end == "sigmoid":
            inside = np.clip(scores, _SMALLEST, 1 - _SMALLEST)
            odds = np.log(inside / (1 - inside))
            return np.concatenate([-odds / 2, odds / 2], 1) if odds.shape[1] == 1 else odds
        return scores

    def evaluate(self, feeds: Mapping[str, Array]) -> tuple[float, Array]:
        """Mean loss over a batch, and its logits."""
        logits = self.logits(feeds["images"]).astype(np.float64)
        targets = feeds["targets"].astype(np.float64)
        if self.manifest.labels == MULTI:
            losses = np.logaddexp(0, logits) - targets * logits
            return float(losses.mean()), logits.astype(np.float32)
        highest = logits.max(1, keepdims=True)
        logged = logits - highest - np.log(np.exp(logits - highest).sum(1, keepdims=True))
        return float(-(targets * logged).sum(1).mean()), logits.astype(np.float32)


def measure_file(model: ModelFile, dataset: Path, on_batch: Callable[[int, int], None]) -> dict[str, Any]:
    """As `measuring.measure`, on a packed dataset."""
    with open_dataset(dataset) as opened:
        return measure(model, Batches(model.manifest, opened), _BATCH, on_batch)


def predict_file(model: ModelFile, dataset: Path) -> list[Sequence[float]]:
    """Probabilities of each class for each image of a packed dataset."""
    rows: list[Sequence[float]] = []
    with open_dataset(dataset) as opened:
        for _, _, logits in evaluated(model, Batches(model.manifest, opened), _BATCH, lambda done, total: None):
            rows += probabilities(logits, model.manifest.labels == MULTI).tolist()
    return rows
