"""A file as pieces of one that is nearly the same, and what is new in it."""

from __future__ import annotations

from tinytl_edge.runtime.model_files.patch import Piece

_STEP = 1 << 18  # bytes that are compared at once
_LEAST = 64  # bytes that are worth a piece
_FURTHEST = 4096  # bytes between two places at which a piece is looked for


def compare(base: bytes, other: bytes) -> tuple[list[Piece], bytes]:
    """The pieces of `base` that `other` is made of, and what is new in it."""
    pieces: list[Piece] = []
    new = bytearray()
    at = there = 0  # in `other`, and in `base`
    while at < len(other):
        same = _same(other, at, base, there)
        if same < min(_LEAST, len(other) - at):
            start, there = _next(base, there, other, at)
            pieces.append(Piece(-1, start - at))
            new += other[at:start]
            at = start
            continue
        pieces.append(Piece(there, same))
        at, there = at + same, there + same
    return pieces, bytes(new)


def _same(a: bytes, at: int, b: bytes, there: int) -> int:
    """For how many bytes both go on alike."""
    most = min(len(a) - at, len(b) - there)
    same, step = 0, _STEP
    while same < most and step:
        length = min(step, most - same)
        if a[at + same : at + same + length] == b[there + same : there + same + length]:
            same += length
        else:
            step = length // 2
    return same


def _next(base: bytes, there: int, other: bytes, at: int) -> tuple[int, int]:
    """Where in `other` something begins that `base` has, too, and where that is; or both ends."""
    start, step = at + 1, 1
    while start + _LEAST <= len(other):
        anchor = other[start : start + _LEAST]
        found = base.find(anchor, there)
        if found < 0:  # it may have stood in front, or what was found last was another place that is alike
            found = base.find(anchor, 0, there + _LEAST)
        if found >= 0:
            while start > at + 1 and found > 0 and other[start - 1] == base[found - 1]:
                start, found = start - 1, found - 1
            return start, found
        step = min(2 * step, _FURTHEST)
        start += step
    return len(other), len(base)
