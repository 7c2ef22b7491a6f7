"""Memory of another process, from outside: psutil samples for the curve, the kernel's high-water mark for the peak.

psutil has no peak field on Linux, and sampling alone misses peaks; VmHWM misses none. (ru_maxrss is not
used: it survives exec, so a small child started by a larger parent reports the parent.)
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import psutil

from tinytl_edge.runtime.memory import peak_rss


@dataclass
class MemoryWatch:
    """Watches a child until it ends: `curve` holds (seconds, RSS bytes), `peak` the highest VmHWM.

    `peak_of_all` is of this process and the child together: PSS where the system gives it, RSS otherwise.

    The curve keeps at most `points` samples: when full, every second one is dropped and the pace halved.
    """

    pid: int
    interval: float = 0.05
    points: int = 512
    curve: list[tuple[float, int]] = field(default_factory=list)
    peak: int = 0
    peak_of_all: int = 0
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
            process, own = psutil.Process(self.pid), psutil.Process()
            while not self._over.is_set():
                rss = int(process.memory_info().rss)
                self.peak = max(self.peak, rss)  # at once: the process may end before its VmHWM is read
                self.rss = rss
                self.peak = max(self.peak, peak_rss(self.pid) or 0)
                self.peak_of_all = max(self.peak_of_all, _of(process) + _of(own))
                if count % keep_each == 0:
                    self.curve.append((round(time.monotonic() - begin, 3), self.rss))
                    if len(self.curve) >= self.points:
                        del self.curve[1::2]
                        keep_each *= 2
                count += 1
                self._over.wait(self.interval)
        except psutil.Error:
            return  # the process has ended


def _of(process: psutil.Process) -> int:
    found = process.memory_full_info()
    return int(getattr(found, "pss", found.rss))
