"""A network graph as a plain ONNX model for any inference runtime, with places for what trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import add_initializer
from tinytl_edge.export.passes.normalise import remove_unused
from tinytl_edge.runtime.files.bundle import Input


def inference_model(network: ir.Model, taken: Input, masks: Iterable[str], raw_pixels: bool = False) -> onnx.ModelProto:
    """The network graph with dropout taken out; `network` is changed.

    Input `images` float32 [batch, C, H, W], normalised by the mean and std of `taken`, or, with `raw_pixels`, uint8
    [batch, H, W, C] as a camera gives them. Output `logits` [batch, classes].

    Args:
        masks: the names of the inputs that are dropout's.
    """
    _remove_dropout(network, set(masks))
    if raw_pixels:
        _take_raw_pixels(network, taken)
    remove_unused(network)
    _forget_notes(network)
    network.producer_name = "tinytl-edge"
    model = ir.to_proto(network)
    onnx.checker.check_model(model, full_check=True)
    return model


def _forget_notes(network: ir.Model) -> None:
    """Ours, and the exporter's stack traces."""
    graph = network.graph
    made = [value for node in graph for value in node.outputs]
    for part in (network, graph, *graph.inputs, *graph.initializers.values(), *graph, *made):
        part.metadata_props.clear()


def _remove_dropout(network: ir.Model, masks: set[str]) -> None:
    graph = network.graph
    for mask in [value for value in graph.inputs if value.name in masks]:
        for product in [use.node for use in mask.uses()]:
            kept = next(value for value in product.inputs if value is not mask)
            assert kept is not None
            product.outputs[0].replace_all_uses_with(kept, replace_graph_outputs=True)
            graph.remove(product, safe=True)
        graph.inputs.remove(mask)


def _take_raw_pixels(network: ir.Model, taken: Input) -> None:
    graph = network.graph
    images = graph.inputs[0]
    pixels = ir.Value(
        name="images", shape=ir.Shape(["batch", taken.height, taken.width, taken.channels]),
        type=ir.TensorType(ir.DataType.UINT8),
    )  # fmt: skip
    nodes: list[ir.Node] = []

    def add(op: str, inputs: Sequence[ir.Value], name: str, **attributes: Any) -> ir.Value:
        node = ir.node(op, inputs, attributes or None, name=f"preprocess/{name}")
        node.outputs[0].name = node.name
        nodes.append(node)
        return node.outputs[0]

    def by_channel(name: str, numbers: Sequence[float]) -> ir.Value:
        return add_initializer(network, f"preprocess/{name}", np.array(numbers, np.float32).reshape(-1, 1, 1))

    numbers = add("Cast", [pixels], "floats", to=ir.DataType.FLOAT.value)
    planes = add("Transpose", [numbers], "planes", perm=[0, 3, 1, 2])
    centred = add("Sub", [planes, by_channel("mean", taken.mean)], "centred")
    normal = add("Div", [centred, by_channel("std", taken.std)], "images")
    normal.shape, normal.type = images.shape, images.type
    images.replace_all_uses_with(normal)
    graph.inputs[0] = pixels
    graph.insert_before(graph[0], nodes)
