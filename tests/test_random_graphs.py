"""Graphs at random that branch, join, shrink and move channels: compiled by any knobs, their gradients are autograd's.

What the planner may get wrong shows here: maps with many readers, runs of maps, operands that are written in place,
gradients that are added to, values that live on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graph_cases import graph, integers
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from reference_step import ReferenceStep

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.passes.normalise import remove_unused
from tinytl_edge.export.step.compile import Knobs, compile_step
from tinytl_edge.export.step.importers import import_network
from tinytl_edge.export.tinytl.batchnorm import fold_batchnorm
from tinytl_edge.export.tinytl.parameters import find_parameters
from tinytl_edge.runtime.errors import UsageError

CLASSES, SIZE = 3, 8


@dataclass
class Builder:
    """Lines of a graph, its constants, and the maps that have been made: name, channels, size."""

    lines: list[str] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    maps: list[tuple[str, int, int]] = field(default_factory=lambda: [("x", 3, SIZE)])

    def add(self, kind: str, inputs: str, channels: int, size: int) -> None:
        """One more line."""
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {kind}({inputs})")
        if channels:
            self.maps.append((name, channels, size))

    def floats(self, *shape: int) -> str:
        """The name of a new constant, normally distributed."""
        return self.constant(self.random.standard_normal(shape).astype(np.float32))

    def constant(self, value: Any) -> str:
        """The name of one more constant."""
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name


def grow(draw: st.DrawFn, to: Builder) -> None:
    """One operator or two on maps that are there, the last more often than others."""
    name, channels, size = draw(st.one_of(st.just(to.maps[-1]), st.sampled_from(to.maps)))
    kind = draw(st.sampled_from(list(GROWTHS)))
    GROWTHS[kind](draw, to, name, channels, size)


def _conv(draw: st.DrawFn, to: Builder, name: str, channels: int, size: int) -> None:
    kernel, stride = draw(st.sampled_from([(1, 1), (3, 1), (3, 2), (1, 2)]))
    groups = draw(st.sampled_from([n for n in (1, 2, channels) if channels % n == 0]))
    out = channels if groups == channels else 2 * draw(st.integers(1, 4)) * (1 if groups < 3 else groups)
    inputs = f"{name}, {to.floats(out, channels // groups, kernel, kernel)}"
    inputs += f", {to.floats(out)}" if draw(st.booleans()) else ""
    pad = kernel // 2
    to.add(f"Conv<group={groups}, strides=[{stride},{stride}], pads=[{pad},{pad},{pad},{pad}]>", inputs, out,
           (size - 1) // stride + 1)  # fmt: skip


def _inverted_residual(draw: st.DrawFn, to: Builder, name: str, channels: int, size: int) -> None:
    """Wide inside, as what the compiler runs in strips and chunks."""
    wide, stride = channels * draw(st.integers(2, 4)), draw(st.sampled_from([1, 2]))
    to.add("Conv", f"{name}, {to.floats(wide, channels, 1, 1)}, {to.floats(wide)}", 0, 0)
    to.add(draw(st.sampled_from(["Relu", "HardSwish"])), f"v{len(to.lines) - 1}", 0, 0)
    to.add(f"Conv<group={wide}, strides=[{stride},{stride}], pads=[1,1,1,1]>",
           f"v{len(to.lines) - 1}, {to.floats(wide, 1, 3, 3)}", 0, 0)  # fmt: skip
    to.add("Relu", f"v{len(to.lines) - 1}", 0, 0)
    after = (size - 1) // stride + 1
    to.add("Conv", f"v{len(to.lines) - 1}, {to.floats(channels, wide, 1, 1)}", channels, after)
    if stride == 1 and draw(st.booleans()):
        to.add("Add", f"{name}, v{len(to.lines) - 1}", channels, size)


def _activation(draw: st.DrawFn, to: Builder, name: str, channels: int, size: int) -> None:
    to.add(
        draw(st.sampled_from(["Relu", "Sigmoid", "LeakyRelu<alpha=0.1>", "HardSwish", "Tanh"])), name, channels, size
    )


def _binary(draw: st.DrawFn, to: Builder, name: str, channels: int, size: int) -> None:
    others = [other for other, c, s in to.maps if (c, s) == (channels, size)]
    to.add(draw(st.sampled_from(["Add", "Mul"])), f"{name}, {draw(st.sampled_from(others))}", channels, size)


def _gate(draw: st.DrawFn, to: Builder, name: str, channels: int, size: int) -> None:
    to.add("ReduceMean<axes=[2,3]>", name, 0, 0)
    to.add("Sigmoid", f"v{len(to.lines) - 1}", 0, 0)
    to.add("Mul", f"{name}, v{len(to.lines) - 1}", channels, size)


def _concat(draw: st.DrawFn, to: Builder, name: str, channels: int, size: int) -> None:
    others = [(other, c) for other, c, s in to.maps if s == size]
    chosen = [(name, channels), *draw(st.lists(st.sampled_from(others), min_size=1, max_size=2))]
    to.add("Concat<axis=1>", ", ".join(other for other, _ in chosen), sum(c for _, c in chosen), size)


def _slice(draw: st.DrawFn, to: Builder, name: str, channels: int, size: int) -> None:
    first = draw(st.integers(0, channels - 1))
    count = draw(st.integers(1, channels - first))
    ends = [to.constant(integers(n)) for n in (first, first + count, 1)]
    to.add("Slice", ", ".join([name, *ends]), count, size)


def _pool(draw: st.DrawFn, to: Builder, name: str, channels: int, size: int) -> None:
    kind = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    if size > 1:
        to.add(f"{kind}<kernel_shape=[2,2], strides=[2,2]>", name, channels, size // 2)
    else:
        to.add(f"{kind}<kernel_shape=[3,3], pads=[1,1,1,1]>", name, channels, size)


def _channels(draw: st.DrawFn, to: Builder, name: str, channels: int, size: int) -> None:
    numbers = to.floats(channels, 1, 1)
    to.add(draw(st.sampled_from(["Add", "Mul"])), f"{name}, {numbers}", channels, size)


def _shuffle(draw: st.DrawFn, to: Builder, name: str, channels: int, size: int) -> None:
    groups = draw(st.sampled_from([n for n in (1, 2, 3) if channels % n == 0]))
    apart, back = (integers(0, groups, channels // groups, size, size), integers(0, channels, size, size))
    to.add("Reshape", f"{name}, {to.constant(apart)}", 0, 0)
    to.add("Transpose<perm=[0,2,1,3,4]>", f"v{len(to.lines) - 1}", 0, 0)
    to.add("Reshape", f"v{len(to.lines) - 1}, {to.constant(back)}", channels, size)


def _response_norm(draw: st.DrawFn, to: Builder, name: str, channels: int, size: int) -> None:
    to.add(f"LRN<size={draw(st.integers(1, 6))}, alpha=0.5, beta=0.75, bias=2.0>", name, channels, size)


GROWTHS = {
    "conv": _conv, "inverted residual": _inverted_residual, "activation": _activation, "binary": _binary, "gate": _gate,
    "concat": _concat, "slice": _slice,
    "pool": _pool, "channels": _channels, "shuffle": _shuffle,
    "response norm": _response_norm,
}  # fmt: skip
KNOBS = st.builds(
    Knobs,
    streamed=st.booleans(),
    accumulation=st.sampled_from(["none", "float32", "bfloat16"]),
    saved=st.sampled_from(["float32", "bfloat16", "8bit"]),  # the reference rounds nothing
    recomputed=st.sampled_from([0, 2, 1000]),
    scratch_bytes=st.sampled_from([512, 4_096, 1 << 20]),
)


@st.composite
def networks(draw: st.DrawFn) -> ir.Model:
    """A graph of up to a dozen operators, all of whose ends are joined in the logits."""
    to = Builder()
    _conv(draw, to, "x", 3, SIZE)
    for _ in range(draw(st.integers(1, 12))):
        grow(draw, to)
    pooled = []
    for name, channels, _ in {to.maps[-1], draw(st.sampled_from(to.maps[1:]))}:
        to.add("ReduceMean<axes=[2,3], keepdims=0>", name, 0, 0)
        pooled.append((f"v{len(to.lines) - 1}", channels))
    to.add("Concat<axis=1>", ", ".join(name for name, _ in pooled), 0, 0)
    weight = to.floats(CLASSES, sum(channels for _, channels in pooled))
    body = [*to.lines, f"y = Gemm<transB=1>(v{len(to.lines) - 1}, {weight}, {to.floats(CLASSES)})"]
    note("\n".join(body))
    model = graph("\n".join(body), to.constants, (3, SIZE, SIZE))
    remove_unused(model)
    return model


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=networks(), knobs=KNOBS, data=st.data())
def test_gradients_are_autograds(model: ir.Model, knobs: Knobs, data: st.DataObject) -> None:
    names = sorted(find_parameters(model))
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    trainable = fold_batchnorm(model, dict.fromkeys(chosen, "weight"))
    exact = EagerNetwork(model, trainable).double()
    try:
        network = import_network(model, trainable)
    except UsageError as error:  # a sum of an image with something, say: a sentence, never an internal error
        assert "cannot compile" in str(error)
        return
    step = compile_step(network, knobs)
    note("\n".join(f"{op.kind} {op.reads} -> {op.writes} {op.adds_to}" for op in step.graph.ops()))
    x = torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    targets = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    reference = ReferenceStep(step.graph, {n: p.detach() for n, p in exact.parameters_by_name.items()})
    loss = reference.run(x[0], targets, [])
    expected = -(targets * exact(x).log_softmax(1)).sum()
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6, abs=1e-9)
    for name in trainable:
        gradient = exact.parameters_by_name[name].grad
        assert gradient is not None
        tolerance = 1e-6 * max(1.0, float(gradient.abs().max()))
        found = reference.gradients[name].reshape(gradient.shape)
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=tolerance)
