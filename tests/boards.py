"""Boards under emulation: what the wheels' compiler makes for them, run by qemu on the oldest core of that kind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parent.parent / "runtime" / "native"
# Of Debian's qemu-user-static. An instruction that such a core lacks ends the program.
EMULATORS = {"aarch64": ("qemu-aarch64-static", "cortex-a53"), "armv7l": ("qemu-arm-static", "cortex-a7")}


def emulated(executable: Path, arch: str) -> Path:
    """A script that runs the executable as a board does; this machine's own are returned as they are."""
    if arch not in EMULATORS:
        return executable
    qemu, core = EMULATORS[arch]
    if shutil.which(qemu) is None:
        pytest.skip(f"there is no {qemu} to emulate a board with (apt-get install qemu-user-static)")
    script = executable.with_name(f"{executable.name}-emulated")
    script.write_text(f'#!/bin/sh\nexec {qemu} -cpu {core} "{executable}" "$@"\n')
    script.chmod(0o755)
    return script


def cross_compile(arch: str, out: Path, sources: list[Path], *flags: str) -> Path:
    """The sources' executable for a board."""
    pytest.importorskip("ziglang", reason="there is no ziglang to compile for boards with (pip install ziglang)")
    from cross import TARGETS  # wheels/cross.py

    command = [*TARGETS[arch].compiler, "-std=c++20", "-fno-rtti", "-Wall", "-Wextra", *flags, *sources, "-o", out]
    subprocess.run([str(word) for word in command], check=True)
    return out
