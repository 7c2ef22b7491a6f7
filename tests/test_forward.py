"""The forward graph computes what PyTorch computes, for any batch, with every parameter under its name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from small_net import CLASSES, SPEC, images, run_onnx, smooth_network
from torch import nn
from torch.nn import functional

from tinytl_edge.export.forward import OPSET, export_forward
from tinytl_edge.export.graph import static_shapes
from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.transfer import METHODS


def run(model: onnx.ModelProto, x: torch.Tensor, masks: dict[str, np.ndarray]) -> np.ndarray:
    return run_onnx(model, {"images": x.numpy(), **masks})[0]


@pytest.mark.parametrize("method", METHODS)
def test_same_logits_as_pytorch_for_any_batch(method: str) -> None:
    network = smooth_network(method)
    model, dropouts = export_forward(network, SPEC.resolution)
    for batch in (1, 3):
        x = images(batch)
        masks = {d.name: np.ones((batch, *d.shape), np.float32) for d in dropouts}
        expected = network(x).detach().numpy()
        np.testing.assert_allclose(run(model, x, masks), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_is_an_initializer_with_its_value(method: str) -> None:
    # Fresh modules hold many equal tensors, which the exporter would merge.
    network = smooth_network(method)
    model, _ = export_forward(network, SPEC.resolution)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, parameter in network.named_parameters():
        np.testing.assert_array_equal(held[name], parameter.detach().numpy(), err_msg=name)


def test_dropout_is_an_input() -> None:
    network = smooth_network("bias")
    model, dropouts = export_forward(network, SPEC.resolution)
    (dropout,) = dropouts
    assert (dropout.name, dropout.shape, dropout.rate) == ("dropout/dropout", (SPEC.head_channels,), 0.25)
    x, mask = images(2), torch.bernoulli(torch.full((2, SPEC.head_channels), 0.5)) * 2
    features = network.pool(network.head(network.blocks(network.stem(x)))).flatten(1)
    expected = network.classifier(features * mask).detach().numpy()
    np.testing.assert_allclose(run(model, x, {dropout.name: mask.numpy()}), expected, rtol=1e-4, atol=1e-5)


def test_graph_is_plain() -> None:
    model, _ = export_forward(smooth_network("lite-residual+bias"), SPEC.resolution)
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"Constant", "Identity", "Shape", "Pad", "Gather", "Cast"}
    assert model.opset_import[0].version == OPSET
    shapes = static_shapes(model)
    assert shapes["logits"] == ("batch", CLASSES)
    assert all(isinstance(n, int) for name, shape in shapes.items() for n in shape[1:])


class Custom(nn.Module):
    """What users' networks hold that ours do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.drop = nn.Dropout2d(0.1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.hardswish(self.conv(functional.pad(x, (0, 1, 0, 1))))
        x = x * functional.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True))).expand_as(x)
        y = functional.silu(functional.max_pool2d(x, 2))
        y = self.drop(self.norm(y))
        y = functional.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.fc((x + y).mean((2, 3)))


def test_custom_network() -> None:
    torch.manual_seed(0)
    network = Custom().eval()
    model, dropouts = export_forward(network, 15)
    assert [(d.name, d.shape) for d in dropouts] == [("dropout/drop", (8, 8, 8))]
    x = images(3, size=15)
    masks = {d.name: np.ones((3, *d.shape), np.float32) for d in dropouts}
    np.testing.assert_allclose(run(model, x, masks), network(x).detach().numpy(), rtol=1e-4, atol=1e-5)


class _Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.reshape(-1)[: 3 * 8 * 8]).reshape(1, 2)


class _Fourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.fft.rfft2(x).abs().mean((2, 3)))


@pytest.mark.parametrize(("network", "reason"), [(_Fixed(), "batch"), (_Fourier(), "ONNX")])
def test_what_has_no_graph_is_refused_in_one_sentence(network: nn.Module, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        export_forward(network, 8)
    assert "\n" not in str(caught.value)
