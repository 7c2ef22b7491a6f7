"""Lite residual modules in a TFLite file: operators that LiteRT and XNNPACK know, and the network's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

for module in ("onnx_ir", "torch", "ai_edge_litert"):
    pytest.importorskip(module)

from onnx_files import probabilities, run_graph  # noqa: E402
from test_tflite_template import trained  # noqa: E402
from tflite_files import Layers, litert, litert_output  # noqa: E402

from tinytl_edge.export.onnx_graph import constant, set_initializer  # noqa: E402
from tinytl_edge.export.sources.network import Network  # noqa: E402
from tinytl_edge.export.sources.tflite_file import read_tflite  # noqa: E402
from tinytl_edge.export.sources.tflite_reader import parse  # noqa: E402
from tinytl_edge.export.targets.proof import as_codes, fill  # noqa: E402
from tinytl_edge.export.targets.tflite_template import tflite_template  # noqa: E402
from tinytl_edge.export.tinytl.transform import transform  # noqa: E402
from tinytl_edge.runtime.model_files.stored_numbers import LOGITS_RANGE  # noqa: E402

SIZE = 32
DTYPES = ("float32", "int8", "uint8")


def network_file(folder: Path, dtype: str, fused: bool = False) -> Path:
    """A stem, three inverted residuals (the second one narrows the map), a linear layer; `fused`: sums with ReLU6."""
    layers = Layers(dtype, seed=3)
    x = layers.input((1, SIZE, SIZE, 3))
    y = layers.conv(x, 8, stride=2, relu6=True)
    y = layers.conv(y, 8, kernel=1)
    for channels, stride in ((8, 1), (16, 2), (16, 1)):
        z = layers.conv(y, 16, kernel=1, relu6=True)
        z = layers.conv(z, 16, stride=stride, depthwise=True, relu6=True)
        z = layers.conv(z, channels, kernel=1)
        y = layers.add(y, z, relu6=fused) if stride == 1 else z
    return layers.writer.write(folder / "source.tflite", [x], [layers.end(layers.linear(layers.mean(y), 4), "SOFTMAX")])


def answers(network: Network, file: Path, count: int = 12) -> tuple[Any, Any]:
    """Of LiteRT and of the network, on the same images."""
    model = parse(file.read_bytes(), file.name)
    taken, random = model.tensors[model.inputs[0]], np.random.default_rng(1)
    found, wanted = [], []
    for _ in range(count):
        x = random.uniform(-1, 1, (1, SIZE, SIZE, 3)).astype(np.float32)
        if taken.quantisation is not None:
            limits = np.iinfo(taken.dtype)
            codes = np.rint(x / taken.quantisation.scale[0] + taken.quantisation.zero_point[0])
            found.append(litert_output(file, np.clip(codes, limits.min, limits.max).astype(taken.dtype))[0])
        else:
            found.append(litert_output(file, x)[0])
        logits = run_graph(network.model, np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        wanted.append(probabilities(logits, network.end)[0])
    return np.array(found), np.array(wanted)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["lite-residual", "lite-residual+bias"])
def test_modules_answer_as_in_the_network(method: str, dtype: str, fused: bool, tmp_path: Path) -> None:
    source = network_file(tmp_path, dtype, fused)
    network = read_tflite(source)
    trainable = transform(network.model, method).trainable
    modules = {name.split(".lite_residual.")[0] for name in trainable if ".lite_residual." in name}
    assert len(modules) == 3
    file = trained(network, tflite_template(network, trainable, False), tmp_path)
    found, wanted = answers(network, file)
    if dtype == "float32":
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    else:
        off = np.abs(found - wanted).max(1)
        assert off.max() < 0.15 and off.mean() < 0.05, off
    before, after = (parse(path.read_bytes(), "m") for path in (source, file))
    kinds = [operator.kind for operator in after.operators]
    assert not any(kind.startswith("custom") for kind in kinds)
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    # What was there is there, in its order, with its outputs.
    kept = [
        operator.outputs for operator in after.operators if operator.outputs in {o.outputs for o in before.operators}
    ]
    assert kept == [operator.outputs for operator in before.operators]


@pytest.mark.parametrize("dtype", DTYPES)
def test_xnnpack_runs_it(dtype: str, tmp_path: Path) -> None:
    network = read_tflite(network_file(tmp_path, dtype))
    trainable = transform(network.model, "lite-residual+bias").trainable
    file = trained(network, tflite_template(network, trainable, False), tmp_path)
    interpreter = litert.Interpreter(model_path=str(file), num_threads=1)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    codes = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3))
    shift = {"float32": 0, "uint8": 0, "int8": 128}[dtype]
    x = (codes / 127.5 - 1).astype(np.float32) if dtype == "float32" else (codes - shift).astype(dtype)
    interpreter.set_tensor(taken["index"], x)
    interpreter.invoke()
    scale, zero = given["quantization"]
    found = interpreter.get_tensor(given["index"]).astype(np.float64)
    found = (found - zero) * scale if scale else found
    np.testing.assert_allclose(found, litert_output(file, x), atol=1e-5 if dtype == "float32" else 0.03)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_with_modules_is_adapted_again_without_getting_more(dtype: str, tmp_path: Path) -> None:
    network = read_tflite(network_file(tmp_path, dtype))
    trainable = transform(network.model, "lite-residual+bias").trainable
    first = trained(network, tflite_template(network, trainable, False), tmp_path / "1")
    again = read_tflite(first)
    trainable_again = transform(again.model, "lite-residual+bias").trainable
    assert sorted(trainable_again.values()) == sorted(trainable.values())
    assert {name for name in trainable_again if "lite_residual" in name} == {
        name for name in trainable if "lite_residual" in name
    }
    second = trained(again, tflite_template(again, trainable_again, False), tmp_path / "2")
    kinds = [[o.kind for o in parse(path.read_bytes(), "m").operators] for path in (first, second)]
    assert kinds[0] == kinds[1]
    found, wanted = answers(again, second)
    assert np.abs(found - wanted).max() < (1e-4 if dtype == "float32" else 0.15)


def test_where_the_range_ends_both_stop(tmp_path: Path) -> None:
    """A module that adds far more than the codes of its sum can hold: the network is clamped as the file is."""
    network = read_tflite(network_file(tmp_path, "int8"))
    clamps = sum(node.op_type == "Clip" for node in network.model.graph)
    trainable = transform(network.model, "lite-residual").trainable
    assert sum(node.op_type == "Clip" for node in network.model.graph) == clamps + 3
    content = tflite_template(network, trainable, False)
    numbers = {LOGITS_RANGE: np.array([-20, 20], "<f4")}
    for name in trainable:
        value = network.model.graph.initializers[name]
        array = constant(value)
        assert array is not None
        numbers[name] = array.astype("<f4")
        if name.endswith("norm2.weight"):
            numbers[name] = np.full(array.shape, 30, "<f4")
        set_initializer(value, as_codes(numbers[name], name, content))
    found, wanted = answers(network, fill(content, tmp_path, numbers))
    assert np.abs(found - wanted).mean() < 0.08
