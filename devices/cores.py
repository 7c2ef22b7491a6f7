"""The cores of this machine that a process may run on, and how many of them are worth computing on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .linux import ROOT, fields, read_fields, read_int, read_text

# Cores of one kind may differ a little in their highest clock; two kinds differ by more.
_ALIKE = 0.9


def usable_cores(root: Path = ROOT) -> int | None:
    """How many cores this process may run on: those online that its affinity allows. None: not known."""
    return len(_usable(root)) or None


def performance_cores(root: Path = ROOT) -> int:
    """How many threads are worth computing in: one for each of the fastest cores that this process may run on.

    Of a board with two kinds of cores the fast ones: a step would wait for its slowest thread. Of a core's hardware
    threads one: they share its multipliers. Where all cores are alike, or nothing is known, all there are; at least 1.
    """
    cores = {_siblings(root, number): _speed(root, number) for number in sorted(_usable(root))}
    kinds = {kind for kind, _ in cores.values()}
    if len(kinds) > 1 or kinds == {None}:
        return max(1, len(cores))
    fastest = max((speed for _, speed in cores.values()), default=0)
    return max(1, sum(speed >= _ALIKE * fastest for _, speed in cores.values()))


def _usable(root: Path) -> set[int]:
    online = {int(processor["processor"]) for processor in processors(root)}
    allowed = read_fields(root / "proc/self/status").get("Cpus_allowed_list")
    # That list also has processors that could be plugged in: alone it counts too many.
    return online & set(_numbers(allowed)) if allowed else online


def _speed(root: Path, number: int) -> tuple[str | None, int]:
    """What tells a fast core from a slow one, and its number: on Arm a capacity, which knows more than the clock."""
    core = root / f"sys/devices/system/cpu/cpu{number}"
    for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        speed = read_int(core / name)
        if speed:
            return name, speed
    return None, 0


def _siblings(root: Path, number: int) -> str:
    """The hardware threads of a core, which share this text; its own number where the kernel does not say."""
    return read_text(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list") or str(number)


def _numbers(ranges: str) -> Iterator[int]:
    """0, 1, 2 and 5 of "0-2,5"."""
    for item in ranges.split(","):
        first, _, last = item.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            yield from range(int(first), int(last or first) + 1)


def processors(root: Path) -> list[dict[str, str]]:
    """What /proc/cpuinfo says of each processor that is online."""
    blocks = map(fields, (read_text(root / "proc/cpuinfo") or "").split("\n\n"))
    return [block for block in blocks if block.get("processor", "").isdecimal()]
