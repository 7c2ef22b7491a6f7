"""Whole-process memory and step time of both runtimes on the same bundles, data and seed.

    python benchmarks/runtimes.py [--resolution 224] [--photographs 102] [--rows bias,full] [--no-onnxruntime] [--json]

Trains at least 100 steps on photographs of noise, with evaluations and checkpoints between them, one thread, weights at
random. Each workload is prepared without a memory limit (frozen weights in 8 bits, everything else float32) and with
one; onnxruntime-training runs the first of the two bundles. `peak` is the kernel's VmHWM of the worker, `planned` what
the compiler said; MB = 1,000,000 bytes. Rows alternate between the runtimes; the time is the median step's.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Backbone, method, optimizer, batch, classes, memory limit.
WORKLOADS = [
    ("mobilenet-v2", "bias", "sgd", 1, 10, "4.5MB"),
    ("mobilenet-v2", "lite-residual+bias", "adam", 1, 10, "10MB"),
    ("proxylessnas-mobile", "lite-residual+bias", "adam", 1, 102, "13.9MB"),
    ("proxylessnas-mobile", "lite-residual+bias", "adam", 8, 102, "17MB"),
    ("efficientnet-lite0", "lite-residual+bias", "adam", 1, 10, "14MB"),
    ("mobilenet-v2", "full", "adam", 1, 10, "16MB"),
    ("mobilenet-v2", "full", "momentum", 1, 10, "14MB"),
    ("proxylessnas-mobile", "full", "adam", 1, 10, "20MB"),
]


def tinytl(*words: object) -> str:
    """Run a command of ours and return what it printed."""
    command = [sys.executable, "-m", "tinytl_edge", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def write_noise(folder: Path, photographs: int, classes: int) -> None:
    """Photographs of coloured noise in class folders."""
    from PIL import Image

    for number in range(photographs):
        place = folder / f"{number % classes:03d}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (16, 16), random.Random(number).randbytes(16 * 16 * 3)).save(place)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--photographs", type=int, default=102)
    parser.add_argument("--rows", default="bias,lite-residual+bias,full", help="Methods to measure.")
    parser.add_argument("--no-onnxruntime", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for classes in (10, 102):
            write_noise(folder / f"photographs-{classes}", options.photographs, classes)
            size = ["--resolution", options.resolution, "--out", folder / f"{classes}.safetensors"]
            tinytl("pack", folder / f"photographs-{classes}", *size)
        chosen = [row for row in WORKLOADS if row[1] in options.rows.split(",")]
        for number, (backbone, method, optimizer, batch, classes, limit) in enumerate(chosen):
            data = folder / f"{classes}.safetensors"
            what = ["--backbone", backbone, "--weights", "random", "--method", method, "--optimizer", optimizer]
            size = [
                "--batch-size",
                batch,
                "--resolution",
                options.resolution,
                "--data",
                folder / f"photographs-{classes}",
            ]
            epochs = math.ceil(100 / math.ceil(options.photographs / batch))
            runs = [("onnxruntime-training", None)] if optimizer != "momentum" and not options.no_onnxruntime else []
            for runtime, memory in [("native", None), *runs, ("native", limit)]:
                bundle = folder / f"bundle-{number}-{memory}"
                if not bundle.exists():
                    within = ["--memory-limit", memory] if memory else ["--frozen-weights", "int8"]
                    tinytl("prepare", *what, *size, *within, "--out", bundle)
                how = ["--data", data, "--val", data, "--epochs", epochs, "--runtime", runtime, "--json"]
                run = folder / f"run-{number}-{runtime}-{memory}"
                done = json.loads(tinytl("train", bundle, *how, "--out", run).splitlines()[-1])
                planned = done["planned_peak_bytes"]
                rows.append(
                    {
                        "backbone": backbone,
                        "method, optimizer": f"{method}, {optimizer}",
                        "batch": batch,
                        "runtime": runtime,
                        "limit": memory or "",
                        "peak (MB)": round(done["peak_rss_bytes"] / 1e6, 1),
                        "planned (MB)": round(planned / 1e6, 1) if planned else "",
                        "step (ms)": round(done["step_ms_median"], 1),
                        "loss": round(done["train_loss"], 4),
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
