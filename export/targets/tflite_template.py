"""The template of a TFLite file: the file itself, with places in it for what trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tinytl_edge.export.passes.origin import stored
from tinytl_edge.export.sources.network import Network
from tinytl_edge.export.sources.tflite_file import read_tflite
from tinytl_edge.export.sources.tflite_metadata import read_metadata
from tinytl_edge.export.sources.tflite_reader import parse
from tinytl_edge.export.tinytl.classifier import find_classifier
from tinytl_edge.runtime.model_files.associated import LABELS, archive, read_archive
from tinytl_edge.runtime.model_files.label_file import LabelFile
from tinytl_edge.runtime.model_files.template import Port, Template, layout_of

from .content import Content, UnwritableError, colours_of, end_of, is_one_output
from .proof import prove
from .tflite_editor import Places, TFLiteEditor, dtype_of, name_of
from .tflite_ends import TFLiteEnd
from .tflite_input import mend_input
from .tflite_metadata import NAME, add_metadata
from .tflite_modules import insert_modules
from .tflite_source import SourceWriter

MODEL, ARCHIVE = "model.tflite", "associated.zip"


def tflite_template(network: Network, trainable: Mapping[str, str], multi_label: bool) -> Content:
    """The TFLite file that the network came from, with places for what trains.

    Raises:
        UnwritableError: it cannot take what trains.
    """
    source = network.source
    assert source is not None and source.kind == "tflite"
    file = TFLiteEditor(source.content)
    mended = mend_input(file, network.input)
    weight = stored(find_classifier(network.model).weight, passing_over="dequantise").name
    if not weight.startswith("tensor "):
        raise UnwritableError("its classifier's weights are computed in it")
    ending = TFLiteEnd(file, int(weight.removeprefix("tensor ")))
    outputs = int(file.graph.tensors[ending.layer.outputs[0]].shape[-1])
    end = end_of(network, multi_label, outputs)
    if end != network.end:
        ending.change_to(end)
    one_output = is_one_output(network)
    modules = insert_modules(file, network.model, trainable)
    places = [*SourceWriter(file, network.model, trainable).places(), *modules, *ending.ranges()]
    ending.give_outputs(outputs, 1 if one_output else find_classifier(network.model).outputs)
    files = read_archive(source.content)
    metadata = parse(source.content, source.path.name).metadata.get(NAME, b"")
    inside = read_metadata(metadata, source.content, outputs).labels
    if not metadata:
        inside = inside or LabelFile(LABELS, ())
        add_metadata(file, network.input, inside.name, network.name)
    content = file.content()
    offsets = Places(content)
    taken, given = (file.graph.tensors[ports[0]] for ports in (file.graph.inputs, file.graph.outputs))
    table = Template(
        (MODEL,), tuple(place.hole(offsets) for place in places), _port(taken), _port(given), end or "logits",
        layout_of(_port(taken).shape, network.input.channels), colours_of(network), False, one_output,
        source.path.name, archive=ARCHIVE if files else "", labels_inside=inside,
    )  # fmt: skip
    made = Content(table, {MODEL: content}, (mended,) if mended else (), archive(files, 0) if files else b"")
    prove(made, network, trainable, read_tflite)
    return made


def _port(tensor: Any) -> Port:
    return Port(name_of(tensor), tuple(int(size) for size in tensor.shape), dtype_of(tensor))
