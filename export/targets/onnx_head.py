"""The classifier of a quantised ONNX file, in floats: what it gives after training may leave the range of its codes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx import TensorProto

from tinytl_edge.export.onnx_graph import nodes_between, sizes
from tinytl_edge.export.passes.origin import file_value
from tinytl_edge.export.tinytl.classifier import find_classifier

from .content import UnwritableError
from .onnx_decoding import decoder, scale_of
from .onnx_source import OnnxFile, Place
from .onnx_transplant import Transplant

_CODES = (TensorProto.INT8, TensorProto.UINT8)


def has_codes(file: OnnxFile, model: ir.Model) -> bool:
    """Are the weights of the file's classifier 8-bit codes?"""
    name = find_classifier(model).weight.name or ""
    return name in file.constants and file.constants[name].data_type in _CODES


def float_head(file: OnnxFile, model: ir.Model, trainable: Mapping[str, str]) -> list[Place]:
    """Let the network graph's classifier stand in the file for its own; returns the places of its parameters.

    Raises:
        UnwritableError: the file's classifier does not stand between floats, or codes of a known scale.
    """
    classifier, logits = find_classifier(model).node, model.graph.outputs[0]
    source, result = classifier.inputs[0], model.metadata_props["tinytl-edge.logits"]
    maker = file.makers.get(result)
    if source is None or maker is None or scale_of(file, result) or file_value(source) not in file.makers:
        raise UnwritableError("its classifier does not end in floats")
    transplant = Transplant(file, model, trainable)
    behind = file.makers[file_value(source)]
    if scale_of(file, file_value(source)) is not None:
        behind = decoder(file, file_value(source))
        transplant.name(source, behind.output[0])
    maker.output[:] = [file.free_name(f"{result}/codes") if name == result else name for name in maker.output]
    nodes = [classifier, *nodes_between(classifier.outputs[0], logits)]
    made = transplant.insert(nodes, behind)
    file.makers[made].output[0] = result
    file.makers[result] = file.makers.pop(made)
    file.give_outputs(file.makers[result], sizes(logits)[0])
    file.forget_unread()
    return transplant.places
