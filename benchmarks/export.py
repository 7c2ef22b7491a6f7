"""Time and memory of `export` on the board: python benchmarks/export.py MODEL.onnx [METHOD ...]

Prepares the classifier, makes an adapter of the numbers that it has, and exports it in a process of its own, which says
its VmHWM and how long it took from its first import to its end. Medians of five.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

import tinytl_edge
from tinytl_edge.export.sources import read_network
from tinytl_edge.runtime.files.adapter import FILE, write_adapter
from tinytl_edge.runtime.files.bundle import FORWARD
from tinytl_edge.runtime.files.run import write_record

METHODS = ("bias", "lite-residual+bias", "full")
PROCESS = """
import sys, time
begin = time.perf_counter()
from tinytl_edge.export_run import export
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
export(sys.argv[1], sys.argv[2])
print(time.perf_counter() - begin, peak(), before)
"""


def main() -> None:
    model, *methods = sys.argv[1:]
    outputs = int(str(read_network(model, None, None, 2, 0).model.graph.outputs[0].shape[1]))  # type: ignore[index]
    for method in methods or METHODS:
        with tempfile.TemporaryDirectory() as folder:
            options = tinytl_edge.PrepareOptions(classes=outputs, train=method)
            bundle = tinytl_edge.prepare(model, Path(folder) / "bundle", options=options).bundle
            run = Path(folder) / "run"
            run.mkdir()
            write_record(run, bundle, status="finished", runtime="native", options={}, data="")
            forward = ir.load(bundle.file(FORWARD)).graph.initializers
            arrays = {name: forward[name].const_value.numpy() for name in bundle.manifest.trainable}  # type: ignore[union-attr]
            tensors = {name: (array.shape, array.astype("<f4").tobytes()) for name, array in arrays.items()}
            write_adapter(run / FILE, bundle, [str(i) for i in range(outputs)], 1, tensors, (-10.0, 10.0))
            taken = []
            for number in range(5):
                command = [sys.executable, "-c", PROCESS, str(run), str(Path(folder) / f"{number}" / "model.onnx")]
                words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                taken.append([float(word) for word in words])
            seconds, peak, before = (statistics.median(column) for column in zip(*taken))
            trained = sum(int(np.prod(array.shape)) for array in arrays.values())
            print(f"{method:<20} {trained:>10,} numbers  {seconds:.2f} s  peak {peak * 1024 / 1e6:.1f} MB, of which "
                  f"{before * 1024 / 1e6:.1f} MB are Python", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
