"""Files that a TFLite file brings along, as a zip archive behind its flatbuffer: labels, and what it says of itself."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .about import KEY
from .template import Template

OWN = f"{KEY}.json"
LABELS = "labels.txt"  # where there are none yet
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that an archive knows: a board's clock may stand before it
_MOST = 1 << 24  # bytes of a file
_BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError)


def read_archive(source: Path | bytes) -> dict[str, bytes]:
    """The files behind a TFLite file, by name; none where there is no archive, or a damaged one."""
    place: Path | IO[bytes] = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with zipfile.ZipFile(place) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir() and entry.file_size <= _MOST]
            return {entry.filename: archive.read(entry) for entry in entries}
    except _BROKEN:
        return {}


def archive_start(content: bytes) -> int:
    """Where the archive behind a TFLite file begins; its end where there is none."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as found:
            return min([found.start_dir, *(entry.header_offset for entry in found.infolist())])
    except _BROKEN:
        return len(content)


def archive(files: Mapping[str, bytes], at: int) -> bytes:
    """A zip archive, to stand behind `at` bytes of a file."""
    content = _Behind(at)
    with zipfile.ZipFile(content, "w") as written:
        for name, data in files.items():
            written.writestr(zipfile.ZipInfo(name, _DATE), data)
    return content.getvalue()


def described(folder: Path, template: Template, said: Mapping[str, Any], classes: Sequence[str], size: int) -> bytes:
    """What stands behind the `size` bytes of a template's TFLite file: its own files, with these classes and words."""
    files = read_archive(folder / template.archive) if template.archive else {}
    labels = template.labels_inside
    if labels is not None:
        names = list(classes) or [str(number) for number in range(template.outputs)]
        if labels.name not in files or labels.text(names) != labels.text(labels.names):
            files[labels.name] = labels.text(names).encode()
    return archive({**files, OWN: json.dumps(said, ensure_ascii=False).encode()}, size)


class _Behind(io.BytesIO):
    """Counts its bytes from a place in a larger file, as an archive's entries do."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def tell(self) -> int:
        return super().tell() + self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        return super().seek(offset - self._at if whence == 0 else offset, whence) + self._at


def own_words(path: Path) -> str:
    """What one of our TFLite files says of itself, as JSON; nothing where it says nothing."""
    return read_archive(path).get(OWN, b"").decode("utf-8", "replace")
