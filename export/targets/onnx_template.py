"""The template of an ONNX file: what `prepare` puts into a bundle, and a board fills."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from tinytl_edge.export.sources.network import FileSource, Network
from tinytl_edge.export.sources.onnx_file import read_onnx
from tinytl_edge.export.sources.properties import class_text
from tinytl_edge.runtime.model_files.about import KEY
from tinytl_edge.runtime.model_files.class_text import ClassText
from tinytl_edge.runtime.model_files.template import Hole, Template, layout_of

from .content import Content, UnwritableError, colours_of, end_of, is_one_output
from .onnx_ends import change_end
from .onnx_head import float_head, has_codes
from .onnx_interface import ENDS, give_scores, port, take_images
from .onnx_model import inference_model
from .onnx_modules import insert_modules
from .onnx_places import raw_data_places
from .onnx_source import OnnxFile, Place, write_back
from .proof import prove

MODEL = "model.onnx"


def onnx_template(network: Network, trainable: Mapping[str, str], multi_label: bool, raw_pixels: bool) -> Content:
    """The file that the network came from, if it was an ONNX file that can take what trains, else the network graph.

    What is written back into a file is read again and compared with the network, before it is believed.
    """
    if network.source is None or network.source.kind != "onnx":
        return _of_network(network, trainable, multi_label, raw_pixels)
    try:
        made = _of_file(network.source, network, trainable, multi_label)
        _prove(made, network, trainable)
    except UnwritableError as error:
        note = f"`export` will write the network in a normal form, not in the file's own graph, because {error}."
        made = _of_network(network, trainable, multi_label, False, network.source, (note,))
        _prove(made, network, trainable)
    return made


def _prove(made: Content, network: Network, trainable: Mapping[str, str]) -> None:
    _check(made, network.source)
    prove(made, network, trainable, lambda path: read_onnx(path, (network.input.height, network.input.width)))


def _of_network(
    network: Network,
    trainable: Mapping[str, str],
    multi_label: bool,
    raw_pixels: bool,
    source: FileSource | None = None,
    notes: tuple[str, ...] = (),
) -> Content:
    """The network graph itself as the model; of a file with its input and the end that it had."""
    masks = [dropout.name for dropout in network.dropouts]
    proto = inference_model(network.model.clone(), network.input, masks, raw_pixels)
    one_output, end = is_one_output(network), end_of(network, multi_label, _outputs_before(network))
    layout = "NHWC" if raw_pixels else "NCHW"
    if source is not None:
        was = onnx.ModelProto.FromString(source.content)
        images, output = _images(was), _output(was, network)
        layout = layout_of(port(images).shape, network.input.channels)
        take_images(proto, images, network.input, network.takes_bgr)
        give_scores(proto, end, one_output, output.name, output.type.tensor_type.elem_type or TensorProto.FLOAT)
    elif end:
        give_scores(proto, end, one_output, "probabilities" if end != "log_softmax" else "log_probabilities")
    onnx.checker.check_model(proto, full_check=True)
    content = proto.SerializeToString()
    places = raw_data_places(content)
    holes = [Hole(name, places[name][0], (places[name][1] - places[name][0]) // 4) for name in trainable]
    table = Template(
        (MODEL,), tuple(holes), port(_images(proto)), port(proto.graph.output[0]), end or "logits", layout,
        colours_of(network), raw_pixels, one_output, source.path.name if source is not None else None,
    )  # fmt: skip
    return Content(table, {MODEL: content}, notes)


def _of_file(source: FileSource, network: Network, trainable: Mapping[str, str], multi_label: bool) -> Content:
    """The file with places for what trains."""
    proto = onnx.ModelProto.FromString(source.content)
    file, end = OnnxFile(proto), end_of(network, multi_label, _outputs_before(network))
    places = []
    if has_codes(file, network.model):
        if is_one_output(network):
            raise UnwritableError("its one output is made of 8-bit weights")
        places = float_head(file, network.model, trainable)
    places += write_back(file, network.model, trainable, [place.parameter for place in places])
    places += insert_modules(file, network.model, trainable)
    one_output, logits = is_one_output(network), network.model.metadata_props["tinytl-edge.logits"]
    if end != network.end:
        change_end(file, logits, ENDS[end])
    class_texts = _take_metadata(proto, len(network.classes))
    content = proto.SerializeToString()
    files = {MODEL: content, **_external_files(source, proto)}
    names = list(files)
    taken = port(_images(proto))
    table = Template(
        tuple(names), tuple(_holes(content, places, names)), taken, port(_output(proto, network)), end or "logits",
        layout_of(taken.shape, network.input.channels), colours_of(network), False, one_output, source.path.name,
        class_texts,
    )  # fmt: skip
    return Content(table, files)


def _holes(content: bytes, places: list[Place], files: list[str]) -> Iterator[Hole]:
    inside = raw_data_places(content)
    for place in places:
        count = int(np.prod(tuple(place.tensor.dims), dtype=np.int64))
        if place.tensor.data_location == TensorProto.EXTERNAL:
            entries = {entry.key: entry.value for entry in place.tensor.external_data}
            offset, file = int(entries.get("offset", 0)), files.index(entries["location"])
        else:
            offset, file = inside[place.name][0], 0
        yield Hole(place.parameter, offset, count, place.dtype, place.steps, file)


def _external_files(source: FileSource, proto: onnx.ModelProto) -> dict[str, bytes]:
    names = []
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            names += [entry.value for entry in tensor.external_data if entry.key == "location"]
    for name in names:
        if Path(name).name != name or name == MODEL:
            raise UnwritableError(f"its weights are in '{name}'")
    return {name: (source.path.parent / name).read_bytes() for name in dict.fromkeys(names)}


def _take_metadata(proto: onnx.ModelProto, outputs: int) -> tuple[ClassText, ...]:
    """Take out what `export` writes behind the file, so that each key stands there once; returns its class names."""
    texts = [text for entry in proto.metadata_props if (text := class_text(entry.key, entry.value, outputs))]
    written = {KEY, *(text.key for text in texts)}
    kept = [entry for entry in proto.metadata_props if entry.key not in written]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    return tuple(texts)


def _images(proto: onnx.ModelProto) -> onnx.ValueInfoProto:
    constants = {tensor.name for tensor in proto.graph.initializer}
    found: onnx.ValueInfoProto = next(value for value in proto.graph.input if value.name not in constants)
    return found


def _output(proto: onnx.ModelProto, network: Network) -> onnx.ValueInfoProto:
    name = network.model.metadata_props["tinytl-edge.output"]
    found: onnx.ValueInfoProto = next(value for value in proto.graph.output if value.name == name)
    return found


def _check(made: Content, source: FileSource | None) -> None:
    """The types and shapes of the file fit each other, at least where they did before."""
    try:
        onnx.checker.check_model(made.files[MODEL], full_check=True)
    except Exception as error:  # of several types, two of which have no public home
        try:
            onnx.checker.check_model(source.content if source is not None else b"", full_check=True)
        except Exception:
            return
        raise UnwritableError(
            f"what would be written is no whole model ({' '.join(str(error).split())[:200]})"
        ) from error


def _outputs_before(network: Network) -> int:
    """Of the file."""
    if network.source is None or network.source.kind != "onnx":
        return 0
    output = _output(onnx.ModelProto.FromString(network.source.content), network)
    return int([0, *(d.dim_value for d in output.type.tensor_type.shape.dim)][-1])
