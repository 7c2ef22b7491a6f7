"""Images that are nearly the same: the same picture saved twice, or pictures of one burst.

A fingerprint has a bit for each of 8 x 8 places: is it brighter there than to the right of it? (Krawetz, "Kind of like
that", 2013: the difference hash.) Of images that are nearly the same few bits differ, of others about half.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

BYTES = 8
SAME = 4  # bits that may differ
_PIECES = SAME + 1  # of which one is the same in both, where no more bits differ


def fingerprint(pixels: bytes, shape: tuple[int, int, int]) -> bytes:
    """Of an image, U8 of `shape` (height, width, channels): BYTES bytes, first the topmost row."""
    from PIL import Image

    height, width, channels = shape
    image = Image.frombytes("RGB" if channels == 3 else "L", (width, height), pixels).convert("L")
    small = image.resize((9, 8), Image.Resampling.BOX).tobytes()
    rows = (small[start : start + 9] for start in range(0, len(small), 9))
    return bytes(sum((left > right) << 7 - at for at, (left, right) in enumerate(zip(row, row[1:]))) for row in rows)


def alike(fingerprints: Iterable[tuple[int, bytes]]) -> list[list[int]]:
    """Groups of images that are nearly the same as the group's first, all in the order given.

    An image is a number, and its fingerprint.
    """
    groups: list[tuple[int, list[int]]] = []
    found: dict[tuple[int, int], list[int]] = {}  # by piece and its bits, the groups whose first image has it
    for number, content in fingerprints:
        bits = int.from_bytes(content, "big")
        pieces = _pieces(bits)
        near = (at for piece in pieces for at in found.get(piece, ()) if _differing(groups[at][0], bits) <= SAME)
        at = min(near, default=None)
        if at is not None:
            groups[at][1].append(number)
            continue
        for piece in pieces:
            found.setdefault(piece, []).append(len(groups))
        groups.append((bits, [number]))
    return [members for _, members in groups]


def _differing(one: int, other: int) -> int:
    return bin(one ^ other).count("1")  # int.bit_count() came with Python 3.10


def _pieces(bits: int) -> Sequence[tuple[int, int]]:
    width = -(-8 * BYTES // _PIECES)
    return [(piece, bits >> piece * width & (1 << width) - 1) for piece in range(_PIECES)]
