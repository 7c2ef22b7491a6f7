"""ONNX files become network graphs that compute what onnxruntime computes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

for module in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(module)

from onnx_files import (  # noqa: E402
    CLASSIFIER,
    SOFTMAX,
    export,
    faults,
    images,
    probabilities,
    quantised,
    run_bytes,
    run_graph,
    small_network,
    write,
)

from tinytl_edge.export.onnx_graph import eight_bits  # noqa: E402
from tinytl_edge.export.sources.onnx_file import read_onnx  # noqa: E402

GOLDEN = {  # the file, its golden outputs, size, most that a probability may differ by
    "float, BatchNorm apart, any size": (
        "paddle-ocr-cls/ch_ppocr_mobile_v2.0_cls_infer",
        "paddle-ocr-cls__ch_ppocr_mobile_v2.0_cls_infer",
        (48, 192),
        1e-4,
    ),
    "float, external data": ("tinycnn/model", "onnx-tinycnn__model", None, 1e-4),
    "QOperator": ("tinycnn/model_int8", "onnx-tinycnn__model_int8", None, 0.03),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_deployed_files(name: str) -> None:
    folder = os.environ.get("TINYTL_EDGE_DEPLOYED")
    if not folder:
        pytest.skip("TINYTL_EDGE_DEPLOYED does not say where deployed classifiers are")
    file, golden, size, most = GOLDEN[name]
    data = np.load(Path(folder) / "golden" / f"{golden}.onnx.npz")
    network = read_onnx(Path(folder) / f"{file}.onnx", size)
    assert faults(network.model) == []
    found = run_graph(network.model, data["x"])
    given = probabilities(found, network.end)
    if most < 0.01:
        np.testing.assert_allclose(given, data["y"], atol=most)
    else:
        assert (given.argmax(1) == data["y"].argmax(1)).all()
        assert np.abs(probabilities(found, "softmax") - probabilities(data["y"], "softmax")).max() < most


@pytest.mark.parametrize("dynamo, opset", [(False, 9), (False, 11), (False, 13), (False, 17), (True, 18), (True, 21)])
def test_exports_of_pytorch(dynamo: bool, opset: int, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = export(small_network(), tmp_path / "model.onnx", opset, dynamo)
    network = read_onnx(path)
    assert faults(network.model) == []
    x = images()
    wanted = np.concatenate([run_bytes(path, x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_allclose(run_graph(network.model, x), wanted, atol=1e-5)
    names = set(network.model.graph.initializers)
    assert {"11.weight", "11.bias", "14.weight", "14.bias"} <= names


@pytest.mark.parametrize("kind", ["dynamic", "QDQ", "QOperator"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("unsigned", [False, True])
def test_quantised_files(kind: str, per_channel: bool, unsigned: bool, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    source = export(small_network(), tmp_path / "float.onnx", 13)
    path = quantised(source, tmp_path / "model.onnx", kind, per_channel, unsigned)
    network = read_onnx(path)
    assert faults(network.model) == []
    x = images(8)
    wanted = np.concatenate([run_bytes(path, x[i : i + 1]) for i in range(len(x))])
    found = run_graph(network.model, x)
    assert (found.argmax(1) == wanted.argmax(1)).all()
    assert np.abs(probabilities(found, "softmax") - probabilities(wanted, "softmax")).max() < 0.03
    layers = [node for node in network.model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    kept = [node for node in layers if eight_bits(node.inputs[1]) is not None]
    # Every weight keeps the file's own 8 bits, but where each channel has a zero point of its own.
    assert len(kept) == len(layers) or (unsigned and per_channel)


def test_weights_that_are_inputs_and_constants(tmp_path: Path) -> None:
    x = images(1, size=16)
    plain = write(tmp_path / "plain.onnx", [*CLASSIFIER, SOFTMAX])
    wanted = run_bytes(plain, x)
    inputs = write(tmp_path / "inputs.onnx", [*CLASSIFIER, SOFTMAX], opset=9, weights_are_inputs=True)
    for path in (plain, inputs):
        network = read_onnx(path)
        assert faults(network.model) == [] and network.end == "softmax" and network.name == path.stem
        np.testing.assert_allclose(probabilities(run_graph(network.model, x), "softmax"), wanted, atol=1e-6)
        assert {"w", "b", "head/w", "head/b"} <= set(network.model.graph.initializers)
