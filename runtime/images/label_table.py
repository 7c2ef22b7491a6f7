"""Multi-label images: the table labels.csv in their folder.

Its first row is `file` (or `filename`, `image`, `path`) and the names of the classes; each further row names an image,
relative to the folder, and says 1 where it has the class and 0 where it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinytl_edge.runtime.errors import DataError
from tinytl_edge.runtime.wording import shown

from .folders import composed, visible

TABLE = "labels.csv"
_FIRST = ("file", "filename", "file_name", "image", "path")
_CELLS = {"0": 0, "1": 1}


@dataclass(frozen=True)
class LabelTable:
    """`rows` are the images, each with a byte a class, 0 or 1."""

    classes: tuple[str, ...]
    rows: tuple[tuple[Path, bytes], ...]

    def in_order(self, classes: tuple[str, ...]) -> LabelTable:
        """The same table with its columns in another order."""
        columns = [self.classes.index(name) for name in classes]
        return LabelTable(classes, tuple((path, bytes(marks[i] for i in columns)) for path, marks in self.rows))


def has_table(folder: Path) -> bool:
    """Are the images of this folder multi-label?"""
    return (folder / TABLE).is_file()


def read_table(folder: Path) -> LabelTable:
    """The table of a folder, images in its order.

    Raises:
        DataError: the table cannot be read or says something that is not allowed; names the row.
    """
    import csv  # most folders have none

    path = folder / TABLE
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            rows = ((reader.line_num, [composed(cell.strip()) for cell in row]) for row in reader)
            return _checked(folder, path, ((line, row) for line, row in rows if any(row)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{shown(path)} cannot be read as a table of UTF-8 text ({shown(error)}).") from None
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.strerror}.") from None


def _checked(folder: Path, path: Path, rows: Iterator[tuple[int, list[str]]]) -> LabelTable:
    _, head = next(rows, (1, [""]))
    classes = tuple(head[1:])
    if head[0].lower() not in _FIRST or not classes:
        raise DataError(
            f"{shown(path)} has to begin with the row file,NAME,NAME,... that names the classes.{_stray(folder)}"
        )
    if not all(classes):
        raise DataError(f"{shown(path)} has a column without a name.")
    twice = next((name for name in classes if classes.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{shown(path)} has two columns {twice!r}.")
    found: dict[Path, bytes] = {}
    lines: dict[Path, int] = {}
    for line, (name, *cells) in rows:
        where = f"{shown(path)}, row {line}"
        name = name.replace("\\", "/") if not (folder / name).is_file() else name  # a table written on Windows
        image = folder / name
        if len(cells) != len(classes):
            raise DataError(f"{where} has {len(cells)} labels, not {len(classes)} as the first row has classes.")
        if image in found:
            raise DataError(f"{where} names {name!r} again, after row {lines[image]}.")
        for cell, label in zip(cells, classes):
            if cell not in _CELLS:
                raise DataError(f"{where} says {cell!r} of {label!r}: it has to be 0 or 1.{_stray(folder)}")
        if not name or not image.is_file():
            raise DataError(f"{where} names {name!r}, which is no file in {shown(folder)}.")
        found[image] = bytes(_CELLS[cell] for cell in cells)
        lines[image] = line
    if not found:
        raise DataError(f"{shown(path)} names no images.")
    return LabelTable(classes, tuple(found.items()))


def _stray(folder: Path) -> str:
    """What to do where there are class folders beside the table, which may be another tool's."""
    if not any(path.is_dir() for path in visible(folder)):
        return ""
    return f" It makes the images multi-label; where {shown(folder)} has a folder for each class, rename or remove it."
