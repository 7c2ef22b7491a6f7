"""The machine this runs on: which board it is, and what of it this process may use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..runtime.errors import UsageError
from .board import GIB, KIB, MIB, Board, CoreCluster
from .cores import performance_cores, processors, usable_cores
from .linux import ROOT, read_fields, read_int, read_text
from .profiles import BOARDS, core_cluster, profile_of
from .thermal import read_temperature, throttled

THIS_MACHINE = "this-machine"

# (CPU implementer, CPU part) as /proc/cpuinfo has them: 0x41 is Arm, 0x4e NVIDIA.
_CORE_MODELS = {
    ("0x41", "0xc07"): "Cortex-A7",
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd44"): "Cortex-X1",
    ("0x41", "0xd4c"): "Cortex-X1C",
    ("0x4e", "0x000"): "Denver",
    ("0x4e", "0x003"): "Denver 2",
    ("0x4e", "0x004"): "Carmel",
}

# The instruction sets that the native trainer chooses from, and /proc/cpuinfo's words for them.
_FEATURES = {
    "neon": {"asimd", "neon"},
    "dotprod": {"asimddp"},
    "fp16": {"asimdhp"},
    "avx2": {"avx2"},
    "avx512f": {"avx512f"},
}


class _ControlGroupFiles(NamedTuple):
    """Where control groups lie, and what they call the limit, the use, and the cached file pages in it."""

    mount: str
    limit: str
    usage: str
    cached: str


_CONTROL_GROUPS_V1 = _ControlGroupFiles(
    "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)
_CONTROL_GROUPS_V2 = _ControlGroupFiles("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")


def find_board(name: str, root: Path = ROOT) -> Board:
    """The profile called `name`; "this machine" is detected, under `root`.

    Raises:
        UsageError: no board is called so.
    """
    slug = "-".join(name.lower().replace("_", " ").replace("-", " ").split())
    if slug == THIS_MACHINE:
        return this_machine(root)
    profiles = {board.name: board for board in BOARDS}
    if slug in profiles:
        return profiles[slug]
    import difflib

    nearest = difflib.get_close_matches(slug, [*profiles, THIS_MACHINE], n=1, cutoff=0.3)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    raise UsageError(f"No board is called '{name}': {hint}`tinytl-edge devices` lists those there are.")


def this_machine(root: Path = ROOT) -> Board:
    """The machine whose /proc and /sys lie under `root`: what they say, and for the rest its profile.

    A known board keeps its profile's name. What is missing or unreadable is not known; nothing is raised.
    """
    model = read_text(root / "proc/device-tree/model") or ""
    profile = profile_of(model) or Board(name=THIS_MACHINE, title="This machine")
    found = processors(root)
    total = _meminfo_bytes(root, "MemTotal")
    seen = {
        "title": model,
        "soc": profile.soc or _soc(root),
        "architectures": _architectures(found),
        "cores": _clusters(root, found),
        "ram_bytes": (total,) if total else (),
        "l1d_bytes": _cache_bytes(root, 1),
        "l2_bytes": _cache_bytes(root, 2),
        "l3_bytes": _cache_bytes(root, 3),
        "features": _features(found),
        "usable_cores": usable_cores(root),
        "available_memory_bytes": available_memory_bytes(root),
        "performance_cores": performance_cores(root) if found else None,
        "temperature_celsius": read_temperature(root),
        "throttled": throttled(root),
    }
    known: dict[str, Any] = {name: fact for name, fact in seen.items() if fact not in (None, (), "")}
    return replace(profile, **known)


def available_memory_bytes(root: Path = ROOT) -> int | None:
    """How much memory this process can still get without swapping, in bytes. None: not known.

    The least of what the kernel has available and what each enclosing control group has left.
    """
    available = _meminfo_bytes(root, "MemAvailable")
    left = list(_control_group_bytes_left(root))
    return min(left if available is None else [available, *left], default=None)


def _soc(root: Path) -> str | None:
    """The last, most general of the names that the device tree has for what the board is compatible with."""
    names = (read_text(root / "proc/device-tree/compatible") or "").split("\0")
    return names[-1] or None


def _clusters(root: Path, processors: list[dict[str, str]]) -> tuple[CoreCluster, ...]:
    kinds = Counter((_core_model(p), _clock_mhz(root, p["processor"])) for p in processors)
    return tuple(core_cluster(model, count, clock_mhz) for (model, clock_mhz), count in kinds.items())


def _core_model(processor: Mapping[str, str]) -> str:
    """The core's name, which Linux gives as numbers on Arm, as text on x86."""
    implementer, part = processor.get("CPU implementer"), processor.get("CPU part")
    if implementer and part:
        return _CORE_MODELS.get((implementer, part), f"core {implementer}/{part}")
    return processor.get("model name") or "unknown core"


def _clock_mhz(root: Path, processor: str) -> int | None:
    khz = read_int(root / f"sys/devices/system/cpu/cpu{processor}/cpufreq/cpuinfo_max_freq")
    return khz // 1000 if khz else None


def _architectures(processors: list[dict[str, str]]) -> tuple[str, ...]:
    """What the kernel runs as. Read here and not from platform.machine(), to hold under any root."""
    for processor in processors:
        if "lm" in processor.get("flags", "").split():
            return ("x86_64",)
        arm = {"7": "armv7l", "8": "aarch64"}.get(processor.get("CPU architecture", ""))
        if arm:
            return (arm,)
    return ()


def _features(processors: list[dict[str, str]]) -> tuple[str, ...]:
    """Those that all processors have: a thread may run on any."""
    words = [set(f"{p.get('Features', '')} {p.get('flags', '')}".split()) for p in processors]
    return tuple(name for name, any_of in _FEATURES.items() if words and all(any_of & has for has in words))


def _cache_bytes(root: Path, level: int) -> int | None:
    """The first core's cache of that level which holds data."""
    for index in sorted(root.glob("sys/devices/system/cpu/cpu0/cache/index*")):
        if read_int(index / "level") == level and read_text(index / "type") != "Instruction":
            size = read_text(index / "size") or ""
            unit = {"K": KIB, "M": MIB, "G": GIB}.get(size[-1:])
            return int(size[:-1]) * unit if unit and size[:-1].isdecimal() else None
    return None


def _meminfo_bytes(root: Path, key: str) -> int | None:
    number = read_fields(root / "proc/meminfo").get(key, "").split(" ")[0]
    return int(number) * KIB if number.isdecimal() else None


def _control_group_bytes_left(root: Path) -> Iterator[int]:
    """What each control group that limits this process has left, from its own outwards."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        names = _CONTROL_GROUPS_V1 if controllers else _CONTROL_GROUPS_V2  # version 2 has one for them all
        # Inside a container the path may be the host's: then only the mount's root is there, and it is ours.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            group = root.joinpath(names.mount, *parts[:depth])
            limit = read_int(group / names.limit)
            # Version 2 writes "max" for no limit, version 1 a number near the largest there is.
            if limit is None or limit >= 1 << 42:
                continue
            used = read_int(group / names.usage) or 0
            # Cached file pages count as used, and yet are given up first.
            cached = read_fields(group / "memory.stat", " ").get(names.cached, "")
            used -= int(cached) if cached.isdecimal() else 0
            yield max(0, limit - max(0, used))
