"""TFLite's elementwise operators, activations and reductions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from tinytl_edge.runtime.errors import UsageError

from .tflite_graph import ANY, FUSED, TO_MAP, Bounds, Constant, Feature, GraphBuilder, Shape
from .tflite_reader import Operator

Converter = Callable[[GraphBuilder, Operator], None]


# Of two tensors -----------------------------------------------------------------------------------------


def _operands(graph: GraphBuilder, operator: Operator) -> tuple[list[ir.Value], list[Bounds], Feature]:
    """Two operands in one layout, with their bounds; and what comes of them, still without a value of its own."""
    held = [_constant_or_feature(graph, operator, slot) for slot in (0, 1)]
    rank = max(len(one.codes.shape if isinstance(one, Constant) else one.shape) for one in held)
    features = [_raised(graph, one, rank) for one in held if isinstance(one, Feature)]
    if len({feature.batched for feature in features}) > 1:
        features = [_lines(graph, feature) for feature in features]
    if any(feature.is_map for feature in features):
        features = [graph.as_map(feature) for feature in features]
    first = features[0]
    shapes = [feature.shape for feature in features]
    values, bounds, remaining = [], [], list(features)
    for one in held:
        if isinstance(one, Feature):
            feature = remaining.pop(0)
            values.append(feature.value)
            bounds.append(feature.bounds)
        else:
            shapes.append(one.codes.shape)
            values.append(_broadcast(graph, one, first))
            real = one.real()
            bounds.append((float(real.min()), float(real.max())) if real.size else ANY)
    shape: Shape = tuple(int(size) for size in np.broadcast_shapes(*shapes))
    if first.batched and shape[0] != 1:
        raise UsageError("a constant with numbers for several images")
    return values, bounds, Feature(first.value, shape, first.batched, first.is_map, ANY)


def _constant_or_feature(graph: GraphBuilder, operator: Operator, slot: int) -> Constant | Feature:
    held = graph.held(operator, slot)
    return held if isinstance(held, Constant) else graph.feature(operator, slot)


def _raised(graph: GraphBuilder, feature: Feature, rank: int) -> Feature:
    return graph.reshaped(feature, (*[1] * (rank - len(feature.shape)), *feature.shape))


def _lines(graph: GraphBuilder, feature: Feature) -> Feature:
    """Without an image's own dimension: a row like others."""
    if not feature.batched:
        return feature
    plain = graph.as_plain(feature)
    value = graph.node("Reshape", [plain.value, graph.integer_list((-1, *plain.shape), "shape")], plain.shape)
    return Feature(value, plain.shape, False, False, plain.bounds)


def _broadcast(graph: GraphBuilder, constant: Constant, like: Feature) -> ir.Value:
    """A constant that is broadcast against `like` as TFLite does, in its layout."""
    shape = constant.codes.shape
    if constant.codes.size == 1:
        return graph.parameter(constant, (0,), ())
    if not like.is_map:
        return graph.parameter(constant, tuple(range(len(shape))), _trimmed(shape))
    full = (*[1] * (4 - len(shape)), *shape)
    turned = tuple(full[axis] for axis in TO_MAP)
    if max(shape) == constant.codes.size:  # a vector, wherever it lies
        return graph.parameter(constant, (0,), _trimmed(turned))
    if len(shape) == 4:
        return graph.parameter(constant, TO_MAP, _trimmed(turned))
    real = constant.real().reshape(full).transpose(TO_MAP)
    return graph.initializer(real.astype(np.float32).reshape(_trimmed(turned)), constant.name)


def _trimmed(shape: Shape) -> Shape:
    first = next((index for index, size in enumerate(shape) if size != 1), len(shape) - 1)
    return shape[first:]


def _sum(a: Bounds, b: Bounds) -> Bounds:
    return a[0] + b[0], a[1] + b[1]


def _difference(a: Bounds, b: Bounds) -> Bounds:
    return a[0] - b[1], a[1] - b[0]


def _product(a: Bounds, b: Bounds) -> Bounds:
    corners = [x * y if x and y else 0.0 for x, y in itertools.product(a, b)]
    return min(corners), max(corners)


def _unknown(a: Bounds, b: Bounds) -> Bounds:
    return ANY


def _binary(kind: str, bounds_of: Callable[[Bounds, Bounds], Bounds]) -> Converter:
    def convert(graph: GraphBuilder, operator: Operator) -> None:
        values, bounds, made = _operands(graph, operator)
        value = graph.node(kind, values, graph.graph_shape(made))
        graph.finish(operator, replace(made, value=value, bounds=bounds_of(*bounds)))

    return convert


def squared_difference(graph: GraphBuilder, operator: Operator) -> None:
    values, _, made = _operands(graph, operator)
    difference = graph.node("Sub", values, graph.graph_shape(made))
    value = graph.node("Mul", [difference, difference], graph.graph_shape(made))
    graph.finish(operator, replace(made, value=value, bounds=(0.0, math.inf)))


def _limit(kind: str) -> Converter:
    """MAXIMUM and MINIMUM: a clamp where one side is a number."""

    def convert(graph: GraphBuilder, operator: Operator) -> None:
        constants = [one for one in (graph.held(operator, slot) for slot in (0, 1)) if isinstance(one, Constant)]
        if constants and constants[0].codes.size == 1:
            number = float(constants[0].real().reshape(()))
            x = graph.feature(operator, 0 if isinstance(graph.held(operator, 0), Feature) else 1)
            low, high = (number, math.inf) if kind == "Max" else (-math.inf, number)
            graph.finish(operator, graph.clamped(x, low, high))
            return
        pick = max if kind == "Max" else min
        values, bounds, made = _operands(graph, operator)
        value = graph.node(kind, values, graph.graph_shape(made))
        within = (pick(bounds[0][0], bounds[1][0]), pick(bounds[0][1], bounds[1][1]))
        graph.finish(operator, replace(made, value=value, bounds=within))

    return convert


# Of one tensor ------------------------------------------------------------------------------------------


def _unary(
    kind: str,
    low: float = -math.inf,
    high: float = math.inf,
    attributes: Callable[[Operator], dict[str, float]] | None = None,
) -> Converter:
    def convert(graph: GraphBuilder, operator: Operator) -> None:
        x = graph.feature(operator)
        more = attributes(operator) if attributes is not None else {}
        value = graph.node(kind, [x.value], graph.graph_shape(x), more)
        graph.finish(operator, replace(x, value=value, bounds=(low, high)))

    return convert


def _clamp(name: str) -> Converter:
    def convert(graph: GraphBuilder, operator: Operator) -> None:
        graph.finish(operator, graph.clamped(graph.feature(operator), *FUSED[name]))

    return convert


def _chain(*steps: tuple[str, float | None]) -> Converter:
    """Operators one behind the other, each with a number as its second input or none."""

    def convert(graph: GraphBuilder, operator: Operator) -> None:
        x = graph.feature(operator)
        value = x.value
        for kind, number in steps:
            value = graph.node(kind, [value] if number is None else [value, graph.number(number)], graph.graph_shape(x))
        graph.finish(operator, replace(x, value=value, bounds=ANY))

    return convert


def gelu(graph: GraphBuilder, operator: Operator) -> None:
    """Spelled out: there is no such operator in opset 17."""
    x = graph.feature(operator)
    shape = graph.graph_shape(x)

    def node(kind: str, *values: ir.Value) -> ir.Value:
        return graph.node(kind, values, shape)

    if operator.options.get("Approximate", False):
        cube = node("Mul", node("Mul", x.value, x.value), x.value)
        line = node("Add", x.value, node("Mul", cube, graph.number(0.044715)))
        curve = node("Tanh", node("Mul", line, graph.number(math.sqrt(2 / math.pi))))
    else:
        curve = node("Erf", node("Div", x.value, graph.number(math.sqrt(2))))
    half = node("Mul", x.value, node("Add", curve, graph.number(1.0)))
    graph.finish(operator, replace(x, value=node("Mul", half, graph.number(0.5)), bounds=(-0.2, math.inf)))


def prelu(graph: GraphBuilder, operator: Operator) -> None:
    x = graph.feature(operator)
    slope = graph.constant(operator, 1, "slopes")
    value = graph.node("PRelu", [x.value, _broadcast(graph, slope, x)], graph.graph_shape(x))
    graph.finish(operator, replace(x, value=value, bounds=ANY))


def softmax(graph: GraphBuilder, operator: Operator) -> None:
    """One inside the network; the one at its end is cut off."""
    x = graph.feature(operator)
    if operator.options.get("Beta", 1.0) != 1.0:
        raise UsageError("an inner softmax with a temperature")
    value = graph.node("Softmax", [x.value], graph.graph_shape(x), {"axis": x.axis(-1)})
    graph.finish(operator, replace(x, value=value, bounds=(0.0, 1.0)))


# Reductions ---------------------------------------------------------------------------------------------


def _reduction(kind: str) -> Converter:
    def convert(graph: GraphBuilder, operator: Operator) -> None:
        x = graph.feature(operator)
        axes = sorted({axis % len(x.shape) for axis in graph.integers(operator, 1, "axes")})
        if x.batched and 0 in axes:
            raise UsageError("the mean over several images")
        keep = bool(operator.options.get("KeepDims", False))
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
        shape = kept if keep else tuple(size for axis, size in enumerate(x.shape) if axis not in axes)
        if not keep and x.is_map and axes not in ([1, 2], [3], [1, 2, 3]):
            x = graph.as_plain(x)
        turned = [x.axis(axis) for axis in axes]
        made = Feature(x.value, shape, x.batched, x.is_map and keep, ANY if kind == "ReduceSum" else x.bounds)
        if not axes:
            graph.finish(operator, x)
            return
        if kind == "ReduceSum":
            inputs: Sequence[ir.Value] = [x.value, graph.integer_list(turned, "axes")]
            value = graph.node(kind, inputs, graph.graph_shape(made), {"keepdims": int(keep)})
        else:
            value = graph.node(kind, [x.value], graph.graph_shape(made), {"axes": turned, "keepdims": int(keep)})
        graph.finish(operator, replace(made, value=value))

    return convert


CONVERTERS: dict[str, Converter] = {
    "ADD": _binary("Add", _sum),
    "SUB": _binary("Sub", _difference),
    "MUL": _binary("Mul", _product),
    "DIV": _binary("Div", _unknown),
    "POW": _binary("Pow", _unknown),
    "SQUARED_DIFFERENCE": squared_difference,
    "MAXIMUM": _limit("Max"),
    "MINIMUM": _limit("Min"),
    "RELU": _clamp("relu"),
    "RELU6": _clamp("relu6"),
    "RELU_N1_TO_1": _clamp("relu_n1_to_1"),
    "RELU_0_TO_1": _clamp("relu_0_to_1"),
    "LEAKY_RELU": _unary("LeakyRelu", attributes=lambda operator: {"alpha": float(operator.options["Alpha"])}),
    "ELU": _unary("Elu", low=-1.0, attributes=lambda operator: {"alpha": 1.0}),
    "HARD_SWISH": _unary("HardSwish", low=-0.375),
    "LOGISTIC": _unary("Sigmoid", 0.0, 1.0),
    "TANH": _unary("Tanh", -1.0, 1.0),
    "GELU": gelu,
    "PRELU": prelu,
    "ABS": _unary("Abs", low=0.0),
    "NEG": _unary("Neg"),
    "EXP": _unary("Exp", low=0.0),
    "LOG": _unary("Log"),
    "SQRT": _unary("Sqrt", low=0.0),
    "RSQRT": _chain(("Sqrt", None), ("Reciprocal", None)),
    "SQUARE": _chain(("Pow", 2.0)),
    "SOFTMAX": softmax,
    "MEAN": _reduction("ReduceMean"),
    "SUM": _reduction("ReduceSum"),
    "REDUCE_MAX": _reduction("ReduceMax"),
    "REDUCE_MIN": _reduction("ReduceMin"),
}
