"""What is known of a board, as a record, as JSON and as text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class CoreCluster:
    """Cores that are alike, counted as Linux counts them: a hardware thread is one.

    `clock_mhz` is the highest clock. `multiply_adds_per_cycle` is the peak of one core in float32,
    `instructions_per_cycle` how many it takes up at once beside them. None: not known.
    """

    model: str
    count: int
    clock_mhz: int | None = None
    multiply_adds_per_cycle: int | None = None
    instructions_per_cycle: int | None = None


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
        performance_cores: how many threads are worth it there (`detect.performance_cores`); None in a profile.
        temperature_celsius: of the hottest place of its chip; None in a profile, or without a sensor.
        throttled: whether heat or supply holds its clock down; None in a profile, or if nothing says so.
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
    performance_cores: int | None = None
    temperature_celsius: float | None = None
    throttled: bool | None = None

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
        fields = json.loads(text)
        for name, value in fields.items():
            if isinstance(value, list):  # JSON has no tuples
                fields[name] = tuple(value)
        fields["cores"] = tuple(CoreCluster(**cluster) for cluster in fields["cores"])
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
            "fastest cores": self.performance_cores,
            "RAM": _sizes_text(self.ram_bytes),
            "available RAM": _size_text(self.available_memory_bytes),
            "caches": ", ".join(f"{level} {_size_text(size)}" for level, size in caches if size),
            "vector features": ", ".join(self.features),
            "float32 peak": f"{peak / 1e9:.3g} G multiply-adds/s" if peak else None,
            "RAM bandwidth": f"{bandwidth / 1e9:.3g} GB/s" if bandwidth else None,
            "temperature": f"{self.temperature_celsius:.0f} °C" if self.temperature_celsius is not None else None,
            "throttled": {True: "now, by heat or supply", False: "no", None: None}[self.throttled],
            "notes": self.notes,
        }
        known = [f"  {label:<15}  {fact}" for label, fact in facts.items() if fact]
        return "\n".join([f"{self.title} ({self.name})", *known])


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
    if size >= GIB:
        number, unit = size / GIB, "GiB"
    elif size >= MIB:
        number, unit = size / MIB, "MiB"
    else:
        number, unit = size / KIB, "KiB"
    # Three digits, but for 1000 to 1023, which would come out as 1e+03.
    return f"{number:.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"


def _sizes_text(sizes: tuple[int, ...]) -> str:
    """1, 2 or 4 GiB."""
    if not sizes:
        return ""
    *others, last = map(_size_text, sizes)
    unit = last[last.index(" ") :]
    return f"{', '.join(text.removesuffix(unit) for text in others)} or {last}" if others else last
