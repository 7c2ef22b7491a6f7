"""Where the native trainer is: a static executable that comes with the package, one for each instruction set."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

TRAINER = "tinytl-edge-trainer"
# What the processor must have for each executable, the fastest first.
_VARIANTS = {
    f"{TRAINER}-avx512": {"avx2", "fma", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    f"{TRAINER}-avx2": {"avx2", "fma", "f16c", "bmi1", "bmi2"},
    TRAINER: set(),
}


def find_trainer() -> Path | None:
    """The executable for this processor: $TINYTL_EDGE_TRAINER, or an installed one; None if there is none."""
    named = os.environ.get("TINYTL_EDGE_TRAINER")
    if named:
        return Path(named)
    flags = _processor_flags()
    for folder in _folders():
        for name, needed in _VARIANTS.items():
            trainer = folder / "bin" / name
            if needed <= flags and os.access(trainer, os.X_OK):
                return trainer
    return None


def _folders() -> Iterator[Path]:
    yield Path(__file__).parent.parent
    # An editable install leaves the executables in site-packages, and this file in the checkout.
    yield from (Path(entry) / "tinytl_edge" / "runtime" for entry in sys.path)


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
