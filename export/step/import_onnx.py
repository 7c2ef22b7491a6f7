"""forward.onnx -> the compiler's graph: one sample, channels last, few operators.

Recognised: Conv (bias; Clip(0, 6) or Relu behind it becomes its activation), AveragePool, GlobalAveragePool, Add,
Resize (bilinear, half-pixel), GroupNorm as PyTorch exports it (Reshape, InstanceNormalization, Reshape, Mul, Add),
a channel's scale and shift (Mul, Add), dropout (Mul with a mask input), Flatten, Gemm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from onnx import ModelProto, NodeProto

from tinytl_edge.export.graph import GraphEditor, attribute, static_shapes
from tinytl_edge.runtime.errors import UsageError

from .ir import Graph, Op, Parameter, Shape


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
        self._graph = Graph({}, [], {}, "image", "")
        self._logits = model.graph.output[0].name

    def run(self) -> Graph:
        image = self._shapes[self._inputs[0]]
        self._graph.add_value("image", (int(image[2]), int(image[3]), int(image[1])))
        self._alias[self._inputs[0]] = "image"
        importers: dict[str, Callable[[NodeProto], None]] = {
            "Conv": self._conv,
            "Clip": self._activation,
            "Relu": self._activation,
            "Add": self._add,
            "Mul": self._mul,
            "AveragePool": self._average_pool,
            "GlobalAveragePool": self._global_pool,
            "Resize": self._resize,
            "Reshape": self._reshape,
            "Flatten": self._flatten,
            "Gemm": self._gemm,
        }
        for node in self._editor.nodes:
            if id(node) in self._done or node.op_type == "Unsqueeze":
                continue
            if node.op_type not in importers:
                raise self._refused(node)
            importers[node.op_type](node)
        self._graph.logits = self._alias[self._logits]
        return self._graph

    def _refused(self, node: NodeProto, why: str = "") -> UsageError:
        layer = node.name.strip("/").removeprefix("model/")
        return UsageError(f"The step compiler cannot compile the operator {node.op_type} of layer {layer}{why}.")

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

    def _activation_of(self, node: NodeProto) -> str | None:
        if node.op_type == "Relu":
            return "relu"
        low, high = (self._editor.constant(name) for name in node.input[1:3])
        if low is not None and high is not None and float(low) == 0 and float(high) == 6:
            return "relu6"
        return None

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
        op = Op(kind, {"x": self._alias[node.input[0]]}, {}, parameters, {"geometry": geometry, "activation": "none"})
        output = node.output[0]
        follower = self._only_reader(output, "Clip", "Relu")
        activation = self._activation_of(follower) if follower is not None else None
        if follower is not None and activation is not None:
            op.attributes["activation"] = activation
            self._done.add(id(follower))
            output = follower.output[0]
        self._emit(op, node, output)

    def _activation(self, node: NodeProto) -> None:
        activation = self._activation_of(node)
        if activation is None:
            raise self._refused(node, ": only Clip(0, 6) is known")
        op = Op("activate", {"x": self._alias[node.input[0]]}, {}, {}, {"activation": activation})
        self._emit(op, node, node.output[0], in_place=("x",))

    def _add(self, node: NodeProto) -> None:
        if not all(name in self._alias for name in node.input) or self._shape(node.input[0]) != self._shape(
            node.input[1]
        ):
            raise self._refused(node, ": it adds something else than two maps of one shape")
        reads = {"x": self._alias[node.input[0]], "other": self._alias[node.input[1]]}
        self._emit(Op("add", reads, {}), node, node.output[0], in_place=("x", "other"))

    def _mul(self, node: NodeProto) -> None:
        mask = next((name for name in node.input if name in self._inputs), None)
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
            raise self._refused(node, ": only a dropout's mask, or a channel's scale with its shift, is known")
        source = next(name for name in node.input if name in self._alias)
        self._done.add(id(shift))
        parameters = {"weight": self._parameter(scale, "vector"), "bias": self._parameter(bias, "vector")}
        op = Op("affine", {"x": self._alias[source]}, {}, parameters)
        self._emit(op, node, shift.output[0], in_place=("x",))

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
        kernel = tuple(attribute(node, "kernel_shape"))
        strides = tuple(attribute(node, "strides", [1, 1]))
        if any(attribute(node, "pads", [0])) or attribute(node, "ceil_mode", 0):
            raise self._refused(node, ": it has padding or ceil_mode")
        geometry = {
            "in": self._shape(node.input[0]), "out": self._shape(node.output[0]), "kernel": kernel,
            "stride": strides, "pad": (0, 0), "groups": 1,
        }  # fmt: skip
        op = Op("average_pool", {"x": self._alias[node.input[0]]}, {}, {}, {"geometry": geometry})
        self._emit(op, node, node.output[0])

    def _global_pool(self, node: NodeProto) -> None:
        self._emit(Op("global_pool", {"x": self._alias[node.input[0]]}, {}), node, node.output[0])

    def _resize(self, node: NodeProto) -> None:
        mode = attribute(node, "mode", b"nearest")
        if mode != b"linear" or attribute(node, "coordinate_transformation_mode", b"half_pixel") not in (
            b"half_pixel",
            b"pytorch_half_pixel",
        ):
            raise self._refused(node, ": only bilinear with half-pixel centres is known")
        shapes = {"in": self._shape(node.input[0]), "out": self._shape(node.output[0])}
        geometry = {**shapes, "kernel": (1, 1), "stride": (1, 1), "pad": (0, 0), "groups": 1}
        op = Op("upsample", {"x": self._alias[node.input[0]]}, {}, {}, {"geometry": geometry})
        self._emit(op, node, node.output[0])

    def _reshape(self, node: NodeProto) -> None:
        """The beginning of a GroupNorm, a flattening, or a view of a parameter (which its reader takes)."""
        if node.input[0] in self._editor.initializers:
            return
        norm = self._only_reader(node.output[0], "InstanceNormalization")
        if norm is None:
            if len(self._shapes[node.output[0]]) == 2:
                self._flatten(node)
                return
            raise self._refused(node)
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
            {"x": self._alias[node.input[0]]},
            {"statistics": self._graph.add_value(f"{norm.name.strip('/')}/statistics", (groups, 2))},
            {"weight": self._parameter(weight, "vector"), "bias": self._parameter(bias, "vector")},
            {"groups": groups, "epsilon": float(attribute(norm, "epsilon", 1e-5))},
        )
        self._emit(op, node, shifted.output[0])

    def _flatten(self, node: NodeProto) -> None:
        source = self._graph.values[self._alias[node.input[0]]]
        if len(source.shape) == 3 and source.shape[:2] != (1, 1):
            raise self._refused(node, ": it flattens a map of more than one pixel")
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
        self._emit(Op("pointwise", {"x": self._alias[node.input[0]]}, {}, parameters, attributes), node, node.output[0])
