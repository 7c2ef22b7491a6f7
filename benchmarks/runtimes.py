"""Whole-process memory and step time of both runtimes on the same bundles, data and seed.

    python benchmarks/runtimes.py [--resolution 224] [--photographs 60] [--json]

Trains one epoch of noise photographs with an evaluation and a checkpoint, 10 classes, one thread, weights at
random, frozen ones in 8 bits. `peak` is the kernel's VmHWM of the worker, `planned` what the native step's plan
says without code; MB = 1,000,000 bytes. Rows alternate between the runtimes; the time is the median step's.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORKLOADS = [
    ("mobilenet-v2", "bias", "sgd", 1),
    ("mobilenet-v2", "bias", "adam", 8),
    ("mobilenet-v2", "lite-residual+bias", "adam", 1),
    ("proxylessnas-mobile", "lite-residual+bias", "adam", 1),
    ("proxylessnas-mobile", "lite-residual+bias", "adam", 8),
    ("efficientnet-lite0", "lite-residual+bias", "adam", 1),
    ("mobilenet-v2", "full", "adam", 1),
]


def tinytl(*words: object) -> str:
    """Run a command of ours and return what it printed."""
    command = [sys.executable, "-m", "tinytl_edge", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def write_noise(folder: Path, photographs: int) -> None:
    """Photographs of coloured noise in ten class folders."""
    from PIL import Image

    for number in range(photographs):
        place = folder / str(number % 10) / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (16, 16), random.Random(number).randbytes(16 * 16 * 3)).save(place)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--photographs", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_noise(folder / "photographs", options.photographs)
        data = folder / "data.safetensors"
        tinytl("pack", folder / "photographs", "--resolution", options.resolution, "--out", data)
        for number, (backbone, method, optimizer, batch) in enumerate(WORKLOADS):
            bundle = folder / f"bundle-{number}"
            what = ["--backbone", backbone, "--weights", "random", "--method", method, "--optimizer", optimizer]
            size = ["--batch-size", batch, "--resolution", options.resolution, "--frozen-weights", "int8"]
            tinytl("prepare", *what, *size, "--data", folder / "photographs", "--out", bundle)
            for runtime in ("native", "onnxruntime-training"):
                run = folder / f"run-{number}-{runtime}"
                how = ["--data", data, "--val", data, "--epochs", 1, "--runtime", runtime, "--json"]
                done = json.loads(tinytl("train", bundle, *how, "--out", run).splitlines()[-1])
                planned = done["planned_peak_bytes"]
                rows.append(
                    {
                        "backbone": backbone,
                        "method, optimizer": f"{method}, {optimizer}",
                        "batch": batch,
                        "runtime": runtime,
                        "peak (MB)": round(done["peak_rss_bytes"] / 1e6, 1),
                        "planned (MB)": round(planned / 1e6, 1) if planned else "",
                        "step (ms)": round(done["step_ms_median"], 1),
                        "loss": round(done["train_loss"], 5),
                    }
                )
                if not options.json:
                    if len(rows) == 1:
                        print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
                    print("| " + " | ".join(map(str, rows[-1].values())) + " |", flush=True)
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
