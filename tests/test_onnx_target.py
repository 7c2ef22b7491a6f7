"""The exported ONNX model: trained parameters in, dropout out, images normalised or as a camera gives them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from graph_cases import CASES, classifier, floats, manifest, run_onnx
from small_net import CLASSES, images, smooth_network

pytest.importorskip("onnxruntime", reason="no onnxruntime to run models with")

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.onnx_graph import set_initializer
from tinytl_edge.export.targets.onnx_model import inference_model
from tinytl_edge.runtime.files.bundle import Input, Manifest


def eight_bit_classifier() -> tuple[ir.Model, Manifest]:
    """Of images [3, 7, 6]: taller than wide."""
    model, trainable, _ = classifier(*CASES["conv 8 bits, zero point"])
    wanted = manifest(model, trainable)
    return model, replace(wanted, input=Input(7, 6, 3, (10.0, 120.0, 250.0), (1.5, 50.0, 127.5), "squash", False))


def test_parameters_are_in_and_dropout_is_out() -> None:
    network = smooth_network("lite-residual+bias")
    assert network.dropouts
    eager = EagerNetwork(network.model)
    trained = {
        name: eager.parameters_by_name[name].detach().numpy() + 0.05 * floats(*eager.parameters_by_name[name].shape)
        for name in network.trainable
    }
    for name, value in trained.items():
        with torch.no_grad():
            eager.parameters_by_name[name].copy_(torch.from_numpy(value))
    wanted = manifest(network.model, list(network.trainable))
    masks = [dropout.name for dropout in wanted.dropouts]
    for name, value in trained.items():
        set_initializer(network.model.graph.initializers[name], value)
    exported = inference_model(network.model.clone(), wanted.input, masks)
    assert [value.name for value in exported.graph.input] == ["images"]
    assert [value.name for value in exported.graph.output] == ["logits"]
    assert exported.producer_name == "tinytl-edge"
    for batch in (1, 3):
        x = images(batch)
        (logits,) = run_onnx(exported, {"images": x.numpy()})
        assert logits.shape == (batch, CLASSES)
        np.testing.assert_allclose(logits, eager(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_mask_on_either_side_is_taken_out() -> None:
    model, trainable, _ = classifier("a = Relu(x)\nb = Mul(m, a)\nc = Relu(b)\ny = Mul(c, n)", {
        "m": np.ones((1, 4, 7, 6), np.float32), "n": np.ones((1, 4, 7, 6), np.float32),
    })  # fmt: skip
    (expected,) = run_onnx(model, {"images": (x := floats(2, 3, 7, 6))})
    for name in ("m", "n"):
        mask = model.graph.initializers.pop(name)
        mask.const_value, mask.shape = None, ir.Shape(["batch", 4, 7, 6])
        model.graph.inputs.append(mask)
    wanted = manifest(model, trainable)
    assert [dropout.name for dropout in wanted.dropouts] == ["m", "n"]
    exported = inference_model(model, wanted.input, ["m", "n"])
    assert [value.name for value in exported.graph.input] == ["images"]
    assert "Mul" not in {node.op_type for node in exported.graph.node}
    np.testing.assert_array_equal(run_onnx(exported, {"images": x})[0], expected)


def test_weights_of_8_bits_stay_so() -> None:
    model, wanted = eight_bit_classifier()
    exported = inference_model(model, wanted.input, [])
    assert (exported.ir_version, [entry.version for entry in exported.opset_import]) == (8, [17])
    assert "DequantizeLinear" in {node.op_type for node in exported.graph.node}
    (codes,) = (tensor for tensor in exported.graph.initializer if tensor.name == "w")
    assert codes.data_type == onnx.TensorProto.UINT8


@pytest.mark.parametrize("channels", [3, 1])
def test_raw_pixels_are_the_same_images(channels: int) -> None:
    model, wanted = eight_bit_classifier()
    if channels == 1:
        first = model.graph.initializers["first.weight"]
        assert first.const_value is not None
        set_initializer(first, first.const_value.numpy()[:, :1])
        model.graph.inputs[0].shape = ir.Shape(["batch", 1, 7, 6])
        wanted = replace(wanted, input=Input(7, 6, 1, (33.0,), (70.0,), "pad", False))
    exported = inference_model(model.clone(), wanted.input, [])
    raw = inference_model(model.clone(), wanted.input, [], raw_pixels=True)
    (taken,) = raw.graph.input
    kind = taken.type.tensor_type
    assert (taken.name, kind.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert [size.dim_param or size.dim_value for size in kind.shape.dim] == ["batch", 7, 6, channels]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 7, 6, channels)).astype(np.uint8)
    normal = (pixels - np.array(wanted.input.mean, np.float32)) / np.array(wanted.input.std, np.float32)
    feeds = {"images": np.ascontiguousarray(normal.transpose(0, 3, 1, 2), np.float32)}
    (expected,), (got,) = run_onnx(exported, feeds), run_onnx(raw, {"images": pixels})
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))
