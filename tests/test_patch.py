"""A file told by another one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinytl_edge.export.targets.difference import compare
from tinytl_edge.runtime.model_files.patch import Patch, Piece, content, size

PARTS = st.lists(st.binary(max_size=300), max_size=6)


def put_together(folder: Path, base: bytes, other: bytes) -> tuple[bytes, Patch, bytes]:
    """What the patch makes of `base`."""
    pieces, new = compare(base, other)
    (folder / "base").write_bytes(base)
    (folder / "new").write_bytes(new)
    patch = Patch("new", tuple(pieces))
    made = b"".join(content(folder / "base", patch))
    assert len(made) == size(folder / "base", patch)
    return made, patch, new


@given(PARTS, PARTS, st.randoms(use_true_random=False))
def test_any_file_is_told_by_any_other(tmp_path_factory: pytest.TempPathFactory, parts, more, shuffler) -> None:  # type: ignore[no-untyped-def]
    mixed = [*parts, *more]
    shuffler.shuffle(mixed)
    base, other = b"".join(parts), b"".join(mixed)
    assert put_together(tmp_path_factory.mktemp("patch"), base, other)[0] == other


def test_what_is_alike_is_not_told_again(tmp_path: Path) -> None:
    kept, more = random.Random(0).randbytes(1_000_000), b"\0" * 3000
    base = kept + b"18" + kept[::-1] + b"the end"
    other = kept + b"20" + more + kept[::-1] + b"another end"
    made, patch, new = put_together(tmp_path, base, other)
    assert made == other
    assert len(new) < len(more) + 200
    assert len(patch.pieces) < 8


def test_what_stands_in_another_order_is_not_told_again_either(tmp_path: Path) -> None:
    """As where something short is first found far behind."""
    drawn = random.Random(1)
    first, second, short = drawn.randbytes(100_000), drawn.randbytes(100_000), drawn.randbytes(100)
    made, _, new = put_together(tmp_path, first + second + short, short + second + b"between" + first)
    assert made == short + second + b"between" + first
    assert len(new) < 200


def test_without_a_patch_it_is_the_file(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"as it is" * 100_000)
    assert b"".join(content(tmp_path / "base", None)) == b"as it is" * 100_000
    assert size(tmp_path / "base", None) == 800_000


@pytest.mark.parametrize("wrong", [(-2, 1), (0, 0)])
def test_no_piece(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="a piece"):
        Piece(*wrong)


def test_new_bytes_lie_beside_it() -> None:
    with pytest.raises(ValueError, match="outside"):
        Patch("../new", ())
