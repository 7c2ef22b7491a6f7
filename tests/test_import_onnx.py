"""What people write in PyTorch becomes few operators that compute the same; the rest is refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference_step import ReferenceStep
from torch import nn
from torch.nn import functional

from tinytl_edge.export.forward import export_forward
from tinytl_edge.export.step.compile import compile_step
from tinytl_edge.export.step.import_onnx import import_forward
from tinytl_edge.export.step.ir import Graph, Op
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


def imported(network: nn.Module, size: int = SIZE) -> Graph:
    return import_forward(export_forward(network, size)[0], [name for name, _ in network.named_parameters()])


def kinds(graph: Graph) -> list[str]:
    """The operators between the first and the last convolution of `Around`."""
    return [op.attributes.get("activation", op.kind) if op.kind == "activate" else op.kind for op in graph.forward][
        1:-3
    ]


def check_logits(network: nn.Module, graph: Graph, size: int = SIZE) -> None:
    """The graph and the network give the same in float64."""
    exact = network.double()
    x = 4 * torch.randn(1, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    targets = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reads = {"x": graph.logits, "targets": graph.add_value("targets", (CLASSES,))}
    graph.backward.append(Op("loss", reads, {"dx": graph.add_value("gradient", (CLASSES,))}, {}, {"several": False}))
    loss = ReferenceStep(graph, {n: p.detach() for n, p in exact.named_parameters()}).run(x[0], targets, [])
    expected = -(targets * exact(x).log_softmax(1)).sum()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-7)  # 1 / 6 is exported in float32


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
    network = Around(operation).eval()
    graph = imported(network)
    assert kinds(graph) == [kind]
    check_logits(network, graph)


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        ("relu", nn.ReLU()),
        ("relu", Lambda(lambda x: x.clamp(min=0))),
        ("relu6", nn.ReLU6()),
        ("relu6", Lambda(lambda x: x.clamp(0, 6))),
        ("relu6", Lambda(lambda x: functional.relu(x).clamp(max=6))),
    ],
)
def test_convolutions_take_in_clamps(kind: str, operation: nn.Module) -> None:
    network = Around(operation).eval()
    graph = imported(network)
    assert kinds(graph) == [] and graph.forward[0].attributes["activation"] == kind
    check_logits(network, graph)


OPERATIONS = [
    (["relu", "multiply"], lambda x: x * functional.relu(x)),
    (["multiply"], lambda x: x * x),
    (["multiply"], lambda x: functional.relu(x) * functional.relu(x)),  # one ReLU, in the convolution
    (["sigmoid", "multiply", "add"], lambda x: (s := torch.sigmoid(x)) * x + s),
    (["hard_sigmoid", "silu", "add"], lambda x: functional.hardsigmoid(x) + functional.silu(x)),
    (["global_pool"], lambda x: x.mean((-1, -2), keepdim=True)),
    (["global_pool"], lambda x: x.mean((2, 3))[:, :, None, None]),
    (["global_pool"], nn.AdaptiveAvgPool2d(1)),
    (["average_pool"], nn.AvgPool2d(3, 2, 1)),
    (["average_pool"], nn.AvgPool2d((3, 4), 3, (0, 1), ceil_mode=True)),
    (["max_pool"], nn.AdaptiveMaxPool2d(1)),
    (["max_pool", "silu", "max_pool"], nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.SiLU(), nn.MaxPool2d(2))),
]


@pytest.mark.parametrize(("expected", "operation"), OPERATIONS)
def test_operations(expected: list[str], operation: Callable[[torch.Tensor], torch.Tensor]) -> None:
    network = Around(Lambda(operation)).eval()
    graph = imported(network)
    assert kinds(graph) == expected
    check_logits(network, graph)


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


@pytest.mark.parametrize("kind", ["linear", "expanded", "mean", "pool"])
def test_squeeze_and_excitation(kind: str) -> None:
    network = Around(Squeeze(kind)).eval()
    graph = imported(network)
    multiply = next(op for op in graph.forward if op.kind == "multiply")
    assert graph.values[multiply.reads["x"]].shape == (SIZE, SIZE, CHANNELS)
    assert graph.values[multiply.reads["other"]].shape in ((CHANNELS,), (1, 1, CHANNELS))
    check_logits(network, graph)


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
    pool = (
        nn.AvgPool2d(kernel, stride, padding, ceil, include)
        if average
        else nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil)
    )
    network = Around(pool).eval()
    graph = imported(network, size)
    (op,) = (op for op in graph.forward if op.kind in ("average_pool", "max_pool"))
    assert op.attributes["geometry"]["out"][0] == pool(torch.zeros(1, 1, size, size)).shape[2]
    check_logits(network, graph, size)


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
@pytest.mark.parametrize("operation", [Residual(), *(Lambda(f) for _, f in OPERATIONS), *(o for _, o in ACTIVATIONS)])
def test_gradients_against_autograd_in_float64(operation: nn.Module, trained: str) -> None:
    torch.manual_seed(0)
    network = Around(copy.deepcopy(operation)).eval()
    parameters = {name: p for name, p in network.named_parameters() if trained in name}
    if not parameters:
        pytest.skip("it has no such parameter")
    step = compile_step(export_forward(network, SIZE)[0], list(parameters))
    exact = network.double()
    x = 2 * torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64)
    targets = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = ReferenceStep(step.graph, {n: p.detach() for n, p in exact.named_parameters()})
    loss = reference.run(x[0], targets, [])
    expected = -(targets * exact(x).log_softmax(1)).sum()
    gradients = torch.autograd.grad(expected, list(parameters.values()))
    assert loss == pytest.approx(float(expected.detach()), rel=1e-7)
    assert set(reference.gradients) == set(parameters)
    for name, gradient in zip(parameters, gradients):
        torch.testing.assert_close(reference.gradients[name], gradient, rtol=1e-6, atol=1e-9)


class _Scaled(nn.Module):
    """A scale that trains is no constant, though it begins as one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x) * self.scale


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        (nn.MaxPool2d(3, 1, dilation=2), r"MaxPool of layer operation/MaxPool: it is dilated"),
        (nn.AvgPool2d(2, 5, 1, ceil_mode=True), r"AveragePool .* its last window holds nothing but padding"),
        (nn.MaxPool2d(17, 1, 8), r"MaxPool of layer operation/MaxPool: its window has more than 256"),
        (nn.Hardtanh(0, 5), r"Clip of layer operation/Clip: of the clipping"),
        (nn.LeakyReLU(), r"LeakyRelu of layer operation/LeakyRelu"),
        (Lambda(lambda x: x * 0.5), r"Mul of layer operation/Mul: only two maps"),
        (_Scaled(), r"Mul of layer operation/Mul: only two maps"),
        (Lambda(lambda x: x * torch.sigmoid(x[:, :1])), r"Slice of layer operation/Slice"),
        (Lambda(lambda x: x * x.mean(1, keepdim=True)), r"ReduceMean of layer operation/ReduceMean: it takes the mean"),
        (Lambda(lambda x: functional.max_pool2d(functional.pad(x, (0, 1, 0, 1)), 3, 2)), r"Pad of layer operation/Pad"),
        (Lambda(lambda x: x.flatten(1)[:, :CHANNELS, None, None]), r"Flatten of layer operation/Flatten: it reshapes"),
    ],
)
def test_the_rest_is_refused_by_name(operation: nn.Module, reason: str) -> None:
    network = Around(operation).eval()
    with pytest.raises(UsageError, match=reason) as caught:
        imported(network, 18)
    assert "\n" not in str(caught.value)
