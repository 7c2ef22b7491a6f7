"""Memory and time of a training step in onnxruntime-training: artifacts as generated against ours.

    python benchmarks/ort_memory.py [--backbone mobilenet-v2] [--methods bias,full] [--batches 1,8] [--json]

A fresh process for each row, 12 steps of Adam on noise, one thread, random weights. `import` is the RSS after
the imports, `load` after the session was made, `peak` the kernel's VmHWM at the end; MiB. Rows alternate
between the two kinds of artifacts; the time is the median step's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIB = 1 << 20
STEPS = 12


def build(folder: Path, backbone: str, method: str, resolution: int, rewritten: bool) -> None:
    """Write training artifacts with random weights."""
    import onnx_ir as ir

    from tinytl_edge.export.ort.training import export_ort_training
    from tinytl_edge.export.tinytl.parameters import find_parameters
    from tinytl_edge.options import PrepareOptions
    from tinytl_edge.preparation import prepare
    from tinytl_edge.runtime.files.bundle import FORWARD, ORT_FOLDER

    options = PrepareOptions(weights="random", classes=10, train=method, resolution=resolution, batch_size=1)
    bundle = prepare(backbone, folder, options=options).bundle
    if not rewritten:
        forward, trainable = ir.load(bundle.file(FORWARD)), bundle.manifest.trainable
        frozen = [name for name in find_parameters(forward) if name not in trainable]
        export_ort_training(forward, list(trainable), frozen, "adam", folder / ORT_FOLDER, rewritten=False)


def measure(folder: Path, batch: int, rewritten: bool) -> None:
    """In a process of its own: run the steps and print what they took."""
    import numpy as np
    import psutil

    from tinytl_edge.runtime.files.bundle import open_bundle
    from tinytl_edge.runtime.memory import peak_rss
    from tinytl_edge.runtime.workers.ort_session import OrtSession, load_extension

    load_extension()
    process = psutil.Process()
    imported = process.memory_info().rss
    bundle = open_bundle(folder)
    session = OrtSession(bundle, 1, rewritten=rewritten)
    loaded = process.memory_info().rss
    random = np.random.default_rng(0)
    shape = (bundle.manifest.input.channels, bundle.manifest.input.height, bundle.manifest.input.width)
    durations = []
    for _ in range(STEPS):
        feeds = {
            "images": random.standard_normal((batch, *shape), dtype=np.float32),
            "targets": np.eye(10, dtype=np.float32)[random.integers(0, 10, batch)],
            **{d.name: np.ones((batch, *d.shape), np.float32) for d in bundle.manifest.dropouts},
        }
        begin = time.perf_counter()
        session.train_step(feeds, dict.fromkeys(session.trainable, 1e-3))
        durations.append(1e3 * (time.perf_counter() - begin))
    peak = peak_rss() or 0
    row = {"import": imported, "load": loaded, "peak": peak, "peak_minus_load": peak - loaded}
    print(json.dumps({**{k: round(v / MIB, 1) for k, v in row.items()}, "ms": round(statistics.median(durations), 1)}))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenet-v2")
    parser.add_argument("--methods", default="last,bias,lite-residual+bias,norm+last,full")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, batch, kind = options.child
        measure(Path(folder), int(batch), kind == "ours")
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for method in options.methods.split(","):
            for kind in ("generated", "ours"):
                place = Path(scratch) / f"{method}-{kind}"
                build(place, options.backbone, method, options.resolution, kind == "ours")
            for batch in options.batches.split(","):
                for kind in ("generated", "ours"):
                    place = str(Path(scratch) / f"{method}-{kind}")
                    command = [sys.executable, __file__, "--child", place, batch, kind]
                    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                    rows.append({"method": method, "batch": int(batch), "artifacts": kind, **json.loads(answer)})
                    if not options.json:
                        print_row(rows[-1], header=len(rows) == 1)
    if options.json:
        print(json.dumps({"machine": platform.machine(), "backbone": options.backbone, "rows": rows}))


def print_row(row: dict[str, object], header: bool) -> None:
    """One line of a Markdown table."""
    if header:
        print("| " + " | ".join(row) + " |")
        print("|" + "---|" * len(row))
    print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
