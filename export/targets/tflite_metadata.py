"""TFLite's own metadata for a file that has none: how an image is normalised, and which file names the classes.

A flatbuffer of the Task library's schema (ModelMetadata 1.0), which MediaPipe and tflite-support read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tinytl_edge.runtime.files.bundle import Input

from .tflite_editor import TFLiteEditor

NAME = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_PARSER = "1.0.0"  # the oldest that reads all of this
# Numbers of the schema's unions and enumerations.
_IMAGE, _FEATURE, _NORMALISATION, _AXIS_LABELS, _RGB, _GREY = 2, 1, 1, 2, 1, 2


def add_metadata(file: TFLiteEditor, taken: Input, labels: str, name: str) -> None:
    """Write the metadata of a classifier into a file that has none.

    Args:
        labels: the name of the associated file that names the outputs.
        name: of the model.
    """
    index = file.add_buffer(np.frombuffer(_metadata(taken, labels, name), np.uint8))
    entry = schema.MetadataT()
    entry.name, entry.buffer = NAME.encode(), index
    file.model.metadata = [*(file.model.metadata or ()), entry]


def _metadata(taken: Input, labels: str, name: str) -> bytes:
    builder = flatbuffers.Builder(1024)
    of_input = _tensor(
        builder, "image", "An image, normalised by (pixel - mean) / std of pixels in 0..255.", _IMAGE,
        [(0, _byte, _GREY if taken.channels == 1 else _RGB)], unit=_normalisation(builder, taken),
    )  # fmt: skip
    of_output = _tensor(
        builder, "score", "A score for each class.", _FEATURE, [], file=_associated(builder, labels)
    )  # fmt: skip
    inputs, outputs = _vector(builder, [of_input]), _vector(builder, [of_output])
    graph = _table(builder, 10, [(2, _offset, inputs), (3, _offset, outputs)])
    graphs = _vector(builder, [graph])
    texts = [(0, builder.CreateString(name)), (7, builder.CreateString(_PARSER))]
    root = _table(builder, 8, [(3, _offset, graphs), *((slot, _offset, text) for slot, text in texts)])
    builder.Finish(root, _IDENTIFIER)
    return bytes(builder.Output())


def _tensor(
    builder: Any, name: str, description: str, kind: int, properties: Sequence[_Field], unit: int = 0, file: int = 0
) -> int:
    content_properties = _table(builder, 2, properties)
    content = _table(builder, 3, [(0, _byte, kind), (1, _offset, content_properties)])
    fields: list[_Field] = [
        (0, _offset, builder.CreateString(name)),
        (1, _offset, builder.CreateString(description)),
        (3, _offset, content),
    ]
    fields += [(4, _offset, _vector(builder, [unit]))] if unit else []
    fields += [(6, _offset, _vector(builder, [file]))] if file else []
    return _table(builder, 7, fields)


def _normalisation(builder: Any, taken: Input) -> int:
    mean, std = (builder.CreateNumpyVector(np.array(numbers, np.float32)) for numbers in (taken.mean, taken.std))
    options = _table(builder, 2, [(0, _offset, mean), (1, _offset, std)])
    return _table(builder, 2, [(0, _byte, _NORMALISATION), (1, _offset, options)])


def _associated(builder: Any, name: str) -> int:
    texts = [(0, builder.CreateString(name)), (1, builder.CreateString("The classes, one a line, in their order."))]
    return _table(builder, 5, [*((slot, _offset, text) for slot, text in texts), (2, _byte, _AXIS_LABELS)])


def _byte(builder: Any, slot: int, value: int) -> None:
    builder.PrependUint8Slot(slot, value, 0)


def _offset(builder: Any, slot: int, value: int) -> None:
    builder.PrependUOffsetTRelativeSlot(slot, value, 0)


_Field = tuple[int, Callable[[Any, int, int], None], int]


def _table(builder: Any, slots: int, fields: Sequence[_Field]) -> int:
    builder.StartObject(slots)
    for slot, add, value in fields:
        add(builder, slot, value)
    return int(builder.EndObject())


def _vector(builder: Any, entries: Sequence[int]) -> int:
    builder.StartVector(4, len(entries), 4)
    for entry in reversed(entries):
        builder.PrependUOffsetTRelative(entry)
    return int(builder.EndVector())
