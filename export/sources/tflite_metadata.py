"""What TFLite's own metadata says of a classifier: its classes, and how an image is normalised.

The metadata is a flatbuffer of another schema inside the file; label files are a zip archive behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flatbuffers.number_types
import flatbuffers.table

from tinytl_edge.runtime.errors import DataError
from tinytl_edge.runtime.model_files.about import KEY
from tinytl_edge.runtime.model_files.associated import OWN, read_archive
from tinytl_edge.runtime.model_files.label_file import LabelFile, parse_label_file

from .properties import told
from .tflite_reader import BROKEN

# Places in the tables of the metadata schema.
_SUBGRAPHS, _INPUT_TENSORS, _OUTPUT_TENSORS = 3, 2, 3
_PROCESS_UNITS, _TENSOR_FILES = 4, 6
_OPTIONS_TYPE, _OPTIONS, _NORMALISATION, _MEAN, _STD = 0, 1, 1, 0, 1
_FILE_NAME, _FILE_TYPE, _AXIS_LABELS = 0, 2, 2
_MOST = 1 << 16  # entries of a list, and bytes of 64 a label file


@dataclass(frozen=True)
class Metadata:
    """`mean` and `std` of the input, one or one a channel, or empty; `labels`, the file that names the outputs, or
    None; `own`: what one of our files says of itself."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: LabelFile | None = None
    own: Mapping[str, str] = field(default_factory=dict)


def read_metadata(buffer: bytes, content: bytes, outputs: int) -> Metadata:
    """Of a file's bytes, whose metadata is `buffer` (may be empty); what cannot be read is left out."""
    mean, std, name = _described(buffer)
    files = read_archive(content)
    own = told({KEY: files[OWN].decode("utf-8", "replace")}) if OWN in files else {}
    return Metadata(mean, std, _label_file(files, name, outputs), own)


def _described(buffer: bytes) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean, std and the name of the file of labels."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    name = ""
    try:
        root = flatbuffers.table.Table(buffer, int.from_bytes(buffer[:4], "little"))
        for graph in _tables(root, _SUBGRAPHS)[:1]:
            for unit in _of_first(graph, _INPUT_TENSORS, _PROCESS_UNITS):
                if _number(unit, _OPTIONS_TYPE) == _NORMALISATION:
                    options = _table(unit, _OPTIONS)
                    mean, std = _floats(options, _MEAN), _floats(options, _STD)
            for file in _of_first(graph, _OUTPUT_TENSORS, _TENSOR_FILES):
                if _number(file, _FILE_TYPE) == _AXIS_LABELS and not name:
                    name = _string(file, _FILE_NAME)
    except BROKEN:
        return (), (), ""
    fits = len(mean) == len(std) and all(value > 0 for value in std)
    return (mean, std, name) if fits else ((), (), name)


def _label_file(files: Mapping[str, bytes], name: str, outputs: int) -> LabelFile | None:
    """The file `name`, or the one text in the archive that has as many names as there are outputs."""
    wanted = 2 if outputs == 1 else outputs
    for each in (name, *(other for other in files if other.endswith(".txt") and other != name)):
        try:
            found = parse_label_file(each, files[each])
        except (DataError, KeyError, ValueError):
            continue
        if len(found.names) == wanted:
            return found
    return None


def _field(table: Any, place: int) -> int:
    """Where a field lies, or 0."""
    offset = table.Offset(4 + 2 * place)
    return int(offset and offset + table.Pos)


def _number(table: Any, place: int) -> int:
    position = _field(table, place)
    return int(table.Get(flatbuffers.number_types.Uint8Flags, position)) if position else 0


def _string(table: Any, place: int) -> str:
    position = _field(table, place)
    return bytes(table.String(position)).decode("utf-8", "replace") if position else ""


def _table(table: Any, place: int) -> Any:
    return flatbuffers.table.Table(table.Bytes, table.Indirect(_field(table, place)))


def _tables(table: Any, place: int) -> list[Any]:
    offset = table.Offset(4 + 2 * place)
    if not offset:
        return []
    start, count = table.Vector(offset), table.VectorLen(offset)
    if count > _MOST:
        raise ValueError(f"{count} entries")
    return [flatbuffers.table.Table(table.Bytes, table.Indirect(start + 4 * index)) for index in range(count)]


def _of_first(graph: Any, tensors: int, place: int) -> list[Any]:
    """A list of the first of the tensors."""
    return [found for tensor in _tables(graph, tensors)[:1] for found in _tables(tensor, place)]


def _floats(table: Any, place: int) -> tuple[float, ...]:
    offset = table.Offset(4 + 2 * place)
    if not offset:
        return ()
    return tuple(float(value) for value in table.GetVectorAsNumpy(flatbuffers.number_types.Float32Flags, offset))
