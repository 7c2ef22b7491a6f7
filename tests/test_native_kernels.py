"""Builds the kernels' own test program, with sanitizers and for this processor, and runs it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [*(ROOT / "tests/native/kernels").glob("*.cc"), *(ROOT / "runtime/native/kernels").glob("*.cc")]
COMPILER = shutil.which("g++") or shutil.which("c++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


@pytest.mark.parametrize(
    "flags",
    [
        ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        ("-O1", "-g", "-fsanitize=thread"),
        ("-O3", "-march=native"),
    ],
    ids=["sanitized", "threads sanitized", "native"],
)
def test_every_kernel_against_its_reference(tmp_path: Path, flags: tuple[str, ...]) -> None:
    program = tmp_path / "kernels_test"
    command = [COMPILER, "-std=gnu++20", "-Wall", "-Wextra", "-Wno-psabi", "-fno-math-errno", "-fno-trapping-math"]
    command += ["-pthread", *flags, *SOURCES, "-o", program]
    built = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-4000:]
    ran = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
