"""`evaluate` and `predict` with a model file itself, as the app that has it (numpy, and onnxruntime or LiteRT)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.files.bundle import Bundle, Input, Manifest
from tinytl_edge.runtime.files.records import read_record
from tinytl_edge.runtime.images.batches import Array, Batches
from tinytl_edge.runtime.images.dataset import MULTI, open_dataset
from tinytl_edge.runtime.workers.measuring import evaluated, measure, probabilities

from .about import KEY, MIDDLE, about
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

    def __init__(self, path: Path, kind: str, bundle: Bundle | None) -> None:
        template = read_template(bundle, path) if bundle is not None else None
        output = template.output.name if template is not None and template.source else None
        self.interpreter = open_interpreter(path, kind, output)
        if bundle is not None and template is not None:
            said: Mapping[str, Any] = about(bundle.manifest, template, bundle.manifest.classes)
        else:
            said = _said(path, self.interpreter.metadata)
        self._end, self._is_bgr = said["end"], said["colours"] == "BGR"
        below = said.get("unknown_below")
        self.unknown_below = float(below) if isinstance(below, (int, float)) else None
        self.manifest = _manifest(path, said)
        outputs = self._outputs(self.manifest.input)
        classes = self.manifest.classes[:outputs]  # of the file as it was before it got more
        if len(classes) not in (0, outputs):
            raise UsageError(f"{path} gives {outputs} numbers, but is said to have {len(classes)} classes.")
        self.manifest = replace(self.manifest, classes=classes, class_count=outputs)

    def _outputs(self, taken: Input) -> int:
        """How many classes its scores tell apart."""
        found = self.interpreter.scores(np.zeros((1, taken.channels, taken.height, taken.width), np.float32)).shape[1]
        return 2 if found == 1 and self._end == "sigmoid" else int(found)

    def measure(self, dataset: Path, on_batch: Callable[[int, int], None]) -> dict[str, Any]:
        """As `measuring.measure`, on a packed dataset."""
        with open_dataset(dataset) as opened:
            return measure(self, Batches(self.manifest, opened), _BATCH, on_batch, self.unknown_below)

    def predict(self, dataset: Path) -> list[Sequence[float]]:
        """Probabilities of each class for each image of a packed dataset."""
        rows: list[Sequence[float]] = []
        with open_dataset(dataset) as opened:
            for _, _, logits in evaluated(self, Batches(self.manifest, opened), _BATCH, lambda done, total: None):
                rows += probabilities(logits, self.manifest.labels == MULTI).tolist()
        return rows

    def logits(self, images: Array) -> Array:
        """Of normalised RGB or grey images [N, C, H, W]: the file's scores as if nothing stood behind them."""
        scores = self.interpreter.scores(images[:, ::-1] if self._is_bgr else images)
        if self._end == "softmax":
            return np.asarray(np.log(np.maximum(scores, _SMALLEST)))
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


def _said(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        said = json.loads(metadata[KEY])
    except (KeyError, ValueError):
        raise UsageError(
            f"{path} does not say how images become its input and what its classes are: name the bundle that was "
            "prepared from it with --bundle."
        ) from None
    return said if isinstance(said, dict) else {}


def _manifest(path: Path, said: Mapping[str, Any]) -> Manifest:
    """As a bundle's: what measuring needs of it."""
    taken = {key: said.get(key) for key in ("height", "width", "channels", "mean", "std", "fit")}
    taken["pixel_range"] = said.get("pixel_range", ())
    return read_record(
        Manifest,
        {
            **{key: said.get(key) for key in ("backbone", "method", "classes", "labels")},
            "input": {**taken, "margin": said.get("take") == MIDDLE},
            "class_count": max(len(said.get("classes") or ()), 1),
            "optimizer": "sgd", "batch_size": 1, "dropouts": (), "trainable": {}, "parameter_count": 1,
            "trainable_count": 0, "paper_memory": {}, "runtimes": (), "created_by": "",
        },
        path,
    )  # fmt: skip
