"""`export`: the adapted classifier of a run as a model file, for the app that uses it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.files.run import open_model
from tinytl_edge.runtime.model_files.about import metadata, model_json, onnx_metadata, sentences
from tinytl_edge.runtime.model_files.deployed import BEFORE, replace_files, stale_builds
from tinytl_edge.runtime.model_files.template import filled, read_template


def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    bundle: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    keep: bool = True,
) -> dict[str, Any]:
    """Write the classifier of a run (or of a bundle as prepared) to `out`, and what it says of itself to .json beside.

    Where `out` is a link, the file that it leads to is replaced; mode and owner stay.

    Args:
        overwrite: replace a file that is there.
        keep: what was there stays beside it, as NAME.before.

    Returns:
        out, format, bytes, files (all that was written), classes, input (as the bundle's manifest has it), in_words
        (how to use it), kept (files that were there before), stale (files beside it that others built of what was
        there before).

    Raises:
        TinyTLError: of the kind that says what is wrong.
    """
    target = Path(out)
    opened, adapter = open_model(model, bundle)
    classes = adapter.classes if adapter else opened.manifest.classes
    template = read_template(opened, target.suffix)
    parameters = adapter.tensors if adapter else None
    is_onnx = target.suffix.lower() == ".onnx"
    about = onnx_metadata(metadata(opened.manifest, template, classes)) if is_onnx else b""
    files: dict[Path, Iterable[bytes]] = {target: chain(filled(opened, template, 0, parameters), [about])}
    for index, name in enumerate(template.files[1:], 1):
        files[target.with_name(name)] = filled(opened, template, index, parameters)
    said = model_json(target.name, opened.manifest, template, classes)
    beside = target.with_suffix(".json")
    files[beside] = [json.dumps(said, indent=1, ensure_ascii=False).encode() + b"\n"]
    labels = template.labels
    if labels is not None and classes:
        place, text = target.with_name(labels.name), labels.text(classes).encode()
        if not place.is_file() or place.read_bytes() != text:
            files[place] = [text]
    existed = [path for path in files if path.exists()]
    if existed and not overwrite:
        raise UsageError(f"{existed[0]} already exists: add --overwrite, or choose another --out.")
    kept = [path for path in existed if not (path == beside and _is_ours(path))] if keep else []
    sizes = replace_files(files, kept)
    return {
        "out": os.fspath(target),
        "format": target.suffix.lower()[1:],
        "bytes": sum(sizes[target.with_name(name)] for name in (target.name, *template.files[1:])),
        "files": [os.fspath(path) for path in files],
        "classes": list(classes),
        "input": asdict(opened.manifest.input),
        "in_words": sentences(opened.manifest, template, classes),
        "kept": [f"{os.path.realpath(path)}{BEFORE}" for path in kept],
        "stale": [os.fspath(path) for path in stale_builds(target)] if target in existed else [],
    }


def _is_ours(path: Path) -> bool:
    """Was this written by an export before?"""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "in words" in content
