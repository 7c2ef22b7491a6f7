"""SHA-256 of files, without OpenSSL, whose library alone takes 3.5 MB of a board's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DIGEST_SIZE = 32  # bytes


def _new() -> Any:
    try:
        from _sha2 import sha256  # type: ignore[import-not-found]  # CPython 3.12 and later
    except ImportError:
        try:
            from _sha256 import sha256  # type: ignore[import-not-found]
        except ImportError:  # a Python that was built without its own
            from hashlib import sha256
    return sha256()


def sha256_of(content: bytes) -> str:
    """Hexadecimal."""
    digest = _new()
    digest.update(content)
    return str(digest.hexdigest())


def sha256(path: Path, length: int | None = None) -> str:
    """Hexadecimal, of a file or of its first `length` bytes, read piece by piece."""
    digest = _new()
    left = path.stat().st_size if length is None else length
    with path.open("rb") as file:
        while piece := file.read(min(left, 1 << 18)):
            digest.update(piece)
            left -= len(piece)
    return str(digest.hexdigest())
