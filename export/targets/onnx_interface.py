"""What an ONNX model takes and gives: ports, and a network graph's model with those that are wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from tinytl_edge.runtime.files.bundle import Input
from tinytl_edge.runtime.model_files.template import Port, layout_of

ENDS = {"softmax": "Softmax", "log_softmax": "LogSoftmax", "sigmoid": "Sigmoid"}


def port(value: onnx.ValueInfoProto) -> Port:
    """An input or output as a template names it."""
    kind = value.type.tensor_type
    shape = tuple(max(int(dimension.dim_value), 0) for dimension in kind.shape.dim)
    return Port(value.name, shape, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)))


def take_images(proto: onnx.ModelProto, images: onnx.ValueInfoProto, taken: Input, blue_first: bool) -> None:
    """Let a model, whose input is float32 NCHW and RGB, take another, in place: its type, layout and colours.

    Args:
        images: a file's input.
        blue_first: that input's colours are BGR.
    """
    graph, layout, name = proto.graph, layout_of(port(images).shape, taken.channels), _free_name(proto, images.name)
    nodes: list[onnx.NodeProto] = []

    def add(op: str, *constants: str, **attributes: Any) -> None:
        source = nodes[-1].output[0] if nodes else name
        made = f"taken/{len(nodes)}"
        nodes.append(onnx.helper.make_node(op, [source, *constants], [made], name=f"{made}/{op}", **attributes))

    if images.type.tensor_type.elem_type != TensorProto.FLOAT:
        add("Cast", to=TensorProto.FLOAT)
    if layout == "NHWC":
        add("Transpose", perm=[0, 3, 1, 2])
    elif layout == "NHW":
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "taken/axis"))
        add("Unsqueeze", "taken/axis")
    if blue_first:
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "taken/order"))
        add("Gather", "taken/order", axis=1)
    _rename(graph, graph.input[0].name, nodes[-1].output[0] if nodes else name)
    for node in reversed(nodes):
        graph.node.insert(0, node)
    graph.input[0].CopyFrom(images)
    graph.input[0].name = name


def give_scores(proto: onnx.ModelProto, end: str, one_output: bool, wanted: str, kind: int = TensorProto.FLOAT) -> None:
    """Let a model give what stands behind its logits, in place.

    Args:
        end: "softmax", "log_softmax", "sigmoid" or "".
        one_output: one number, of the second of two classes.
        wanted: the output's name.
        kind: its type.
    """
    graph, name = proto.graph, _free_name(proto, wanted)
    nodes: list[onnx.NodeProto] = []

    def add(op: str, *constants: str, **attributes: Any) -> None:
        source = nodes[-1].output[0] if nodes else graph.output[0].name
        made = f"given/{len(nodes)}"
        nodes.append(onnx.helper.make_node(op, [source, *constants], [made], name=f"{made}/{op}", **attributes))

    if one_output:
        graph.initializer.append(numpy_helper.from_array(np.array([[-1.0], [1.0]], np.float32), "given/difference"))
        add("MatMul", "given/difference")
    if end:
        add(ENDS[end], **({} if end == "sigmoid" else {"axis": 1}))
    if kind != TensorProto.FLOAT:
        add("Cast", to=kind)
    if nodes:
        nodes[-1].output[0] = name
        graph.node.extend(nodes)
    else:
        _rename(graph, graph.output[0].name, name)
    outputs = 1 if one_output else graph.output[0].type.tensor_type.shape.dim[1].dim_value
    graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(name, kind, ["batch", outputs]))


def _free_name(proto: onnx.ModelProto, name: str) -> str:
    graph = proto.graph
    given = {graph.input[0].name, graph.output[0].name}
    names = {each for node in graph.node for each in (*node.input, *node.output)} - given
    return f"{name}/own" if name in names else name


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """A value of the graph."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
