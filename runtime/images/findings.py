"""What is odd about images, for a person to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A sentence, and the files that it is about; `kind` is a word for scripts, as 'unreadable'."""

    kind: str
    message: str
    files: tuple[str, ...] = ()


OnFinding = Callable[[Finding], object]
