"""What a board is: six profiles as published, and the machine this runs on as /proc and /sys show it."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..runtime.errors import UsageError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
ROOT = Path("/")
THIS_MACHINE = "this-machine"

# Float32 multiply-adds a cycle and core: a 128-bit FMLA is four of them. Cores that are not here were not
# looked up, and count as not known.
#   A53: no guide is published; OpenBLAS measures 6.5 GFLOP/s on one core of at most 1.5 GHz, which two lanes
#        (6.0) cannot reach: one FMLA a cycle. github.com/OpenMathLib/OpenBLAS/pull/2643
#   A57, A72: two pipes of 64 bits: one FMLA a cycle. Measured on A72: 15.9 GFLOP/s at 2.0 GHz,
#        wlog.flatlib.jp/2015/10/30/n1787; A57 is the same, github.com/OpenMathLib/OpenBLAS/issues/4149
#   A76, A78AE: two FMLA a cycle, Arm's software optimization guides PJDOC-466751330-7215 and -14665.
_MULTIPLY_ADDS_PER_CYCLE = {
    "Cortex-A53": 4,
    "Cortex-A57": 4,
    "Cortex-A72": 4,
    "Cortex-A76": 8,
    "Cortex-A78AE": 8,
}

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

# Where the two versions of control groups keep the limit, the use, and within it the cached file pages.
_CONTROL_GROUP_V1 = (
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)
_CONTROL_GROUP_V2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")

# Linux' words for the instruction sets that the native trainer chooses from.
_FEATURES = {
    "neon": {"asimd", "neon"},
    "dotprod": {"asimddp"},
    "fp16": {"asimdhp"},
    "avx2": {"avx2"},
    "avx512f": {"avx512f"},
}


@dataclass(frozen=True)
class CoreCluster:
    """Cores that are alike, counted as Linux counts them: a hardware thread is one.

    `clock_mhz` is the highest clock. `multiply_adds_per_cycle` is the peak of one core in float32.
    None: not known.
    """

    model: str
    count: int
    clock_mhz: int | None = None
    multiply_adds_per_cycle: int | None = None


@dataclass(frozen=True)
class Board:
    """What matters of a board to a trainer. None, or an empty tuple: not known, or not there.

    Attributes:
        name: what `--device` takes.
        architectures: what it runs, as `uname -m` names them.
        ram_bytes: the sizes it is sold with; of this machine, what its kernel manages.
        l1d_bytes: the level 1 data cache of the first core.
        l2_bytes: the level 2 cache that the first core uses, alone or with others; `l3_bytes` alike.
        features: of neon, dotprod, fp16 (arithmetic), avx2 and avx512f those it has.
        memory_bandwidth: in bytes a second, as the maker publishes it.
        usable_cores: how many this process may run on; None in a profile.
        available_memory_bytes: how much this process can still get; None in a profile.
    """

    name: str
    title: str
    soc: str | None = None
    architectures: tuple[str, ...] = ()
    cores: tuple[CoreCluster, ...] = ()
    ram_bytes: tuple[int, ...] = ()
    l1d_bytes: int | None = None
    l2_bytes: int | None = None
    l3_bytes: int | None = None
    features: tuple[str, ...] = ()
    memory_bandwidth: int | None = None
    notes: str = ""
    usable_cores: int | None = None
    available_memory_bytes: int | None = None

    @property
    def core_count(self) -> int:
        """All cores of all clusters; 0 if not known."""
        return sum(cluster.count for cluster in self.cores)

    @property
    def multiply_adds_per_second(self) -> int | None:
        """Peak of all cores together in float32: what no program can exceed. None if a factor is missing."""
        total = 0
        for cluster in self.cores:
            if cluster.clock_mhz is None or cluster.multiply_adds_per_cycle is None:
                return None
            total += cluster.count * cluster.clock_mhz * 1_000_000 * cluster.multiply_adds_per_cycle
        return total or None

    def as_dict(self) -> dict[str, Any]:
        """All fields, in values that JSON has."""
        return asdict(self)

    def to_json(self) -> str:
        """The board as a JSON object, which `from_json` reads back without loss."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Board:
        """The board that `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        fields["cores"] = [CoreCluster(**cluster) for cluster in fields["cores"]]
        # JSON has no tuples.
        fields.update((name, tuple(value)) for name, value in fields.items() if isinstance(value, list))
        return cls(**fields)

    def describe(self) -> str:
        """All that is known, one fact a line."""
        caches = (("L1d", self.l1d_bytes), ("L2", self.l2_bytes), ("L3", self.l3_bytes))
        peak, bandwidth = self.multiply_adds_per_second, self.memory_bandwidth
        facts = {
            "SoC": self.soc,
            "runs": ", ".join(self.architectures),
            "cores": _cores_text(self.cores),
            "clock": _clocks_text(self.cores),
            "usable cores": self.usable_cores,
            "RAM": _sizes_text(self.ram_bytes),
            "available RAM": _size_text(self.available_memory_bytes),
            "caches": ", ".join(f"{level} {_size_text(size)}" for level, size in caches if size),
            "vector features": ", ".join(self.features),
            "float32 peak": f"{peak / 1e9:.3g} G multiply-adds/s" if peak else None,
            "RAM bandwidth": f"{bandwidth / 1e9:.3g} GB/s" if bandwidth else None,
            "notes": self.notes,
        }
        known = [f"  {label:<15}  {fact}" for label, fact in facts.items() if fact]
        return "\n".join([f"{self.title} ({self.name})", *known])


def _cluster(model: str, count: int, clock_mhz: int | None) -> CoreCluster:
    return CoreCluster(model, count, clock_mhz, _MULTIPLY_ADDS_PER_CYCLE.get(model))


# Clocks, memory and caches: raspberrypi.com/documentation/computers/processors.html, Linux' bcm2837.dtsi and
# tegra234.dtsi, NVIDIA's data sheets DS-09366-001 (Jetson Nano) and "Jetson Orin Nano Series".
# Raspberry Pi publishes a memory bandwidth for the Pi 5 alone.
BOARDS: tuple[Board, ...] = (
    Board(
        name="raspberry-pi-zero-2-w",
        title="Raspberry Pi Zero 2 W",
        soc="Raspberry Pi RP3A0 (Broadcom BCM2710A1)",
        architectures=("aarch64", "armv7l"),
        cores=(_cluster("Cortex-A53", 4, 1000),),
        ram_bytes=(512 * MIB,),
        l1d_bytes=32 * KIB,
        l2_bytes=512 * KIB,
        features=("neon",),
        notes="LPDDR2, of which the GPU keeps a part; the smallest board: stay well under its RAM.",
    ),
    Board(
        name="raspberry-pi-3b-plus",
        title="Raspberry Pi 3 Model B+",
        soc="Broadcom BCM2837B0",
        architectures=("aarch64", "armv7l"),
        cores=(_cluster("Cortex-A53", 4, 1400),),
        ram_bytes=(1 * GIB,),
        l1d_bytes=32 * KIB,
        l2_bytes=512 * KIB,
        features=("neon",),
        notes="LPDDR2; slows to 1.2 GHz from 60 °C, so a heat sink pays.",
    ),
    Board(
        name="raspberry-pi-4",
        title="Raspberry Pi 4 Model B",
        soc="Broadcom BCM2711",
        architectures=("aarch64", "armv7l"),
        cores=(_cluster("Cortex-A72", 4, 1500),),
        ram_bytes=(1 * GIB, 2 * GIB, 4 * GIB, 8 * GIB),
        l1d_bytes=32 * KIB,
        l2_bytes=1 * MIB,
        features=("neon",),
        notes="LPDDR4; later revisions run at 1.8 GHz.",
    ),
    Board(
        name="raspberry-pi-5",
        title="Raspberry Pi 5",
        soc="Broadcom BCM2712",
        architectures=("aarch64", "armv7l"),
        cores=(_cluster("Cortex-A76", 4, 2400),),
        ram_bytes=(1 * GIB, 2 * GIB, 4 * GIB, 8 * GIB, 16 * GIB),
        l1d_bytes=64 * KIB,
        l2_bytes=512 * KIB,
        l3_bytes=2 * MIB,
        features=("neon", "dotprod", "fp16"),
        memory_bandwidth=17_000_000_000,
        notes="LPDDR4X; L2 is each core's own; 32-bit programs run under a 64-bit kernel only.",
    ),
    Board(
        name="jetson-nano",
        title="NVIDIA Jetson Nano",
        soc="NVIDIA Tegra X1",
        architectures=("aarch64",),
        cores=(_cluster("Cortex-A57", 4, 1430),),
        ram_bytes=(2 * GIB, 4 * GIB),
        l1d_bytes=32 * KIB,
        l2_bytes=2 * MIB,
        features=("neon",),
        memory_bandwidth=25_600_000_000,
        notes="Shares its RAM with the GPU; its JetPack brings Python 3.6, so install a newer one.",
    ),
    Board(
        name="jetson-orin-nano",
        title="NVIDIA Jetson Orin Nano",
        soc="NVIDIA Orin (Tegra234)",
        architectures=("aarch64",),
        cores=(_cluster("Cortex-A78AE", 6, 1500),),
        ram_bytes=(4 * GIB, 8 * GIB),
        l1d_bytes=64 * KIB,
        l2_bytes=256 * KIB,
        l3_bytes=2 * MIB,
        features=("neon", "dotprod", "fp16"),
        memory_bandwidth=68_000_000_000,
        notes="Shares its RAM with the GPU; with 4 GiB half the bandwidth; as Super 1.7 GHz and 102 GB/s.",
    ),
)

# Words of /proc/device-tree/model, without the maker before them and the revision or kit behind.
_DEVICE_TREE_MODELS = {
    "Raspberry Pi Zero 2": "raspberry-pi-zero-2-w",
    "Raspberry Pi 3 Model B Plus": "raspberry-pi-3b-plus",
    "Raspberry Pi 4 Model B": "raspberry-pi-4",
    "Raspberry Pi 5 Model B": "raspberry-pi-5",
    "Jetson Nano": "jetson-nano",
    "Orin Nano": "jetson-orin-nano",
}


def find_board(name: str, root: Path = ROOT) -> Board:
    """The profile called `name`; "this machine" is detected, under `root`.

    Raises:
        UsageError: no board is called so.
    """
    slug = "-".join(name.lower().replace("_", " ").replace("-", " ").split())
    if slug == THIS_MACHINE:
        return this_machine(root)
    names = [board.name for board in BOARDS]
    if slug in names:
        return BOARDS[names.index(slug)]
    nearest = difflib.get_close_matches(slug, [*names, THIS_MACHINE], n=1, cutoff=0.3)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    raise UsageError(f"No board is called '{name}': {hint}`tinytl-edge devices` lists those there are.")


def table(boards: Iterable[Board]) -> str:
    """One board a line under a heading: name, cores, clock, RAM."""
    rows = [("name", "cores", "clock", "RAM")]
    rows += [
        (
            board.name,
            _cores_text(board.cores) or "unknown",
            _clocks_text(board.cores) or "unknown",
            _sizes_text(board.ram_bytes) or "unknown",
        )
        for board in boards
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def this_machine(root: Path = ROOT) -> Board:
    """The machine whose /proc and /sys lie under `root`: what they say, else what its profile knows.

    A known board keeps its profile's name. Never raises for what is missing.
    """
    model = read_text(root / "proc/device-tree/model") or ""
    known = next((name for words, name in _DEVICE_TREE_MODELS.items() if words in model), None)
    profile = find_board(known) if known else Board(name=THIS_MACHINE, title="This machine")
    processors = _processors(root)
    total = _meminfo_bytes(root, "MemTotal")
    seen = {
        "title": model,
        "architectures": _architectures(processors),
        "cores": _clusters(root, processors),
        "ram_bytes": (total,) if total else (),
        "l1d_bytes": _cache_bytes(root, 1),
        "l2_bytes": _cache_bytes(root, 2),
        "l3_bytes": _cache_bytes(root, 3),
        "features": _features(processors),
        "usable_cores": usable_cores(root),
        "available_memory_bytes": available_memory_bytes(root),
    }
    facts: dict[str, Any] = {name: fact for name, fact in seen.items() if fact not in (None, (), "")}
    return replace(profile, **facts)


def usable_cores(root: Path = ROOT) -> int | None:
    """How many cores this process may run on: those online that its affinity allows. None: not known."""
    online = {int(processor["processor"]) for processor in _processors(root)}
    allowed = _fields(read_text(root / "proc/self/status")).get("Cpus_allowed_list")
    # The kernel also lists processors that could be plugged in, so the list alone counts too many.
    usable = online & set(_numbers(allowed)) if allowed else online
    return len(usable) or None


def available_memory_bytes(root: Path = ROOT) -> int | None:
    """How much memory this process can still get without swapping, in bytes. None: not known.

    The least of what the kernel has available and what each enclosing control group has left.
    """
    available = _meminfo_bytes(root, "MemAvailable")
    left = list(_control_group_bytes_left(root))
    return min(left if available is None else [available, *left], default=None)


def read_text(path: Path) -> str | None:
    """A file of /proc or /sys, without the NUL or newline it ends with. None if it cannot be read."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0\n ")
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The decimal number that is all of a file. None if it cannot be read or is none."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None


def _fields(text: str | None, separator: str = ":") -> dict[str, str]:
    """The lines "key : value" of a file of /proc."""
    pairs = (line.partition(separator) for line in (text or "").splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _numbers(ranges: str) -> Iterator[int]:
    """0, 1, 2 and 5 of "0-2,5"."""
    for item in ranges.split(","):
        first, _, last = item.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            yield from range(int(first), int(last or first) + 1)


def _processors(root: Path) -> list[dict[str, str]]:
    """What /proc/cpuinfo says of each processor that is online."""
    blocks = map(_fields, (read_text(root / "proc/cpuinfo") or "").split("\n\n"))
    return [block for block in blocks if block.get("processor", "").isdecimal()]


def _clusters(root: Path, processors: list[dict[str, str]]) -> tuple[CoreCluster, ...]:
    kinds = Counter((_core_model(p), _clock_mhz(root, p["processor"])) for p in processors)
    return tuple(_cluster(model, count, clock_mhz) for (model, clock_mhz), count in kinds.items())


def _core_model(processor: Mapping[str, str]) -> str:
    """The core's name; Linux on Arm has numbers, on x86 a text."""
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
    number = _fields(read_text(root / "proc/meminfo")).get(key, "").split(" ")[0]
    return int(number) * KIB if number.isdecimal() else None


def _control_group_bytes_left(root: Path) -> Iterator[int]:
    """What each control group that limits this process has left, from its own outwards."""
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, limit_name, usage_name, cache_name = _CONTROL_GROUP_V1 if controllers else _CONTROL_GROUP_V2
        # Inside a container the path may be the host's: then only the mount's root is there, and it is ours.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            group = root.joinpath(mount, *parts[:depth])
            limit = read_int(group / limit_name)
            # Version 2 writes "max" for no limit, version 1 a number near the largest there is.
            if limit is None or limit >= 1 << 42:
                continue
            # Cached file pages count as used, and yet are given up first.
            cached = _fields(read_text(group / "memory.stat"), " ").get(cache_name, "")
            used = (read_int(group / usage_name) or 0) - (int(cached) if cached.isdecimal() else 0)
            yield max(0, limit - max(0, used))


def _cores_text(cores: tuple[CoreCluster, ...]) -> str:
    return " + ".join(f"{cluster.count} × {cluster.model}" for cluster in cores)


def _clocks_text(cores: tuple[CoreCluster, ...]) -> str:
    clocks = [cluster.clock_mhz for cluster in cores]
    if not any(clocks):
        return ""
    return " + ".join(f"{clock / 1000:g} GHz" if clock else "unknown" for clock in clocks)


def _size_text(size: int | None) -> str:
    """512 KiB, 3.7 GiB; nothing for None."""
    if size is None:
        return ""
    unit, word = next(((u, w) for u, w in ((GIB, "GiB"), (MIB, "MiB")) if size >= u), (KIB, "KiB"))
    return f"{size / unit:.3g} {word}" if size < 1000 * unit else f"{size / unit:.0f} {word}"


def _sizes_text(sizes: tuple[int, ...]) -> str:
    """1, 2 or 4 GiB."""
    if not sizes:
        return ""
    *others, last = map(_size_text, sizes)
    unit = last[last.index(" ") :]
    return f"{', '.join(text.removesuffix(unit) for text in others)} or {last}" if others else last
