"""Reading the small text files in which Linux tells of itself, under /proc and /sys."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/")


def read_text(path: Path) -> str | None:
    """All of a file, without the NUL or newline it ends with. None if it cannot be read."""
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


def read_fields(path: Path, separator: str = ":") -> dict[str, str]:
    """A file of lines "key : value". Empty if it cannot be read."""
    return fields(read_text(path) or "", separator)


def fields(text: str, separator: str = ":") -> dict[str, str]:
    """Lines "key : value" as a table."""
    pairs = (line.partition(separator) for line in text.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
