"""`tinytl-edge evaluate` and `predict` behind their command line: processes that become the native trainer.

Where onnxruntime-training computes they wait for it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .answers import evaluation_text, prediction_text
from .ending import end_well
from .evaluate import Trained, evaluated, opened_model, packed_for, packed_images, predicted
from .images.dataset import MULTI
from .report import CountProgress
from .workers.become import become_trainer


def evaluate_main(told: str) -> None:
    """`told`: what `evaluate_and_report` takes, as JSON."""
    end_well(lambda: evaluate_and_report(**json.loads(told)))


def predict_main(told: str) -> None:
    """`told`: what `predict_and_report` takes, as JSON."""
    end_well(lambda: predict_and_report(**json.loads(told)))


def evaluate_and_report(model: str, data: str, as_json: bool, become: bool = True, **options: Any) -> None:
    """Evaluate, and say how good it is; `options` are those of `evaluate`."""
    with CountProgress(sys.stderr) as progress:
        opened = opened_model(model, **options)
        if become and isinstance(opened, Trained) and opened.runtime == "native":
            with tempfile.TemporaryDirectory(prefix="tinytl-edge-") as folder:
                source, classes = packed_for(opened, Path(data), Path(folder), progress)
                held = _held(source)
            _become(opened, "evaluate", held, {"lines": _lines(as_json), "classes": classes})
        result = evaluated(opened, Path(data), progress)
    _say(json.dumps(result, ensure_ascii=False) + "\n" if as_json else evaluation_text(result))


def predict_and_report(
    model: str, images: Sequence[str], top: int, as_json: bool, become: bool = True, **options: Any
) -> None:
    """Predict, and say what is seen; `options` are those of `predict`."""
    opened = opened_model(model, **options)
    if become and isinstance(opened, Trained) and opened.runtime == "native":
        with tempfile.TemporaryDirectory(prefix="tinytl-edge-") as folder:
            held = _held(packed_images(opened, images, Path(folder)))
        names = [os.fsencode(image).decode("utf-8", "replace") for image in images]
        shown = {"images": names, "top": top, "multi_label": opened.manifest.labels == MULTI}
        shown["unknown_below"] = opened.unknown_below
        _become(opened, "predict", held, {"lines": _lines(as_json), "classes": opened.names, **shown})
    for answer in predicted(opened, images):
        _say(json.dumps(answer, ensure_ascii=False) + "\n" if as_json else prediction_text(answer, top))


def _lines(as_json: bool) -> str:
    return "json" if as_json else "text"


def _held(file: Path) -> str:
    """A place where an open file is found although its name is gone: nothing is left behind, however this ends."""
    descriptor = os.open(file, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    return f"/proc/self/fd/{descriptor}"


def _become(opened: Trained, command: str, data: str, front: dict[str, Any]) -> None:
    become_trainer(opened.worker, {**opened.job(command, data), "front": front})


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
