"""A network graph as a plain ONNX model for any inference runtime, with places for what trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

from tinytl_edge.export.onnx_graph import add_initializer
from tinytl_edge.export.sources.network import Network
from tinytl_edge.runtime.files.bundle import Input
from tinytl_edge.runtime.model_files.template import Port


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
    network.metadata_props.clear()
    network.producer_name = "tinytl-edge"
    model = ir.to_proto(network)
    onnx.checker.check_model(model, full_check=True)
    return model


def port(value: onnx.ValueInfoProto) -> Port:
    """An input or output as a template names it."""
    kind = value.type.tensor_type
    shape = tuple(max(int(dimension.dim_value), 0) for dimension in kind.shape.dim)
    return Port(value.name, shape, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))


def layout_of(images: onnx.ValueInfoProto, taken: Input) -> str:
    """The order of a file's input: NCHW, NHWC, or NHW where it has no channels."""
    sizes = [dimension.dim_value for dimension in images.type.tensor_type.shape.dim]
    if len(sizes) == 3:
        return "NHW"
    return "NHWC" if sizes[1] != taken.channels and sizes[3] == taken.channels else "NCHW"


def as_the_file_was(proto: onnx.ModelProto, was: onnx.ModelProto, network: Network, one_output: bool) -> None:
    """Give a network graph's model the input and the end of the file that it came from, in place."""
    graph = proto.graph
    constants = {tensor.name for tensor in was.graph.initializer}
    images = next(value for value in was.graph.input if value.name not in constants)
    output = next(v for v in was.graph.output if v.name == network.model.metadata_props["tinytl-edge.output"])
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    taken, given = (f"{name}/own" if name in names else name for name in (images.name, output.name))

    def node(op: str, inputs: list[str], made: str, **attributes: Any) -> onnx.NodeProto:
        return onnx.helper.make_node(op, inputs, [made], name=f"{made}/{op}", **attributes)

    first, value, layout = [], taken, layout_of(images, network.input)
    if images.type.tensor_type.elem_type != TensorProto.FLOAT:
        first.append(node("Cast", [value], "own/floats", to=TensorProto.FLOAT))
        value = "own/floats"
    if layout == "NHWC":
        first.append(node("Transpose", [value], "own/planes", perm=[0, 3, 1, 2]))
    elif layout == "NHW":
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "own/axis"))
        first.append(node("Unsqueeze", [value, "own/axis"], "own/planes"))
    if network.takes_bgr:
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "own/order"))
        first.append(node("Gather", [first[-1].output[0] if first else taken, "own/order"], "own/rgb", axis=1))
    _rename(graph, graph.input[0].name, first[-1].output[0] if first else taken)
    for made in reversed(first):
        graph.node.insert(0, made)
    last, value = [], graph.output[0].name
    if one_output:
        graph.initializer.append(numpy_helper.from_array(np.array([[-1.0], [1.0]], np.float32), "own/difference"))
        last.append(node("MatMul", [value, "own/difference"], "own/logit"))
        value = "own/logit"
    end = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "sigmoid": "Sigmoid"}.get(network.end)
    if end is not None:
        last.append(node(end, [value], "own/end", **({} if end == "Sigmoid" else {"axis": 1})))
        value = "own/end"
    if output.type.tensor_type.elem_type not in (TensorProto.FLOAT, 0):
        last.append(node("Cast", [value], "own/type", to=output.type.tensor_type.elem_type))
    if last:
        last[-1].output[0] = given
        graph.node.extend(last)
    else:
        _rename(graph, value, given)
    outputs = 1 if one_output else graph.output[0].type.tensor_type.shape.dim[1].dim_value
    graph.input[0].CopyFrom(images)
    graph.input[0].name = taken
    kind = output.type.tensor_type.elem_type or TensorProto.FLOAT
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(given, kind, ["batch", outputs]))
    onnx.checker.check_model(proto, full_check=True)


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """A value of the graph."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


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
