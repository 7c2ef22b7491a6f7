"""The template of a TFLite file: the file itself, with places in its buffers for what trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
import tflite

from tinytl_edge.export.passes.origin import added_to, stored
from tinytl_edge.export.sources.network import FileSource, Network
from tinytl_edge.export.sources.tflite_file import read_tflite
from tinytl_edge.export.sources.tflite_reader import Tensor, TFLiteModel, parse
from tinytl_edge.export.tinytl.classifier import find_classifier
from tinytl_edge.runtime.model_files.stored_numbers import DTYPES
from tinytl_edge.runtime.model_files.template import Hole, Port, Template, layout_of

from .content import Content, UnwritableError, colours_of, end_of, is_one_output
from .proof import prove

MODEL = "model.tflite"


def tflite_template(network: Network, trainable: Mapping[str, str], multi_label: bool) -> Content:
    """The TFLite file that the network came from, with places for what trains.

    Raises:
        UnwritableError: it cannot take what trains.
    """
    source = network.source
    assert source is not None and source.kind == "tflite"
    file = parse(source.content, source.path.name)
    if any(dtype in ("int8", "uint8") for dtype in _classifier_types(file, network.model)):
        raise UnwritableError("its classifier is of 8-bit codes, whose ranges cannot be measured anew yet")
    output = file.tensors[file.outputs[0]]
    if end_of(network, multi_label, output.shape[-1]) != network.end:
        raise UnwritableError(f"its end, {network.end}, does not fit how it trains")
    images = file.tensors[file.inputs[0]]
    table = Template(
        (MODEL,), tuple(_holes(source, file, network.model, trainable)), _port(images), _port(output),
        network.end or "logits", layout_of(images.shape, network.input.channels), colours_of(network), False,
        is_one_output(network), source.path.name,
    )  # fmt: skip
    made = Content(table, {MODEL: source.content})
    prove(made, network, trainable, read_tflite)
    return made


def _holes(source: FileSource, file: TFLiteModel, model: ir.Model, trainable: Mapping[str, str]) -> Iterator[Hole]:
    readers = Counter(index for operator in file.operators for index in operator.inputs)
    users = Counter(tensor.buffer for tensor in file.tensors)
    for name in trainable:
        if added_to(model.graph.initializers[name]) is not None:
            raise UnwritableError("lite residual modules cannot be put into it yet")
        value = model.graph.initializers[name]
        try:
            way = stored(value)
        except ValueError as error:
            raise UnwritableError(str(error)) from None
        if not way.name.startswith("tensor ") or way.computed:
            raise UnwritableError(f"there is no '{name}' in it")
        tensor = file.tensors[int(way.name.removeprefix("tensor "))]
        if way.dtype != tensor.dtype or way.dtype not in DTYPES:
            raise UnwritableError(f"'{tensor.name}' is of {tensor.dtype}")
        if way.shape != tensor.shape:
            raise UnwritableError(f"'{tensor.name}' has the shape {list(tensor.shape)}, not {list(way.shape)}")
        if readers[tensor.index] != 1 or users[tensor.buffer] != 1:
            raise UnwritableError(f"'{tensor.name}' is read in several places")
        count = int(np.prod(tensor.shape, dtype=np.int64))
        yield Hole(name, _offset(source.content, tensor.buffer), count, way.dtype, way.steps)


def _classifier_types(file: TFLiteModel, model: ir.Model) -> Iterator[str]:
    for value in (find_classifier(model).weight, find_classifier(model).bias):
        name = stored(value).name if value is not None else ""
        if name.startswith("tensor "):
            yield file.tensors[int(name.removeprefix("tensor "))].dtype


def _offset(content: bytes, buffer: int) -> int:
    """Where a buffer's data begin."""
    found = tflite.Model.GetRootAs(content, 0).Buffers(buffer)
    field = found._tab.Offset(4)  # `data`, the first field of a Buffer
    if not field:
        raise UnwritableError(f"its buffer {buffer} is empty")
    return int(found._tab.Vector(field))


def _port(tensor: Tensor) -> Port:
    return Port(tensor.name, tensor.shape, tensor.dtype)
