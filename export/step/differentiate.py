"""Reverse-mode differentiation, only towards trainables.

What an operator keeps from the forward pass:

- a convolution or linear layer: its input, where its weight trains; nothing otherwise
- a clamp (ReLU, ReLU6, a quantised range), fused or not: one bit an element; other activations: their input
- a product: each factor, where the other has a gradient
- max pooling: one byte an output, the winner's place in its window
- a norm, and a channel's scale that trains: the input (and the norm's statistics)
- dropout: its mask
- add, average pooling, resizing, copies and shuffles of channels: nothing

The gradient of a trainable part is a value like others, which operators add to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .ir import Graph, Op

GRADIENT_OF_LOGITS = "gradient/logits"


def gradient_of(part: str) -> str:
    """The name of the value that holds a part's gradient."""
    return f"gradient/{part}"


def differentiate(graph: Graph, multi_label: bool = False) -> None:
    """Append the loss and the backward operators to the graph, and to the forward ones the masks they keep.

    The loss is the softmax cross-entropy; with `multi_label` the sigmoids', a mean over the classes.
    """
    _Differentiation(graph).run(multi_label)


@dataclass
class _Gradient:
    """What has arrived at a value so far: gradients of others that it shares, and a sum of its own."""

    shared: list[str] = field(default_factory=list)
    own: str | None = None


class _Differentiation:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._gradients: dict[str, _Gradient] = {}  # by whole map
        self._wanted: set[str] = set()  # whole maps below which something trains

    def run(self, multi_label: bool) -> None:
        graph = self._graph
        for op in graph.forward:
            if any(self._is_wanted(source) for source in op.reads.values()) or self._trains(op):
                self._wanted.add(graph.root(op.writes["y"]))
        targets = graph.add_value("targets", graph.values[graph.logits].shape)
        gradient = graph.add_value(GRADIENT_OF_LOGITS, graph.values[graph.logits].shape)
        reads = {"x": graph.logits, "targets": targets}
        graph.backward.append(Op("loss", reads, {"dx": gradient}, {}, {"multi_label": multi_label}))
        self._gradients[graph.logits] = _Gradient(own=gradient)
        rules: dict[str, Callable[[Op, str], None]] = {
            "pointwise": self._convolution,
            "depthwise": self._convolution,
            "conv": self._convolution,
            "activate": self._activate,
            "add": self._add,
            "dropout": self._dropout,
            "affine": self._affine,
            "prelu": self._prelu,
            "group_norm": self._norm,
            "channel_norm": self._norm,
            "response_norm": self._response_norm,
            "copy": self._copy,
            "shuffle": self._shuffle,
            "multiply": self._multiply,
            "max_pool": self._max_pool,
            "average_pool": self._linear_map,
            "global_pool": self._linear_map,
            "upsample": self._linear_map,
            "resample": self._resample,
        }
        for op in reversed(graph.forward):
            y = op.writes["y"]
            if graph.root(y) in self._gradients and self._is_wanted(y):
                rules[op.kind](op, self._gradient(y))
            elif op.kind == "max_pool":
                del op.writes["index"]  # nobody asks for it

    def _is_wanted(self, value: str) -> bool:
        return self._graph.root(value) in self._wanted

    def _trains(self, op: Op) -> bool:
        return any(self._graph.part(name).trains for name in op.parameters.values())

    def _trained(self, op: Op, *roles: str) -> dict[str, str]:
        """Gradient values by the roles under which a backward operator writes them: dw of a weight, db of a bias."""
        parts = {role: op.parameters[role] for role in roles if role in op.parameters}
        gradients = {}
        for role, name in parts.items():
            part = self._graph.part(name)
            if part.trains:
                gradient = gradient_of(name)
                if gradient not in self._graph.values:
                    self._graph.add_value(gradient, (part.elements,))
                gradients["dw" if role == "weight" else "db"] = gradient
        return gradients

    def _gradient(self, value: str) -> str:
        """The finished gradient of a value (a run of its map's)."""
        graph, root = self._graph, self._graph.root(value)
        gradient = self._gradients[root]
        for shared in gradient.shared[1:] if gradient.own is None else gradient.shared:
            first = gradient.own or gradient.shared[0]
            total = graph.add_value(f"gradient/{root}", graph.values[root].shape)
            graph.backward.append(Op("add", {"x": first, "other": shared}, {"y": total}, in_place=("x", "other")))
            gradient.own = total
        whole = gradient.own or gradient.shared[0]
        self._gradients[root] = _Gradient([whole])
        return graph.same_run(value, whole)

    def _arrives(self, value: str, gradient: str) -> None:
        """The gradient of another value is a contribution to the gradient of `value`, a whole map."""
        self._gradients.setdefault(value, _Gradient()).shared.append(gradient)

    def _emit_dx(self, op: Op, x: str, role: str = "dx", partial: bool = False) -> None:
        """Append an operator that adds under a role to the gradient of x; `partial`: to some of it."""
        graph, root = self._graph, self._graph.root(x)
        gradient = self._gradients.setdefault(root, _Gradient())
        view = graph.values[x]
        adds = op.kind in ("pointwise_dx", "conv_dx", "copy")
        if gradient.own is None and view.base is None and not partial:
            gradient.own = op.writes[role] = graph.add_value(f"gradient/{root}", view.shape)
            graph.backward.append(op)
            return
        if gradient.own is None:
            gradient.own = graph.add_value(f"gradient/{root}", graph.values[root].shape)
            graph.backward.append(Op("zero", {}, {"y": gradient.own}))
        total = graph.same_run(x, gradient.own)
        if adds:
            op.writes[role] = total
            op.adds_to = (role,)
            graph.backward.append(op)
            return
        op.writes[role] = graph.add_value(f"gradient/{x}", view.shape)
        graph.backward += [op, Op("add", {"x": total, "other": op.writes[role]}, {"y": total}, adds_to=("y",))]

    def _through_mask(self, op: Op, gradient: str) -> str:
        """Let the forward operator keep its mask, and apply it to the gradient of its output."""
        y = op.writes["y"]
        shape = self._graph.values[y].shape
        op.writes["mask"] = self._graph.add_value(f"{y}/mask", shape, "bit")
        masked = self._graph.add_value(f"gradient/{y}/masked", shape)
        reads = {"dy": gradient, "mask": op.writes["mask"]}
        self._graph.backward.append(Op("mask_gradient", reads, {"dx": masked}, in_place=("dy",)))
        return masked

    def _convolution(self, op: Op, gradient: str) -> None:
        x = op.reads["x"]
        if op.attributes["activation"] != "none":
            gradient = self._through_mask(op, gradient)
        trained = self._trained(op, "weight", "bias")
        if "db" in trained:
            writes = {"db": trained["db"]}
            self._graph.backward.append(Op("bias_gradient", {"dy": gradient}, writes, adds_to=("db",)))
        attributes = {"geometry": op.attributes["geometry"]}
        if "dw" in trained:
            reads, writes = {"x": x, "dy": gradient}, {"dw": trained["dw"]}
            self._graph.backward.append(Op(f"{op.kind}_dw", reads, writes, {}, dict(attributes), adds_to=("dw",)))
        if self._is_wanted(x):
            parameters = {"weight": op.parameters["weight"]}
            self._emit_dx(Op(f"{op.kind}_dx", {"dy": gradient}, {}, parameters, attributes), x)

    def _activate(self, op: Op, gradient: str) -> None:
        if op.attributes["activation"] == "clamp":
            self._arrives(op.reads["x"], self._through_mask(op, gradient))
            return
        op.in_place = ()  # the input is read later
        reads = {"x": op.reads["x"], "dy": gradient}
        self._emit_dx(Op("activation_dx", reads, {}, {}, dict(op.attributes), in_place=("dy",)), op.reads["x"])

    def _multiply(self, op: Op, gradient: str) -> None:
        x, other = op.reads["x"], op.reads["other"]
        if self._is_wanted(other):
            op.in_place = tuple(role for role in op.in_place if role != "x")
            reads = {"dy": gradient, "x": x}
            self._emit_dx(Op("multiply_dother", reads, {}, {}, dict(op.attributes)), other)
        if self._is_wanted(x):
            op.in_place = tuple(role for role in op.in_place if role != "other")
            reads = {"dy": gradient, "other": other}
            self._emit_dx(Op("multiply_dx", reads, {}, {}, dict(op.attributes), in_place=("dy",)), x)

    def _max_pool(self, op: Op, gradient: str) -> None:
        reads = {"dy": gradient, "index": op.writes["index"]}
        self._emit_dx(Op("max_pool_dx", reads, {}, {}, dict(op.attributes)), op.reads["x"])

    def _add(self, op: Op, gradient: str) -> None:
        for source in op.reads.values():
            if self._is_wanted(source):
                self._arrives(source, gradient)

    def _dropout(self, op: Op, gradient: str) -> None:
        if self._is_wanted(op.reads["x"]):
            reads = {"dy": gradient, "mask": op.writes["mask"]}
            self._emit_dx(Op("dropout_dx", reads, {}, in_place=("dy",)), op.reads["x"])

    def _copy(self, op: Op, gradient: str) -> None:
        x = op.reads["x"]
        if not self._is_wanted(x):
            return
        first, count = op.attributes["x_first"], op.attributes["count"]
        back = {"x_first": op.attributes["y_first"], "y_first": first, "count": count}
        partial = count < self._graph.values[x].shape[2]
        self._emit_dx(Op("copy", {"x": gradient}, {}, {}, back), x, "y", partial)

    def _shuffle(self, op: Op, gradient: str) -> None:
        x = op.reads["x"]
        back = {"groups": self._graph.values[x].shape[2] // op.attributes["groups"]}
        self._emit_dx(Op("shuffle", {"x": gradient}, {}, {}, back), x, "y")

    def _affine(self, op: Op, gradient: str) -> None:
        x, trained = op.reads["x"], self._trained(op, "weight", "bias")
        if "weight" not in op.parameters:  # a shift alone
            if "db" in trained:
                bias_gradient = Op("bias_gradient", {"dy": gradient}, {"db": trained["db"]}, adds_to=("db",))
                self._graph.backward.append(bias_gradient)
            if self._is_wanted(x):
                self._arrives(x, gradient)
            return
        reads = {"dy": gradient}
        if "dw" in trained:
            reads["x"] = x
            # The input is read later, so the forward pass must not write over it.
            op.in_place = ()
        parameters = {"weight": op.parameters["weight"]}
        self._emit_backward(Op("affine_backward", reads, {}, parameters, in_place=("dy",)), x, trained)

    def _prelu(self, op: Op, gradient: str) -> None:
        reads = {"x": op.reads["x"], "dy": gradient}
        backward = Op("prelu_backward", reads, {}, dict(op.parameters), in_place=("dy",))
        self._emit_backward(backward, op.reads["x"], self._trained(op, "weight"))

    def _norm(self, op: Op, gradient: str) -> None:
        reads = {"x": op.reads["x"], "dy": gradient, "statistics": op.writes["statistics"]}
        parameters = {role: name for role, name in op.parameters.items() if role == "weight"}
        backward = Op(f"{op.kind}_backward", reads, {}, parameters, dict(op.attributes), in_place=("dy",))
        self._emit_backward(backward, op.reads["x"], self._trained(op, "weight", "bias"))

    def _response_norm(self, op: Op, gradient: str) -> None:
        reads = {"x": op.reads["x"], "dy": gradient}
        self._emit_dx(Op("response_norm_dx", reads, {}, {}, dict(op.attributes), in_place=("dy",)), op.reads["x"])

    def _resample(self, op: Op, gradient: str) -> None:
        back = Op("resample_dx", {"dy": gradient}, {}, dict(op.parameters), dict(op.attributes))
        self._emit_dx(back, op.reads["x"])

    def _emit_backward(self, op: Op, x: str, trained: dict[str, str]) -> None:
        """Append an operator that computes dx and, beside it, gradients of its parameters."""
        if self._is_wanted(x):
            self._emit_dx(op, x)
        else:  # the kernel computes it all the same
            op.writes["dx"] = self._graph.add_value(f"gradient/{x}", self._graph.values[x].shape)
            self._graph.backward.append(op)
        op.writes.update(trained)
        op.adds_to = (*op.adds_to, *trained)

    def _linear_map(self, op: Op, gradient: str) -> None:
        self._emit_dx(Op(f"{op.kind}_dx", {"dy": gradient}, {}, {}, dict(op.attributes)), op.reads["x"])
