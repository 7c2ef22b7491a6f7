"""The processors there are wheels for, and the compiler for each: Zig, on any x86-64 machine.

Zig brings its own libc (musl) and libc++ for every target. The first use of a target builds them, in one to two
minutes, and keeps them in Zig's cache (~/.cache/zig).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ziglang

ZIG = Path(ziglang.__file__).parent / "zig"


@dataclass(frozen=True)
class Target:
    """A processor: `arch` as pip names it, `triple` and `cpu` as Zig does, `elf_machine` as executables do.

    `cpu` is the least that a board of that kind has.
    """

    arch: str
    triple: str
    cpu: str
    elf_machine: int

    @property
    def compiler(self) -> list[str]:
        """The C++ compiler's command. Zig keeps libraries for each level of optimization: ours are always the same."""
        return [str(ZIG), "c++", "-target", self.triple, f"-mcpu={self.cpu}", "-O3", "-s"]

    @property
    def platform_tag(self) -> str:
        """The oldest Linuxes with either libc that pip has a name for: static executables need neither libc."""
        return f"manylinux_2_17_{self.arch}.manylinux2014_{self.arch}.musllinux_1_1_{self.arch}"


TARGETS = {
    target.arch: target
    for target in (
        Target("x86_64", "x86_64-linux-musl", "x86_64", 62),
        # ARMv8.0: Raspberry Pi 3 and later, Jetson.
        Target("aarch64", "aarch64-linux-musl", "generic", 183),
        # Raspberry Pi 2 and later with a 32-bit system. Not cortex_a7: for that clang avoids the fused
        # multiply-add, and spills in the inner loops.
        Target("armv7l", "arm-linux-musleabihf", "generic+v7a+neon+vfp4", 40),
    )
}
