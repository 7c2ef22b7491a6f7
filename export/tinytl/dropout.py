"""Dropout as inputs: its activation is multiplied by a mask that is fed, so that two runtimes can be fed the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from tinytl_edge.export.onnx_graph import sizes, weight_source


@dataclass(frozen=True)
class DropoutInput:
    """A dropout layer as an input: its activation [batch, *shape] is multiplied by a mask that is fed in.

    A mask holds 0 or 1 / (1 - rate) in training and 1 in evaluation.
    """

    name: str
    shape: tuple[int, ...]
    rate: float


def dropout_inputs(model: ir.Model, markers: Mapping[str, tuple[str, float]]) -> list[DropoutInput]:
    """Turn products with marked constants into products with new inputs; a layer that is used twice has two of them.

    Args:
        markers: by the name of the constant that marks a dropout layer: the layer's name and its rate.
    """
    found = []
    uses: Counter[str] = Counter()
    for node in model.graph:
        if node.op_type != "Mul":
            continue
        for index, value in enumerate(node.inputs):
            source = weight_source(value)
            if source is not None and source.name is not None and source.name in markers:
                name, rate = markers[source.name]
                shape = sizes(node.outputs[0])
                uses[name] += 1
                own = f"dropout/{name}" if uses[name] == 1 else f"dropout/{name}~{uses[name]}"
                mask = ir.Value(name=own, shape=ir.Shape(["batch", *shape]), type=ir.TensorType(ir.DataType.FLOAT))
                model.graph.inputs.append(mask)
                node.replace_input_with(index, mask)
                found.append(DropoutInput(own, shape, rate))
    return found
