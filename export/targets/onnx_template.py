"""The template of an ONNX file: what `prepare` puts into a bundle, and a board fills."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.onnx_graph import Array, set_initializer
from tinytl_edge.export.passes.origin import steps
from tinytl_edge.export.sources.network import Network, OnnxSource
from tinytl_edge.export.sources.onnx_file import read_onnx
from tinytl_edge.export.sources.onnx_metadata import class_text
from tinytl_edge.export.tinytl.classifier import find_classifier
from tinytl_edge.runtime.errors import TinyTLError
from tinytl_edge.runtime.model_files.about import OWN_KEYS
from tinytl_edge.runtime.model_files.class_text import ClassText
from tinytl_edge.runtime.model_files.label_file import LabelFile
from tinytl_edge.runtime.model_files.stored_numbers import as_stored
from tinytl_edge.runtime.model_files.template import FOLDER, TABLE, Hole, Template

from .onnx_ends import change_end
from .onnx_head import float_head, has_codes
from .onnx_interface import give_scores, layout_of, port, take_images
from .onnx_model import inference_model
from .onnx_modules import insert_modules
from .onnx_places import raw_data_places
from .onnx_source import OnnxFile, Place, UnwritableError, write_back

MODEL = "model.onnx"
_ENDS = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "sigmoid": "Sigmoid"}


@dataclass(frozen=True)
class Content:
    """A template's table, its files by name, and what a person should know of it."""

    table: Template
    files: dict[str, bytes]
    notes: tuple[str, ...] = ()

    def write(self, folder: Path, labels: LabelFile | None = None) -> None:
        """Into a bundle's folder; `labels` is what names the outputs beside the model."""
        (folder / FOLDER).mkdir()
        table = replace(self.table, labels=labels)
        for name, content in self.files.items():
            (folder / FOLDER / name).write_bytes(content)
        (folder / FOLDER / TABLE).write_text(json.dumps(asdict(table), ensure_ascii=False), encoding="utf-8")


def onnx_template(network: Network, trainable: Mapping[str, str], multi_label: bool, raw_pixels: bool) -> Content:
    """The file that the network came from, if it was an ONNX file that can take what trains, else the network graph.

    What is written back into a file is read again and compared with the network, before it is believed.
    """
    if network.source is None:
        return _of_network(network, trainable, multi_label, raw_pixels)
    try:
        made = _of_file(network.source, network, trainable, multi_label)
        _prove(made, network, trainable)
    except UnwritableError as error:
        note = f"`export` will write the network in a normal form, not in the file's own graph, because {error}."
        made = _of_network(network, trainable, multi_label, False, network.source, (note,))
        _prove(made, network, trainable)
    return made


def _of_network(
    network: Network,
    trainable: Mapping[str, str],
    multi_label: bool,
    raw_pixels: bool,
    source: OnnxSource | None = None,
    notes: tuple[str, ...] = (),
) -> Content:
    """The network graph itself as the model; of a file with its input and the end that it had."""
    masks = [dropout.name for dropout in network.dropouts]
    proto = inference_model(network.model.clone(), network.input, masks, raw_pixels)
    one_output, end = _is_one_output(network), _end_of(network, multi_label)
    layout = "NHWC" if raw_pixels else "NCHW"
    if source is not None:
        was = onnx.ModelProto.FromString(source.content)
        images, output = _images(was), _output(was, network)
        layout = layout_of(images, network.input)
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
        _colours(network), raw_pixels, one_output, source.path.name if source is not None else None,
    )  # fmt: skip
    return Content(table, {MODEL: content}, notes)


def _of_file(source: OnnxSource, network: Network, trainable: Mapping[str, str], multi_label: bool) -> Content:
    """The file with places for what trains."""
    proto = onnx.ModelProto.FromString(source.content)
    file, end = OnnxFile(proto), _end_of(network, multi_label)
    places = []
    if has_codes(file, network.model):
        if _is_one_output(network):
            raise UnwritableError("its one output is made of 8-bit weights")
        places = float_head(file, network.model, trainable)
    places += write_back(file, network.model, trainable, [place.parameter for place in places])
    places += insert_modules(file, network.model, trainable)
    one_output, logits = _is_one_output(network), network.model.metadata_props["tinytl-edge.logits"]
    if end != network.end:
        change_end(file, logits, _ENDS[end])
    class_texts = _take_metadata(proto, len(network.classes))
    content = proto.SerializeToString()
    files = {MODEL: content, **_external_files(source, proto)}
    names = list(files)
    table = Template(
        tuple(names), tuple(_holes(content, places, names)), port(_images(proto)),
        port(_output(proto, network)), end or "logits",
        layout_of(_images(proto), network.input), _colours(network), False, one_output, source.path.name, class_texts,
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


def _external_files(source: OnnxSource, proto: onnx.ModelProto) -> dict[str, bytes]:
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
    written = {*OWN_KEYS, *(text.key for text in texts)}
    kept = [entry for entry in proto.metadata_props if entry.key not in written]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    return tuple(text for text in texts if text.key not in OWN_KEYS)


def _images(proto: onnx.ModelProto) -> onnx.ValueInfoProto:
    constants = {tensor.name for tensor in proto.graph.initializer}
    found: onnx.ValueInfoProto = next(value for value in proto.graph.input if value.name not in constants)
    return found


def _colours(network: Network) -> str:
    if network.input.channels == 1:
        return "grey"
    return "BGR" if network.takes_bgr else "RGB"


def _is_one_output(network: Network) -> bool:
    """Did one sigmoid become two outputs?"""
    return any(step["step"] == "two_outputs" for step in steps(find_classifier(network.model).weight))


def _end_of(network: Network, multi_label: bool) -> str:
    """What is to stand behind the logits: what stood there, where that fits how it trains."""
    if multi_label and network.end in ("softmax", "log_softmax"):
        return "sigmoid"
    if network.end == "sigmoid" and not multi_label and _outputs_before(network) == 1 and not _is_one_output(network):
        return "softmax"
    return network.end


def _outputs_before(network: Network) -> int:
    """Of the file."""
    if network.source is None:
        return 0
    output = _output(onnx.ModelProto.FromString(network.source.content), network)
    return int([*(d.dim_value for d in output.type.tensor_type.shape.dim), 0][-2])


def _output(proto: onnx.ModelProto, network: Network) -> onnx.ValueInfoProto:
    name = network.model.metadata_props["tinytl-edge.output"]
    found: onnx.ValueInfoProto = next(value for value in proto.graph.output if value.name == name)
    return found


# The proof ------------------------------------------------------------------------------------------------


def _prove(made: Content, network: Network, trainable: Mapping[str, str]) -> None:
    """Fill the template with numbers near to the network's, read the file, and compare the logits, in float64.

    Raises:
        UnwritableError: they differ.
    """
    _check(made, network.source)
    model = network.model.clone()
    filling: dict[str, Array] = {}
    random = np.random.default_rng(0)
    for name in trainable:
        value = model.graph.initializers[name]
        assert value.const_value is not None
        numbers = value.const_value.numpy()
        step = 0.1 * np.abs(numbers).mean() + 0.03
        filling[name] = (numbers + step * random.standard_normal(numbers.shape)).astype("<f4")
        set_initializer(value, filling[name])
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, content) in enumerate(made.files.items()):
            (Path(folder) / name).write_bytes(_filled(content, index, made.table, filling))
        try:
            again = read_onnx(Path(folder) / MODEL, (network.input.height, network.input.width))
        except TinyTLError as error:
            raise UnwritableError(f"what would be written cannot be read again ({error})") from error
    images = torch.from_numpy(random.uniform(-1, 1, (2, *_shape(model.graph.inputs[0]))))
    as_file = images.flip(1) if network.takes_bgr != again.takes_bgr else images
    with torch.no_grad():
        wanted = EagerNetwork(model).double()(images).numpy()
        found = EagerNetwork(again.model).double()(as_file).numpy()
    if made.table.one_output:
        wanted = wanted[:, 1:] - wanted[:, :1]
    if found.shape != wanted.shape:
        raise UnwritableError(f"what would be written gives {found.shape[1]} numbers, not {wanted.shape[1]}")
    exact = {"float32", "float64"} >= {hole.dtype for hole in made.table.holes}
    most = (1e-4 if exact else 0.05) * max(float(np.abs(wanted).max()), 1.0)
    if not np.abs(found - wanted).max() <= most:
        raise UnwritableError(f"what would be written is off by {np.abs(found - wanted).max():.2g}")


def _check(made: Content, source: OnnxSource | None) -> None:
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


def _filled(content: bytes, file: int, table: Template, filling: Mapping[str, Array]) -> bytes:
    changed = bytearray(content)
    numbers = {name: array.tobytes() for name, array in filling.items()}
    for hole in table.holes:
        if hole.file == file:
            stored = as_stored(hole.parameter, numbers, hole.steps, hole.dtype)
            changed[hole.offset : hole.offset + len(stored)] = stored
    return bytes(changed)


def _shape(images: ir.Value) -> tuple[int, ...]:
    assert images.shape is not None
    return tuple(int(n) for n in tuple(images.shape)[1:])  # type: ignore[arg-type]
