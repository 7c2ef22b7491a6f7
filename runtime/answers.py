"""What a person reads of an evaluation and of predictions; native/answer_fronts.cc writes the same to the byte."""

from __future__ import annotations

from typing import Any

from .memory import megabytes
from .report import APART
from .unknown import unknown_said
from .wording import counted


def evaluation_text(result: dict[str, Any]) -> str:
    """Of what `evaluate` returns: a line for all classes, and one for each."""
    images, peak = counted(result["images"], "image"), megabytes(result["peak_rss_bytes"])
    accuracy, of_classes = result["accuracy"], result["class_accuracy"]
    apart = f", mean of the classes {of_classes:.1%}" if abs(of_classes - accuracy) >= APART else ""
    lines = [f"accuracy {accuracy:.1%}{apart}, loss {result['loss']:.3f}, {images}, peak memory {peak}"]
    width = max(len(name) for name in result["classes"])
    for name, share in zip(result["classes"], result["per_class"]):
        lines.append(f"  {name:<{width}}  {'no images' if share is None else format(share, '.0%')}")
    if (unknown := result["unknown"]) is not None:
        lines.append(f"less sure than {unknown['below']:.1%}, unknown: {unknown_said(unknown)}")
    return "\n".join(lines) + "\n"


def prediction_text(answer: dict[str, Any], top: int) -> str:
    """Of one that `predict` returns: the likeliest classes."""
    best = list(answer["probabilities"].items())[:top]
    text = ", ".join(f"{name} {share:.1%}" for name, share in best)
    return f"{answer['image']}: " + (text if answer.get("known", True) else f"unknown ({text})") + "\n"
