"""ONNX file -> network graph: of opsets 7 to 26, with weights of floats or 8 bits, whichever exporter made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import set_initializer
from tinytl_edge.export.passes.normalise import lift_constants, normalise, remove_unused
from tinytl_edge.export.passes.origin import file_value, forget_all, record
from tinytl_edge.export.passes.untie import untie_vectors
from tinytl_edge.export.quiet import quiet
from tinytl_edge.runtime.errors import DamagedFileError, TinyTLError, UsageError
from tinytl_edge.runtime.files.bundle import Input
from tinytl_edge.runtime.model_files.about import MIDDLE

from .network import FileSource, Network
from .onnx_ends import cut_end
from .onnx_fused import split_fused
from .onnx_input import Images, largest_constant, quantised_range, take_images
from .onnx_quantised import undo_quantisation
from .onnx_reader import read_model
from .properties import class_names, colour_order, fit_of, image_size, normalisation, pixel_range_of, told

_DETECTORS = ("NonMaxSuppression", "RoiAlign", "MaxRoiPool", "DetectionOutput")
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_OTHER_FLOATS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def read_onnx(path: Path, size: tuple[int, int] | None = None) -> Network:
    """The classifier in an ONNX file.

    Initializers keep their names. What changed one otherwise stands with it (`tinytl_edge.export.passes.origin`), and
    the file's own names of input, output and logits in the model's metadata_props, as "tinytl-edge.input",
    "tinytl-edge.output" and "tinytl-edge.logits".

    Args:
        path: the file; external data lies in its folder.
        size: height and width of the images, for a file that leaves them open.

    Raises:
        UsageError: another kind of file, or a network that is no image classifier or has an operator that is not known.
        DamagedFileError: a file cut short or changed.
    """
    try:
        with quiet():  # the ONNX library's C++ side writes to the terminal
            return _read(path, size)
    except TinyTLError as error:
        if str(path) in str(error):
            raise
        text = str(error)
        raise type(error)(f"{path}: {text[0].lower()}{text[1:]}") from error
    except Exception as error:  # a changed file makes the libraries fail in many ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedFileError(f"{path} cannot be read as an ONNX classifier: {lines[0][:200]}") from error


def _read(path: Path, size: tuple[int, int] | None) -> Network:
    notes: list[str] = []
    model, content = read_model(path)
    forget_all(model)  # what is written there is no note of ours
    lift_constants(model)
    untie_vectors(model)
    if not model.graph.outputs:
        raise DamagedFileError(f"{path} has no output.")
    properties = told(model.metadata_props)
    images = take_images(model, size, image_size(properties), colour_order(properties) == "BGR")
    model.metadata_props["tinytl-edge.input"] = model.graph.inputs[0].name or ""
    _widen(model)
    split_fused(model)
    undo_quantisation(model)
    end = cut_end(model, notes)
    model.metadata_props["tinytl-edge.output"] = end.output
    model.metadata_props["tinytl-edge.logits"] = file_value(model.graph.outputs[0])
    remove_unused(model)
    _refuse_other_operators(model)
    _as_float(model.graph.inputs[0])
    _as_float(model.graph.outputs[0])
    normalise(model)
    outputs = int(model.graph.outputs[0].shape[1])  # type: ignore[index, arg-type]
    classes = end.classes if len(end.classes) == outputs else class_names(properties, outputs, notes)
    mean, std, known = _range(model, images, properties)
    fit, colours = fit_of(properties), colour_order(properties)
    margin = properties.get("take") == MIDDLE
    framing = Input(images.height, images.width, images.channels, mean, std, fit=fit or "crop", margin=margin)
    framing = replace(framing, pixel_range=pixel_range_of(properties))
    return Network(
        path.stem, model, framing, known, classes, end.kind, notes=notes, takes_bgr=colours == "BGR",
        colours_known=colours is not None, fit_known=fit is not None, source=FileSource(path, content, "onnx"),
    )  # fmt: skip


def _widen(model: ir.Model) -> None:
    """Floats of other sizes become float32."""
    for value in model.graph.initializers.values():
        if value.dtype in _OTHER_FLOATS and value.const_value is not None:
            dtype = str(value.const_value.numpy().dtype)
            set_initializer(value, value.const_value.numpy().astype(np.float32))
            record(value, "cast", dtype=dtype)
    for node in model.graph:
        if node.op_type == "Cast" and ir.DataType(node.attributes["to"].value) in _OTHER_FLOATS:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
        fill = node.attributes.get("value") if node.op_type == "ConstantOfShape" else None
        if fill is not None and fill.value.dtype in _OTHER_FLOATS:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(fill.value.numpy().astype(np.float32)))
        for output in node.outputs:
            output.type = None


def _as_float(value: ir.Value) -> None:
    value.type = ir.TensorType(ir.DataType.FLOAT)


def _refuse_other_operators(model: ir.Model) -> None:
    for node in model.graph:
        if "NMS" in node.op_type or node.op_type in _DETECTORS:
            raise UsageError(f"The model is a detector, not a classifier: it has the operator {node.op_type}.")
        if node.domain:
            raise UsageError(f"The model has the operator {node.op_type} of {node.domain}, which is not known here.")


def _range(
    model: ir.Model, images: Images, properties: Mapping[str, str]
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Mean and std of pixels in 0..255, and whether the file says so."""
    channels = images.channels
    if images.whole:
        return (128.0 if images.signed else 0.0,) * channels, (1.0,) * channels, True
    told = normalisation(properties, channels)
    if told is not None:
        return *told, True
    usual = quantised_range(model)
    if usual is not None:
        std = 255 / (usual[1] - usual[0])
        return (0.0 - usual[0] * std,) * channels, (std,) * channels, False
    inside = largest_constant(model)
    if inside is not None:  # the graph normalises by itself
        return (0.0,) * channels, (1.0 if inside > 2 else 255.0,) * channels, False
    if channels == 3 and not images.last:
        return *_IMAGENET, False
    if images.last:  # from Keras
        return (127.5,) * channels, (127.5,) * channels, False
    return (0.0,), (255.0,), False
