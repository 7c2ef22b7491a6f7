"""The native trainer's memory, whole process, in real trainings.

    python benchmarks/native_memory.py [--resolution 224] [--images 102] [--json]

Trains at least 100 steps on images of noise, with evaluations and checkpoints between them, one thread, weights at
random. Each workload is prepared without a memory limit (frozen weights in 8 bits, everything else float32) and with
one. `peak` is the kernel's VmHWM of the worker, `planned` what the compiler said; MB = 1,000,000 bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from pathlib import Path
from typing import Any

from workloads import WORKLOADS, tinytl


def write_noise(folder: Path, images: int, classes: int) -> None:
    """Images of coloured noise in class folders."""
    from PIL import Image

    for number in range(images):
        place = folder / f"{number % classes:03d}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("RGB", (16, 16), random.Random(number).randbytes(16 * 16 * 3)).save(place)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--images", type=int, default=102)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for classes in {workload.classes for workload in WORKLOADS}:
            write_noise(folder / f"images-{classes}", options.images, classes)
            size = ["--resolution", options.resolution, "--out", folder / f"{classes}.safetensors"]
            tinytl("pack", folder / f"images-{classes}", *size)
        for workload in WORKLOADS:
            data = folder / f"{workload.classes}.safetensors"
            epochs = math.ceil(100 / math.ceil(options.images / workload.batch))
            for limit in ("", workload.limit):
                bundle, run = folder / f"bundle-{len(rows)}", folder / f"run-{len(rows)}"
                within = ["--memory-limit", limit] if limit else ["--frozen-weights", "int8"]
                named = ["--data", folder / f"images-{workload.classes}"]
                workload.prepare(bundle, options.resolution, *named, *within)
                how = ["--data", data, "--val", data, "--epochs", epochs, "--runtime", "native", "--threads", 1]
                done = json.loads(tinytl("train", bundle, *how, "--json", "--out", run).splitlines()[-1])
                rows.append(
                    {
                        "backbone": workload.backbone,
                        "method, optimizer": f"{workload.method}, {workload.optimizer}",
                        "batch": workload.batch,
                        "limit": limit,
                        "peak (MB)": round(done["peak_rss_bytes"] / 1e6, 1),
                        "planned (MB)": round(done["planned_peak_bytes"] / 1e6, 1),
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
