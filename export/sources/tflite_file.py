"""TFLite file -> network graph."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from tinytl_edge.export.passes.origin import FILE_MAPS
from tinytl_edge.runtime.errors import DamagedFileError, TinyTLError, UsageError
from tinytl_edge.runtime.files.bundle import Input
from tinytl_edge.runtime.files.kinds import kind_in_words
from tinytl_edge.runtime.model_files.about import MIDDLE

from . import tflite_arithmetic, tflite_layers, tflite_shapes
from .network import FileSource, Network
from .properties import class_names, colour_order, fit_of, pixel_range_of
from .tflite_constants import FOLDS, fold
from .tflite_graph import Constant, Feature, GraphBuilder
from .tflite_group_norm import convert_group_norm, find_group_norms
from .tflite_input import first_guess, images_of
from .tflite_metadata import read_metadata
from .tflite_reader import BROKEN, Operator, Tensor, TFLiteModel, parse

_CONVERTERS = {**tflite_layers.CONVERTERS, **tflite_arithmetic.CONVERTERS, **tflite_shapes.CONVERTERS}
_ENDS = {"SOFTMAX": "softmax", "LOG_SOFTMAX": "log_softmax", "LOGISTIC": "sigmoid"}
_VIEWS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "QUANTIZE", "DEQUANTIZE", "CAST")
_COMPILED = {
    "ethos-u": "Vela for an Arm Ethos-U",
    "edgetpu-custom-op": "the Edge TPU compiler",
    "DISPATCH_OP": "LiteRT for an accelerator",
}


def read_tflite(path: str | os.PathLike[str]) -> Network:
    """The network of a TFLite file.

    The graph computes what the file does in real numbers: its quantised weights as they are, the ranges of its
    quantised tensors as clamps, without rounding in between.

    Raises:
        DamagedFileError: not a TFLite file, or damaged.
        UsageError: cannot be opened; no image classifier; compiled for an accelerator; an operator that is not known.
    """
    name = Path(path).name
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    kind = kind_in_words(Path(path))
    if kind not in (None, "a TFLite file"):
        raise DamagedFileError(f"{name} is no TFLite file: it is {kind}.")
    file = parse(content, name)
    try:
        return _network(file, content, Path(path))
    except BROKEN as error:
        raise DamagedFileError(f"{name} is damaged: {error}.") from error


def _network(file: TFLiteModel, content: bytes, path: Path) -> Network:
    name = path.name
    _refuse_what_is_no_classifier(file, name)
    images = images_of(file.tensors[file.inputs[0]], name)
    ending = _ending(file)
    graph = GraphBuilder(file.tensors, file.operators, ending.free | _of_pixels(file))
    value = ir.Value(
        name="images",
        shape=ir.Shape(["batch", images.channels, images.height, images.width]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )
    graph.keep(file.inputs[0], images.feature(value))
    norms = find_group_norms(file)
    inside = {operator.index for norm in norms.values() for operator in norm.operators}
    for operator in _needed(file, ending.logits):
        if operator.index in norms:
            convert_group_norm(graph, norms[operator.index])
        elif operator.index not in inside:
            _convert(graph, operator, file, name)
    logits, outputs = _logits(graph, ending, name)
    model = _model(graph, value, logits)
    maps = {f"tensor {each.index}": _range_of_codes(graph, each) for each in file.tensors if each.data is None}
    model.metadata_props[FILE_MAPS] = json.dumps(maps)
    metadata = read_metadata(file.metadata.get("TFLITE_METADATA", b""), content, outputs)
    mean, std, known = first_guess(file, images, metadata)
    own = metadata.own
    labels = class_names(own, outputs, []) or (metadata.labels.names if metadata.labels is not None else ())
    fit, colours = fit_of(own), colour_order(own)
    notes = [] if ending.kind else [f"{name} has no softmax at its end: its outputs are taken for scores of classes."]
    framing = Input(
        images.height, images.width, images.channels, mean, std, fit=fit or "crop", margin=own.get("take") == MIDDLE,
        pixel_range=pixel_range_of(own),
    )  # fmt: skip
    return Network(
        path.stem, model, framing, known, labels, ending.kind, notes=notes, takes_bgr=colours == "BGR",
        colours_known=colours is not None, fit_known=fit is not None, source=FileSource(path, content, "tflite"),
    )  # fmt: skip


def _refuse_what_is_no_classifier(file: TFLiteModel, name: str) -> None:
    kinds = {operator.kind for operator in file.operators}
    for custom, tool in _COMPILED.items():
        if f"custom {custom}" in kinds:
            raise UsageError(f"{name} was compiled by {tool}: take the file that it was made from.")
    if "custom TFLite_Detection_PostProcess" in kinds:
        raise UsageError(f"{name} is a detector, not a classifier: it ends in TFLite_Detection_PostProcess.")
    if len(file.outputs) != 1:
        raise UsageError(f"{name} has {len(file.outputs)} outputs; a classifier has one (detectors have several).")
    if len(file.inputs) != 1:
        raise UsageError(f"{name} has {len(file.inputs)} inputs; an image classifier has one.")


# The end --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ending:
    """The tensor that becomes the logits, what stood behind it, and tensors whose quantised ranges cut nothing off."""

    logits: int
    kind: str
    beta: float
    free: frozenset[int]


def _ending(file: TFLiteModel) -> _Ending:
    makers = {output: operator for operator in file.operators for output in operator.outputs}
    logits, free = _behind_views(makers, file.outputs[0])
    maker = makers.get(logits[-1])
    if maker is None or maker.kind not in _ENDS:
        return _Ending(file.outputs[0], "", 1.0, frozenset(free))
    beta = float(maker.options.get("Beta", 1.0)) if maker.kind == "SOFTMAX" else 1.0
    _, more = _behind_views(makers, maker.inputs[0])
    return _Ending(maker.inputs[0], _ENDS[maker.kind], beta, frozenset(free | more))


def _range_of_codes(graph: GraphBuilder, tensor: Tensor) -> tuple[float, float] | None:
    found = graph.code_range(tensor.index) if tensor.dtype in ("int8", "uint8") else None
    return None if found is None else found[:2]


def _of_pixels(file: TFLiteModel) -> frozenset[int]:
    """What the input is quantised to: to which range is a question of the input."""
    found = list(file.inputs)
    for operator in file.operators:
        if operator.kind == "QUANTIZE" and operator.inputs[0] in found:
            found += operator.outputs
    return frozenset(found)


def _behind_views(makers: Mapping[int, Operator], tensor: int) -> tuple[list[int], set[int]]:
    """From a tensor up through what only gives it another shape or type: the tensors, in their order and as a set."""
    chain = [tensor]
    while tensor in makers and makers[tensor].kind in _VIEWS and makers[tensor].inputs[0] not in chain:
        tensor = makers[tensor].inputs[0]
        chain.append(tensor)
    return chain, set(chain)


def _logits(graph: GraphBuilder, ending: _Ending, name: str) -> tuple[ir.Value, int]:
    """The value [batch, outputs], named so; and how many outputs."""
    found = graph.result(ending.logits)
    if not isinstance(found, Feature):
        raise UsageError(f"{name} does not look at its image: its output is a constant.")
    outputs = math.prod(found.shape)
    if outputs not in found.shape:
        raise UsageError(
            f"{name} is no classifier: its output is of shape {list(found.shape)}, not one number a class "
            "(a detector, a segmentation or an embedding of several parts)."
        )
    feature = graph.reshaped(found, (1, outputs))
    value = feature.value
    if ending.beta != 1.0:
        value = graph.node("Mul", [value, graph.number(ending.beta)], (outputs,))
    if value.producer() is None:
        raise UsageError(f"{name} has no layers.")
    value.name = "logits"
    return value, outputs


# The graph ------------------------------------------------------------------------------------------------


def _needed(file: TFLiteModel, logits: int) -> list[Operator]:
    """The operators that the logits depend on, in the file's order."""
    wanted = {logits}
    needed = []
    for operator in reversed(file.operators):
        if wanted & set(operator.outputs):
            wanted |= set(operator.inputs)
            needed.append(operator)
    return needed[::-1]


def _convert(graph: GraphBuilder, operator: Operator, file: TFLiteModel, name: str) -> None:
    output = file.tensors[operator.outputs[0]].name
    where = f"{name}: the operator {operator.kind} of the tensor {output!r}"
    graph.begin(operator)
    try:
        held = [graph.held(operator, slot) for slot in range(len(operator.inputs)) if graph.has(operator, slot)]
        if held and all(isinstance(one, Constant) for one in held) and operator.kind in FOLDS:
            fold(graph, operator)
        elif operator.kind in _CONVERTERS:
            _CONVERTERS[operator.kind](graph, operator)
        else:
            raise UsageError(f"{where} is none that tinytl-edge knows.")
    except TinyTLError as error:
        if str(error).startswith(name):
            raise
        raise type(error)(f"{where} cannot be read: {str(error).rstrip('.')}.") from error
    except BROKEN as error:
        raise DamagedFileError(f"{where} makes no sense: {error}.") from error


def _model(graph: GraphBuilder, images: ir.Value, logits: ir.Value) -> ir.Model:
    """Of what the logits depend on."""
    needed: set[int] = set()
    stack = [logits.producer()]
    while stack:
        node = stack.pop()
        if node is not None and id(node) not in needed:
            needed.add(id(node))
            stack += [value.producer() for value in node.inputs if value is not None]
    for node in [node for node in graph.nodes if id(node) not in needed]:
        for place in range(len(node.inputs)):
            node.replace_input_with(place, None)
    nodes = [node for node in graph.nodes if id(node) in needed]
    read = {value.name for node in nodes for value in node.inputs if value is not None}
    initializers = [value for name, value in graph.initializers.items() if name in read]
    if not images.uses():
        raise UsageError("The file does not look at its image: its output is a constant.")
    made = ir.Graph(
        [images], [logits], nodes=nodes, initializers=initializers, opset_imports={"": 17}, name="network"
    )  # fmt: skip
    return ir.Model(made, ir_version=8, producer_name="tinytl-edge")
