"""What is odd about images, for a person to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A sentence, and the files that it is about; `kind` is a word for scripts.

    Of files and folders: ending, loose, deeper, unreadable, names, junk, empty, class; of counts: few, uneven; of
    images alike: two-classes, same, judged-and-learnt; of what they look like: dark, bright, blank, blurred, small,
    turned, range, given-away; of what a classifier makes of them: label, mirror.
    """

    kind: str
    message: str
    files: tuple[str, ...] = ()


OnFinding = Callable[[Finding], object]
