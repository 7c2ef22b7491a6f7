"""What a command takes from the board in each of its phases, while it is one process."""

from __future__ import annotations

from .memory import peak_rss, proportional, resident


class Phases:
    """The peak of this process in each phase, in bytes: of PSS, in which a page that n processes share counts 1/n.

    The kernel keeps no peak of PSS; it is that of RSS less what is shared when the phase ends. Where the system has no
    PSS, `measure` says RSS. A phase that stays below one before has that one's peak.
    """

    def __init__(self) -> None:
        self.measure = "PSS" if proportional() is not None else "RSS"
        self.peaks: dict[str, int] = {}

    def end(self, phase: str) -> None:
        """What was taken until now belongs to this phase."""
        shared = (resident() or 0) - (proportional() or 0) if self.measure == "PSS" else 0
        self.peaks[phase] = (peak_rss() or 0) - shared

    @property
    def record(self) -> dict[str, str | int]:
        """`measure`, and the peaks by phase."""
        return {"measure": self.measure, **self.peaks}
