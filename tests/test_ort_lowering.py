"""Each lowered operator computes what it replaces, and onnxruntime-training differentiates it as PyTorch does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graph_cases import CASES, classifier, floats, graph, integers, ort_session, run_onnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("onnxruntime", reason="no onnxruntime to compare with")

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.ort.lowering import lower
from tinytl_edge.runtime.errors import UsageError

TRAINS = importlib.util.find_spec("onnxruntime.training") is not None
needs_training = pytest.mark.skipif(not TRAINS, reason="onnxruntime-training has no wheel for this machine or Python")
UNTRAINABLE = {
    "AveragePool", "BatchNormalization", "Celu", "DepthToSpace", "DequantizeLinear", "Elu", "GlobalMaxPool",
    "HardSigmoid", "HardSwish", "InstanceNormalization", "LRN", "LayerNormalization", "LpNormalization", "Mean",
    "PRelu", "Pad", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Resize", "Selu", "Softplus", "Softsign",
    "SpaceToDepth", "Sum", "ThresholdedRelu",
}  # fmt: skip


def check(model: ir.Model) -> None:
    lowered = model.clone()
    lower(lowered)
    assert not UNTRAINABLE & {node.op_type for node in lowered.graph}
    eager = EagerNetwork(model)
    size = [int(n) for n in tuple(model.graph.inputs[0].shape)[1:]]
    for batch in (1, 3):
        x = floats(batch, *size)
        (got,) = run_onnx(lowered, {"x": x})
        with torch.no_grad():
            expected = eager(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


# These have neither a gradient in onnxruntime-training nor a lowering.
REFUSED = {"conv transpose": "ConvTranspose", "einsum": "Einsum"}


@pytest.mark.parametrize("name", sorted(set(CASES) - set(REFUSED)))
def test_operator(name: str) -> None:
    body, constants = CASES[name]
    check(graph(body, constants))


@settings(max_examples=25, deadline=None)
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
    for n in (size, size + 1):  # a last window that begins behind the map is none
        assume(not ceil or (-(-(n + 2 * padding - kernel) // stride)) * stride < n + padding)
    options = f"kernel_shape=[{kernel},{kernel}], strides=[{stride},{stride}], pads={[padding] * 4}"
    options += f", ceil_mode={int(ceil)}, count_include_pad={int(include)}"
    check(graph(f"y = AveragePool<{options}>(x)", size=(3, size, size + 1)))


@settings(max_examples=25, deadline=None)
@given(
    mode=st.sampled_from(["constant", "reflect", "edge"]),
    amounts=st.lists(st.integers(-2, 3), min_size=6, max_size=6),
)
def test_pads(mode: str, amounts: list[int]) -> None:
    pads = integers(0, *amounts[:3], 0, *amounts[3:])
    assume(mode == "constant" or min(amounts) >= 0)
    check(graph(f'y = Pad<mode="{mode}">(x, p)', {"p": pads}, size=(5, 5, 6)))


@needs_training
@pytest.mark.parametrize("name", sorted(set(CASES) - set(REFUSED)))
def test_gradients_are_pytorchs(name: str, tmp_path: Path) -> None:
    model, trainable, frozen = classifier(*CASES[name])
    feeds = {"images": floats(3, 3, 7, 6, seed=5), "targets": np.eye(5, dtype=np.float32)[[0, 3, 1]]}
    session = ort_session(tmp_path, model, trainable, frozen)
    loss, logits = session._run(feeds, training=True)

    eager = EagerNetwork(model, trainable).double()
    expected = eager(torch.from_numpy(feeds["images"]).double())
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    judge = -(torch.from_numpy(feeds["targets"]) * expected.log_softmax(1)).sum(1).mean()
    judge.backward()
    assert loss == pytest.approx(float(judge.detach()), rel=1e-4, abs=1e-6)
    exact = {name: eager.parameters_by_name[name].grad for name in trainable}
    steepest = max(float(gradient.abs().max()) for gradient in exact.values() if gradient is not None)
    for parameter, gradient in exact.items():
        assert gradient is not None
        got = session._state.get_parameter(parameter).grad.numpy()
        close = 1e-4 * float(gradient.abs().max()) + 2e-6 * steepest  # of float32
        np.testing.assert_allclose(got, gradient.numpy(), rtol=0, atol=close, err_msg=parameter)


@needs_training
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_differentiated_is_named(name: str, tmp_path: Path) -> None:
    model, trainable, frozen = classifier(*CASES[name])
    with pytest.raises(UsageError, match=REFUSED[name]) as caught:
        ort_session(tmp_path, model, trainable, frozen)
    assert "\n" not in str(caught.value)
