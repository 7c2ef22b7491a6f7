"""What each of the compiler's choices saves and costs, measured beside what it estimates.

    python benchmarks/choices.py [--backbones mobilenet-v2,...] [--resolution 224] [--steps 200] [--out FOLDER]

Of each workload of one image a step, prepared with its memory limit, the native trainer runs the step as it was
compiled and the step with one choice undone, by turns, ten rounds of each. Memory is the highest VmHWM, time the
tenth percentile of a step; one thread. Bundles stay in --out (those of benchmarks/runtimes.py, by default).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from workloads import WORKLOADS, Workload

from tinytl_edge.benchmark import ROUNDS, tenth_percentile
from tinytl_edge.export.step.choices import WITHOUT_ANY, weigh_choices
from tinytl_edge.export.step.compile import Knobs, StepPlan, compile_step
from tinytl_edge.export.step.importers import import_network
from tinytl_edge.export.step.program import write_program
from tinytl_edge.knob_words import KNOB_WORDS, knob_words
from tinytl_edge.runtime.files.bundle import FORWARD, open_bundle
from tinytl_edge.runtime.workers.events import Event
from tinytl_edge.runtime.workers.native_worker import find_trainer
from tinytl_edge.runtime.workers.worker import run_worker


def measure(programs: dict[str, Path], steps: int) -> dict[str, list[Event]]:
    """What the trainer's `bench` says of each program, round by round."""
    said: dict[str, list[Event]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, program in programs.items():
            job = {"command": "bench", "program": os.fspath(program), "steps": steps // ROUNDS, "batch_size": 1}
            said[name].append(run_worker([os.fspath(find_trainer())], job, lambda event: None).last)
    return said


def rows(workload: Workload, bundle_path: Path, steps: int) -> list[tuple[str, ...]]:
    """A row for each choice."""
    bundle = open_bundle(bundle_path)
    manifest, knobs = bundle.manifest, bundle.manifest.knobs
    network = import_network(ir.load(bundle.file(FORWARD)), manifest.trainable, manifest.input.framing.stored)

    def compile_with(knobs: Knobs) -> StepPlan:
        return compile_step(network, knobs)

    step = compile_with(knobs)
    estimates = {choice.knob: choice for choice in weigh_choices(step, manifest.optimizer, 1, compile_with)}
    with tempfile.TemporaryDirectory() as scratch:
        programs = {"": Path(scratch) / "chosen"}
        write_program(programs[""], step, manifest)
        for knob in estimates:
            programs[knob] = Path(scratch) / knob
            undone = replace(knobs, **{knob: getattr(WITHOUT_ANY, knob)})
            write_program(programs[knob], compile_with(undone), manifest)
        said = measure(programs, steps)

    def fastest(name: str) -> float:
        return tenth_percentile([ms for event in said[name] for ms in event["step_ms"]])

    def peak(name: str) -> float:
        return max(float(event["peak_rss_bytes"]) for event in said[name])

    found: list[tuple[str, ...]] = []
    for knob in KNOB_WORDS:
        if knob in estimates:
            saved, share = estimates[knob].bytes_saved / 1e6, estimates[knob].time_fraction
            what: tuple[Any, ...] = (workload.backbone, f"{workload.method}, {workload.optimizer}")
            measured = f"{(peak(knob) - peak('')) / 1e6:.1f}", f"{100 * (fastest('') / fastest(knob) - 1):+.1f} %"
            words = knob_words(knob, getattr(knobs, knob))
            found.append((*what, words, f"{saved:.1f}", measured[0], f"{100 * share:+.1f} %", measured[1]))
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", default="mobilenet-v2,proxylessnas-mobile,efficientnet-lite0")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("build/runtimes"))
    options = parser.parse_args()
    columns = ("network", "trains", "choice", "saves: planned (MB)", "measured", "adds to time: estimated", "measured")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for workload in WORKLOADS:
        if workload.batch == 1 and workload.backbone in options.backbones.split(","):
            bundle = workload.bundle(options.out, options.resolution)
            for row in rows(workload, bundle, options.steps):
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
