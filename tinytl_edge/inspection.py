"""`inspect`: what a bundle or a run is, and its memory: planned, by the paper's count, and measured."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinytl_edge.devices.prediction import predicted_step_seconds
from tinytl_edge.devices.profiles import BOARDS
from tinytl_edge.runtime.errors import DamagedFileError
from tinytl_edge.runtime.files.bundle import Bundle, Input, Manifest, is_bundle, open_bundle
from tinytl_edge.runtime.files.kinds import kind_in_words
from tinytl_edge.runtime.files.run import Run, is_run, open_run
from tinytl_edge.runtime.files.tensors import open_tensors
from tinytl_edge.runtime.images.dataset import MULTI, open_dataset
from tinytl_edge.runtime.images.framing import Framing
from tinytl_edge.runtime.memory import megabytes
from tinytl_edge.runtime.report import judgement
from tinytl_edge.runtime.wording import list_names

from .board_choice import seconds_text
from .knob_words import KNOB_WORDS, knob_words

_SHOWN_CLASSES = 20


def inspect(path: str | os.PathLike[str], *, bundle: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Describe a bundle, a run, or a safetensors file of ours (dataset, adapter).

    Args:
        bundle: the run's bundle, if it has moved.

    Raises:
        DamagedFileError: it is none of these, or damaged.
    """
    path = Path(path)
    if is_run(path):
        run = open_run(path, bundle)
        record = asdict(run.record)
        return {
            "kind": "run",
            "path": os.fspath(path),
            **{name: record[name] for name in ("status", "error", "options", "result")},
            "classes": _classes_of(run),
            "bundle": _describe_bundle(run.bundle),
        }
    if is_bundle(path):
        return _describe_bundle(open_bundle(path))
    kind = kind_in_words(path)
    if path.is_file() and (kind is None or _has_header(path)):
        tensors = open_tensors(path)
        kind = tensors.metadata.get("format", "tensors").removeprefix("tinytl-edge-")
        content: dict[str, Any] = {"kind": kind, "metadata": tensors.metadata}
        if kind == "dataset":
            with open_dataset(path) as dataset:
                content = {
                    "kind": kind,
                    "images": dataset.count,
                    "stored": list(dataset.shape),
                    "framing": asdict(dataset.framing),
                    "labels": dataset.kind,
                    "classes": dict(zip(dataset.classes, dataset.counts())),
                }
        content["tensors"] = {n: [e.dtype, list(e.shape)] for n, e in tensors.entries.items()}
        return content
    it_is = "" if kind in (None, "a folder") else f": it is {kind}"
    raise DamagedFileError(f"{path} is neither a bundle nor a run, dataset or adapter of tinytl-edge{it_is}.")


def _has_header(path: Path) -> bool:
    """Does a file begin as safetensors do, whatever else it may look like?"""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _classes_of(run: Run) -> list[str] | None:
    """That it tells apart; None where it has no adapter, or a damaged one."""
    try:
        return list(run.adapter().classes)
    except DamagedFileError:
        return None


def _describe_bundle(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    parameters, activations = (manifest.paper_memory.get(kind, 0.0) for kind in ("parameters", "activations"))
    groups: dict[str, int] = {}
    for group in manifest.trainable.values():
        groups[group] = groups.get(group, 0) + 1
    return {
        "kind": "bundle",
        "path": os.fspath(bundle.path),
        "backbone": manifest.backbone,
        "method": manifest.method,
        "classes": list(manifest.classes) or manifest.class_count,
        "room": manifest.room,
        "labels": manifest.labels,
        "input": asdict(manifest.input),
        "batch_size": manifest.batch_size,
        "device": manifest.device,
        "optimizer": manifest.optimizer,
        "parameters": manifest.parameter_count,
        "trainable": manifest.trainable_count,
        "trainable_tensors": groups,
        "candidates": [asdict(candidate) for candidate in manifest.candidates],
        "runtimes": list(manifest.runtimes),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "native_step": _describe_step(manifest) if manifest.planned_memory else None,
        "paper_memory_bytes": {
            "parameters": parameters,
            "activations_per_image": activations,
            "total": activations * manifest.batch_size + parameters,
            "total_at_batch_1": activations + parameters,
        },
        "created_by": manifest.created_by,
    }


def _describe_step(manifest: Manifest) -> dict[str, Any]:
    planned = manifest.planned_memory
    predicted = {board.name: predicted_step_seconds(manifest.work, manifest.batch_size, board) for board in BOARDS}
    return {
        "planned_bytes": {**planned, "total": sum(planned.values())},
        "memory_limit_bytes": manifest.memory_limit,
        "knobs": asdict(manifest.knobs),
        "choices": [asdict(choice) for choice in manifest.choices],
        "segments": manifest.segments,
        "predicted_step_seconds": {name: seconds for name, seconds in predicted.items() if seconds is not None},
    }


def describe(content: dict[str, Any]) -> str:
    """`inspect`'s answer as text for a person."""
    if content["kind"] == "run":
        result = content["result"]
        lines = [f"run {content['path']}, {content['status']}"]
        if content["error"]:
            lines.append(f"  {content['error']}")
        if result.get("steps") is not None:
            lines.append(_row("runtime", result["runtime"]))
            lines.append(_row("steps", result["steps"]))
            lines.append(_row("judged", judgement(result)))
            known, classes = content["bundle"]["classes"], content["classes"]
            if isinstance(known, list) and classes and (new := classes[len(known) :]):
                lines.append(_row("classes", f"{len(classes)}, of which the bundle does not know {list_names(new)}"))
            for phase in ("start", "packing", "training"):
                if result["memory"] is not None:
                    lines.append(_row(f"peak memory, {phase}", megabytes(result["memory"][phase])))
            if result["step_ms_median"] is not None:
                lines.append(_row("median step", f"{result['step_ms_median']:.1f} ms"))
        return "\n".join([*lines, "", describe(content["bundle"])])
    if content["kind"] == "bundle":
        return _describe_bundle_text(content)
    if content["kind"] == "dataset":
        rows = [_row(name, count) for name, count in content["classes"].items()]
        multi_label = ", multi-label" if content["labels"] == MULTI else ""
        height, width, _ = content["stored"]
        head = f"dataset of {content['images']} images{multi_label}, stored as {height} x {width} px"
        return "\n".join([head, _row("for an input of", Framing(**content["framing"])), *rows])
    about = [_row(name, value) for name, value in content["metadata"].items() if name != "format"]
    rows = [_row(name, f"{dtype} {shape}") for name, (dtype, shape) in content["tensors"].items()]
    return "\n".join([content["kind"], *about, f"{len(rows)} tensors", *rows])


def _describe_bundle_text(content: dict[str, Any]) -> str:
    paper = content["paper_memory_bytes"]
    classes = content["classes"]
    model_input = Input(**content["input"])
    batch = content["batch_size"]
    trained = content["trainable"] / content["parameters"]
    return "\n".join(
        [
            f"bundle {content['path']}",
            _row("backbone", content["backbone"]),
            _row("method", content["method"]),
            *_describe_outputs(classes, content["room"]),
            *([_row("prepared for", content["device"])] if content["device"] else []),
            *([_row("labels", "multi-label")] if content["labels"] == MULTI else []),
            _row("input", model_input.framing),
            _row("  mean of its pixels", ", ".join(f"{value:g}" for value in model_input.mean)),
            _row("  standard deviation", ", ".join(f"{value:g}" for value in model_input.std)),
            _row("optimizer", f"{content['optimizer']}, batch {batch}"),
            _row(
                "parameters",
                f"{content['parameters']:,}, of which {content['trainable']:,} train ({trained:.1%})",
            ),
            *_describe_candidates(content["candidates"], content["optimizer"]),
            _row("runtimes", ", ".join(content["runtimes"])),
            _row("size", megabytes(content["bytes"])),
            *(_describe_step_text(content["native_step"]) if content["native_step"] else ()),
            "memory by the paper's count (no gradients, optimizer state, code)",
            _row("  parameters", megabytes(paper["parameters"])),
            _row("  activations an image", megabytes(paper["activations_per_image"])),
            _row("  total at batch 1", megabytes(paper["total_at_batch_1"])),
            *([_row(f"  total at batch {batch}", megabytes(paper["total"]))] if batch != 1 else []),
        ]
    )


def _describe_outputs(classes: list[str] | int, room: int) -> list[str]:
    """Which output is which class."""
    if isinstance(classes, int):
        return [_row("outputs", f"{classes}, without names: they take those of the images, sorted")]
    shown = len(classes) if len(classes) <= _SHOWN_CLASSES else _SHOWN_CLASSES // 2
    rows = [_row(f"  output {index}", name) for index, name in enumerate(classes[:shown])]
    more = [f"  ... and {len(classes) - shown} more"] if shown < len(classes) else []
    room_for = [_row("  room for", f"{room} more, which the images bring")] if room else []
    return [_row("classes", len(classes)), *rows, *more, *room_for]


def _describe_candidates(candidates: list[dict[str, Any]], optimizer: str) -> list[str]:
    """Which weights `auto` chose, and why."""
    if not candidates:
        return []
    measured = any(candidate["gain"] is not None for candidate in candidates)
    if all(candidate["trains"] for candidate in candidates):
        why = "all"
    elif measured:
        why = f"those that bring most for their bytes (shares of what a step of {optimizer} takes off the loss)"
    else:
        why = "as many as fit, the last ones: --data measures what each would bring"
    widest, rows = max(len(candidate["name"]) for candidate in candidates), []
    for candidate in candidates:
        gain = "" if candidate["gain"] is None else f"{candidate['gain']:.1%}"
        left = "" if candidate["trains"] else "no room"
        rows.append(f"    {candidate['name']:<{widest}} {candidate['numbers']:>9,} {gain:>6}  {left}".rstrip())
    return [_row("weights that read little", why), *rows]


def _describe_step_text(step: dict[str, Any]) -> list[str]:
    """Each kind of memory, and beside it the knobs that made it what it is."""
    planned, limit, knobs = step["planned_bytes"], step["memory_limit_bytes"], step["knobs"]
    strips = f"wide maps in strips and chunks of {megabytes(knobs['scratch_bytes'])}"
    some = f"{knobs['recomputed']} of {step['segments']} segments recomputed"
    if knobs["saved"] != "float32":
        some += f"; saved activations in {'8 bits' if knobs['saved'] == '8bit' else knobs['saved']}"
    if knobs["together"] > 1:
        some += f"; {knobs['together']} samples go through large linear layers together"
    gradients = (
        "updates right behind them"
        if knobs["accumulation"] == "none"
        else f"of a batch summed up, {knobs['accumulation']}"
    )
    explained = {
        "arena": f"{strips}; {some if step['segments'] else 'nothing to recompute'}",
        "gradients": gradients,
        "frozen": knobs["frozen_weights"] + (", streamed" if knobs["streamed"] else ""),
        "trainable": knobs["trained_weights"],
        "optimizer": "8 bits" if knobs["moments"] == "8bit" else knobs["moments"],
        "process": "code, stack, an image",
        "total": f"the limit is {megabytes(limit)}" if limit is not None else "without a limit",
    }
    names = {"frozen": "frozen weights", "trainable": "trained parameters", "optimizer": "optimizer state"}
    rows = [
        _row(f"  {names.get(kind, kind)}", f"{megabytes(planned[kind]):<9} {words}")
        for kind, words in explained.items()
        if kind in planned
    ]
    weighed = {choice["knob"]: choice for choice in step["choices"]}
    choices = [
        f"  {knob_words(knob, knobs[knob]):<32} {megabytes(choice['bytes_saved']):>9} {choice['time_fraction']:>+8.1%}"
        for knob in KNOB_WORDS
        if (choice := weighed.get(knob))
    ]
    if choices:
        choices.insert(0, "what each choice alone saves, and adds to a step's time by the compiler's estimate")
    times = [_row(f"  {board}", seconds_text(seconds)) for board, seconds in step["predicted_step_seconds"].items()]
    prediction = (
        ["time of a step of the native trainer on one core, predicted and not measured", *times] if times else []
    )
    return ["memory of the native trainer, planned", *rows, *choices, *prediction]


def _row(name: str, value: object) -> str:
    return f"  {name:<26} {value}"
