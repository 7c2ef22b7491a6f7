"""What a model file says of itself: all that an app needs to use it, for programs and in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tinytl_edge.runtime.files.bundle import Manifest

from .template import Template

KEY = "tinytl-edge"  # of a model file's metadata, where others stay as they are
_SHOWN = 12  # classes in a sentence
MIDDLE = "the middle 7/8"
FILTER = "bicubic, antialiased"  # as runtime/images/decoding.py scales
_FITS = {
    "crop": "Take the largest centred part of the image that has the shape {shape} (width to height)",
    "squash": "Take the whole image, whatever its shape",
    "pad": "Take the whole image, its shape kept, centred on black",
}
_UNKNOWN = "Where the highest probability is below {}, the image is likely of none of these classes."
_ENDS = {
    "logits": "They are logits: softmax makes probabilities of them.",
    "softmax": "They are probabilities that add up to 1.",
    "log_softmax": "They are logarithms of probabilities.",
    "sigmoid": "They are probabilities, each by itself.",
}


def about(
    manifest: Manifest, template: Template, classes: Sequence[str], unknown_below: float | None = None
) -> dict[str, Any]:
    """All that an app needs, as JSON has it.

    `mean` and `std` are of pixels in 0..255 by channel, for (pixel - mean) / std; `fit`, `filter` and `take` tell how
    an image becomes height x width pixels; `labels` is "single" or "multi"; `unknown_below` which probability of the
    likeliest class an image is likely of none (or None: nothing tells it); `in words` says it all to a person.
    """
    taken = manifest.input
    mean, std = (0.0,) * taken.channels, (1.0,) * taken.channels
    if not template.raw_pixels:
        mean, std = taken.mean, taken.std
    return {
        "in words": sentences(manifest, template, classes, unknown_below),
        "classes": list(classes),
        "height": taken.height,
        "width": taken.width,
        "channels": taken.channels,
        "colours": template.colours,
        "layout": template.layout,
        "mean": list(mean),
        "std": list(std),
        "pixel_range": list(taken.pixel_range),
        "fit": taken.fit,
        "filter": FILTER,
        "take": MIDDLE if taken.margin else "all",
        "input": {**asdict(template.input), "shape": list(template.input.shape)},
        "output": {**asdict(template.output), "shape": list(template.output.shape)},
        "end": template.end,
        "labels": manifest.labels,
        "unknown_below": unknown_below,
        "backbone": manifest.backbone,
        "method": manifest.method,
    }


def sentences(
    manifest: Manifest, template: Template, classes: Sequence[str], unknown_below: float | None = None
) -> list[str]:
    """How to use the model, step by step."""
    taken = manifest.input
    fit = _FITS[taken.fit].format(shape=f"{taken.width}:{taken.height}")
    if taken.margin:
        fit += ", and of that the middle 7/8 of each side"
    numbers = "Pixels go in as they are, 0 to 255."
    if not template.raw_pixels and (any(taken.mean) or set(taken.std) != {1.0}):
        mean, std = _listed(taken.mean), _listed(taken.std)
        numbers = f"Each pixel p of 0 to 255 becomes (p - mean) / std, with mean {mean} and std {std}."
    if taken.pixel_range:
        low, high = (f"{end:g}" for end in taken.pixel_range)
        numbers = f"Of images with more than 8 bits, {low} becomes 0 and {high} becomes 255. {numbers}"
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
        *([] if unknown_below is None else [_UNKNOWN.format(f"{unknown_below:g}")]),
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


def onnx_metadata(said: Mapping[str, Any], template: Template, classes: Sequence[str]) -> bytes:
    """Entries of `metadata_props`, to stand behind an ONNX file: a protobuf message goes on where it ended.

    What is `said`, as JSON under one key; and the file's own names of its classes.
    """
    texts = {KEY: json.dumps(said, ensure_ascii=False), **{text.key: text.of(classes) for text in template.class_texts}}
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
