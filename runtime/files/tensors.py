"""Safetensors files with the standard library alone: header checks, one-tensor reads, atomic writes.

A file is an 8-byte little-endian header length, a JSON header, and the tensors' bytes without holes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tinytl_edge.runtime.errors import DamagedFileError, StorageError

HEADER_LIMIT = 16 * 1024 * 1024
_METADATA = "__metadata__"
ITEM_SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: dtype, shape, and its byte range in the file (absolute, half-open)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class TensorFile:
    """A checked header: `entries` by name in file order, and the string `metadata`."""

    path: Path
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]

    def read(self, name: str) -> bytes:
        """The bytes of one tensor.

        Raises:
            DamagedFileError: the tensor is not there, or the file is gone or has become shorter.
        """
        if name not in self.entries:
            raise DamagedFileError(f"{self.path} has no tensor named {name!r}.")
        entry = self.entries[name]
        try:
            with self.path.open("rb") as file:
                file.seek(entry.start)
                content = file.read(entry.stop - entry.start)
        except OSError as error:
            raise DamagedFileError(f"{self.path} cannot be read: {error.strerror}.") from None
        if len(content) != entry.stop - entry.start:
            raise DamagedFileError(f"{self.path} ends inside tensor {name!r}: copy the file again.")
        return content


def open_tensors(path: str | os.PathLike[str]) -> TensorFile:
    """Read and check the header of a safetensors file; no tensor is read.

    Raises:
        DamagedFileError: the file is missing, truncated, has holes or overlaps, or is not safetensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return _checked_header(path, file, size)
    except FileNotFoundError:
        raise DamagedFileError(f"{path} does not exist.") from None
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}.") from None


def _checked_header(path: Path, file: IO[bytes], size: int) -> TensorFile:
    def damaged(what: str) -> DamagedFileError:
        return DamagedFileError(f"{path} is not a usable safetensors file: {what}.")

    prefix = file.read(8)
    if len(prefix) < 8:
        raise damaged("it is shorter than its own header")
    header_length = int.from_bytes(prefix, "little")
    if header_length > HEADER_LIMIT:
        raise damaged(f"its header claims {header_length} bytes")
    if 8 + header_length > size:
        raise damaged("it ends inside its header")
    try:
        header = json.loads(file.read(header_length).decode("utf-8"))
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        raise damaged("its header is not JSON") from None
    if not isinstance(header, dict):
        raise damaged("its header is not a JSON object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged("its metadata is not a table of strings")

    entries = {}
    for name, fields in header.items():
        try:
            dtype, shape, (start, stop) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise damaged(f"the entry of tensor {name!r} is malformed") from None
        sizes_are_whole = all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, stop))
        if not isinstance(dtype, str) or dtype not in ITEM_SIZES or not sizes_are_whole:
            raise damaged(f"the entry of tensor {name!r} is malformed")
        if stop - start != ITEM_SIZES[dtype] * math.prod(shape):
            raise damaged(f"tensor {name!r} has {stop - start} bytes, not what its shape needs")
        base = 8 + header_length
        entries[name] = TensorEntry(dtype, shape, base + start, base + stop)

    end = 8 + header_length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != end:
            raise damaged(f"tensor {name!r} does not begin where the one before it ends")
        end = entry.stop
    if end != size:
        raise damaged(f"it has {size} bytes where its header describes {end}")
    return TensorFile(path, entries, dict(metadata))


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, str, tuple[int, ...], bytes]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write (name, dtype, shape, bytes) tuples as one safetensors file, atomically.

    Raises:
        StorageError: the folder cannot be written or the disk is full; what was there before stays.
    """
    tensors = list(tensors)
    shapes = {name: (dtype, shape) for name, dtype, shape, _ in tensors}
    if len(shapes) != len(tensors):
        raise ValueError("two tensors have the same name")
    for name, dtype, shape, content in tensors:
        if len(content) != ITEM_SIZES[dtype] * math.prod(shape):
            raise ValueError(f"tensor {name!r} has {len(content)} bytes, not what its shape needs")
    with atomic_write(path) as file:
        file.write(encode_header(shapes, metadata or {}))
        for _, _, _, content in tensors:
            file.write(content)


def encode_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str], length: int | None = None
) -> bytes:
    """The first bytes of a safetensors file whose tensors (name to dtype and shape) follow in this order.

    With `length`, padded with blanks to that many bytes, so that a writer can reserve room for it.
    """
    if _METADATA in tensors:
        raise ValueError(f"the format keeps the name {_METADATA!r} to itself")
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = ITEM_SIZES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    padded = length - 8 if length is not None else -(-len(text) // 8) * 8  # tensors start on 8 bytes
    if padded < len(text):
        raise ValueError(f"a header of {len(text)} bytes does not fit the {padded} reserved for it")
    return padded.to_bytes(8, "little") + text.ljust(padded)


def _beside(path: Path) -> Path:
    """A new empty file in the same folder. (tempfile's would be of mode 0600, and half a megabyte of modules.)"""
    for attempt in range(1000):
        candidate = path.with_name(f".{path.name}.{os.getpid()}-{attempt}")
        with contextlib.suppress(FileExistsError):
            os.close(os.open(candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return candidate
    raise FileExistsError(errno.EEXIST, "its folder is full of unfinished files")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name only when complete: temporary file, fsync, rename.

    Raises:
        StorageError: the folder cannot be written or the disk is full; what was there before stays.
    """
    path = Path(path)
    temporary = None
    try:
        if path.exists() and not path.is_file():
            raise OSError("there is something of that name that is not a file")  # /dev/null must survive
        make_folder(path.parent)
        temporary = _beside(path)
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
        with contextlib.suppress(OSError):  # the file is in place; not every filesystem syncs a folder
            sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where it is not there yet.

    Raises:
        OSError: it cannot be made; its `strerror` says why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, f"{path} is a file, not a folder") from None


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
