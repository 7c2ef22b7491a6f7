"""Memory of a process, in bytes: psutil samples for the curve, the kernel's high-water mark for the peak.

psutil has no peak field on Linux, and sampling alone misses peaks; VmHWM misses none. (ru_maxrss is not
used: it survives exec, so a small child started by a larger parent reports the parent.)
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil


def peak_rss(pid: int | None = None) -> int | None:
    """The kernel's VmHWM of a process (default: this one), or None where there is none to read."""
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None  # a zombie has none any more


@dataclass
class MemoryWatch:
    """Watches another process until it ends: `curve` holds (seconds, RSS bytes), `peak` the highest VmHWM.

    The curve keeps at most `points` samples: when full, every second one is dropped and the pace halved.
    """

    pid: int
    interval: float = 0.05
    points: int = 512
    curve: list[tuple[float, int]] = field(default_factory=list)
    peak: int = 0
    rss: int = 0

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        begin, keep_each, count = time.monotonic(), 1, 0
        try:
            process = psutil.Process(self.pid)
            while not self._over.is_set():
                rss = int(process.memory_info().rss)
                self.peak = max(self.peak, rss)  # at once: the process may end before its VmHWM is read
                self.rss = rss
                self.peak = max(self.peak, peak_rss(self.pid) or 0)
                if count % keep_each == 0:
                    self.curve.append((round(time.monotonic() - begin, 3), self.rss))
                    if len(self.curve) >= self.points:
                        del self.curve[1::2]
                        keep_each *= 2
                count += 1
                self._over.wait(self.interval)
        except psutil.Error:
            return  # the process has ended


def parse_size(text: str) -> int:
    """Bytes from '16000000', '16MB', '16 MB' (10^6), '15.3MiB' (2^20), 'kB' or 'KiB'.

    Raises:
        ValueError: the text is no size; says how to write one.
    """
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    number = text.strip().rstrip("abgikmABGIKM").strip()
    unit = text.strip()[len(number) :].strip().lower()
    try:
        size = float(number) * units[unit]
    except (ValueError, KeyError):
        size = -1.0
    if not 0 < size < 2**62:
        raise ValueError(f"'{text}' is no size: write bytes, or a number with kB, MB (10^6), KiB or MiB.")
    return int(size)


def megabytes(size: float) -> str:
    """'108.3 MB' (10^6 bytes); below one, '478 kB'."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
