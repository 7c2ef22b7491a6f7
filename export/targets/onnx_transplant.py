"""Nodes of a network graph copied into the graph of the ONNX file that it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
from onnx import NodeProto, TensorProto

from tinytl_edge.export.onnx_graph import Array, attribute, weight_source
from tinytl_edge.export.passes.origin import file_value
from tinytl_edge.runtime.model_files.stored_numbers import Step

from .content import UnwritableError
from .onnx_decoding import scale_of
from .onnx_source import OnnxFile, Place

_RESIZE_WITH_CENTRES = 11  # the opset of a Resize with half-pixel centres
_ROI_IS_OPTIONAL = 13


class Transplant:
    """Copies of nodes, which read what the file calls the values that they read in the network graph.

    Attributes:
        places: those of what trains among their parameters.
    """

    def __init__(self, file: OnnxFile, model: ir.Model, trainable: Mapping[str, str]) -> None:
        self.places: list[Place] = []
        self._file, self._trainable = file, trainable
        self._file_input = model.metadata_props.get("tinytl-edge.input", "")
        self._is_half = any(t.data_type == TensorProto.FLOAT16 for t in file.constants.values())
        self._names: dict[str, str] = {}  # of the network graph -> of the file

    def name(self, value: ir.Value, file_name: str) -> None:
        """The file's name of a value, where it is another than its own."""
        self._names[str(value.name)] = file_name

    def insert(self, nodes: Iterable[ir.Node], behind: NodeProto) -> str:
        """Copy nodes to the place behind a node; returns the file's name of what the last one makes.

        Raises:
            UnwritableError: the file has no such value as one that they read, or no such operator.
        """
        made = [self._node(node) for node in nodes if weight_source(node.outputs[0]) is None]
        return str(self._file.insert(made, behind)[-1].output[0])

    def _node(self, node: ir.Node) -> NodeProto:
        proto: NodeProto = ir.serde.serialize_node(node)
        del proto.metadata_props[:]
        inputs = [self.of(value) for value in node.inputs]
        if node.op_type == "Resize":
            if self._file.opset < _RESIZE_WITH_CENTRES:
                raise UnwritableError(f"opset {self._file.opset} has no resizing with half-pixel centres")
            if self._file.opset < _ROI_IS_OPTIONAL:
                inputs[1] = self._constant(f"{node.name}/roi", np.zeros(0, np.float32))
        del proto.input[:]
        proto.input.extend(inputs)
        proto.output[0] = self._names[str(node.outputs[0].name)] = self._file.free_name(str(node.outputs[0].name))
        return proto

    def of(self, value: ir.Value | None) -> str:
        """The file's name of a value of the network graph; a constant is copied.

        Raises:
            UnwritableError: it has none.
        """
        if value is None:
            return ""
        name = str(value.name)
        if name in self._names:
            return self._names[name]
        source = weight_source(value)
        if source is not None:
            self._names[name] = self._parameter(str(source.name), source, value)
        elif value.is_graph_input():
            self._names[name] = self._file_input
        elif scale_of(self._file, file_value(value)) is not None:
            raise UnwritableError(f"'{file_value(value)}' is of 8-bit codes in it")
        elif file_value(value) in self._file.makers:
            self._names[name] = file_value(value)
        else:
            raise UnwritableError(f"there is no '{name}' in it")
        return self._names[name]

    def _parameter(self, name: str, source: ir.Value, value: ir.Value) -> str:
        """A constant, in the shape in which it is read."""
        assert source.const_value is not None
        array, shape = source.const_value.numpy(), source.const_value.numpy().shape
        steps: tuple[Step, ...] = ()
        node = value.producer()
        if node is not None and node.op_type == "Transpose":
            axes = attribute(node, "perm")
            array, steps = array.transpose(axes), (Step("permute", tuple(shape), tuple(axes)),)
        elif node is not None and value.shape is not None:
            array = array.reshape([int(str(n)) for n in value.shape])
        made = self._constant(name, array)
        if name in self._trainable:
            dtype = "float16" if self._is_half else "float32"
            self.places.append(Place(name, self._file.constants[made], made, dtype, steps))
        return made

    def _constant(self, name: str, array: Array) -> str:
        if self._is_half and array.dtype == np.float32 and not name.endswith((".scales", "/roi")):
            array = array.astype(np.float16)
        return self._file.add(self._file.free_name(name), array).name
