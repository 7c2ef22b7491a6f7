"""adapter.safetensors: the trained parameters alone, named as in the prepared PyTorch model.

Its metadata name the bundle it belongs to, by the SHA-256 of the bundle's manifest, and the classes; `logits` is the
range of the logits over the last epoch; `unknown_below`, or nothing, the probability of the likeliest class below which
an image is likely of none; `crc32` is of all tensors' bytes in the order of the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tinytl_edge.runtime.errors import DamagedFileError

from .bundle import Bundle
from .tensors import TensorFile, open_tensors, write_tensors

FORMAT = "tinytl-edge-adapter"
VERSION = "1"
FILE = "adapter.safetensors"
START = "start.safetensors"  # of a run: the same parameters where training began
BEST = "best.safetensors"  # and behind the epoch that was judged best
JUDGED = "judged.safetensors"  # and of its trial, which was not shown the images that it was judged on
JUDGED_START = "judged-start.safetensors"  # and where that began
BEFORE = "before.safetensors"  # and of the run that it goes on from, both
BEFORE_JUDGED = "before-judged.safetensors"
ALL_ADAPTERS = (FILE, START, BEST, JUDGED, JUDGED_START, BEFORE, BEFORE_JUDGED)


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: its tensors, the names of its classes, how many steps it has seen, the lowest and highest
    logit over the last epoch, and below which probability of the likeliest class an image is likely of none."""

    tensors: TensorFile
    classes: tuple[str, ...]
    steps: int
    logits: tuple[float, float]
    unknown_below: float | None


def write_adapter(
    path: Path,
    bundle: Bundle,
    classes: list[str],
    steps: int,
    tensors: Mapping[str, tuple[tuple[int, ...], bytes]],
    logits: tuple[float, float],
    unknown_below: float | None = None,
) -> None:
    """Write float32 parameters (name to shape and bytes), atomically.

    Raises:
        StorageError: the file cannot be written; the adapter that was there stays.
    """
    crc = _crc(content for _, content in tensors.values())
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "bundle": bundle.identity,
        "backbone": bundle.manifest.backbone,
        "method": bundle.manifest.method,
        "classes": json.dumps(classes, ensure_ascii=False),
        "steps": str(steps),
        "logits": json.dumps(logits),
        "unknown_below": "" if unknown_below is None else repr(unknown_below),
        "crc32": crc,
    }
    write_tensors(path, [(name, "F32", shape, content) for name, (shape, content) in tensors.items()], metadata)


def open_adapter(path: Path, bundle: Bundle) -> Adapter:
    """Open an adapter and check that it belongs to this bundle and is whole.

    Raises:
        DamagedFileError: it is damaged, no adapter, or of another bundle.
    """
    tensors = open_tensors(path)
    metadata = tensors.metadata
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise DamagedFileError(f"{path} is no adapter of tinytl-edge (version {VERSION}).")
    if metadata.get("bundle") != bundle.identity:
        raise DamagedFileError(f"{path} was trained from another bundle than {bundle.path}.")
    wrong = set(bundle.manifest.trainable) ^ set(tensors.entries)
    wrong |= {name for name, entry in tensors.entries.items() if entry.dtype != "F32"}
    if wrong:
        raise DamagedFileError(f"{path} lacks or garbles the parameter '{min(wrong)}'.")
    crc = _crc(tensors.read(name) for name in tensors.entries)
    if metadata.get("crc32", crc) != crc:
        raise DamagedFileError(f"{path} is damaged (its CRC-32 differs): take an earlier copy of it.")
    try:
        classes = tuple(str(name) for name in json.loads(metadata["classes"]))
        low, high = (float(end) for end in json.loads(metadata["logits"]))
        if not -math.inf < low <= high < math.inf:
            raise ValueError("no range")
        _check_classes(bundle, classes)
        below = metadata.get("unknown_below")
        return Adapter(tensors, classes, int(metadata["steps"]), (low, high), float(below) if below else None)
    except (KeyError, TypeError, ValueError):
        raise DamagedFileError(f"{path} has damaged metadata.") from None


def _check_classes(bundle: Bundle, classes: tuple[str, ...]) -> None:
    """It may be from before the last ones came, or may know some that the bundle does not."""
    known = bundle.manifest.classes
    if len(classes) > bundle.manifest.outputs or any(one != other for one, other in zip(classes, known)):
        raise ValueError("other classes")


def _crc(contents: Iterable[bytes]) -> str:
    """CRC-32 of all of them, hexadecimal."""
    import zlib  # not where an adapter is only named

    crc = 0
    for content in contents:
        crc = zlib.crc32(content, crc)
    return f"{crc:08x}"
