"""Where the numbers of an ONNX file's tensors lie in its bytes."""

from __future__ import annotations

from collections.abc import Iterator

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_OUTPUT, _NODE_ATTRIBUTE = 2, 5
_ATTRIBUTE_TENSOR = 5
_TENSOR_NAME, _TENSOR_RAW_DATA = 8, 9

Span = tuple[int, int]  # first byte, end


def raw_data_places(content: bytes) -> dict[str, Span]:
    """The raw data of initializers, and of Constant nodes under the names of their outputs, as far as they have any."""
    places = {}
    for number, graph in _fields(content, (0, len(content))):
        if number != _MODEL_GRAPH:
            continue
        for number, part in _fields(content, graph):
            if number == _GRAPH_INITIALIZER:
                fields = dict(_fields(content, part))
                if _TENSOR_RAW_DATA in fields:
                    places[_text(content, fields[_TENSOR_NAME])] = fields[_TENSOR_RAW_DATA]
            elif number == _GRAPH_NODE:
                places.update(_of_constant(content, part))
    return places


def _of_constant(content: bytes, node: Span) -> Iterator[tuple[str, Span]]:
    fields = dict(_fields(content, node))
    if _NODE_ATTRIBUTE in fields and _NODE_OUTPUT in fields:
        tensor = dict(_fields(content, fields[_NODE_ATTRIBUTE])).get(_ATTRIBUTE_TENSOR)
        if tensor is not None and _TENSOR_RAW_DATA in (found := dict(_fields(content, tensor))):
            yield _text(content, fields[_NODE_OUTPUT]), found[_TENSOR_RAW_DATA]


def _text(content: bytes, span: Span) -> str:
    return content[span[0] : span[1]].decode()


def _fields(content: bytes, span: Span) -> Iterator[tuple[int, Span]]:
    """Number and content of each length-delimited field of a protobuf message."""
    at, end = span
    while at < end:
        key, at = _varint(content, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(content, at)
            yield key >> 3, (at, at + length)
            at += length
        elif kind == 0:
            _, at = _varint(content, at)
        else:
            at += {1: 8, 5: 4}[kind]


def _varint(content: bytes, at: int) -> tuple[int, int]:
    number, shift = 0, 0
    while True:
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
