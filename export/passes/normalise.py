"""The passes in order: any inference graph of opset 7 to 26 becomes a network graph in normal form.

See docs/architecture.md, "The network graph", for what that is.
"""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from tinytl_edge.export.onnx_graph import add_initializer
from tinytl_edge.runtime.errors import UsageError

from .batch import BATCH, a_batch, free_batch, free_traced_batch, set_batch
from .blocks_of_pixels import merge_blocks_of_pixels
from .branches import inline_branches
from .clamps import merge_clamps
from .cleaning import drop_zero_biases, remove_idle
from .folding import fold_constants
from .gathers import remove_gathers
from .linear import normalise_linear_layers
from .means import merge_means
from .opset import refuse_unknown_operators, to_opset_17
from .padding import explicit_pads, fuse_padding
from .repeats import repeats_to_concat
from .sequences import remove_sequences
from .transposes import merge_transposes

_IR_VERSION = 8
_MOST_ROUNDS = 50  # each brings known sizes past one more Reshape at least


def normalise(model: ir.Model) -> None:
    """Bring `model` into normal form, in place.

    The first input is [batch, C, H, W], with C, H and W known; the first output [batch, classes].

    Raises:
        UsageError: the graph is not consistent, or not one of an image classifier.
    """
    lift_constants(model)
    batch = a_batch(model)
    traced = set_batch(model, batch)
    parameters = {
        name for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.size > 1 and value.dtype == ir.DataType.FLOAT
    }  # fmt: skip
    _until_nothing_folds(model, parameters, batch, traced)
    flatten_output(model)
    to_opset_17(model)
    _until_nothing_folds(model, parameters, batch, traced)
    refuse_unknown_operators(model)
    repeats_to_concat(model)
    explicit_pads(model)
    drop_zero_biases(model, parameters)
    merge_blocks_of_pixels(model)
    merge_means(model)
    merge_transposes(model)
    merge_clamps(model)
    fuse_padding(model)
    normalise_linear_layers(model)
    remove_unused(model)
    _infer(model, strict=True)
    free_batch(model, batch)
    remove_unused(model)
    _finish(model)


def lift_constants(model: ir.Model) -> None:
    """Functions inlined, Constant nodes as initializers, a name of its own for everything."""
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in model.graph:
        node.name = node.name or (node.outputs[0].name if node.outputs else None) or node.op_type
        node.domain = "" if node.domain == "ai.onnx" else node.domain
    common.NameFixPass()(model)


def infer_shapes(model: ir.Model) -> None:
    """Shapes of all values, from those of the inputs.

    Raises:
        UsageError: the graph contradicts itself.
    """
    _infer(model, strict=True)


def _infer(model: ir.Model, strict: bool) -> None:
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
            if not value.is_graph_output():
                value.type = None
    silent = logging.getLogger("onnx_ir.passes.common.shape_inference")
    level = silent.level
    silent.setLevel(logging.CRITICAL)  # it would write what is raised below
    try:
        common.ShapeInferencePass(check_type=False, strict_mode=strict, data_prop=True)(model)
    finally:
        silent.setLevel(level)
    if strict and any(output.shape is None for output in model.graph.outputs):
        try:
            onnx.shape_inference.infer_shapes(ir.serde.serialize_model(model), strict_mode=True, data_prop=True)
        except Exception as error:  # of a type of its own, or a bare RuntimeError or ValueError
            reason = " ".join(str(error).split())[:300]
            raise UsageError(f"The model's ONNX graph is not consistent: {reason}") from error


def _until_nothing_folds(model: ir.Model, parameters: set[str], batch: int, traced: int) -> None:
    for _ in range(_MOST_ROUNDS):
        _infer(model, strict=False)
        inline_branches(model)
        remove_sequences(model)
        remove_gathers(model, batch, traced)
        remove_idle(model)
        folded = fold_constants(model, parameters, batch)
        if not free_traced_batch(model, batch, traced) and not folded:
            break
        remove_unused(model)
    remove_unused(model)


def remove_unused(model: ir.Model) -> None:
    """Nodes and initializers that no output depends on go; nodes in order."""
    common.RemoveUnusedNodesPass()(model)
    model.graph.sort()


def flatten_output(model: ir.Model) -> None:
    """Scores of the shape [batch, classes, 1, 1] or [batch, 1, classes] become [batch, classes], in place."""
    output = model.graph.outputs[0]
    shape = list(output.shape) if output.shape is not None else []
    if len(shape) > 2 and sum(size != 1 for size in shape[1:]) <= 1:
        target = add_initializer(model, "logits/shape", np.array([0, -1], np.int64))
        node = ir.node("Reshape", [output, target], name="logits/flat")
        node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(ir.DataType.FLOAT)
        model.graph.append(node)
        model.graph.outputs[0] = node.outputs[0]


def _finish(model: ir.Model) -> None:
    output = model.graph.outputs[0]
    shape = tuple(output.shape) if output.shape is not None else ()
    if len(shape) != 2 or shape[0] != BATCH or not isinstance(shape[1], int):
        known = "unknown" if not shape else "[" + ", ".join(str(size) for size in shape) + "]"
        kinds = " (a detector, a segmentation, or an embedding of several parts)" if len(shape) > 2 else ""
        raise UsageError(
            f"The model's output has the shape {known}, and is no classifier's: that gives [batch, classes]{kinds}."
        )
    for domain in [domain for domain in model.graph.opset_imports if domain]:
        del model.graph.opset_imports[domain]
    model.ir_version = _IR_VERSION
    output.name, model.graph.inputs[0].name = "logits", "images"
    common.NameFixPass()(model)  # should anything else bear one of these, it is that which gets another
