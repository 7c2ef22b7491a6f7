"""`bench`: how fast and in how much memory runtimes train a bundle on this machine, side by side.

Each round starts a fresh process of every runtime in turn, so that whatever else the machine does hits all alike. All
compute the same steps, on the same noise, from the same weights.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tinytl_edge import __version__
from tinytl_edge.devices.detect import this_machine
from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.files.bundle import FORWARD, ORT_FOLDER, STEP, Bundle, open_bundle, write_manifest
from tinytl_edge.runtime.memory import megabytes
from tinytl_edge.runtime.workers.events import Event
from tinytl_edge.runtime.workers.ort_available import no_ort_training
from tinytl_edge.runtime.workers.runtimes import choose_runtime, worker_command
from tinytl_edge.runtime.workers.worker import run_worker

NATIVE, ORT, PLAIN, PYTORCH = "native", "onnxruntime-training", "onnxruntime-training-plain", "pytorch"
RUNTIMES = (NATIVE, ORT, PLAIN, PYTORCH)
ROUNDS = 10


@dataclass
class _Contestant:
    """A runtime: what starts it, its job, and of each round how long it took to start and what it said in the end."""

    version: str
    command: list[str]
    job: dict[str, Any]
    start_ms: list[float] = field(default_factory=list)
    done: list[Event] = field(default_factory=list)

    def all(self, name: str) -> list[float]:
        """The measurements of all rounds."""
        return [value for event in self.done for value in event[name]]


def bench(
    bundle: str | os.PathLike[str],
    *,
    runtimes: Sequence[str] = (),
    steps: int = 100,
    threads: int = 1,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure training steps of a bundle, and inference of its classifier.

    Args:
        runtimes: of `RUNTIMES`; none stands for all that can run here. `onnxruntime-training-plain` takes artifacts as
            generated, without our rewriting.
        steps: measured ones of each runtime, of the bundle's batch size.
        on_progress: called with a few words before each process is started.

    Returns:
        what was measured on what; `rows`, one for each runtime; `native_operator_ms` of one image; and `left_out`,
        why a runtime is missing. In a row: medians and tenth percentiles of a step and of an evaluation (of one
        image) in milliseconds; `ratio`, the native tenth percentile over the row's; `share_of_peak`, of the
        multiply-adds that this machine can do in that time; `start_ms` from starting the process to the end of its
        first step; the highest VmHWM behind the last step; the last step's loss: it tells that all did the same.

    Raises:
        UsageError: a runtime that was asked for cannot run here, or none can.
    """
    unknown = [name for name in runtimes if name not in RUNTIMES]
    if unknown:
        raise UsageError(f"'{unknown[0]}' is no runtime: choose from {', '.join(RUNTIMES)}.")
    if not 1 <= steps <= 1_000_000:
        raise UsageError(f"--steps {steps} is out of range: 1 to 1000000.")
    if not 1 <= threads <= 1024:
        raise UsageError(f"--threads {threads} is out of range: 1 to 1024.")
    opened = open_bundle(bundle)
    say = on_progress or (lambda text: None)
    rounds = min(ROUNDS, steps)
    with tempfile.TemporaryDirectory(prefix="tinytl-edge-") as scratch:
        contestants, left_out = _enlist(opened, runtimes, threads, Path(scratch), say)
        for number in range(rounds):
            share = steps * (number + 1) // rounds - steps * number // rounds
            for name, contestant in contestants.items():
                say(f"round {number + 1} of {rounds}: {name}")
                _run(contestant, share)
    return {**_circumstances(opened, steps, threads), **_results(opened, contestants, threads), "left_out": left_out}


def _enlist(
    bundle: Bundle, wanted: Sequence[str], threads: int, scratch: Path, say: Callable[[str], None]
) -> tuple[dict[str, _Contestant], dict[str, str]]:
    """Who can run; and why others cannot."""
    contestants, left_out = {}, {}
    for name in RUNTIMES:
        if wanted and name not in wanted:
            continue
        try:
            contestants[name] = _contestant(name, bundle, threads, scratch, say)
        except UsageError as error:
            if wanted:
                raise
            left_out[name] = str(error)
    if not contestants:
        raise UsageError(f"Nothing here can train {bundle.path}. {' '.join(left_out.values())}")
    return contestants, left_out


def _contestant(name: str, bundle: Bundle, threads: int, scratch: Path, say: Callable[[str], None]) -> _Contestant:
    manifest = bundle.manifest
    if name == NATIVE:
        command = worker_command(choose_runtime(NATIVE, bundle))
        program = os.fspath(bundle.file(STEP).resolve())
        job = {"command": "bench", "program": program, "batch_size": manifest.batch_size, "threads": threads}
        job["class_count"] = manifest.class_count
        return _Contestant(f"{__version__}, {Path(command[0]).name}", command, job)
    if name == PYTORCH:
        job = {"runtime": PYTORCH, "bundle": os.fspath(bundle.path.resolve()), "threads": threads}
        return _Contestant(_version(name, "torch", "onnx-ir"), _worker(), job)
    choose_runtime(ORT, bundle)
    installed = _version(name, "onnxruntime-training", "onnx")
    say(f"exporting for {name}")
    job = {
        "runtime": ORT,
        "inference": os.fspath(_export_inference(bundle, scratch)),
        "bundle": os.fspath(bundle.path.resolve() if name == ORT else _plain_bundle(bundle, scratch)),
        "rewritten": name == ORT,
    }
    return _Contestant(installed, _worker(), {**job, "threads": threads})


def _worker() -> list[str]:
    return [sys.executable, "-m", "tinytl_edge.benchmark_worker"]


def _version(runtime: str, *packages: str) -> str:
    """Of the first; all of them are needed."""
    try:
        installed = [version(package) for package in packages]
    except PackageNotFoundError as error:
        if error.name == "onnxruntime-training":
            raise UsageError(no_ort_training()) from None
        raise UsageError(
            f"{runtime} needs {error.name}, which a board does without: pip install 'tinytl-edge[prepare]'."
        ) from None
    return installed[0]


def _export_inference(bundle: Bundle, scratch: Path) -> Path:
    from .export_run import export

    path = scratch / "inference.onnx"
    export(bundle.path, path, overwrite=True)
    return path


def _plain_bundle(bundle: Bundle, scratch: Path) -> Path:
    """A bundle with nothing but onnxruntime-training's artifacts as it generates them."""
    import onnx_ir as ir

    from tinytl_edge.export.ort.training import export_ort_training
    from tinytl_edge.export.tinytl.parameters import find_parameters
    from tinytl_edge.runtime.images.dataset import MULTI

    manifest, forward = bundle.manifest, ir.load(bundle.file(FORWARD))
    frozen = [name for name in find_parameters(forward) if name not in manifest.trainable]
    folder = scratch / "plain"
    (folder / ORT_FOLDER).mkdir(parents=True)
    export_ort_training(
        forward, list(manifest.trainable), frozen, manifest.optimizer, folder / ORT_FOLDER, rewritten=False,
        multi_label=manifest.labels == MULTI,
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


def _run(contestant: _Contestant, steps: int) -> None:
    """One process."""
    begin = time.perf_counter()

    def note_start(event: Event) -> None:
        if event["event"] == "step":
            contestant.start_ms.append(1e3 * (time.perf_counter() - begin))

    contestant.done.append(run_worker(contestant.command, {**contestant.job, "steps": steps}, note_start).last)


def _circumstances(bundle: Bundle, steps: int, threads: int) -> dict[str, Any]:
    manifest, machine = bundle.manifest, this_machine()
    return {
        "bundle": os.fspath(bundle.path),
        "backbone": manifest.backbone,
        "method": manifest.method,
        "optimizer": manifest.optimizer,
        "batch_size": manifest.batch_size,
        "input": [manifest.input.height, manifest.input.width, manifest.input.channels],
        "classes": manifest.class_count,
        "frozen_weights": manifest.frozen_weights,
        "memory_limit_bytes": manifest.memory_limit,
        "steps": steps,
        "threads": threads,
        "date": time.strftime("%Y-%m-%d"),
        "machine": ", ".join(f"{core.count} x {core.model}" for core in machine.cores) or platform.machine(),
        "python": platform.python_version(),
    }


def _results(bundle: Bundle, contestants: dict[str, _Contestant], threads: int) -> dict[str, Any]:
    native = contestants.get(NATIVE)
    said = native.done if native else []
    peak = threads * max(event["peak_multiply_adds_per_s"] for event in said) if said else None
    work = bundle.manifest.multiply_adds * bundle.manifest.batch_size or None
    reference = tenth_percentile(native.all("step_ms")) if native else None
    kinds = {kind for event in said for kind in event["operator_ms"]}
    rows = []
    for name, contestant in contestants.items():
        step_ms, evaluation_ms = contestant.all("step_ms"), contestant.all("evaluation_ms")
        fastest = tenth_percentile(step_ms)
        row = {
            "runtime": name,
            "version": contestant.version,
            "step_ms_median": statistics.median(step_ms),
            "step_ms_p10": fastest,
            "ratio": reference and reference / fastest,
            "share_of_peak": work and peak and 1e3 * work / fastest / peak,
            "peak_rss_bytes": max(event["peak_rss_bytes"] for event in contestant.done),
            "start_ms": statistics.median(contestant.start_ms),
            "evaluation_ms_median": statistics.median(evaluation_ms),
            "evaluation_ms_p10": tenth_percentile(evaluation_ms),
            "loss": contestant.done[-1]["loss"],
        }
        rows.append(row)
    return {
        "multiply_adds": work,
        "peak_multiply_adds_per_s": peak,
        "rows": rows,
        "native_operator_ms": {
            kind: statistics.median(event["operator_ms"].get(kind, 0.0) for event in said) for kind in sorted(kinds)
        },
    }


def tenth_percentile(values: Sequence[float]) -> float:
    """What a step takes where little else runs: a tenth of them took at most this."""
    return sorted(values)[(len(values) - 1) // 10]


def describe(result: dict[str, Any]) -> str:
    """`bench`'s answer as text for a person."""
    batch, threads = result["batch_size"], result["threads"]
    height, width, _ = result["input"]
    lines = [
        f"{result['backbone']}, {result['method']}, {result['optimizer']}, batch {batch}, {height} x {width} px, "
        f"{threads} {'thread' if threads == 1 else 'threads'}; {result['machine']}",
        "",
        f"{'':<28}{'step (ms)':>18}{'native':>9}{'of peak':>9}{'peak':>11}{'start':>9}{'evaluation (ms)':>19}",
        f"{'':<28}{'median':>9}{'p10':>9}{'/ this':>9}{'rate':>9}{'memory':>11}{'(ms)':>9}{'median':>10}{'p10':>9}",
    ]
    for row in result["rows"]:
        ratio, share = row["ratio"], row["share_of_peak"]
        lines.append(
            f"{row['runtime']:<28}{row['step_ms_median']:>9.1f}{row['step_ms_p10']:>9.1f}"
            f"{'' if ratio is None else format(ratio, '.2f'):>9}{'' if share is None else format(share, '.0%'):>9}"
            f"{megabytes(row['peak_rss_bytes']):>11}{row['start_ms']:>9.0f}"
            f"{row['evaluation_ms_median']:>10.1f}{row['evaluation_ms_p10']:>9.1f}"
        )
    if result["peak_multiply_adds_per_s"]:
        rate = f"{result['peak_multiply_adds_per_s'] / 1e9:.1f} billion multiply-adds a second at most"
        work = result["multiply_adds"]
        lines += ["", f"This machine does {rate}" + (f"; a step is {work / 1e6:.0f} million." if work else ".")]
    if result["native_operator_ms"]:
        kinds = sorted(result["native_operator_ms"].items(), key=lambda item: -item[1])
        whole = sum(ms for _, ms in kinds)
        shown = [f"{kind} {ms / whole:.0%}" for kind, ms in kinds if ms >= 0.01 * whole]
        lines += ["", f"The native step's time by operator: {', '.join(shown)}."]
    for name, reason in result["left_out"].items():
        lines += ["", f"Without {name}: {reason}"]
    return "\n".join(lines)
