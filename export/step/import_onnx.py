"""forward.onnx -> the compiler's graph: one sample, channels last, few operators.

Recognised: Conv (bias; ReLU6 or ReLU behind it becomes its activation), AveragePool, MaxPool, GlobalAveragePool (or
ReduceMean), Add, Mul of two maps or of a map and a factor for each channel, Resize (bilinear, half-pixel), GroupNorm as
PyTorch exports it (Reshape, InstanceNormalization, Reshape, Mul, Add), a channel's scale and shift (Mul, Add), dropout
(Mul with a mask input), Gemm; Flatten, Reshape and the like of a single pixel; activations, however they are spelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from onnx import ModelProto, NodeProto

from tinytl_edge.export.graph import GraphEditor, attribute, static_shapes
from tinytl_edge.runtime.errors import UsageError

from .activations import Activation, find_activations
from .ir import Graph, Op, Parameter, Shape

_FUSED = ("relu", "relu6")  # what a convolution takes in


def import_forward(model: ModelProto, trainable: Iterable[str]) -> Graph:
    """Build the forward half of a step.

    Raises:
        UsageError: an operator, or one of its options, cannot be compiled; names operator and layer.
    """
    return _Importer(model, set(trainable)).run()


class _Importer:
    def __init__(self, model: ModelProto, trainable: set[str]) -> None:
        self._editor = GraphEditor(model)
        self._shapes = static_shapes(model)
        self._trainable = trainable
        self._inputs = [value.name for value in model.graph.input]
        self._alias: dict[str, str] = {}  # ONNX value -> our value
        self._done: set[int] = set()
        found = find_activations(self._editor, trainable)
        self._activations = {id(activation.nodes[-1]): activation for activation in found}
        self._done |= {id(node) for activation in found for node in activation.nodes[:-1]}
        self._graph = Graph({}, [], {}, "image", "")
        self._logits = model.graph.output[0].name

    def run(self) -> Graph:
        image = self._shapes[self._inputs[0]]
        self._graph.add_value("image", (int(image[2]), int(image[3]), int(image[1])))
        self._alias[self._inputs[0]] = "image"
        importers: dict[str, Callable[[NodeProto], None]] = {
            "Conv": self._conv,
            "Clip": self._unknown_activation,
            "HardSigmoid": self._unknown_activation,
            "Add": self._add,
            "Mul": self._mul,
            "AveragePool": self._average_pool,
            "MaxPool": self._max_pool,
            "GlobalAveragePool": self._global_pool,
            "ReduceMean": self._global_pool,
            "Resize": self._resize,
            "Reshape": self._reshape,
            "Flatten": self._view,
            "Squeeze": self._view,
            "Unsqueeze": self._view,
            "Gemm": self._gemm,
        }
        for node in self._editor.nodes:
            if id(node) in self._done:
                continue
            if id(node) in self._activations:
                self._activate(node, self._activations[id(node)])
            elif node.op_type in importers:
                importers[node.op_type](node)
            else:
                raise self._refused(node)
        self._graph.logits = self._alias[self._logits]
        return self._graph

    def _refused(self, node: NodeProto, why: str = "") -> UsageError:
        layer = node.name.strip("/").removeprefix("model/")
        return UsageError(f"The step compiler cannot compile the operator {node.op_type} of layer {layer}{why}.")

    def _read(self, node: NodeProto, name: str = "") -> str:
        """Our value for what a node reads: the ONNX value `name`, or its first input."""
        name = name or str(node.input[0])
        if name not in self._alias:
            raise self._refused(node, ": it reads a parameter or a constant where a map belongs")
        return self._alias[name]

    def _shape(self, name: str) -> Shape:
        _, *rest = (int(n) if isinstance(n, int) else 1 for n in self._shapes[name])
        return (rest[1], rest[2], rest[0]) if len(rest) == 3 else tuple(rest)

    def _only_reader(self, name: str, *kinds: str) -> NodeProto | None:
        readers = self._editor.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type in kinds else None

    def _emit(self, op: Op, node: NodeProto, output: str, in_place: tuple[str, ...] = ()) -> None:
        """Add an operator whose result is the ONNX value `output`."""
        name = self._graph.add_value(node.name.strip("/").removeprefix("model/"), self._shape(output))
        op.writes = {"y": name, **op.writes}
        op.in_place = in_place
        self._graph.forward.append(op)
        self._alias[output] = name

    def _parameter(self, name: str, layout: str, groups: int = 1) -> str:
        if name not in self._graph.parameters:
            value = self._editor.constant(name)
            assert value is not None
            parameter = Parameter.from_torch(name, value, layout, groups)
            parameter.trains = name in self._trainable
            self._graph.parameters[name] = parameter
        return name

    def _conv(self, node: NodeProto) -> None:
        shape, out = self._shape(node.input[0]), self._shape(node.output[0])
        weight = self._editor.constant(node.input[1])
        if weight is None or max(attribute(node, "dilations", [1])) > 1 or len(shape) != 3:
            raise self._refused(node, ": its weight is no constant, or it is dilated or no 2-D convolution")
        groups = attribute(node, "group", 1)
        pads = attribute(node, "pads", [0, 0, 0, 0])
        strides = attribute(node, "strides", [1, 1])
        depthwise = groups == shape[2] == out[2]
        pointwise = weight.shape[2:] == (1, 1) and groups == 1 and max(strides) == 1 and not any(pads)
        kind = "depthwise" if depthwise else "pointwise" if pointwise else "conv"
        geometry = {
            "in": shape, "out": out, "kernel": weight.shape[2:], "stride": tuple(strides), "pad": tuple(pads[:2]),
            "groups": groups,
        }  # fmt: skip
        layout = "depthwise" if depthwise else "conv"
        parameters = {"weight": self._parameter(node.input[1], layout, 1 if depthwise else groups)}
        if len(node.input) > 2 and node.input[2]:
            parameters["bias"] = self._parameter(node.input[2], "vector")
        op = Op(kind, {"x": self._read(node)}, {}, parameters, {"geometry": geometry, "activation": "none"})
        output = node.output[0]
        activation = self._fusible(output)
        if activation is not None:
            op.attributes["activation"] = activation.kind
            self._done.add(id(activation.nodes[-1]))
            output = activation.output
        self._emit(op, node, output)

    def _fusible(self, output: str) -> Activation | None:
        """The activation that takes in `output` alone, if a convolution can apply it."""
        readers = {id(reader) for reader in self._editor.consumers.get(output, [])}
        for activation in self._activations.values():
            inside = activation.source == output and readers <= {id(node) for node in activation.nodes}
            if inside and activation.kind in _FUSED:
                return activation
        return None

    def _activate(self, node: NodeProto, activation: Activation) -> None:
        op = Op("activate", {"x": self._read(node, activation.source)}, {}, {}, {"activation": activation.kind})
        self._emit(op, node, activation.output, in_place=("x",))

    def _unknown_activation(self, node: NodeProto) -> None:
        raise self._refused(node, ": of the clipping activations ReLU6, hard-sigmoid and hard-swish are known")

    def _add(self, node: NodeProto) -> None:
        if not all(name in self._alias for name in node.input) or self._shape(node.input[0]) != self._shape(
            node.input[1]
        ):
            raise self._refused(node, ": it adds something else than two maps of one shape")
        reads = {"x": self._alias[node.input[0]], "other": self._alias[node.input[1]]}
        self._emit(Op("add", reads, {}), node, node.output[0], in_place=("x", "other"))

    def _mul(self, node: NodeProto) -> None:
        if all(name in self._alias for name in node.input):
            self._multiply(node)
            return
        mask = next((name for name in node.input if name in self._inputs[1:]), None)
        if mask is not None:
            source = next(name for name in node.input if name != mask)
            layer = self._inputs[1:].index(mask)
            op = Op("dropout", {"x": self._alias[source]}, {}, {}, {"layer": layer})
            op.writes["mask"] = self._graph.add_value(f"{mask}/mask", self._shape(source))
            self._emit(op, node, node.output[0], in_place=("x",))
            return
        scale = next((self._channels(name) for name in node.input if self._channels(name)), None)
        shift = self._only_reader(node.output[0], "Add")
        bias = next((self._channels(n) for n in shift.input if self._channels(n)), None) if shift is not None else None
        if scale is None or bias is None or shift is None:
            raise self._refused(
                node, ": only two maps, a dropout's mask, or a channel's scale with its shift can be multiplied"
            )
        source = next(name for name in node.input if name in self._alias)
        self._done.add(id(shift))
        parameters = {"weight": self._parameter(scale, "vector"), "bias": self._parameter(bias, "vector")}
        op = Op("affine", {"x": self._alias[source]}, {}, parameters)
        self._emit(op, node, shift.output[0], in_place=("x",))

    def _multiply(self, node: NodeProto) -> None:
        """Of two maps of one shape, or of a map and one pixel that holds a factor for each channel."""
        x, other = sorted(map(str, node.input), key=lambda name: self._shape(name), reverse=True)
        shape, factors = self._shape(x), self._shape(other)
        if factors not in (shape, (1, 1, shape[-1])):
            raise self._refused(node, f": it multiplies maps of shapes {list(shape)} and {list(factors)}")
        reads = {"x": self._alias[x], "other": self._alias[other]}
        per_channel = shape != factors
        op = Op("multiply", reads, {}, {}, {"per_channel": per_channel})
        self._emit(op, node, node.output[0], in_place=("x",) if per_channel else ("x", "other"))

    def _channels(self, name: str) -> str | None:
        """The parameter behind a [channels, 1, 1] view of it."""
        view = self._editor.producers.get(name)
        if view is not None and view.op_type in ("Reshape", "Unsqueeze"):
            source = str(view.input[0])
            if source in self._editor.initializers and len(self._shapes[source]) == 1:
                self._done.add(id(view))
                return source
        return None

    def _average_pool(self, node: NodeProto) -> None:
        geometry = self._windows(node)
        # What PyTorch counts beyond the input lies within the padding, so without any it is all the same.
        include_pad = bool(attribute(node, "count_include_pad", 0)) and any(geometry["pad"])
        attributes = {"geometry": geometry, "include_pad": include_pad}
        self._emit(Op("average_pool", {"x": self._read(node)}, {}, {}, attributes), node, node.output[0])

    def _max_pool(self, node: NodeProto) -> None:
        geometry = self._windows(node)
        if geometry["kernel"][0] * geometry["kernel"][1] > 256:
            raise self._refused(node, ": its window has more than 256 elements")
        op = Op("max_pool", {"x": self._read(node)}, {}, {}, {"geometry": geometry})
        index = self._graph.add_value(f"{node.name.strip('/')}/index", self._shape(node.output[0]), "uint8")
        op.writes["index"] = index
        self._emit(op, node, node.output[0])

    def _windows(self, node: NodeProto) -> dict[str, Any]:
        """The geometry of a pooling."""
        kernel = tuple(attribute(node, "kernel_shape"))
        strides = tuple(attribute(node, "strides", [1, 1]))
        top, left, bottom, right = attribute(node, "pads", [0, 0, 0, 0])
        shape, out = self._shape(node.input[0]), self._shape(node.output[0])
        if max(attribute(node, "dilations", [1])) > 1 or len(node.output) > 1 or (top, left) != (bottom, right):
            raise self._refused(node, ": it is dilated, is padded unevenly, or returns indices")
        if any((out[i] - 1) * strides[i] >= shape[i] + (top, left)[i] for i in range(2)):
            raise self._refused(node, ": its last window holds nothing but padding")  # PyTorch drops it, ONNX does not
        return {"in": shape, "out": out, "kernel": kernel, "stride": strides, "pad": (top, left), "groups": 1}

    def _global_pool(self, node: NodeProto) -> None:
        rank = len(self._shapes[node.input[0]])
        axes = {axis % rank for axis in attribute(node, "axes", [2, 3])}
        if rank != 4 or axes != {2, 3}:
            raise self._refused(node, ": it takes the mean of something else than whole channels")
        self._emit(Op("global_pool", {"x": self._read(node)}, {}), node, node.output[0])

    def _resize(self, node: NodeProto) -> None:
        mode = attribute(node, "mode", b"nearest")
        if mode != b"linear" or attribute(node, "coordinate_transformation_mode", b"half_pixel") not in (
            b"half_pixel",
            b"pytorch_half_pixel",
        ):
            raise self._refused(node, ": only bilinear with half-pixel centres is known")
        shapes = {"in": self._shape(node.input[0]), "out": self._shape(node.output[0])}
        geometry = {**shapes, "kernel": (1, 1), "stride": (1, 1), "pad": (0, 0), "groups": 1}
        op = Op("upsample", {"x": self._read(node)}, {}, {}, {"geometry": geometry})
        self._emit(op, node, node.output[0])

    def _reshape(self, node: NodeProto) -> None:
        """The beginning of a GroupNorm, or a view."""
        norm = self._only_reader(node.output[0], "InstanceNormalization")
        if norm is None:
            self._view(node)
            return
        back = self._only_reader(norm.output[0], "Reshape")
        scaled = self._only_reader(back.output[0], "Mul") if back is not None else None
        shifted = self._only_reader(scaled.output[0], "Add") if scaled is not None else None
        weight = next((self._channels(n) for n in scaled.input if self._channels(n)), None) if scaled else None
        bias = next((self._channels(n) for n in shifted.input if self._channels(n)), None) if shifted else None
        if back is None or scaled is None or shifted is None or weight is None or bias is None:
            raise self._refused(node, ": this is no GroupNorm with scale and shift")
        self._done |= {id(other) for other in (norm, back, scaled, shifted)}
        groups = int(self._shapes[node.output[0]][1])
        op = Op(
            "group_norm",
            {"x": self._read(node)},
            {"statistics": self._graph.add_value(f"{norm.name.strip('/')}/statistics", (groups, 2))},
            {"weight": self._parameter(weight, "vector"), "bias": self._parameter(bias, "vector")},
            {"groups": groups, "epsilon": float(attribute(norm, "epsilon", 1e-5))},
        )
        self._emit(op, node, shifted.output[0])

    def _view(self, node: NodeProto) -> None:
        """Another shape of a single pixel; or of a parameter, which its reader takes."""
        if node.input[0] not in self._alias:
            return
        source = self._graph.values[self._alias[node.input[0]]]
        if source.shape[:-1] not in ((), (1, 1)) or self._shapes[node.output[0]][1] != source.shape[-1]:
            raise self._refused(node, ": it reshapes a map of more than one pixel")
        self._alias[node.output[0]] = source.name

    def _gemm(self, node: NodeProto) -> None:
        weight = self._editor.constant(node.input[1])
        plain = attribute(node, "transB", 0) == 1 and not attribute(node, "transA", 0)
        if weight is None or not plain or {attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)} != {1.0}:
            raise self._refused(node, ": this is no linear layer")
        out, entering = weight.shape
        parameters = {"weight": self._parameter(node.input[1], "linear")}
        if len(node.input) > 2:
            parameters["bias"] = self._parameter(node.input[2], "vector")
        geometry = {
            "in": (1, 1, entering), "out": (1, 1, out), "kernel": (1, 1), "stride": (1, 1), "pad": (0, 0), "groups": 1,
        }  # fmt: skip
        attributes = {"geometry": geometry, "activation": "none"}
        self._emit(Op("pointwise", {"x": self._read(node)}, {}, parameters, attributes), node, node.output[0])
