"""The network graph -> the compiler's graph: one sample, channels last, few operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

from ..ir import Graph, Shape
from ..plan import STORED_IMAGE
from . import elementwise, layers, norms, pooling, shapes
from .absorb import absorb
from .activations import find_activations
from .importer import Importer

_IMPORTERS: dict[str, Callable[[Importer, ir.Node], None]] = {
    "Conv": layers.convolution,
    "Gemm": layers.gemm,
    "MatMul": layers.matmul,
    "Add": elementwise.add,
    "Sub": elementwise.subtract,
    "Mul": elementwise.multiply,
    "Div": elementwise.divide,
    "Neg": elementwise.negate,
    "Pow": elementwise.power,
    "PRelu": elementwise.prelu,
    "AveragePool": pooling.average_pool,
    "MaxPool": pooling.max_pool,
    "GlobalAveragePool": pooling.global_average,
    "GlobalMaxPool": pooling.global_max,
    "ReduceMean": pooling.reduce,
    "ReduceSum": pooling.reduce,
    "ReduceMax": pooling.reduce,
    "ReduceL2": pooling.reduce,
    "Softmax": elementwise.softmax,
    "Resize": pooling.resize,
    "Pad": pooling.pad,
    "LayerNormalization": norms.layer_norm,
    "InstanceNormalization": norms.instance_norm,
    "LRN": norms.response_norm,
    "Reshape": shapes.reshape,
    "Flatten": shapes.reshape,
    "Squeeze": shapes.reshape,
    "Unsqueeze": shapes.reshape,
    "Expand": shapes.reshape,
    "Transpose": shapes.transpose,
    "Slice": shapes.piece,
    "Split": shapes.split,
    "Gather": shapes.gather,
    "Concat": shapes.concatenate,
}


def import_network(model: ir.Model, trainable: Iterable[str], stored_image: Shape | None = None) -> Graph:
    """Build the forward half of a step from a network graph.

    Args:
        stored_image: the shape of an image as it is stored, which waits in the arena until it becomes the input.

    Raises:
        UsageError: an operator, or one of its options, cannot be compiled; names operator and layer.
    """
    trains = set(trainable)
    importer = Importer(model, trains)
    if stored_image is not None:
        importer.graph.add_value(STORED_IMAGE, stored_image, "uint8")
    found = find_activations(model, trains)
    activations = {activation.nodes[-1]: activation for activation in found}
    spelled = {norm.nodes[-1]: norm for norm in norms.find_spelled_norms(model)}
    groups = [*(activation.nodes for activation in found), *(norm.nodes for norm in spelled.values())]
    inner = {node for nodes in groups for node in nodes[:-1]}
    for node in model.graph:
        if node in inner or node.op_type == "DequantizeLinear":
            continue
        try:
            if node in spelled:
                norms.spelled_norm(importer, node, spelled[node])
            elif node in activations:
                elementwise.activate(importer, node, activations[node])
            elif node.op_type in _IMPORTERS:
                _IMPORTERS[node.op_type](importer, node)
            else:
                raise importer.refused(node)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Importers expect maps of [batch, channels, height, width]; of other values any of these may come first.
            raise importer.refused(node, f"it is of a form that is not known here ({error})") from error
    logits = importer.views[model.graph.outputs[0]]
    importer.graph.logits = logits.name
    absorb(importer.graph)
    return importer.graph
