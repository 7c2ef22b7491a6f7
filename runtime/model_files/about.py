"""What a model file says of itself: all that an app needs to use it, as metadata for programs and in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tinytl_edge.runtime.files.bundle import Manifest

from .template import Template

OWN_KEYS = (
    "classes", "height", "width", "channels", "colours", "layout", "mean", "std", "fit", "filter", "take", "output",
    "labels", "backbone", "method",
)  # fmt: skip
_SHOWN = 12  # classes in a sentence
MIDDLE = "the middle 7/8"
FILTER = "bicubic, antialiased"  # as runtime/images/decoding.py scales
_FITS = {
    "crop": "Take the largest centred part of the image that has the shape {shape} (width to height)",
    "squash": "Take the whole image, whatever its shape",
    "pad": "Take the whole image, its shape kept, centred on black",
}
_ENDS = {
    "logits": "They are logits: softmax makes probabilities of them.",
    "softmax": "They are probabilities that add up to 1.",
    "log_softmax": "They are logarithms of probabilities.",
    "sigmoid": "They are probabilities, each by itself.",
}


def metadata(manifest: Manifest, template: Template, classes: Sequence[str]) -> dict[str, str]:
    """Texts by key, as ONNX files carry them; lists are JSON.

    `mean` and `std` are of pixels in 0..255 by channel, for (pixel - mean) / std; `fit`, `filter` and `take` tell how
    an image becomes height x width pixels; `labels` is "single" or "multi".
    """
    taken = manifest.input
    mean, std = (0.0,) * taken.channels, (1.0,) * taken.channels
    if not template.raw_pixels:
        mean, std = taken.mean, taken.std
    return {
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "height": str(taken.height),
        "width": str(taken.width),
        "channels": str(taken.channels),
        "colours": template.colours,
        "layout": template.layout,
        "mean": json.dumps(list(mean)),
        "std": json.dumps(list(std)),
        "fit": taken.fit,
        "filter": FILTER,
        "take": MIDDLE if taken.margin else "all",
        "output": template.end,
        "labels": manifest.labels,
        "backbone": manifest.backbone,
        "method": manifest.method,
        **{text.key: text.of(classes) for text in template.class_texts},
    }


def model_json(name: str, manifest: Manifest, template: Template, classes: Sequence[str]) -> dict[str, Any]:
    """What lies beside the model file as JSON: the same, with the tensors' names and sentences for a person."""
    said: dict[str, Any] = dict(metadata(manifest, template, classes))
    for key in ("classes", "mean", "std"):
        said[key] = json.loads(said[key])
    for key in ("height", "width", "channels"):
        said[key] = int(said[key])
    return {
        "model": name,
        "in words": sentences(manifest, template, classes),
        "input": asdict(template.input),
        "output tensor": asdict(template.output),
        **said,
    }


def sentences(manifest: Manifest, template: Template, classes: Sequence[str]) -> list[str]:
    """How to use the model, step by step."""
    taken = manifest.input
    fit = _FITS[taken.fit].format(shape=f"{taken.width}:{taken.height}")
    if taken.margin:
        fit += ", and of that the middle 7/8 of each side"
    numbers = "Pixels go in as they are, 0 to 255."
    if not template.raw_pixels and (any(taken.mean) or set(taken.std) != {1.0}):
        mean, std = _listed(taken.mean), _listed(taken.std)
        numbers = f"Each pixel p of 0 to 255 becomes (p - mean) / std, with mean {mean} and std {std}."
    outputs = len(classes) or manifest.class_count
    shown = [f"{index} {name}" for index, name in enumerate(classes[:_SHOWN])]
    shown += ["..."] * (len(classes) > _SHOWN)
    named = f": {', '.join(shown)}" if classes else ""
    return [
        f"{fit}; scale it to {taken.width} pixels across and {taken.height} down ({FILTER}).",
        f"The colours are {template.colours}." if taken.channels == 3 else "The image is grey.",
        numbers,
        f"The input '{template.input.name}' takes {template.input.dtype}, in the order {_order(template)}.",
        f"The output '{template.output.name}' gives {_counted(outputs, template)}{named}.",
        _ENDS[template.end],
    ]


def _counted(outputs: int, template: Template) -> str:
    if template.one_output:
        return "one number, the share of the second class"
    return f"a number for each of {outputs} classes"


def _order(template: Template) -> str:
    return {
        "NCHW": "batch, channel, row, column (NCHW)",
        "NHWC": "batch, row, column, channel (NHWC)",
        "NHW": "batch, row, column",
    }[template.layout]


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers) if len(set(numbers)) > 1 else f"{numbers[0]:.6g}"


def onnx_metadata(texts: Mapping[str, str]) -> bytes:
    """Entries of `metadata_props`, to stand behind an ONNX file: a protobuf message goes on where it ended."""
    return b"".join(_field(14, _field(1, key.encode()) + _field(2, text.encode())) for key, text in texts.items())


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
