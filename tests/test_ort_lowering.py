"""Each lowered operator computes what it replaces."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small_net import run_onnx
from torch import nn
from torch.nn import functional

from tinytl_edge.export.forward import export_forward
from tinytl_edge.export.ort_lowering import lower
from tinytl_edge.runtime.errors import UsageError

UNTRAINABLE = {"Resize", "InstanceNormalization", "HardSwish", "HardSigmoid", "AveragePool"}


class _Wrapped(nn.Module):
    """An image operation in a classifier."""

    def __init__(self, operation: nn.Module, channels: int = 3) -> None:
        super().__init__()
        self.operation = operation
        self.fc = nn.Linear(channels, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.operation(x).flatten(2).amax(2))


class _Resize(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(x, **self.options)


def check(operation: nn.Module, size: int, channels: int = 3) -> None:
    torch.manual_seed(0)
    network = _Wrapped(operation, channels).eval()
    model, _ = export_forward(network, size)
    untouched = onnx.ModelProto()
    untouched.CopyFrom(model)
    lowered = lower(model)
    assert not UNTRAINABLE & {node.op_type for node in lowered.graph.node}
    for batch in (1, 3):
        x = torch.randn(batch, 3, size, size)
        (got,) = run_onnx(lowered, {"images": x.numpy()})
        np.testing.assert_allclose(got, network(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    old=st.integers(1, 9),
    new=st.integers(1, 20),
    kind=st.sampled_from([("bilinear", False), ("bilinear", True), ("nearest", None)]),
)
def test_resize(old: int, new: int, kind: tuple[str, bool | None]) -> None:
    mode, corners = kind
    check(_Resize(size=(new, new + 1), mode=mode, align_corners=corners), old)


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(4, 12),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    ceil=st.booleans(),
    include=st.booleans(),
)
def test_average_pool(size: int, kernel: int, stride: int, padding: int, ceil: bool, include: bool) -> None:
    padding = min(padding, kernel // 2)
    if ceil:  # PyTorch drops a last window that lies outside; ONNX keeps it, with nothing in it
        assume((-(-(size + 2 * padding - kernel) // stride)) * stride < size + padding)
    check(nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil, count_include_pad=include), size)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveMaxPool2d(1)])
def test_max_pool(pool: nn.Module) -> None:
    check(pool, 9)


@pytest.mark.parametrize(
    "operation",
    [
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8, affine=True)),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Hardswish()),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Hardsigmoid()),
    ],
)
def test_norms_and_hard_activations(operation: nn.Module) -> None:
    for module in operation.modules():
        if isinstance(module, (nn.GroupNorm, nn.InstanceNorm2d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    check(operation, 6, channels=8)


def test_cubic_resize_is_refused() -> None:
    model, _ = export_forward(_Wrapped(_Resize(size=(9, 9), mode="bicubic", align_corners=False)).eval(), 5)
    with pytest.raises(UsageError, match="cubic"):
        lower(model)
