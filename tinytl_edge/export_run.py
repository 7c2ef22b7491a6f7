"""`export`: the adapted classifier of a run as a model file, for the app that uses it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.files.adapter import Adapter
from tinytl_edge.runtime.files.bundle import Manifest
from tinytl_edge.runtime.files.run import open_model
from tinytl_edge.runtime.model_files.about import about, onnx_metadata
from tinytl_edge.runtime.model_files.associated import described
from tinytl_edge.runtime.model_files.deployed import BEFORE, beside, kind_of, replace_files, stale_builds
from tinytl_edge.runtime.model_files.stored_numbers import LOGITS_RANGE, Read
from tinytl_edge.runtime.model_files.template import FOLDER, filled, read_template
from tinytl_edge.runtime.workers.events import OnEvent


def export(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    bundle: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    keep: bool = True,
    check: str | os.PathLike[str] | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Write the classifier of a run (or of a bundle as prepared) to `out`, and what it says of itself to .json beside.

    Where `out` is a link, the file that it leads to is replaced; mode and owner stay.

    Args:
        overwrite: replace a file that is there.
        keep: what was there stays beside it, as NAME.before.
        check: labelled images on which the file, once written, is compared with the run; needs its interpreter.

    Returns:
        out, format, bytes, files (all that was written), classes, further (how many of them came to those that the
        bundle was prepared for: so many outputs more), input (as the bundle's manifest has it), in_words
        (how to use it), kept (files that were there before), stale (files beside it that others built of what was
        there before); with `check`, checked (as `compare` returns it).

    Raises:
        TinyTLError: of the kind that says what is wrong.
    """
    target = Path(out)
    opened, adapter = open_model(model, bundle)
    classes = opened.manifest.classes
    template, folder = read_template(opened, target), opened.file(FOLDER)
    said = about(opened.manifest, template, classes, adapter.unknown_below if adapter else None)
    read = _reader(adapter, opened.manifest) if adapter else None
    size = (folder / template.files[0]).stat().st_size
    if kind_of(target) == "onnx":
        behind = onnx_metadata(said, template, classes)
    else:
        behind = described(folder, template, said, classes, size)
    files: dict[Path, Iterable[bytes]] = {target: chain(filled(folder, template, 0, read), [behind])}
    for index, name in enumerate(template.files[1:], 1):
        files[beside(target, name)] = filled(folder, template, index, read)
    weights = list(files)
    page = beside(target, target.with_suffix(".json").name)
    files[page] = [json.dumps({"model": target.name, **said}, indent=1, ensure_ascii=False).encode() + b"\n"]
    if template.labels is not None and classes:
        place, text = beside(target, template.labels.name), template.labels.text(classes).encode()
        if not place.is_file() or place.read_bytes() != text:
            files[place] = [text]
    existed = [path for path in files if path.exists()]
    if existed and not overwrite:
        raise UsageError(f"{existed[0]} already exists: add --overwrite, or choose another --out.")
    kept = [path for path in existed if not (path == page and _is_ours(path))] if keep else []
    sizes = replace_files(files, kept)
    checked: dict[str, Any] = {}
    if check is not None:
        from tinytl_edge.runtime.evaluate import compare  # a worker, and the file's interpreter

        checked["checked"] = compare(model, target, check, bundle=bundle, on_event=on_event)
    return {
        "out": os.fspath(target),
        "format": kind_of(target),
        "bytes": sum(sizes[path] for path in weights),
        "files": [os.fspath(path) for path in files],
        "classes": list(classes),
        "further": opened.further,
        "input": asdict(opened.manifest.input),
        "in_words": said["in words"],
        "kept": [f"{os.path.realpath(path)}{BEFORE}" for path in kept],
        "stale": [os.fspath(path) for path in stale_builds(target)] if target in existed else [],
        **checked,
    }


def _reader(adapter: Adapter, manifest: Manifest) -> Read:
    """Gives the bytes of a parameter, or of what else a template asks for, by its name."""
    head = manifest.head

    def read(name: str) -> bytes:
        if name == LOGITS_RANGE:
            return struct.pack("<2f", *adapter.logits)
        content = adapter.tensors.read(name)
        if head is not None and name in (head.weight, head.bias):  # outputs that stand for no class stay here
            content = content[: len(content) // manifest.outputs * manifest.class_count]
        return content

    return read


def _is_ours(path: Path) -> bool:
    """Was this written by an export before?"""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "in words" in content
