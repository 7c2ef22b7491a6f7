"""TFLite files become network graphs that compute what LiteRT computes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
ir = pytest.importorskip("onnx_ir")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from tinytl_edge.export.sources.network import Network  # noqa: E402
from tinytl_edge.export.sources.tflite_file import read_tflite  # noqa: E402

Array = np.ndarray[Any, Any]

GOLDEN = {
    "coral__mobilenet_v1_0.25_128_quant": "coral/mobilenet_v1_0.25_128_quant",
    "coral__mobilenet_v2_1.0_224_quant": "coral/mobilenet_v2_1.0_224_quant",
    "mcunet__vww": "mcunet/vww",
    "mlperf-tiny__pretrainedResnet": "mlperf-tiny/pretrainedResnet",
    "mlperf-tiny__pretrainedResnet_quant": "mlperf-tiny/pretrainedResnet_quant",
    "mlperf-tiny__vww_96_float": "mlperf-tiny/vww_96_float",
    "mlperf-tiny__vww_96_int8": "mlperf-tiny/vww_96_int8",
    "tm-fruit__model": "teachable-machine-fruit/model",
    "tm-fruit__model_unquant": "teachable-machine-fruit/model_unquant",
}
FLOATS = ("mlperf-tiny__pretrainedResnet", "mlperf-tiny__vww_96_float", "tm-fruit__model_unquant")
# A quantised file rounds at every layer; the graph does not. Probabilities of these two drift farther than others', and
# the first's best two classes are closer to each other than that.
DRIFT = {"coral__mobilenet_v1_0.25_128_quant": 0.03, "mlperf-tiny__pretrainedResnet_quant": 0.07}


# Running --------------------------------------------------------------------------------------------------


def computed(network: Network, images: Array) -> Array:
    """The network's logits of float images [n, H, W, C], by onnxruntime, on a graph that the checker accepts."""
    proto = ir.to_proto(network.model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    found = session.run(None, {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)})[0]
    return np.asarray(found, np.float64)


def probabilities(network: Network, logits: Array) -> Array:
    if network.end == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    return np.asarray(1 / (1 + np.exp(-logits))) if network.end == "sigmoid" else logits


def real_input(network: Network, x: Array) -> Array:
    """Codes of an 8-bit input as the real numbers that they stand for, by way of the network's mean and std."""
    if x.dtype == np.float32:
        return x
    pixels = x.astype(np.float64) + (128 if x.dtype == np.int8 else 0)
    return np.asarray((pixels - network.input.mean) / network.input.std, np.float32)


def in_normal_form(network: Network) -> None:
    """What is asked of a network graph, as far as the checker does not see to it."""
    graph = network.model.graph
    assert [value.name for value in graph.inputs] == ["images"] and [value.name for value in graph.outputs] == [
        "logits"
    ]
    assert network.model.opset_imports == {"": 17} and network.model.ir_version == 8
    names = [node.name for node in graph]
    assert all(names) and len(set(names)) == len(names)
    for node in graph:
        assert node.op_type not in ("Constant", "Identity", "Cast")
        if node.op_type == "DequantizeLinear":
            assert all(use.node.op_type in ("Conv", "Gemm", "MatMul", "Transpose") for use in node.outputs[0].uses())
        elif not (node.op_type == "Transpose" and len(node.inputs[0].shape) == 2):  # of a weight, for MatMul
            assert any(value is not None and value.name not in graph.initializers for value in node.inputs), node
        for value in node.outputs:
            assert value.shape is not None and value.name
            assert all(isinstance(size, int) for size in tuple(value.shape)[1:])


# Files as they are deployed -------------------------------------------------------------------------------


def deployed(name: str) -> Path:
    folder = os.environ.get("TINYTL_EDGE_DEPLOYED")
    if not folder:
        pytest.skip("TINYTL_EDGE_DEPLOYED is not set")
    return Path(folder) / name


@pytest.mark.parametrize("golden", GOLDEN)
def test_a_deployed_file_computes_what_its_interpreter_did(golden: str) -> None:
    network = read_tflite(deployed(f"{GOLDEN[golden]}.tflite"))
    in_normal_form(network)
    reference = np.load(deployed(f"golden/{golden}.tflite.npz"))
    x, y, (scale, zero) = reference["x"], reference["y"].astype(np.float64), reference["q"]
    found = probabilities(network, computed(network, real_input(network, x)))
    if golden in FLOATS:
        np.testing.assert_allclose(found, y, atol=1e-4)
        return
    wanted = (y - zero) * scale if scale else y
    limit = DRIFT.get(golden, 0.03)
    np.testing.assert_allclose(found, wanted, atol=limit)
    best = int(wanted.argmax())
    assert found.argmax() == best or found.max() - found[0, best] < limit


def test_litert_computes_the_same() -> None:
    folder = os.environ.get("TINYTL_EDGE_WEIGHTS")
    if not folder:
        pytest.skip("TINYTL_EDGE_WEIGHTS is not set")
    pytest.importorskip("ai_edge_litert")
    from tflite_files import litert_output

    path = Path(folder) / "tf2_mobilenet_v2_1.0_224_ptq.tflite"
    network = read_tflite(path)
    in_normal_form(network)
    x = np.load(deployed("golden/coral__tf2_mobilenet_v2_1.0_224_ptq.tflite.npz"))["x"]
    found = probabilities(network, computed(network, real_input(network, x)))
    np.testing.assert_allclose(found, litert_output(path, x), atol=0.01)
    assert len(network.classes) == 1001 and network.classes[0] == "background"


def test_a_file_that_litert_refuses_is_read() -> None:
    """Its first bias has one dimension and names the fourth as the one with scales."""
    network = read_tflite(deployed("openmv/person_detect.tflite"))
    in_normal_form(network)
    assert (network.input.height, network.input.width, network.input.channels) == (96, 96, 1)
    first = next(node for node in network.model.graph if node.op_type == "Conv")
    assert first.attributes["group"].value == 1  # a multiplier of 8 on one channel: a convolution
    assert computed(network, np.zeros((2, 96, 96, 1))).shape == (2, 2)


def test_what_is_known_of_the_input() -> None:
    unquantised = read_tflite(deployed("teachable-machine-fruit/model_unquant.tflite"))
    assert (unquantised.input.mean, unquantised.input.std, unquantised.range_known) == (
        (127.5,) * 3,
        (127.5,) * 3,
        False,
    )
    assert not unquantised.input.margin and unquantised.input.fit == "crop"
    quantised = read_tflite(deployed("teachable-machine-fruit/model.tflite"))
    np.testing.assert_allclose(quantised.input.std, 255, rtol=1e-5)
    assert not quantised.range_known
    coral = read_tflite(deployed("coral/mobilenet_v2_1.0_224_quant.tflite"))
    np.testing.assert_allclose((coral.input.mean, coral.input.std), 128)
    assert coral.range_known and len(coral.classes) == 1001


def test_parameters_can_be_found_in_the_file() -> None:
    from tinytl_edge.export.passes.origin import ORIGIN, stored
    from tinytl_edge.export.sources.tflite_reader import parse
    from tinytl_edge.runtime.model_files.stored_numbers import as_stored

    path = deployed("coral/mobilenet_v1_0.25_128_quant.tflite")
    file = parse(path.read_bytes(), path.name)
    kinds = {"uint8": 0, "float32": 0}
    for value in read_tflite(path).model.graph.initializers.values():
        if ORIGIN not in value.metadata_props:
            continue
        assert value.const_value is not None
        way, array = stored(value), value.const_value.numpy()
        tensor = file.tensors[int(way.name.removeprefix("tensor "))]
        kinds[str(array.dtype)] += 1
        assert way.shape == tensor.shape
        found = as_stored("", {"": array.astype("<f4").tobytes()}.__getitem__, way.steps, tensor.dtype)
        assert found == tensor.data
    assert kinds == {"uint8": 28, "float32": 28}
