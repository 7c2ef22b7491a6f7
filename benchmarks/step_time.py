"""A step's predicted time against the measured one, on this x86-64 machine, with the executable for 128-bit vectors.

    python benchmarks/step_time.py --wheel dist/*_x86_64.whl --clock-mhz 4300 [--multiply-adds 8] [--instructions 8]

Boards are predicted in the same way (devices/prediction.py), from instructions counted alike, of the same kernels on
vectors of the same width. What is said of this machine's core is what its maker publishes of it, as for boards; the
clock is the one it runs at. One thread, weights at random. Measured is processor time, that of a long run less that of
a short one by the number of steps between them: other work on the machine makes it wait, but not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "devices" / "emulated"))
from count_instructions import CHECKED, COUNTED, prepared, title
from system import trainer_of

from tinytl_edge.devices.board import Board, CoreCluster
from tinytl_edge.devices.prediction import predicted_step_seconds
from tinytl_edge.runtime.files.bundle import STEP, open_bundle

PROFILED = 20  # steps that `bench` runs once more, at most, to tell operators apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True, help="for x86_64")
    parser.add_argument("--clock-mhz", type=int, required=True)
    parser.add_argument("--multiply-adds", type=int, default=8, help="a cycle, on vectors of 128 bits")
    parser.add_argument("--instructions", type=int, default=8, help="a cycle")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--bundles", type=Path, help="keep the bundles here, and take those that are there")
    arguments = parser.parse_args()
    core = CoreCluster("this core", 1, arguments.clock_mhz, arguments.multiply_adds, arguments.instructions)
    machine = Board("x86", "This machine", architectures=("x86_64",), cores=(core,))
    print("| step | predicted (ms) | measured (ms) | measured / predicted |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        trainer = Path(name) / "trainer"
        trainer.write_bytes(trainer_of(arguments.wheel))
        trainer.chmod(0o755)
        for workload in (*COUNTED, *CHECKED):
            bundle = open_bundle(prepared(workload, arguments.bundles or Path(name)))
            measured = 1e3 * step_seconds(trainer, bundle.file(STEP), arguments.steps)
            predicted = 1e3 * (predicted_step_seconds(bundle.manifest.work, 1, machine) or 0)
            print(f"| {title(workload)} | {predicted:.1f} | {measured:.1f} | {measured / predicted:.2f} |", flush=True)


def step_seconds(trainer: Path, program: Path, steps: int) -> float:
    """Of the trainer's `bench`, whose passes around its steps are the same from 20 steps on."""
    return (
        processor_seconds(trainer, program, PROFILED + steps) - processor_seconds(trainer, program, PROFILED)
    ) / steps


def processor_seconds(trainer: Path, program: Path, steps: int) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    job = {"command": "bench", "program": str(program), "steps": steps}
    subprocess.run([trainer], input=json.dumps(job), capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
