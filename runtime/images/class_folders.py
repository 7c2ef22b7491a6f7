"""Names of class folders that were hardly meant as they are."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tinytl_edge.runtime.wording import list_names, shown

from .findings import Finding

# What folders are called that hold anything, by their plain names.
_NO_CLASS = frozenset((
    "train", "training", "test", "testing", "val", "valid", "validation", "images", "photos", "pictures", "data",
    "dataset", "new folder", "neuer ordner", "nouveau dossier", "untitled folder", "tmp", "temp", "backup",
    "trash", "deleted", "thumbs", "thumbnails", "unsorted", "todo",
))  # fmt: skip


def plain(name: str) -> str:
    """A name without what people vary by mistake: case, and spaces or what stands for them."""
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip()


def odd_names(folder: Path, names: Iterable[str]) -> list[Finding]:
    """Classes that are likely the same, or none."""
    by_plain: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_plain[plain(name) or name].append(name)
    findings = []
    for alike in by_plain.values():
        if len(alike) > 1:
            message = (
                f"{shown(folder)}: the names {list_names(alike)} differ in case or spaces only, and count as "
                f"{len(alike)} classes: where they mean one, put their images into one folder."
            )
            findings.append(Finding("names", message, tuple(str(folder / name) for name in alike)))
    if junk := [name for found, alike in by_plain.items() if found in _NO_CLASS for name in alike]:
        message = (
            f"{shown(folder)}: {list_names(junk)} "
            + ("does not sound like a class, and counts as one." if len(junk) == 1 else "do not sound like classes.")
            + " What is none of the classes lies better beside the folder."
        )
        findings.append(Finding("junk", message, tuple(str(folder / name) for name in junk)))
    return findings


def meant(name: str, known: Iterable[str]) -> str | None:
    """The known class whose name differs from `name` in case or spaces only."""
    return next((other for other in known if plain(other) == plain(name)), None)
