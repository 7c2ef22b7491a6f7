"""Trained parameters back into the ONNX file that they came from: the same graph, with places where they go."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx import NodeProto, TensorProto, numpy_helper

from tinytl_edge.export.onnx_graph import Array, weight_source
from tinytl_edge.export.passes.origin import Stored, added_to, stored
from tinytl_edge.export.tinytl.classifier import find_classifier
from tinytl_edge.export.tinytl.parameters import find_parameters
from tinytl_edge.runtime.model_files.stored_numbers import Step, as_stored

from .content import UnwritableError

_OLDEST_WITH_HIDDEN_INITIALIZERS = 4  # before, they are inputs, too


@dataclass(frozen=True)
class Place:
    """Where a trained parameter goes: a tensor of the file, the type of its numbers, and the way there."""

    parameter: str
    tensor: TensorProto
    name: str  # of the tensor, or of the Constant node's output
    dtype: str
    steps: tuple[Step, ...]


class OnnxFile:
    """A file's graph while it is changed: who makes and who reads each value, and the constants by name."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto, self.graph = proto, proto.graph
        self.opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in self.graph.initializer}
        self.makers: dict[str, NodeProto] = {}
        for node in self.graph.node:
            self.makers.update(dict.fromkeys(node.output, node))
            if node.op_type == "Constant" and [a.name for a in node.attribute] == ["value"]:
                self.constants[node.output[0]] = node.attribute[0].t
        # What nothing reads in the file as it came stays there.
        self._idle = ({*self.makers} | {*self.constants}) - self._read()

    def readers(self, name: str) -> list[tuple[NodeProto, int]]:
        """The nodes that read a value, and at which input."""
        return [(node, i) for node in self.graph.node for i, read in enumerate(node.input) if read == name]

    def only_reader(self, name: str) -> tuple[NodeProto, int]:
        """The node that alone reads a value.

        Raises:
            UnwritableError: there are several, or none.
        """
        found = self.readers(name)
        inside = sum(name in _reads_of_branches(node) for node in self.graph.node)
        if len(found) != 1 or inside:
            raise UnwritableError(f"'{name}' is read in {len(found) + inside} places")
        return found[0]

    def add(self, name: str, array: Array) -> TensorProto:
        """A new initializer."""
        assert name not in self.constants and name not in self.makers, name
        tensor: TensorProto = self.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
        self.constants[name] = tensor
        if self.proto.ir_version < _OLDEST_WITH_HIDDEN_INITIALIZERS:
            value = onnx.helper.make_tensor_value_info(name, tensor.data_type, array.shape)
            self.graph.input.append(value)
        return tensor

    def insert(self, nodes: Sequence[NodeProto], behind: NodeProto) -> list[NodeProto]:
        """Put nodes behind another."""
        at = next(index for index, node in enumerate(self.graph.node) if node == behind) + 1
        for offset, node in enumerate(nodes):
            self.graph.node.insert(at + offset, node)
        inserted = list(self.graph.node[at : at + len(nodes)])
        for node in inserted:
            self.makers.update(dict.fromkeys(node.output, node))
        return inserted

    def free_name(self, name: str) -> str:
        """The name itself, or one near to it that nothing has."""
        number, unique = 1, name
        while unique in self.constants or unique in self.makers or any(unique == v.name for v in self.graph.input):
            number += 1
            unique = f"{name}~{number}"
        return unique

    def replace_computed(self, name: str, array: Array) -> TensorProto:
        """A constant instead of a value that is computed from constants."""
        node = self.makers.pop(name, None)
        if node is None or len(node.output) != 1:
            raise UnwritableError(f"there is no '{name}' in it")
        node.output[0] = self.free_name(f"{name}/computed")
        self.makers[node.output[0]] = node
        tensor = self.add(name, array)
        self.forget_unread()
        return tensor

    def set_constant(self, tensor: TensorProto, array: Array) -> None:
        """Give a constant other numbers, and perhaps another shape."""
        name = tensor.name
        self._forget_shapes({name})
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
        for value in self.graph.input:
            if value.name == name:
                value.CopyFrom(onnx.helper.make_tensor_value_info(name, tensor.data_type, array.shape))

    def give_outputs(self, layer: NodeProto, count: int) -> list[NodeProto]:
        """A layer has another number of outputs: what is noted of the shapes behind it is dropped, and the graph's
        outputs among that get as many; returns the nodes behind it, the layer, too."""
        behind, changed = [layer], set(layer.output)
        for node in self.graph.node:
            if node is not layer and changed & {*node.input, *_reads_of_branches(node)}:
                behind.append(node)
                changed.update(node.output)
        self._forget_shapes(changed)
        for output in self.graph.output:
            sizes = output.type.tensor_type.shape.dim
            if output.name in changed and len(sizes) > 1 and sizes[1].HasField("dim_value"):
                sizes[1].dim_value = count
        return behind

    def _forget_shapes(self, names: Collection[str]) -> None:
        """Drop what is noted of values."""
        kept = [value for value in self.graph.value_info if value.name not in names]
        del self.graph.value_info[:]
        self.graph.value_info.extend(kept)

    def forget_unread(self) -> None:
        """Nodes and constants that nothing reads any more go."""
        while True:
            needed = self._read() | self._idle
            unread = [node for node in self.graph.node if not needed & set(node.output)]
            if not unread:
                break
            for node in unread:
                self.graph.node.remove(node)
        for tensor in [t for t in self.graph.initializer if t.name not in needed]:
            self.graph.initializer.remove(tensor)
            for value in [value for value in self.graph.input if value.name == tensor.name]:
                self.graph.input.remove(value)

    def _read(self) -> set[str]:
        """All values that are read, by nodes or as the graph's outputs."""
        read = {name for node in self.graph.node for name in (*node.input, *_reads_of_branches(node))}
        return read | {value.name for value in self.graph.output}


def _reads_of_branches(node: NodeProto) -> set[str]:
    """What the graphs inside of a node read."""
    graphs = [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
    return {name for g in graphs for inner in g.node for name in (*inner.input, *_reads_of_branches(inner))}


def write_back(file: OnnxFile, model: ir.Model, trainable: Mapping[str, str], placed: Collection[str]) -> list[Place]:
    """Find or make a place for each trained parameter but those of lite residual modules, and those that have one.

    Raises:
        UnwritableError: one has no place in the file.
    """
    used, classifier = find_parameters(model), find_classifier(model)
    places = []
    for name in trainable:
        value = model.graph.initializers[name]
        if added_to(value) is not None or name in placed:
            continue
        try:
            way = _without_constants(stored(value), model, trainable)
        except ValueError as error:
            raise UnwritableError(str(error)) from None
        resizable = name in classifier.parameters
        if not way.steps and way.name not in file.constants and way.name not in file.makers:
            tensor = _new_bias(file, used[name].node, way, value)
            name_of = tensor.name
        else:
            others = {step.other: model.graph.initializers[step.other] for step in way.steps if step.other}
            tensor = _place(file, way, {"": value, **others}, resizable)
            name_of = tensor.name if way.reader is not None else way.name
        places.append(Place(name, tensor, name_of, way.dtype, way.steps))
    file.forget_unread()
    taken = [place.name for place in places]
    twice = next((name for name in taken if taken.count(name) > 1), None)
    if twice is not None:
        raise UnwritableError(f"several parameters come from '{twice}'")
    return places


def _without_constants(way: Stored, model: ir.Model, trainable: Mapping[str, str]) -> Stored:
    """What another parameter adds is a constant where that one does not train."""
    steps = []
    for step in way.steps:
        if step.kind == "add_product" and step.other not in trainable:
            step = added(step, _numbers(model.graph.initializers[step.other]))
        steps.append(step)
    return replace(way, steps=tuple(steps))


def added(step: Step, other: Array) -> Step:
    """The product that a step adds, of numbers that stay as they are."""
    return Step("add", numbers=tuple((other.astype(np.float64).ravel() * step.numbers).tolist()))


def _numbers(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def _place(file: OnnxFile, way: Stored, values: Mapping[str, ir.Value], resizable: bool) -> TensorProto:
    numbers = {name: _numbers(value).astype("<f4").tobytes() for name, value in values.items()}
    content = as_stored("", numbers.__getitem__, way.steps, way.dtype)
    array = np.frombuffer(content, np.dtype(way.dtype).newbyteorder("<")).reshape(way.shape)
    if way.computed or way.name not in file.constants:
        return file.replace_computed(way.name, array)
    tensor = file.constants[way.name]
    if way.reader is not None:
        return _of_its_own(file, way, array)
    reader, _ = file.only_reader(way.name)
    if onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type) != np.dtype(way.dtype):
        raise UnwritableError(f"'{way.name}' is of another type")
    old = tuple(tensor.dims)
    if old != way.shape:
        if not resizable or len(old) != len(way.shape):
            raise UnwritableError(f"'{way.name}' has the shape {list(old)}")
        file.set_constant(tensor, array)
        _resize(file, reader, old, way.shape)
    elif not tensor.HasField("raw_data") and tensor.data_location != TensorProto.EXTERNAL:
        file.set_constant(tensor, numpy_helper.to_array(tensor))
    return tensor


def _of_its_own(file: OnnxFile, way: Stored, array: Array) -> TensorProto:
    """A constant for one of several that read the file's."""
    assert way.reader is not None
    makes, index = way.reader
    node = file.makers.get(makes)
    if node is None or len(node.input) <= index or node.input[index] != way.name:
        raise UnwritableError(f"'{way.name}' is read in several places")
    tensor = file.add(file.free_name(way.name), array)
    node.input[index] = tensor.name
    return tensor


def _resize(file: OnnxFile, layer: NodeProto, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    """What follows the classifier has another number of outputs."""
    (before, after), *others = [(a, b) for a, b in zip(old, new) if a != b]
    if others:
        raise UnwritableError(f"the classifier's weights have the shape {list(old)}, not {list(new)}")
    for node in file.give_outputs(layer, after):
        if node.op_type == "Reshape" and node.input[1] in file.constants:
            target = file.constants[node.input[1]]
            numbers = numpy_helper.to_array(target)
            if before in numbers[1:]:
                changed = numbers.copy()
                changed[1:][changed[1:] == before] = after
                node.input[1] = file.add(file.free_name(f"{node.input[1]}/classes"), changed).name


def _new_bias(file: OnnxFile, layer: ir.Node, way: Stored, value: ir.Value) -> TensorProto:
    """The file's layer has no bias: it gets one."""
    weight = weight_source(layer.inputs[1])
    if weight is None or layer.op_type not in ("Conv", "Gemm"):
        raise UnwritableError(f"there is no '{way.name}' in it")
    reader, index = file.only_reader(stored(weight).name)
    if reader.op_type not in ("Conv", "Gemm") or index != 1 or len([name for name in reader.input if name]) > 2:
        raise UnwritableError(f"{reader.op_type} '{reader.name}' takes no bias")
    tensor = file.add(file.free_name(way.name), _numbers(value))
    del reader.input[2:]
    reader.input.append(tensor.name)
    return tensor
