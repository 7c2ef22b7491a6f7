"""Shows the inner loops of a kernel as the ARM wheels have them: `python wheels/inner_loops.py aarch64 gemm`.

An inner loop of a good kernel is fused multiply-adds on vector registers and few loads; a register that is stored on
the stack and loaded again in every round is a spill.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cross import TARGETS

KERNELS = Path(__file__).resolve().parent.parent / "runtime" / "native" / "kernels"
# Of Debian's binutils-aarch64-linux-gnu and binutils-arm-linux-gnueabihf.
OBJDUMP = {"aarch64": "aarch64-linux-gnu-objdump", "armv7l": "arm-linux-gnueabihf-objdump"}
# As in runtime/native/CMakeLists.txt.
FLAGS = ("-std=c++20", "-fno-rtti", "-ffp-contract=fast", "-c")

_FUSED = re.compile(r"\tfml[as]\tv|\tvfm[as]\.f32\tq")
_STACK = re.compile(r"\bsp\b")
_JUMP = re.compile(r"\t(?:b(?:\.\w+|[a-z]{2})?|cbn?z|tbn?z)\t(?:.*, )?([0-9a-f]+) <")


@dataclass(frozen=True)
class Loop:
    """The instructions of a loop that holds no other loop."""

    function: str
    instructions: list[str]

    @property
    def fused(self) -> int:
        """How many are fused multiply-adds of whole vectors."""
        return sum(bool(_FUSED.search(line)) for line in self.instructions)

    @property
    def on_stack(self) -> int:
        """How many have to do with the stack."""
        return sum(bool(_STACK.search(line)) for line in self.instructions)


def inner_loops(arch: str, source: Path) -> list[Loop]:
    """Of all functions in the source, those with the most multiply-adds first."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "kernel.o"
        subprocess.run([*TARGETS[arch].compiler, *FLAGS, str(source), "-o", str(compiled)], check=True)
        command = [OBJDUMP[arch], "--disassemble", "--demangle", "--no-show-raw-insn", str(compiled)]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    loops = [loop for function in listing.split("\n\n") for loop in _loops_of(function)]
    return sorted(loops, key=lambda loop: -loop.fused)


def _loops_of(function: str) -> list[Loop]:
    """A jump back spans a loop. Of those that hold one another, the inner ones."""
    title, *lines = function.strip().splitlines()
    places = {line.partition(":")[0].strip(): number for number, line in enumerate(lines)}
    spans = []
    for number, line in enumerate(lines):
        jump = _JUMP.search(line)
        target = places.get(jump[1]) if jump else None
        if target is not None and target <= number:
            spans.append((target, number))
    inner = [a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    name = title.partition("<")[2].removesuffix(">:")
    return [Loop(name, [line.partition(" <")[0] for line in lines[first : last + 1]]) for first, last in inner]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arch", choices=OBJDUMP)
    parser.add_argument("kernel", nargs="?", default="gemm", help="the name of a file in runtime/native/kernels")
    parser.add_argument("--top", type=int, default=1, help="how many loops to show in full")
    arguments = parser.parse_args()
    if shutil.which(OBJDUMP[arguments.arch]) is None:
        parser.error(f"{OBJDUMP[arguments.arch]} is missing: Debian's binutils for that processor has it")
    loops = [loop for loop in inner_loops(arguments.arch, KERNELS / f"{arguments.kernel}.cc") if loop.fused]
    print("fused  instructions  on stack  function")
    for loop in loops:
        print(f"{loop.fused:>5}  {len(loop.instructions):>12}  {loop.on_stack:>8}  {loop.function[:90]}")
    for loop in loops[: arguments.top]:
        print(f"\n{loop.function}", *loop.instructions, sep="\n")


if __name__ == "__main__":
    main()
