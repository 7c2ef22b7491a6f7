"""Finds activations in an ONNX graph by what they compute, not by how they are spelled.

nn.Hardswish is exported as HardSwish and nn.SiLU as x * Sigmoid(x), but people also write x * relu6(x + 3) / 6, in any
order. So each group of elementwise operators with scalar constants is evaluated at sample points, and compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from tinytl_edge.export.graph import Array, GraphEditor, attribute

_FAR = np.array([12.5, 21.0, 1e2, 1e4, 1e10, 1e30])
_SAMPLES: Array = np.concatenate([-_FAR, np.linspace(-9.1, 9.1, 120), _FAR])
_LONGEST = 5  # operators between an activation's input and its output


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def _hard_sigmoid(x: Array, slope: float = 1 / 6, offset: float = 0.5) -> Array:
    return np.clip(x * slope + offset, 0, 1)


_KNOWN = {
    "relu": np.maximum(_SAMPLES, 0),
    "relu6": np.clip(_SAMPLES, 0, 6),
    "hard_swish": _SAMPLES * _hard_sigmoid(_SAMPLES),
    "hard_sigmoid": _hard_sigmoid(_SAMPLES),
    "sigmoid": _sigmoid(_SAMPLES),
    "silu": _SAMPLES * _sigmoid(_SAMPLES),
}
# What a node makes of its inputs; a Clip may lack a bound.
_MEANING: dict[str, Callable[..., Array]] = {
    "Add": lambda node, a, b: a + b,
    "Sub": lambda node, a, b: a - b,
    "Mul": lambda node, a, b: a * b,
    "Div": lambda node, a, b: a / b,
    "Clip": lambda node, x, low=None, high=None: np.clip(
        x, -np.inf if low is None else low, np.inf if high is None else high
    ),
    "Relu": lambda node, x: np.maximum(x, 0),
    "Sigmoid": lambda node, x: _sigmoid(x),
    "HardSwish": lambda node, x: x * _hard_sigmoid(x),
    "HardSigmoid": lambda node, x: _hard_sigmoid(x, attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)),
}


@dataclass(frozen=True)
class Activation:
    """`output` = activation(`source`), computed by `nodes`, of which nothing else reads a result before `output`."""

    kind: str
    source: str
    output: str
    nodes: tuple[NodeProto, ...]  # the last makes `output`


def find_activations(editor: GraphEditor, trainable: set[str]) -> list[Activation]:
    """All activations, each as large as it can be; no node is in two."""
    found: list[Activation] = []
    taken: set[int] = set()
    for node in reversed(editor.nodes):
        if id(node) not in taken and node.op_type in _MEANING:
            activation = _Search(editor, trainable, node).run()
            if activation is not None:
                found.append(activation)
                taken |= {id(inner) for inner in activation.nodes}
    return found


class _Search:
    """Looks for the activation that a node ends."""

    def __init__(self, editor: GraphEditor, trainable: set[str], last: NodeProto) -> None:
        self._editor = editor
        self._trainable = trainable
        self._last = last

    def run(self) -> Activation | None:
        for source in reversed(self._above()):  # the farthest first
            nodes: dict[int, NodeProto] = {}
            with np.errstate(all="ignore"):
                values = self._value(self._last.output[0], source, nodes)
            if values is None or not self._closed(nodes):
                continue
            for kind, known in _KNOWN.items():
                if np.allclose(values, known, rtol=1e-5, atol=1e-6):
                    return Activation(kind, source, self._last.output[0], tuple(nodes.values()))
        return None

    def _above(self) -> list[str]:
        """What the last node depends on, the nearest first."""
        names: dict[str, None] = {}
        level = [self._last]
        for _ in range(_LONGEST):
            inputs = [name for node in level for name in node.input if name and self._scalar(name) is None]
            names.update(dict.fromkeys(inputs))
            makers = [self._editor.producers.get(name) for name in inputs]
            level = [node for node in makers if node is not None and node.op_type in _MEANING]
        return list(names)

    def _scalar(self, name: str) -> float | None:
        value = None if name in self._trainable else self._editor.constant(name)
        return float(value.item()) if value is not None and value.size == 1 else None

    def _value(self, name: str, source: str, nodes: dict[int, NodeProto]) -> Array | None:
        """`name` where `source` is the samples, if it depends on nothing else; notes the nodes in their order."""
        if name == source:
            return _SAMPLES
        scalar = self._scalar(name)
        if scalar is not None:
            return np.asarray(scalar)
        node = self._editor.producers.get(name)
        if node is None or node.op_type not in _MEANING:
            return None
        inputs = [self._value(n, source, nodes) if n else None for n in node.input]
        if any(n and value is None for n, value in zip(node.input, inputs)):
            return None
        nodes[id(node)] = node
        return np.asarray(_MEANING[node.op_type](node, *inputs))

    def _closed(self, nodes: dict[int, NodeProto]) -> bool:
        inner = [name for node in nodes.values() for name in node.output if node is not self._last]
        return all(id(reader) in nodes for name in inner for reader in self._editor.consumers.get(name, []))
