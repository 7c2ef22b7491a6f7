"""Vectors that several layers share get a copy for each: exporters store equal ones once, whoever they belong to.

A bias of zeros, or a fresh BatchNorm's scale, may so be that of a dozen layers; trained, each goes its own way.
"""

from __future__ import annotations

import onnx_ir as ir

from tinytl_edge.export.onnx_graph import add_initializer

from .origin import forget, record

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_LAYERS = (
    "Conv",
    "Gemm",
    "BatchNormalization",
    "Add",
    "Mul",
    "PRelu",
    "LayerNormalization",
    "ConvTranspose",
    "Reshape",  # of a bias, as onnxruntime's quantisation adds it
    "Identity",  # as which PyTorch writes that one vector is another
)


def untie_vectors(model: ir.Model) -> None:
    """Rewrite in place; constants must be initializers."""
    for value in list(model.graph.initializers.values()):
        array = value.const_value.numpy() if value.const_value is not None and value.dtype in _FLOATS else None
        if array is None or array.size < 2 or array.size != max(array.shape):
            continue
        uses = [use for use in value.uses() if use.node.op_type in _LAYERS and use.node.graph is model.graph]
        for number, (node, index) in enumerate(uses if len(uses) > 1 else ()):
            made = value
            if number:
                made = add_initializer(model, value.name or "shared", array)
                record(made, "", value)
                forget(made, "reader")
                node.replace_input_with(index, made)
            record(made, "reader", makes=node.outputs[0].name, input=index)
