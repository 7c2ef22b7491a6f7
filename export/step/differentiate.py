"""Reverse-mode differentiation, only towards trainables.

What an operator keeps from the forward pass:

- a convolution or linear layer: its input, where its weight trains; nothing otherwise
- ReLU and ReLU6, fused or not: one bit an element
- GroupNorm, and a channel's scale that trains: the input (and GroupNorm's statistics)
- dropout: its mask
- add, pooling, upsampling: nothing
"""

from __future__ import annotations

from collections.abc import Callable

from .ir import Graph, Op

GRADIENT_OF_LOGITS = "gradient/logits"


def differentiate(graph: Graph) -> None:
    """Append the loss and the backward operators to the graph, and to the forward ones the masks they keep."""
    _Differentiation(graph).run()


class _Differentiation:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._gradient: dict[str, str] = {}  # value -> its gradient so far
        self._wanted: set[str] = set()  # values below which something trains

    def run(self) -> None:
        graph = self._graph
        for op in graph.forward:
            if any(source in self._wanted for source in op.reads.values()) or self._trains(op):
                self._wanted.add(op.writes["y"])
        targets = graph.add_value("targets", graph.values[graph.logits].shape)
        gradient = graph.add_value(GRADIENT_OF_LOGITS, graph.values[graph.logits].shape)
        graph.backward.append(Op("loss", {"x": graph.logits, "targets": targets}, {"dx": gradient}))
        self._gradient[graph.logits] = gradient
        rules: dict[str, Callable[[Op, str], None]] = {
            "pointwise": self._convolution,
            "depthwise": self._convolution,
            "conv": self._convolution,
            "activate": self._activate,
            "add": self._add,
            "dropout": self._dropout,
            "affine": self._affine,
            "group_norm": self._group_norm,
            "average_pool": self._linear_map,
            "global_pool": self._linear_map,
            "upsample": self._linear_map,
        }
        for op in reversed(graph.forward):
            gradient_of_y = self._gradient.get(op.writes["y"])
            if gradient_of_y is not None and op.writes["y"] in self._wanted:
                rules[op.kind](op, gradient_of_y)

    def _trains(self, op: Op) -> bool:
        return any(self._graph.parameters[name].trains for name in op.parameters.values())

    def _training_parameters(self, op: Op, *roles: str) -> dict[str, str]:
        names = {role: op.parameters[role] for role in roles if role in op.parameters}
        return {role: name for role, name in names.items() if self._graph.parameters[name].trains}

    def _arrives(self, value: str, gradient: str) -> None:
        """`gradient` is a contribution to the gradient of `value`."""
        if value not in self._gradient:
            self._gradient[value] = gradient
            return
        shape = self._graph.values[value].shape
        total = self._graph.add_value(f"gradient/{value}", shape)
        reads = {"x": gradient, "other": self._gradient[value]}
        self._graph.backward.append(Op("add", reads, {"y": total}, in_place=("x", "other")))
        self._gradient[value] = total

    def _new_gradient(self, value: str) -> str:
        return self._graph.add_value(f"gradient/{value}", self._graph.values[value].shape)

    def _through_mask(self, op: Op, gradient: str) -> str:
        """Let the forward operator keep its mask, and apply it to the gradient of its output."""
        y = op.writes["y"]
        op.writes["mask"] = self._graph.add_value(f"{y}/mask", self._graph.values[y].shape, mask=True)
        masked = self._graph.add_value(f"gradient/{y}/masked", self._graph.values[y].shape)
        reads = {"dy": gradient, "mask": op.writes["mask"]}
        self._graph.backward.append(Op("mask_gradient", reads, {"dx": masked}, in_place=("dy",)))
        return masked

    def _convolution(self, op: Op, gradient: str) -> None:
        x = op.reads["x"]
        if op.attributes["activation"] != "none":
            gradient = self._through_mask(op, gradient)
        if self._training_parameters(op, "bias"):
            parameters = {"bias": op.parameters["bias"]}
            self._graph.backward.append(Op("bias_gradient", {"dy": gradient}, {}, parameters))
        attributes = {"geometry": op.attributes["geometry"]}
        parameters = {"weight": op.parameters["weight"]}
        if self._training_parameters(op, "weight"):
            reads = {"x": x, "dy": gradient}
            self._graph.backward.append(Op(f"{op.kind}_dw", reads, {}, dict(parameters), dict(attributes)))
        if x in self._wanted:
            dx = self._new_gradient(x)
            self._graph.backward.append(Op(f"{op.kind}_dx", {"dy": gradient}, {"dx": dx}, parameters, attributes))
            self._arrives(x, dx)

    def _activate(self, op: Op, gradient: str) -> None:
        self._arrives(op.reads["x"], self._through_mask(op, gradient))

    def _add(self, op: Op, gradient: str) -> None:
        for source in op.reads.values():
            if source in self._wanted:
                self._arrives(source, gradient)

    def _dropout(self, op: Op, gradient: str) -> None:
        if op.reads["x"] in self._wanted:
            dx = self._new_gradient(op.reads["x"])
            reads = {"dy": gradient, "mask": op.writes["mask"]}
            self._graph.backward.append(Op("dropout_dx", reads, {"dx": dx}, in_place=("dy",)))
            self._arrives(op.reads["x"], dx)

    def _affine(self, op: Op, gradient: str) -> None:
        reads = {"dy": gradient}
        if self._training_parameters(op, "weight"):
            reads["x"] = op.reads["x"]
            # The input is read later, so the forward pass must not write over it.
            op.in_place = ()
        dx = self._new_gradient(op.reads["x"])
        trained = {"train_" + role: name for role, name in self._training_parameters(op, "weight", "bias").items()}
        parameters = {"weight": op.parameters["weight"], **trained}
        self._graph.backward.append(Op("affine_backward", reads, {"dx": dx}, parameters, in_place=("dy",)))
        if op.reads["x"] in self._wanted:
            self._arrives(op.reads["x"], dx)

    def _group_norm(self, op: Op, gradient: str) -> None:
        x = op.reads["x"]
        dx = self._new_gradient(x)
        trained = {"train_" + role: name for role, name in self._training_parameters(op, "weight", "bias").items()}
        self._graph.backward.append(
            Op(
                "group_norm_backward",
                {"x": x, "dy": gradient, "statistics": op.writes["statistics"]},
                {"dx": dx},
                {"weight": op.parameters["weight"], **trained},
                dict(op.attributes),
            )
        )
        if x in self._wanted:
            self._arrives(x, dx)

    def _linear_map(self, op: Op, gradient: str) -> None:
        x = op.reads["x"]
        dx = self._new_gradient(x)
        self._graph.backward.append(Op(f"{op.kind}_dx", {"dy": gradient}, {"dx": dx}, {}, dict(op.attributes)))
        self._arrives(x, dx)
