"""Frozen weights rounded to 8 bits: the same function for every runtime."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, add_initializer, constant, set_initializer

from .parameters import WEIGHT, find_parameters

_WIDE = "/wide"  # ends the name of a node through which a rounded weight is read


def round_frozen_weights(model: ir.Model, trainable: Mapping[str, str]) -> None:
    """Let every frozen float32 weight of a convolution or linear layer be read through DequantizeLinear.

    One scale for each output, max |weight| / 127. Run behind `fold_batchnorm`.
    """
    for name, use in find_parameters(model).items():
        array = use.value.const_value.numpy() if use.value.const_value is not None else None
        if use.kind != WEIGHT or name in trainable or array is None or array.dtype != np.float32:
            continue
        largest = np.abs(array).reshape(len(array), -1).max(1)
        scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
        codes = np.clip(np.rint(array / scale.reshape(-1, *[1] * (array.ndim - 1))), -127, 127).astype(np.int8)
        readers = list(use.value.uses())
        set_initializer(use.value, codes)
        node = ir.node(
            "DequantizeLinear",
            [use.value, add_initializer(model, f"{name}/scale", scale)],
            {"axis": 0},
            name=f"{name}{_WIDE}",
        )
        wide = node.outputs[0]
        wide.name, wide.shape, wide.type = node.name, ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_before(readers[0].node, node)
        for reader, index in readers:
            reader.replace_input_with(index, wide)


def unrounded(model: ir.Model) -> tuple[ir.Model, dict[str, Array]]:
    """A copy in which the weights that were rounded are float32 initializers, of the numbers that they are now; and
    these by name."""
    copy, found = model.clone(), dict[str, Array]()
    for node in list(copy.graph):
        source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if source is not None and source.name and node.name == f"{source.name}{_WIDE}":
            numbers = constant(node.outputs[0])
            assert numbers is not None
            found[source.name] = numbers.astype("<f4")
            set_initializer(source, numbers)
            node.outputs[0].replace_all_uses_with(source)
            copy.graph.remove(node, safe=True)
    return copy, found
