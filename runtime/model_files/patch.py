"""A file told by another one: pieces of that, and new ones between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_READ = 1 << 18


@dataclass(frozen=True)
class Piece:
    """`count` bytes: of the other file from byte `first` on; or, where that is -1, the next of the new ones."""

    first: int
    count: int

    def __post_init__(self) -> None:
        if self.first < -1 or self.count < 1:
            raise ValueError(f"a piece of {self.count} bytes at {self.first}")


@dataclass(frozen=True)
class Patch:
    """The `pieces` in their order, and the name of the file that holds the new ones one behind the other."""

    new: str
    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        if Path(self.new).name != self.new:
            raise ValueError(f"a file outside of its folder: {self.new}")


def content(file: Path, patch: Patch | None) -> Iterator[bytes]:
    """What a file holds, or what `patch` makes of it, in parts of a quarter of a megabyte at most."""
    with file.open("rb") as base:
        if patch is None:
            while part := base.read(_READ):
                yield part
            return
        with (file.parent / patch.new).open("rb") as new:
            for piece in patch.pieces:
                source, left = (new if piece.first < 0 else base), piece.count
                if piece.first >= 0:
                    base.seek(piece.first)
                while left > 0 and (part := source.read(min(left, _READ))):
                    left -= len(part)
                    yield part


def size(file: Path, patch: Patch | None) -> int:
    """In bytes."""
    return file.stat().st_size if patch is None else sum(piece.count for piece in patch.pieces)
