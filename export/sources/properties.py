"""What an ONNX file's metadata_props say of a classifier: its classes' names, how images are normalised, their size.

There is no standard for these; the keys are those of ultralytics, of Windows ML (Azure Custom Vision), and the usual
ones.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from tinytl_edge.runtime.images.framing import FITS
from tinytl_edge.runtime.model_files.about import KEY
from tinytl_edge.runtime.model_files.class_text import ClassText

_CLASSES = (
    "classes",
    "names",
    "labels",
    "class_names",
    "classnames",
    "label_names",
    "categories",
    "id2label",
    "class_labels",
)
_MEANS, _DEVIATIONS = ("mean", "means", "normalize_mean", "image_mean"), ("std", "stds", "normalize_std", "image_std")
_NOMINAL = {"nominalrange_0_255": (0.0, 1.0), "normalized_0_1": (0.0, 255.0), "normalized_1_1": (127.5, 127.5)}
_Numbers = tuple[float, ...]


def told(properties: Mapping[str, str]) -> dict[str, str]:
    """All entries; what one of our own files says of itself stands among them, and goes before others."""
    try:
        own = json.loads(properties.get(KEY, "{}"))
    except ValueError:
        own = {}
    said = own if isinstance(own, dict) else {}
    return {**properties, **{key: text if isinstance(text, str) else json.dumps(text) for key, text in said.items()}}


def class_names(properties: Mapping[str, str], outputs: int, notes: list[str]) -> tuple[str, ...]:
    """One for each output, or none: a list, or a dict of indices, as JSON or Python writes it; lines; with commas."""
    known = {key.lower(): text for key, text in properties.items()}
    for key in _CLASSES:
        names = _names(known.get(key, ""))
        if len(names) == outputs:
            return names
        if len(names) > 1:
            notes.append(f"The file names {len(names)} classes but gives {outputs} numbers: its names were left out.")
    return ()


def class_text(key: str, text: str, outputs: int) -> ClassText | None:
    """The spelling of an entry that names the classes, or None where it does not."""
    names = _names(text) if key.lower() in _CLASSES else ()
    if not outputs or len(names) != outputs:
        return None
    return ClassText(key, _spelling(text), text, names)


def _spelling(text: str) -> str:
    for language, read in (("json", json.loads), ("python", ast.literal_eval)):
        try:
            content = read(text)
        except (ValueError, SyntaxError):
            continue
        if isinstance(content, dict):
            by_name = all(isinstance(value, int) for value in content.values())
            return "json names" if by_name else f"{language} numbers"
        if isinstance(content, (list, tuple)):
            return f"{language} list"
    return "lines" if "\n" in text.strip() else "semicolons" if ";" in text else "commas"


def normalisation(properties: Mapping[str, str], channels: int) -> tuple[_Numbers, _Numbers] | None:
    """Mean and std of pixels in 0..255, one a channel, or None."""
    known = {key.lower(): text for key, text in properties.items()}
    means = next((found for key in _MEANS if (found := _floats(known.get(key, ""), channels))), None)
    deviations = next((found for key in _DEVIATIONS if (found := _floats(known.get(key, ""), channels))), None)
    if means and deviations and min(deviations) > 0:
        of_fractions = max(deviations) <= 1 and max(map(abs, means)) <= 1  # of pixels in 0..1
        factor = 255.0 if of_fractions else 1.0
        return tuple(mean * factor for mean in means), tuple(std * factor for std in deviations)
    nominal = _NOMINAL.get(known.get("image.nominalpixelrange", "").lower())
    if nominal is None and known.get("author", "").lower() == "ultralytics":
        nominal = (0.0, 255.0)
    return None if nominal is None else ((nominal[0],) * channels, (nominal[1],) * channels)


def image_size(properties: Mapping[str, str]) -> tuple[int, int] | None:
    """Height and width, as ultralytics writes them."""
    found = _value(properties.get("imgsz", ""))
    found = [found, found] if isinstance(found, int) else found
    if isinstance(found, (list, tuple)) and len(found) == 2 and all(isinstance(n, int) and n > 0 for n in found):
        return found[0], found[1]
    return None


def colour_order(properties: Mapping[str, str]) -> str | None:
    """Of the image's channels: "RGB", "BGR", or None where the file does not say."""
    known = {key.lower(): text.upper() for key, text in properties.items()}
    for text in (known.get("colours", ""), known.get("image.bitmappixelformat", "")):
        if text[:3] in ("RGB", "BGR"):
            return text[:3]
    return None


def fit_of(properties: Mapping[str, str]) -> str | None:
    """How an image gets its shape, as our own files say it, or None."""
    return properties.get("fit") if properties.get("fit") in FITS else None


def pixel_range_of(properties: Mapping[str, str]) -> _Numbers:
    """Of images with more than 8 bits, as our own files say it, or nothing."""
    found = _floats(properties.get("pixel_range", ""), 2)
    return found if len(set(found)) == 2 else ()


def _value(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return None


def _names(text: str) -> tuple[str, ...]:
    found = _value(text)
    if isinstance(found, dict):
        by_index = {str(key): value for key, value in found.items()}
        if all(isinstance(value, int) for value in found.values()):  # of indices by name
            by_index = {str(value): key for key, value in found.items()}
        found = [by_index[str(index)] for index in range(len(by_index)) if str(index) in by_index]
        found = found if len(found) == len(by_index) else None
    if isinstance(found, (list, tuple)):
        return tuple(str(name) for name in found)
    if found is not None or not text.strip():
        return ()
    parts = text.splitlines() if "\n" in text.strip() else re.split(r"[,;]", text)
    return tuple(part.strip() for part in parts if part.strip())


def _floats(text: str, channels: int) -> _Numbers:
    found = _value(text if text.lstrip().startswith(("[", "(")) else f"[{text}]")
    if not isinstance(found, (list, tuple)) or not all(isinstance(number, (int, float)) for number in found):
        return ()
    numbers = tuple(float(number) for number in found)
    return numbers * channels if len(numbers) == 1 else numbers if len(numbers) == channels else ()
