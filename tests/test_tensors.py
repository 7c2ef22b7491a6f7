"""Safetensors files: what is written can be read, what is damaged is refused, what was there survives."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytl_edge.runtime.errors import DamagedFileError, StorageError
from tinytl_edge.runtime.files.tensors import (
    HEADER_LIMIT,
    ITEM_SIZES,
    atomic_write,
    encode_header,
    open_tensors,
    write_tensors,
)


def write_raw(path: Path, header: Any, data: bytes = b"") -> Path:
    """A file with this header, taken as JSON unless it is bytes already."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, stop: int, dtype: Any = "U8", shape: Any = None) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": [stop - start] if shape is None else shape,
        "data_offsets": [start, stop],
    }


# Round trips --------------------------------------------------------------------------------------------


@st.composite
def tensor_lists(draw: st.DrawFn) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    text = st.text(st.characters(codec="utf-8")).filter(lambda name: name != "__metadata__")
    names = draw(st.lists(text, unique=True, max_size=5))
    tensors = []
    for name in names:
        dtype = draw(st.sampled_from(sorted(ITEM_SIZES)))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
        size = ITEM_SIZES[dtype]
        for side in shape:
            size *= side
        tensors.append((name, dtype, shape, draw(st.binary(min_size=size, max_size=size))))
    return tensors


@settings(deadline=None, max_examples=50)
@given(
    tensors=tensor_lists(),
    metadata=st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8"))),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: list[tuple[str, str, tuple[int, ...], bytes]],
    metadata: dict[str, str],
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.safetensors"
    write_tensors(path, tensors, metadata)
    file = open_tensors(path)
    assert file.metadata == metadata
    assert list(file.entries) == [name for name, *_ in tensors]
    for name, dtype, shape, content in tensors:
        assert (file.entries[name].dtype, file.entries[name].shape) == (dtype, shape)
        assert file.read(name) == content


def test_a_hand_made_file_of_the_published_format_is_read(tmp_path: Path) -> None:
    header = {"b": entry(4, 7), "a": entry(0, 4, "F32", []), "__metadata__": {"k": "v"}}
    file = open_tensors(write_raw(tmp_path / "f", header, b"\0\0\x80\x3fabc"))
    assert file.read("a") == b"\0\0\x80\x3f"
    assert file.read("b") == b"abc"
    assert file.metadata == {"k": "v"}


def test_tensors_begin_on_eight_bytes(tmp_path: Path) -> None:
    for name in ("a", "ab", "abc", "abcdefgh"):
        write_tensors(tmp_path / "f", [(name, "U8", (1,), b"x")])
        assert open_tensors(tmp_path / "f").entries[name].start % 8 == 0


def test_room_for_a_header_is_filled_exactly_and_not_exceeded() -> None:
    tensors = {"images": ("U8", (10, 4, 4, 3))}
    natural = encode_header(tensors, {})
    padded = encode_header(tensors, {}, len(natural) + 64)
    assert len(padded) == len(natural) + 64
    assert int.from_bytes(padded[:8], "little") == len(padded) - 8
    assert json.loads(padded[8:]) == json.loads(natural[8:])
    with pytest.raises(ValueError, match="does not fit"):
        encode_header(tensors, {}, 16)


def test_names_that_would_be_lost_are_never_written(tmp_path: Path) -> None:
    for names in (["w", "w"], ["__metadata__"]):
        with pytest.raises(ValueError, match=r"same name|'__metadata__'"):
            write_tensors(tmp_path / "f", [(name, "U8", (1,), b"x") for name in names])
    assert not (tmp_path / "f").exists()


def test_bytes_that_do_not_fit_the_shape_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'w' has 7 bytes"):
        write_tensors(tmp_path / "f", [("w", "F32", (2,), b"1234567")])
    assert not (tmp_path / "f").exists()


# Damage -------------------------------------------------------------------------------------------------

DAMAGED: dict[str, tuple[Any, bytes, str]] = {
    "header is text": (b"hello, world", b"", "not JSON"),
    "header is not UTF-8": (b'{"\xff": 1}', b"", "not JSON"),
    "header is nested without end": (b"[" * 200_000, b"", "not JSON"),
    "header holds an endless number": (b'{"a": ' + b"9" * 5000 + b"}", b"", "malformed|not JSON"),
    "header is a list": ([1, 2], b"", "not a JSON object"),
    "metadata is a number": ({"__metadata__": 3}, b"", "table of strings"),
    "metadata is null": ({"__metadata__": None}, b"", "table of strings"),
    "metadata holds a number": ({"__metadata__": {"a": 3}}, b"", "table of strings"),
    "entry is a number": ({"a": 3}, b"", "'a' is malformed"),
    "entry is empty": ({"a": {}}, b"", "'a' is malformed"),
    "dtype is unknown": ({"a": entry(0, 1, "F4")}, b"x", "'a' is malformed"),
    "dtype is a list": ({"a": entry(0, 1, ["U8"])}, b"x", "'a' is malformed"),
    "dtype is missing": ({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"x", "'a' is malformed"),
    "shape is a number": ({"a": entry(0, 1, shape=1)}, b"x", "'a' is malformed"),
    "shape is text": ({"a": entry(0, 1, shape="1")}, b"x", "'a' is malformed"),
    "shape is negative": ({"a": entry(0, 1, shape=[-1, -1])}, b"x", "'a' is malformed"),
    "shape is fractional": ({"a": entry(0, 1, shape=[1.0])}, b"x", "'a' is malformed"),
    "shape is true": ({"a": entry(0, 1, shape=[True])}, b"x", "'a' is malformed"),
    "shape is beyond 64 bits": ({"a": entry(0, 0, shape=[0, 2**70])}, b"", "'a' is malformed"),
    "offsets are three": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}}, b"x", "malformed"),
    "offsets are swapped": ({"a": entry(1, 0, shape=[1])}, b"x", "has -1 bytes"),
    "size is not the shape's": ({"a": entry(0, 3, "F32", [1])}, b"xyz", "has 3 bytes"),
    "tensors overlap": ({"a": entry(0, 2), "b": entry(1, 3)}, b"xyz", "'b' does not begin where"),
    "tensors are the same": ({"a": entry(0, 2), "b": entry(0, 2)}, b"xy", "does not begin where"),
    "a hole before": ({"a": entry(1, 2)}, b"xy", "'a' does not begin where"),
    "a hole between": ({"a": entry(0, 1), "b": entry(2, 3)}, b"xyz", "'b' does not begin where"),
    "bytes after": ({"a": entry(0, 1)}, b"xy", "its header describes"),
    "bytes missing": ({"a": entry(0, 3)}, b"xy", "its header describes"),
    "name is a control character": ({"a\nb": 3}, b"", r"'a\\nb' is malformed"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_each_kind_of_damage_is_named(tmp_path: Path, case: str) -> None:
    header, data, sentence = DAMAGED[case]
    path = write_raw(tmp_path / "broken.safetensors", header, data)
    with pytest.raises(DamagedFileError, match=sentence) as caught:
        open_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"1234567", (5).to_bytes(8, "little") + b"{}"])
def test_a_file_that_ends_in_its_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"shorter than its own header|ends inside its header"):
        open_tensors(path)


def test_a_header_beyond_the_limit_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with path.open("wb") as file:
        file.write((HEADER_LIMIT + 1).to_bytes(8, "little"))
        file.truncate(HEADER_LIMIT + 9)
    with pytest.raises(DamagedFileError, match=f"claims {HEADER_LIMIT + 1} bytes"):
        open_tensors(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match="does not exist"):
        open_tensors(tmp_path / "nothing")
    with pytest.raises(DamagedFileError, match="cannot be read"):
        open_tensors(tmp_path)


def test_reading_notices_what_changed_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_tensors(path, [("a", "U8", (4,), b"abcd")])
    file = open_tensors(path)
    with pytest.raises(DamagedFileError, match="no tensor named 'b'"):
        file.read("b")
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DamagedFileError, match="ends inside tensor 'a'"):
        file.read("a")
    path.unlink()
    with pytest.raises(DamagedFileError, match="cannot be read"):
        file.read("a")


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    write_tensors(path, [("w", "F32", (2, 3), bytes(24)), ("b", "I8", (5,), bytes(5))], {"k": "v"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        file = open_tensors(path)
    except DamagedFileError:
        return
    assert sum(len(file.read(name)) for name in file.entries) <= len(content)


# Atomic writes ------------------------------------------------------------------------------------------


def refuse(number: int) -> Any:
    def call(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_was_there_survives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(b"the last good one")
    monkeypatch.setattr(os, call, refuse(errno.ENOSPC))
    with pytest.raises(StorageError, match=r"adapter\.safetensors could not be written: No space left") as caught:
        write_tensors(path, [("a", "U8", (4,), b"abcd")])
    assert caught.value.exit_code == 6
    assert [p.name for p in tmp_path.iterdir()] == ["adapter.safetensors"]
    assert path.read_bytes() == b"the last good one"


def test_what_was_there_survives_a_write_that_the_system_refuses(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"the last good one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            write_tensors(path, [("a", "U8", (100_000,), bytes(100_000))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    assert path.read_bytes() == b"the last good one"


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "f") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "f"
    with atomic_write(path) as file:
        file.write(b"all")
        assert not path.exists()
    assert path.read_bytes() == b"all"


def test_other_users_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        write_tensors(tmp_path / "f", [])
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_a_medium_without_modes_or_folder_sync_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "chmod", refuse(errno.EPERM))
    monkeypatch.setattr("tinytl_edge.runtime.files.tensors.sync_folder", refuse(errno.EINVAL))
    write_tensors(tmp_path / "f", [("a", "U8", (1,), b"x")])
    assert open_tensors(tmp_path / "f").read("a") == b"x"


def test_what_is_not_a_file_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for target in (pipe, tmp_path):
        with pytest.raises(StorageError, match="not a file"):
            write_tensors(target, [])
    assert pipe.is_fifo()


def test_a_place_that_cannot_hold_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="could not be written"):
        write_tensors(tmp_path / "file" / "f", [])
