"""What people write in PyTorch becomes few operators that compute the same; the rest is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import onnx_ir as ir
import pytest
import torch
from attention import AlongChannels, Branches, response_normalised
from graph_cases import floats
from graph_cases import graph as onnx_graph
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference_step import ReferenceStep
from torch import nn
from torch.nn import functional

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.sources.torch_module import from_module
from tinytl_edge.export.step.compile import compile_step
from tinytl_edge.export.step.importers import import_network
from tinytl_edge.export.step.ir import Graph, Op
from tinytl_edge.export.tinytl.parameters import find_parameters
from tinytl_edge.runtime.errors import UsageError

CHANNELS, CLASSES, SIZE = 6, 3, 11


class Lambda(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Around(nn.Module):
    """A classifier around an operation on a map."""

    def __init__(self, operation: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.operation = operation
        self.last = nn.Conv2d(CHANNELS, 4, 1)
        self.fc = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.last(self.operation(self.first(x))).mean((2, 3)))
        return logits


@cache  # an export takes a second
def around(operation: Callable[[torch.Tensor], torch.Tensor]) -> ir.Model:
    """The network graph of an operation on a map."""
    torch.manual_seed(0)
    module = operation if isinstance(operation, nn.Module) else Lambda(operation)
    return from_module(Around(module).eval(), (3, SIZE, SIZE))[0]


def imported(model: ir.Model, trains: str | None = None) -> tuple[Graph, EagerNetwork]:
    """The compiler's graph, and the network in float64; `trains`: in the names of what does."""
    model = model.clone()
    trainable = [name for name in find_parameters(model) if trains is not None and trains in name]
    return import_network(model, trainable), EagerNetwork(model, trainable).double()


def kinds(graph: Graph) -> list[str]:
    """The operators between the first and the last convolution of `Around`."""
    return [op.attributes.get("activation", op.kind) if op.kind == "activate" else op.kind for op in graph.forward][
        1:-3
    ]


def check_logits(graph: Graph, exact: EagerNetwork, size: int = SIZE) -> None:
    """The graph and the network give the same in float64."""
    x = 4 * torch.randn(1, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    targets = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reads = {"x": graph.logits, "targets": graph.add_value("targets", (CLASSES,))}
    graph.backward.append(
        Op("loss", reads, {"dx": graph.add_value("gradient", (CLASSES,))}, {}, {"multi_label": False})
    )
    loss = ReferenceStep(graph, {}).run(x[0], targets, [])
    expected = -(targets * exact(x).log_softmax(1)).sum()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)  # constants are float32


@pytest.mark.parametrize(("size", "beta"), [(1, 0.75), (3, 0.6), (4, 0.75), (11, 0.75)])
def test_a_local_response_normalisation(size: int, beta: float) -> None:
    model = onnx_graph(
        f"""
        m = Conv(x, w)
        n = LRN<size={size}, alpha=0.3, beta={beta}, bias=1.5>(m)
        p = GlobalAveragePool(n)
        f = Flatten(p)
        y = Gemm<transB=1>(f, a, b)
        """,
        {"w": floats(6, 3, 1, 1), "a": floats(CLASSES, 6, seed=1), "b": floats(CLASSES, seed=2)},
        (3, SIZE, SIZE),
    )
    graph, exact = imported(model)
    assert [op.kind for op in graph.forward][1] == "response_norm"
    check_logits(graph, exact)


ACTIVATIONS = [
    ("hard_swish", nn.Hardswish()),
    ("hard_swish", Lambda(lambda x: x * functional.relu6(x + 3) / 6)),
    ("hard_swish", Lambda(lambda x: x * (functional.relu6(x + 3) * (1 / 6)))),
    ("hard_swish", Lambda(lambda x: functional.relu6(3 + x) / 6 * x)),
    ("hard_swish", Lambda(lambda x: x * functional.hardsigmoid(x))),
    ("hard_swish", Lambda(lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1))),
    ("hard_sigmoid", nn.Hardsigmoid()),
    ("hard_sigmoid", Lambda(lambda x: functional.relu6(x + 3) / 6)),
    ("hard_sigmoid", Lambda(lambda x: (x + 3).clamp(0, 6) * (1 / 6))),
    ("sigmoid", nn.Sigmoid()),
    ("silu", nn.SiLU()),
    ("silu", Lambda(lambda x: torch.sigmoid(x) * x)),
]


@pytest.mark.parametrize(("kind", "operation"), ACTIVATIONS)
def test_activations_are_known_however_they_are_spelled(kind: str, operation: nn.Module) -> None:
    graph, exact = imported(around(operation))
    assert kinds(graph) == [kind]
    check_logits(graph, exact)


@pytest.mark.parametrize(
    ("ends", "operation"),
    [
        ((0, math.inf), nn.ReLU()),
        ((0, math.inf), Lambda(lambda x: x.clamp(min=0))),
        ((0, 6), nn.ReLU6()),
        ((0, 6), Lambda(lambda x: x.clamp(0, 6))),
        ((0, 6), Lambda(lambda x: functional.relu(x).clamp(max=6))),
        ((-1, 1), nn.Hardtanh()),
    ],
)
def test_convolutions_take_in_clamps(ends: tuple[float, float], operation: nn.Module) -> None:
    graph, exact = imported(around(operation))
    first = graph.forward[0].attributes
    assert kinds(graph) == [] and first["activation"] == "clamp" and (first["low"], first["high"]) == ends
    check_logits(graph, exact)


OPERATIONS = [
    (["clamp", "multiply"], lambda x: x * functional.relu(x)),
    (["multiply"], lambda x: x * x),
    (["multiply"], lambda x: x**2),
    (["clamp", "clamp", "multiply"], lambda x: functional.relu(x) * functional.relu(x)),
    (["sigmoid", "multiply", "add"], lambda x: (s := torch.sigmoid(x)) * x + s),
    (["hard_sigmoid", "silu", "add"], lambda x: functional.hardsigmoid(x) + functional.silu(x)),
    (["global_pool"], lambda x: x.mean((-1, -2), keepdim=True)),
    (["global_pool"], lambda x: x.mean((2, 3))[:, :, None, None]),
    (["global_pool"], nn.AdaptiveAvgPool2d(1)),
    (["average_pool"], nn.AvgPool2d(3, 2, 1)),
    (["average_pool"], nn.AvgPool2d((3, 4), 3, (0, 1), ceil_mode=True)),
    (["max_pool"], nn.AdaptiveMaxPool2d(1)),
    (["pointwise", "sigmoid", "pointwise", "multiply"], lambda x: x * torch.sigmoid(x.mean(1, keepdim=True))),
    (
        ["pointwise", "global_pool", "pointwise", "multiply"],
        lambda x: x.mean(1, keepdim=True) * x.mean((2, 3), keepdim=True),
    ),
    (["copy", "copy", "add", "copy", "copy"], lambda x: torch.cat(2 * [x.unflatten(1, (2, -1)).sum(1)], 1)),
    (
        ["multiply", "resample", "sqrt", "pointwise", "reciprocal", "pointwise", "multiply", "multiply", "add"],
        response_normalised,
    ),
    (["max_pool", "silu", "max_pool"], nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.SiLU(), nn.MaxPool2d(2))),
]


@pytest.mark.parametrize(("expected", "operation"), OPERATIONS)
def test_operations(expected: list[str], operation: Callable[[torch.Tensor], torch.Tensor]) -> None:
    graph, exact = imported(around(operation))
    assert kinds(graph) == expected
    check_logits(graph, exact)


class Squeeze(nn.Module):
    """Squeeze and excitation, in the ways in which it is written."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        linear = kind in ("linear", "expanded")
        self.down: nn.Module = nn.Linear(CHANNELS, 2) if linear else nn.Conv2d(CHANNELS, 2, 1)
        self.up: nn.Module = nn.Linear(2, CHANNELS) if linear else nn.Conv2d(2, CHANNELS, 1)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels = x.shape[:2]
        if self.kind == "linear":
            return x * torch.sigmoid(self._factors(x.mean((2, 3))))[:, :, None, None]
        if self.kind == "expanded":
            pooled = functional.adaptive_avg_pool2d(x, 1).view(batch, channels)
            return x * torch.sigmoid(self._factors(pooled)).view(batch, channels, 1, 1).expand_as(x)
        if self.kind == "mean":
            return torch.sigmoid(self._factors(x.mean((2, 3), keepdim=True))) * x
        return x * functional.hardsigmoid(self._factors(functional.adaptive_avg_pool2d(x, 1)))

    def _factors(self, pooled: torch.Tensor) -> torch.Tensor:
        factors: torch.Tensor = self.up(functional.relu(self.down(pooled)))
        return factors


class ChannelsLast(nn.Module):
    """Channels, which lie last, are split; some gate the others, joined in another order, as in MambaOut."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(CHANNELS, 2 * CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, left, right = self.one(x.permute(0, 2, 3, 1)).split([CHANNELS, 2, CHANNELS - 2], -1)
        return (functional.silu(gate) * torch.cat((right, left), -1)).permute(0, 3, 1, 2)


MODULES = [Branches(CHANNELS, stacked=True), Branches(CHANNELS, stacked=False), AlongChannels(CHANNELS), ChannelsLast()]


@pytest.mark.parametrize("operation", MODULES)
def test_channels_that_are_weighed_and_joined(operation: nn.Module) -> None:
    graph, exact = imported(around(operation))
    check_logits(graph, exact)


@pytest.mark.parametrize("kind", ["linear", "expanded", "mean", "pool"])
def test_squeeze_and_excitation(kind: str) -> None:
    graph, exact = imported(around(Squeeze(kind)))
    multiply = next(op for op in graph.forward if op.kind == "multiply")
    assert graph.values[multiply.reads["x"]].shape == (SIZE, SIZE, CHANNELS)
    assert graph.values[multiply.reads["other"]].shape in ((CHANNELS,), (1, 1, CHANNELS))
    check_logits(graph, exact)


@settings(max_examples=60, deadline=None)
@given(
    average=st.booleans(),
    size=st.integers(4, 12),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    ceil=st.booleans(),
    include=st.booleans(),
)
def test_pooling(average: bool, size: int, kernel: int, stride: int, padding: int, ceil: bool, include: bool) -> None:
    padding = min(padding, kernel // 2)
    if ceil:  # PyTorch drops a last window that holds nothing but padding; ONNX keeps it, so it is refused
        assume(-(-(size + 2 * padding - kernel) // stride) * stride < size + padding)
    window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4, "ceil_mode": int(ceil)}
    if average:
        window["count_include_pad"] = int(include)
    attributes = ", ".join(f"{name}={value}" for name, value in window.items())
    kind = "AveragePool" if average else "MaxPool"
    weight = {"w": floats(CLASSES, 4, 1, 1, seed=1)}
    model = onnx_graph(
        f"p = {kind}<{attributes}>(x)\nc = Conv(p, w)\ny = ReduceMean<axes=[2,3], keepdims=0>(c)",
        weight,
        (4, size, size),
    )
    compiled = import_network(model, [])
    pool = (
        nn.AvgPool2d(kernel, stride, padding, ceil, include)
        if average
        else nn.MaxPool2d(kernel, stride, padding, 1, False, ceil)
    )
    x = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(size)).double()
    expected = functional.conv2d(pool(x), torch.from_numpy(weight["w"]).double()).mean((2, 3))
    reference = ReferenceStep(compiled, {})
    targets = compiled.add_value("targets", (CLASSES,))
    gradient = compiled.add_value("gradient", (CLASSES,))
    compiled.backward.append(
        Op("loss", {"x": compiled.logits, "targets": targets}, {"dx": gradient}, {}, {"multi_label": False})
    )
    loss = reference.run(x[0], torch.eye(CLASSES)[0].double(), [])
    assert loss == pytest.approx(float(-expected.log_softmax(1)[0, 0]), rel=1e-6)


class Residual(nn.Module):
    """ResNet's stem and block, MobileNetV3's and EfficientNet's blocks, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1)
        self.one, self.two = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1), nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)
        self.expand = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 5, 1, 2, groups=CHANNELS)
        self.hard, self.soft = Squeeze("pool"), Squeeze("linear")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.stem(x)), 3, 2, 1)
        x = functional.relu(x + self.two(functional.relu(self.one(x))))
        x = x + self.hard(functional.hardswish(self.depthwise(functional.hardswish(self.expand(x)))))
        x = functional.silu(x)
        return functional.avg_pool2d(x + self.soft(functional.silu(self.depthwise(x))), 3, 2, 1)


@pytest.mark.parametrize("trained", ["", "bias", "first", "operation.one", "fc"])
@pytest.mark.parametrize("operation", [Residual(), *MODULES, *(f for _, f in OPERATIONS), *(o for _, o in ACTIVATIONS)])
def test_gradients_against_autograd_in_float64(operation: Callable[[torch.Tensor], torch.Tensor], trained: str) -> None:
    graph, exact = imported(around(operation), trained)
    if not any(parameter.requires_grad for parameter in exact.parameters()):
        pytest.skip("it has no such parameter")
    step = compile_step(graph)
    x = 2 * torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64)
    targets = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = ReferenceStep(step.graph, {n: p.detach() for n, p in exact.parameters_by_name.items()})
    loss = reference.run(x[0], targets, [])
    expected = -(targets * exact(x).log_softmax(1)).sum()
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-7)
    gradients = {n: p.grad for n, p in exact.parameters_by_name.items() if p.requires_grad}
    assert set(reference.gradients) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(reference.gradients[name].reshape(gradient.shape), gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (Lambda(lambda x: torch.cos(x)), r"Cos of layer operation/Cos"),
        (Lambda(lambda x: x.sort(1).values), r"TopK of layer operation/TopK"),
        (
            Lambda(lambda x: x.flatten(1)[:, :CHANNELS, None, None]),
            r"Conv of layer last/Conv: it reads a map in an order",
        ),
        (
            Lambda(lambda x: functional.avg_pool1d(x.flatten(2), 3, 1, 1).unflatten(2, (SIZE, SIZE))),
            r"AveragePool of layer operation/AveragePool: it is of a form that is not known here",
        ),
    ],
)
def test_the_rest_is_refused_by_name(operation: nn.Module, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        imported(around(operation))
    assert "\n" not in str(caught.value)
