"""The eager network computes what onnxruntime computes, and differentiates as PyTorch does."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graph_cases import CASES, floats, graph, integers, number, run_onnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxruntime", reason="no onnxruntime to compare with")

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.runtime.errors import UsageError


def check(model: ir.Model, *batches: int, tolerance: float = 1e-5) -> None:
    eager = EagerNetwork(model)
    size = [int(n) for n in tuple(model.graph.inputs[0].shape)[1:]]
    for batch in batches or (1, 3):
        x = floats(batch, *size)
        (expected,) = run_onnx(model, {"x": x})
        with torch.no_grad():
            got = eager(torch.from_numpy(x))
            precise = copy.deepcopy(eager).double()(torch.from_numpy(x).double())
        assert got.dtype == torch.float32 and precise.dtype == torch.float64
        np.testing.assert_allclose(got.numpy(), expected, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(precise.numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str) -> None:
    body, constants = CASES[name]
    check(graph(body, constants))


@st.composite
def axis(draw: st.DrawFn) -> tuple[int, ...]:
    """Size, kernel, stride, dilation, padding before and after, of which every window has a pixel."""
    kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    before, after = draw(st.integers(0, kernel - 1)), draw(st.integers(0, kernel - 1))
    reach = (kernel - 1) * dilation + 1
    return draw(st.integers(reach, 9)), kernel, draw(st.integers(1, 3)), dilation, before, after


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["Conv", "MaxPool", "AveragePool"]),
    axes=st.tuples(axis(), axis()),
    ceil=st.booleans(),
    counted=st.booleans(),
)
def test_windows(kind: str, axes: tuple[tuple[int, ...], ...], ceil: bool, counted: bool) -> None:
    for size, kernel, stride, dilation, before, after in axes:
        spare = size + before + after - (kernel - 1) * dilation - 1
        # A window that begins behind the map is where versions of onnxruntime differ, and what such a one counts.
        assume(not ceil or not counted)
        assume(not ceil or -(-spare // stride) * stride < size + before)
        assume(kind != "AveragePool" or dilation == 1)  # which it knows only from opset 19 on
    size, kernels, strides, dilations, before, after = (list(values) for values in zip(*axes))
    body = f"kernel_shape={kernels}, strides={strides}, pads={before + after}"
    body += f", ceil_mode={int(ceil)}" if kind != "Conv" else ""
    body += f", count_include_pad={int(counted)}" if kind == "AveragePool" else f", dilations={dilations}"
    weight = {"w": floats(3, 2, *kernels)} if kind == "Conv" else {}
    check(graph(f"y = {kind}<{body}>({', '.join(['x', *weight])})", weight, (2, *size)))


@pytest.mark.parametrize("pads", [0, 1])
@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_average_pool_counts_as_pytorch(size: int, pads: int) -> None:
    options = f"kernel_shape=[3,3], strides=[2,2], pads={[pads] * 4}, ceil_mode=1, count_include_pad=1"
    x = torch.from_numpy(floats(2, 3, size, size))
    got = EagerNetwork(graph(f"y = AveragePool<{options}>(x)", size=(3, size, size)))(x)
    torch.testing.assert_close(got, torch.nn.AvgPool2d(3, 2, pads, ceil_mode=True, count_include_pad=True)(x))


@settings(max_examples=30, deadline=None)
@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 3), dilation=st.integers(1, 2), before=st.integers(0, 2),
    after=st.integers(0, 2), more=st.integers(0, 2), groups=st.sampled_from([1, 2]), size=st.integers(2, 5),
)  # fmt: skip
def test_transposed_convolutions(
    kernel: int, stride: int, dilation: int, before: int, after: int, more: int, groups: int, size: int
) -> None:
    assume(more < stride)
    assume((size - 1) * stride + (kernel - 1) * dilation + 1 + more - before - after > 0)
    settings_ = f"kernel_shape=[{kernel},{kernel}], strides=[{stride},{stride}], dilations=[{dilation},{dilation}]"
    settings_ += f", pads=[{before},{before},{after},{after}], output_padding=[{more},{more}], group={groups}"
    check(graph(f"y = ConvTranspose<{settings_}>(x, w)", {"w": floats(4, 3, kernel, kernel)}, (4, size, size + 1)))


@settings(max_examples=40, deadline=None)
@given(
    start=st.integers(-9, 9), end=st.integers(-9, 9), step=st.sampled_from([-3, -1, 1, 2]), where=st.integers(-3, -1)
)
def test_slices(start: int, end: int, step: int, where: int) -> None:
    constants = {"s": integers(start), "e": integers(end), "a": integers(where), "t": integers(step)}
    size = (4, 7, 6)
    assume(len(range(size[where])[start:end:step]) > 0)
    check(graph("y = Slice(x, s, e, a, t)", constants, size))


@settings(max_examples=40, deadline=None)
@given(
    old=st.integers(2, 7), new=st.integers(2, 13), mode=st.sampled_from(["linear", "nearest", "cubic"]),
    coordinates=st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]),
)  # fmt: skip
def test_resizes(old: int, new: int, mode: str, coordinates: str) -> None:
    body = f'y = Resize<mode="{mode}", coordinate_transformation_mode="{coordinates}", nearest_mode="floor">(x, , s)'
    scale = np.float32(new / old)
    while int(scale * np.float32(old)) < new or (new % old and float(scale) * old < new):  # each library rounds its way
        scale = np.nextafter(scale, np.float32(np.inf))
    # Elsewhere the nearest hangs on the last bit of a position.
    assume(mode != "nearest" or (coordinates == "asymmetric" and new % old == 0))
    check(graph(body, {"s": np.array([1, 1, scale, 1], np.float32)}, (2, old, 3)), tolerance=1e-4)


def test_gradients_at_the_ends_of_clips_are_zero() -> None:
    for body, ends in (("y = Clip(x, l, h)", (0, 6)), ("y = Clip(x, l)", (0,)), ("y = Clip(x, , h)", (6,))):
        eager = EagerNetwork(graph(body, {"l": number(0), "h": number(6)}))
        x = torch.full((1, 4, 7, 6), 3.0)
        x.flatten()[: len(ends)] = torch.tensor(ends, dtype=torch.float32)
        x.requires_grad = True
        eager(x).sum().backward()
        assert x.grad is not None
        assert not x.grad.flatten()[: len(ends)].any() and bool((x.grad.flatten()[len(ends) :] == 1).all()), body


SMOOTH = sorted(set(CASES) - {"where", "equal", "thresholded relu"})  # the rest jumps


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_against_differences(name: str) -> None:
    body, constants = CASES[name]
    model = graph(body, constants)
    eager = EagerNetwork(model, trainable=[n for n, value in constants.items() if value.dtype == np.float32]).double()
    x = torch.from_numpy(floats(2, 4, 7, 6)).double().requires_grad_()
    direction = torch.from_numpy(floats(2, 4, 7, 6)).double()
    weights = torch.from_numpy(floats(*eager(x).shape)).double()
    (eager(x) * weights).sum().backward()
    assert x.grad is not None
    step = 1e-6
    with torch.no_grad():
        higher, lower = ((eager(x + sign * step * direction) * weights).sum() for sign in (1, -1))
    expected = float(higher - lower) / (2 * step)
    assert float((x.grad * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_only_what_is_to_train_requires_gradients(tmp_path: Path) -> None:
    model = graph("a = Conv<pads=[1,1,1,1]>(x, conv.weight, conv.bias)\ny = Clip(a, l, h)".replace(".", "_"), {
        "conv_weight": floats(4, 4, 3, 3), "conv_bias": floats(4), "l": number(0), "h": number(6),
    })  # fmt: skip
    for name in ("conv_weight", "conv_bias"):
        value = model.graph.initializers[name]
        value.name = name.replace("_", ".")
    ir.save(model, tmp_path / "forward.onnx")
    eager = EagerNetwork(tmp_path / "forward.onnx", trainable=["conv.bias"])
    assert {name for name, p in eager.parameters_by_name.items() if p.requires_grad} == {"conv.bias"}
    assert set(eager.parameters_by_name) == {"conv.weight", "conv.bias", "l", "h"}
    copied = copy.deepcopy(eager).double()
    assert copied.parameters_by_name["conv.bias"].dtype == torch.float64
    assert eager.parameters_by_name["conv.bias"].dtype == torch.float32
    assert copied.parameters_by_name["conv.bias"] is not eager.parameters_by_name["conv.bias"]


def test_masks_are_ones_where_none_are_given() -> None:
    model = graph("y = Mul(x, m)", {"m": number(1)})
    mask = model.graph.initializers.pop("m")
    mask.const_value = None
    mask.shape, mask.type = ir.Shape(["batch", 4, 7, 6]), ir.TensorType(ir.DataType.FLOAT)
    model.graph.inputs.append(mask)
    eager, x = EagerNetwork(model), torch.from_numpy(floats(2, 4, 7, 6))
    assert torch.equal(eager(x), x)
    assert torch.equal(eager(x, {"m": torch.full_like(x, 2.0)}), 2 * x)


def test_an_unknown_operator_is_named() -> None:
    with pytest.raises(UsageError, match="Hardmax"):
        EagerNetwork(graph("y = Hardmax(x)"))
