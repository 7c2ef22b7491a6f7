"""Counts the instructions of training steps, and finds how many each kind of work takes (devices/instructions.py).

    python devices/emulated/count_instructions.py dist/*_aarch64.whl dist/*_x86_64.whl

qemu's clock is made to advance one nanosecond an instruction (-icount), so that the trainer's own `bench` says
instructions where it means nanoseconds: its process' and those of the kernel beneath it. Of the steps of `COUNTED`
the instructions of the forward and the backward pass are counted, and the work of each (export/step/work.py); what each
kind of work takes is fitted to that, and checked on the steps of `CHECKED`, which the fit has not seen.

Needs Debian's qemu-system-arm, qemu-system-x86 and e2fsprogs, and tinytl-edge with the extra `dev`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from scipy.optimize import lsq_linear
from system import EMULATORS, boot, make_disk, make_system, trainer_of

from tinytl_edge import PrepareOptions, prepare
from tinytl_edge.devices.instructions import INSTRUCTIONS_PER_MULTIPLY_ADD, MULTIPLY_ADDS
from tinytl_edge.export.step.compile import StepPlan, compile_step
from tinytl_edge.export.step.importers import import_network
from tinytl_edge.export.step.work import count_work
from tinytl_edge.runtime.files.bundle import FORWARD, STEP, open_bundle
from tinytl_edge.runtime.memory import parse_size

SCRIPT = """for job in /board/*.json; do
  echo "counted $job"
  /board/trainer < $job
done
"""


class Workload(NamedTuple):
    """What is prepared."""

    backbone: str
    method: str
    optimizer: str
    batch: int
    resolution: int
    limit: str | None = None


COUNTED = (
    Workload("mobilenet-v2", "bias", "sgd", 1, 224),
    Workload("mobilenet-v2", "full", "adam", 1, 160),
    Workload("mobilenet-v2", "full", "adam", 1, 224, "16MB"),
    Workload("mobilenet-v2", "full", "momentum", 1, 96),
    Workload("mobilenet-v2-0.5", "full", "momentum", 1, 128, "6.5MB"),
    Workload("mobilenet-v2-0.5", "lite-residual+bias", "sgd", 1, 96),
    Workload("proxylessnas-mobile", "lite-residual+bias", "adam", 1, 224),
    Workload("proxylessnas-mobile", "lite-residual+bias", "adam", 8, 160, "16MB"),
    Workload("efficientnet-lite0", "bias", "adam", 1, 96),
    Workload("efficientnet-lite0", "full", "sgd", 1, 128),
    Workload("efficientnet-lite0", "full", "momentum", 8, 160, "24MB"),
    Workload("mobilenet-v2", "lite-residual+bias", "momentum", 1, 192),
    Workload("mobilenet-v2", "last", "momentum", 1, 128),
    Workload("proxylessnas-mobile", "full", "sgd", 1, 128),
)
CHECKED = (
    Workload("proxylessnas-mobile", "lite-residual+bias", "adam", 1, 224, "13.9MB"),
    Workload("mobilenet-v2", "lite-residual+bias", "adam", 1, 160),
    Workload("efficientnet-lite0", "lite-residual+bias", "adam", 1, 224, "14MB"),
    Workload("mobilenet-v2", "bias", "sgd", 1, 128),
    Workload("mobilenet-v2", "full", "adam", 1, 224),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path, nargs="+", help="for aarch64 and for x86_64")
    parser.add_argument("--bundles", type=Path, help="keep the bundles here, and take those that are there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = [prepared(workload, arguments.bundles or folder) for workload in (*COUNTED, *CHECKED)]
        work = [part for bundle in bundles for part in halves(bundle)]
        for wheel in arguments.wheels:
            arch = next(arch for arch in EMULATORS if arch in wheel.name)
            (folder / arch).mkdir()
            instructions = count(folder / arch, arch, wheel, bundles)
            report(arch, work, instructions)


def title(workload: Workload) -> str:
    """Backbone, method, optimizer, batch, resolution, and the memory limit, if there is one."""
    return " ".join(map(str, filter(None, workload)))


def prepared(workload: Workload, folder: Path) -> Path:
    """The workload's bundle, with weights at random."""
    out = folder / "-".join(map(str, workload)).replace("+", "-")
    if not out.exists():
        with contextlib.redirect_stderr(io.StringIO()):
            options = PrepareOptions(
                weights="random", classes=10, train=workload.method, optimizer=workload.optimizer,
                batch_size=workload.batch, resolution=workload.resolution,
                memory_limit=parse_size(workload.limit) if workload.limit else None,
            )  # fmt: skip
            prepare(workload.backbone, out, options=options)
    return out


def halves(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """The work of a step's forward and of its backward pass."""
    bundle = open_bundle(path)
    manifest = bundle.manifest
    network = import_network(ir.load(bundle.file(FORWARD)), manifest.trainable, manifest.input.framing.stored)
    step: StepPlan = compile_step(network, manifest.knobs)
    graph = step.graph
    forward, backward = (
        count_work(graph, ops, step.knobs, manifest.optimizer) for ops in (graph.forward, graph.backward)
    )
    return forward, backward


def count(folder: Path, arch: str, wheel: Path, bundles: list[Path]) -> list[float]:
    """Instructions of each bundle's forward and backward pass, by turns."""
    board = folder / "board"
    board.mkdir()
    (board / "trainer").write_bytes(trainer_of(wheel))
    (board / "trainer").chmod(0o755)
    for number, bundle in enumerate(bundles):
        program = f"{number:02}.safetensors"
        shutil.copy(bundle / STEP, board / program)
        job = {"command": "bench", "program": f"/board/{program}", "steps": 1}
        (board / f"{number:02}.json").write_text(json.dumps(job))
    emulator = EMULATORS[arch]
    system, disk = make_system(folder, emulator, SCRIPT), make_disk(folder, board)
    instructions = []
    for line in boot(emulator, "max", "512M", system, disk, "-icount", "shift=0,sleep=off"):
        if not line.startswith("{"):
            continue
        done: dict[str, Any] = json.loads(line)
        instructions += [1e6 * done["forward_ms_median"], 1e6 * (done["step_ms_median"] - done["forward_ms_median"])]
    return instructions


def report(arch: str, work: list[dict[str, int]], instructions: list[float]) -> None:
    """Print what a unit of each kind takes, and how well that says what was counted."""
    kinds = sorted({kind for part in work for kind in part})
    units = np.array([[part.get(kind, 0) for kind in kinds] for part in work], float)
    counted = np.array(instructions)
    fitted = slice(0, 2 * len(COUNTED))
    relative = (units / counted[:, None])[fitted]  # small steps count as much as large ones
    # Nothing takes less than one instruction for a vector of four; a multiply-add as many as it must.
    least = [INSTRUCTIONS_PER_MULTIPLY_ADD[arch] if kind in MULTIPLY_ADDS else 0.25 for kind in kinds]
    costs = lsq_linear(relative, np.ones(len(relative)), (least, np.inf)).x
    table = ", ".join(f'"{kind}": {cost:.2f}' for kind, cost in zip(kinds, costs))
    print(f'    "{arch}": {{{table}}},')
    said = (units @ costs).reshape(-1, 2).sum(1)
    totals = counted.reshape(-1, 2).sum(1)
    print("| step | | counted (M) | said (M) | error |\n|---|---|---|---|---|")
    for workload, total, guess in zip((*COUNTED, *CHECKED), totals, said):
        seen_by_fit = "fitted" if workload in COUNTED else "checked"
        error = f"{100 * (guess / total - 1):+.1f} %"
        print(f"| {title(workload)} | {seen_by_fit} | {total / 1e6:.0f} | {guess / 1e6:.0f} | {error} |")


if __name__ == "__main__":
    main()
