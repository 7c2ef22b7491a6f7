"""Finds activations in a graph by what they compute, not by how they are spelled.

nn.Hardswish is exported as HardSwish and nn.SiLU as x * Sigmoid(x), but people also write x * relu6(x + 3) / 6, in any
order. So each group of elementwise operators with scalar constants is evaluated at sample points, and compared with the
families known here; a family's parameters (a clamp's ends, a slope) are read off the samples first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, attribute, constant, weight_source

_FAR = np.array([12.5, 21.0, 1e2, 1e4, 1e10, 1e30])
_NEAR = 2.0**-7
_SAMPLES: Array = np.concatenate([-_FAR[::-1], np.linspace(-9.1, 9.1, 120), [-_NEAR, 0.0, _NEAR], _FAR])
_LOWEST, _BELOW, _ZERO, _ABOVE, _HIGHEST = 0, -9, -8, -7, -1  # places in _SAMPLES: -1e30, -_NEAR, 0, _NEAR, 1e30
_LONGEST = 9  # operators between an activation's input and its output

Parameters = dict[str, float]


@dataclass(frozen=True)
class Activation:
    """`output` = activation(`source`), computed by `nodes`, of which nothing else reads a result before `output`."""

    kind: str
    parameters: Parameters
    source: ir.Value
    output: ir.Value
    nodes: tuple[ir.Node, ...]  # the last makes `output`


_erf: Callable[[Array], Array] = np.vectorize(math.erf, otypes=[np.float64])


# Families -----------------------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def _tanh_gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _clamp(y: Array) -> Parameters | None:
    low, high = (end if abs(end) < 1e29 else math.copysign(math.inf, end) for end in (float(y.min()), float(y.max())))
    return None if low == high or (low, high) == (-math.inf, math.inf) else {"low": low, "high": high}


def _slope(y: Array) -> Parameters | None:
    alpha = float(y[_LOWEST] / _SAMPLES[_LOWEST])
    return None if abs(alpha - 1) < 1e-6 else {"alpha": alpha}  # with a slope of 1 nothing happens


def _hard_sigmoid_line(y: Array) -> Parameters | None:
    return {"alpha": float(y[_ABOVE] - y[_BELOW]) / (2 * _NEAR), "beta": float(y[_ZERO])}


def _hard_swish_line(y: Array) -> Parameters | None:
    above, below = float(y[_ABOVE]) / _NEAR, float(y[_BELOW]) / -_NEAR
    alpha = (above - below) / (2 * _NEAR)
    return None if abs(alpha) < 1e-6 else {"alpha": alpha, "beta": (above + below) / 2}  # x * beta curves nowhere


def _none(y: Array) -> Parameters:
    return {}


# Of each: what the samples say of its parameters (None: it is another), and what it makes of x.
_FAMILIES: dict[str, tuple[Callable[[Array], Parameters | None], Callable[..., Array]]] = {
    "clamp": (_clamp, lambda x, low, high: np.clip(x, low, high)),
    "leaky_relu": (_slope, lambda x, alpha: np.where(x > 0, x, alpha * x)),
    "hard_sigmoid": (_hard_sigmoid_line, lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1)),
    "hard_swish": (_hard_swish_line, lambda x, alpha, beta: x * np.clip(alpha * x + beta, 0, 1)),
    "sigmoid": (_none, _sigmoid),
    "silu": (_none, lambda x: x * _sigmoid(x)),
    "elu": (
        lambda y: {"alpha": -float(y[_LOWEST])},
        lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    ),
    "gelu": (_none, lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2)))),
    "gelu_tanh": (_none, _tanh_gelu),
    "softplus": (_none, lambda x: np.logaddexp(0, x)),
    "tanh": (_none, np.tanh),
    "mish": (_none, lambda x: x * np.tanh(np.logaddexp(0, x))),
}
# What a node makes of its inputs; a Clip may lack a limit.
_MEANING: dict[str, Callable[..., Array]] = {
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Div": lambda node, a, b: a / b,
    "Pow": lambda node, a, b: a**b,
    "Min": lambda node, a, b: np.minimum(a, b),
    "Max": lambda node, a, b: np.maximum(a, b),
    "Neg": lambda node, x: -x,
    "Exp": lambda node, x: np.exp(x),
    "Log": lambda node, x: np.log(x),
    "Sqrt": lambda node, x: np.sqrt(x),
    "Erf": lambda node, x: _erf(x),
    "Tanh": lambda node, x: np.tanh(x),
    "Clip": lambda node, x, low=None, high=None: np.clip(
        x, -np.inf if low is None else low, np.inf if high is None else high
    ),
    "Relu": lambda node, x: np.maximum(x, 0),
    "PRelu": lambda node, x, slope: np.where(x > 0, x, slope * x),
    "LeakyRelu": lambda node, x: np.where(x > 0, x, attribute(node, "alpha", 0.01) * x),
    "Elu": lambda node, x: np.where(x > 0, x, attribute(node, "alpha", 1.0) * np.expm1(np.minimum(x, 0))),
    "Celu": lambda node, x: np.where(
        x > 0, x, attribute(node, "alpha", 1.0) * np.expm1(np.minimum(x, 0) / attribute(node, "alpha", 1.0))
    ),
    "Softplus": lambda node, x: np.logaddexp(0, x),
    "Sigmoid": lambda node, x: _sigmoid(x),
    "HardSwish": lambda node, x: x * np.clip(x / 6 + 0.5, 0, 1),
    "HardSigmoid": lambda node, x: np.clip(attribute(node, "alpha", 0.2) * x + attribute(node, "beta", 0.5), 0, 1),
    "Gelu": lambda node, x: (
        _tanh_gelu(x) if attribute(node, "approximate", "none") == "tanh" else 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    ),
    "Mish": lambda node, x: x * np.tanh(np.logaddexp(0, x)),
}


def find_activations(model: ir.Model, trainable: Iterable[str]) -> list[Activation]:
    """All activations, each as large as it can be; no node is in two."""
    found: list[Activation] = []
    taken: set[int] = set()
    trains = set(trainable)
    for node in reversed(model.graph):
        if id(node) not in taken and node.op_type in _MEANING:
            activation = _Search(trains, node).run()
            if activation is not None and not taken & {id(inner) for inner in activation.nodes}:
                found.append(activation)
                taken |= {id(inner) for inner in activation.nodes}
    return found


class _Search:
    """Looks for the activation that a node ends."""

    def __init__(self, trainable: set[str], last: ir.Node) -> None:
        self._trainable = trainable
        self._last = last

    def run(self) -> Activation | None:
        output = self._last.outputs[0]
        for source in reversed(self._above()):  # the farthest first
            nodes: dict[int, ir.Node] = {}
            with np.errstate(all="ignore"):
                values = self._value(output, source, nodes)
                if values is None or not self._closed(nodes):
                    continue
                values = np.broadcast_to(values, _SAMPLES.shape)
                for kind, (parameters_of, function) in _FAMILIES.items():
                    parameters = parameters_of(values)
                    if parameters is None or not all(math.isfinite(v) or kind == "clamp" for v in parameters.values()):
                        continue
                    if np.allclose(values, function(_SAMPLES, **parameters), rtol=1e-5, atol=1e-6):
                        return Activation(kind, parameters, source, output, tuple(nodes.values()))
        return None

    def _above(self) -> list[ir.Value]:
        """What the last node depends on, the nearest first."""
        values: dict[int, ir.Value] = {}
        level = [self._last]
        for _ in range(_LONGEST):
            inputs = [v for node in level for v in node.inputs if v is not None and self._scalar(v) is None]
            values.update({id(v): v for v in inputs if id(v) not in values})
            makers = [v.producer() for v in inputs]
            level = [node for node in makers if node is not None and node.op_type in _MEANING]
        return list(values.values())

    def _scalar(self, value: ir.Value) -> float | None:
        behind = weight_source(value)
        found = None if behind is not None and behind.name in self._trainable else constant(value)
        uniform = found is not None and found.size > 0 and bool((found == found.flat[0]).all())
        return float(found.flat[0]) if found is not None and uniform and found.dtype.kind == "f" else None

    def _value(self, value: ir.Value, source: ir.Value, nodes: dict[int, ir.Node]) -> Array | None:
        """`value` where `source` is the samples, if it depends on nothing else; notes the nodes in their order."""
        if value is source:
            return _SAMPLES
        scalar = self._scalar(value)
        if scalar is not None:
            return np.asarray(scalar)
        node = value.producer()
        if node is None or node.op_type not in _MEANING or len(node.inputs) > 3:
            return None
        inputs = [self._value(v, source, nodes) if v is not None else None for v in node.inputs]
        if any(v is not None and found is None for v, found in zip(node.inputs, inputs)):
            return None
        nodes[id(node)] = node
        try:
            return np.asarray(_MEANING[node.op_type](node, *inputs))
        except TypeError:  # a form with more or fewer inputs
            return None

    def _closed(self, nodes: dict[int, ir.Node]) -> bool:
        inner = [v for node in nodes.values() for v in node.outputs if node is not self._last]
        return all(not v.is_graph_output() and all(id(use.node) in nodes for use in v.uses()) for v in inner)
