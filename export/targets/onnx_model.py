"""The adapted classifier as a plain ONNX model for any inference runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, add_initializer, set_initializer
from tinytl_edge.runtime.files.bundle import Manifest


def inference_model(
    network: ir.Model,
    manifest: Manifest,
    parameters: Mapping[str, Array],
    classes: Sequence[str],
    raw_pixels: bool = False,
) -> onnx.ModelProto:
    """The network graph with trained parameters put in and dropout taken out; `network` is changed.

    Input `images` float32 [batch, C, H, W], normalised by the mean and std in the metadata, or, with `raw_pixels`,
    uint8 [batch, H, W, C] as a camera gives them. Output `logits` [batch, classes]. Metadata: classes (JSON), height,
    width, channels, mean, std (JSON, of pixels in 0..255 by channel), fit ("crop", "squash" or "pad": how an image
    becomes the input), labels: "single" (softmax) or "multi" (a sigmoid each).
    """
    for name, value in parameters.items():
        set_initializer(network.graph.initializers[name], np.ascontiguousarray(value, np.float32))
    _remove_dropout(network, {dropout.name for dropout in manifest.dropouts})
    if raw_pixels:
        _take_raw_pixels(network, manifest)
    taken = manifest.input
    network.metadata_props.update(
        {
            "classes": json.dumps(list(classes), ensure_ascii=False),
            "height": str(taken.height),
            "width": str(taken.width),
            "channels": str(taken.channels),
            "mean": json.dumps(list(taken.mean)),
            "std": json.dumps(list(taken.std)),
            "fit": taken.fit,
            "backbone": manifest.backbone,
            "method": manifest.method,
            "labels": manifest.labels,
        }
    )
    network.producer_name, network.producer_version = "tinytl-edge", manifest.created_by
    model = ir.to_proto(network)
    onnx.checker.check_model(model, full_check=True)
    return model


def _remove_dropout(network: ir.Model, masks: set[str]) -> None:
    graph = network.graph
    for mask in [value for value in graph.inputs if value.name in masks]:
        for product in [use.node for use in mask.uses()]:
            kept = next(value for value in product.inputs if value is not mask)
            assert kept is not None
            product.outputs[0].replace_all_uses_with(kept, replace_graph_outputs=True)
            graph.remove(product, safe=True)
        graph.inputs.remove(mask)


def _take_raw_pixels(network: ir.Model, manifest: Manifest) -> None:
    graph, taken = network.graph, manifest.input
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
