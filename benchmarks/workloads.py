"""What the benchmarks train: networks, methods, and the memory that the native trainer gets for each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Workload(NamedTuple):
    """What is prepared; weights are random, which changes neither time nor memory."""

    backbone: str
    method: str
    optimizer: str
    batch: int
    classes: int
    limit: str

    def prepare(self, out: Path, resolution: int, *more: object) -> None:
        """Its bundle."""
        what = [self.backbone, "--weights", "random", "--train", self.method]
        how = ["--optimizer", self.optimizer, "--batch-size", self.batch, "--resolution", resolution]
        tinytl("prepare", *what, *how, *more, "--out", out)

    def bundle(self, folder: Path, resolution: int) -> Path:
        """Its bundle with its memory limit in `folder`, prepared where it is not there yet."""
        out = folder / f"{self.backbone}-{self.method}-{self.optimizer}-{resolution}"
        if not out.exists():
            self.prepare(out, resolution, "--classes", self.classes, "--memory-limit", self.limit)
        return out


WORKLOADS = [
    Workload("mobilenet-v2", "bias", "sgd", 1, 10, "4.5MB"),
    Workload("mobilenet-v2", "lite-residual+bias", "adam", 1, 10, "10MB"),
    Workload("mobilenet-v2", "full", "adam", 1, 10, "16MB"),
    Workload("mobilenet-v2", "full", "momentum", 1, 10, "14MB"),
    Workload("proxylessnas-mobile", "lite-residual+bias", "adam", 1, 102, "13.9MB"),
    Workload("proxylessnas-mobile", "lite-residual+bias", "adam", 8, 102, "17MB"),
    Workload("proxylessnas-mobile", "full", "adam", 1, 10, "20MB"),
    Workload("efficientnet-lite0", "lite-residual+bias", "adam", 1, 10, "14MB"),
    Workload("efficientnet-lite0", "full", "adam", 1, 10, "21MB"),
]


def tinytl(*words: object) -> str:
    """Run a command of ours and return what it printed."""
    command = [sys.executable, "-m", "tinytl_edge", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
