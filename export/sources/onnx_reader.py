"""An ONNX file's bytes -> onnx_ir.Model; what is no ONNX file is told by its first bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto

from tinytl_edge.runtime.errors import DamagedFileError, UsageError
from tinytl_edge.runtime.files.kinds import kind_in_words

_HALF_BYTES = (TensorProto.UINT4, TensorProto.INT4)
OLDEST, NEWEST = 7, 26  # opsets of the default domain


def read_model(path: Path) -> tuple[ir.Model, bytes]:
    """The model with its weights in memory, those of external files too; and the file's bytes.

    Raises:
        UsageError: no such file, a file of another kind, or a network of a kind that is none of ours.
        DamagedFileError: a file cut short or changed, or external data that is not there or not in the file's folder.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    kind = kind_in_words(path)
    if kind not in (None, "an ONNX file"):
        raise DamagedFileError(f"{path} is no ONNX file: it is {kind}.")
    try:
        proto = onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf's DecodeError has no public home
        raise DamagedFileError(f"{path} is no ONNX file, or was cut short.") from error
    if not proto.graph.node or not proto.opset_import:
        raise DamagedFileError(f"{path} is no ONNX file, or was cut short: no operators are in it.")
    version = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=OLDEST)
    if not OLDEST <= version <= NEWEST:
        raise UsageError(f"{path} is of ONNX opset {version}; {OLDEST} to {NEWEST} are known.")
    for value in (*proto.graph.output, *proto.graph.value_info):
        if value.type.WhichOneof("value") in ("sequence_type", "map_type"):  # ZipMap's, which onnx_ir has no types for
            value.ClearField("type")
    for tensor in _tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            _load_external(path, tensor)
    return ir.serde.deserialize_model(proto), content


def _tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from proto.graph.initializer
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _load_external(path: Path, tensor: TensorProto) -> None:
    """Put external data into the tensor."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = entries.get("location", "")
    place = path.parent / name
    folders = (path.parent.resolve(), path.resolve().parent)
    inside = name and not Path(name).is_absolute() and ".." not in Path(name).parts
    if not inside or not any(place.resolve().is_relative_to(folder) for folder in folders):
        raise DamagedFileError(f"{path} wants weights from '{name}', which is not in its own folder.")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        if not place.is_file():
            raise DamagedFileError(f"{path} wants weights from '{name}' beside it, which is not there.")
        with place.open("rb") as file:
            size = place.stat().st_size
            length = size - offset if "length" not in entries else length
            if offset < 0 or length < 0 or offset + length > size:
                raise DamagedFileError(f"{path} wants more weights from {place.name} than it holds: was it cut short?")
            if length != _bytes(tensor):
                raise DamagedFileError(
                    f"{path} wants {length} bytes from {place.name} for '{tensor.name}', of another size."
                )
            file.seek(offset)
            tensor.raw_data = file.read(length)
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} wants weights from {place.name} beside it, which cannot be read.") from error
    del tensor.external_data[:]
    tensor.data_location = TensorProto.DEFAULT


def _bytes(tensor: TensorProto) -> int:
    """The size of a tensor's data."""
    itemsize: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    bits = 4 if tensor.data_type in _HALF_BYTES else 8 * itemsize
    return int(math.prod(tensor.dims) * bits + 7) // 8
