"""An 8-bit TFLite file comes out as one: the same tensors and operators, other codes in what trained."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for module in ("onnx_ir", "torch", "ai_edge_litert"):
    pytest.importorskip(module)

from conftest import ok  # noqa: E402
from onnx_files import probabilities, run_graph  # noqa: E402
from test_tflite_template import differences, trained  # noqa: E402
from tflite_files import Layers, litert_output  # noqa: E402

from tinytl_edge.export.sources.network import Network  # noqa: E402
from tinytl_edge.export.sources.tflite_file import read_tflite  # noqa: E402
from tinytl_edge.export.sources.tflite_reader import parse  # noqa: E402
from tinytl_edge.export.targets.tflite_template import tflite_template  # noqa: E402
from tinytl_edge.export.tinytl.classifier import find_classifier, more_outputs, new_outputs, two_outputs  # noqa: E402
from tinytl_edge.export.tinytl.transform import transform  # noqa: E402

NUMBERS = np.random.default_rng(7)


def quantised(
    folder: Path, dtype: str = "int8", outputs: int = 4, end: str = "SOFTMAX", bias: bool = True,
    range_of_input: tuple[float, float] = (-1.0, 1.0), float_input: bool = False, labels: str = "",
) -> Path:  # fmt: skip
    """Two convolutions, one of them depthwise, and a linear layer, all in codes of `dtype`."""
    layers = Layers(dtype, seed=7)
    x = y = layers.input((1, 8, 8, 3), *range_of_input)
    if float_input:
        x = layers.writer.tensor((1, 8, 8, 3), name="pixels")
        layers.writer.operator("QUANTIZE", [x], [y], "QuantizeOptions")
    y = layers.conv(y, 6, stride=2, relu6=True)
    y = layers.conv(y, 6, depthwise=True, relu6_range=True)
    y = layers.end(layers.linear(y, outputs, bias), end)
    return layers.writer.write(folder / "source.tflite", [x], [y], {"labels.txt": labels} if labels else None)


def images(network: Network, count: int = 24) -> Any:
    low, high = (0 - network.input.mean[0]) / network.input.std[0], (255 - network.input.mean[0]) / network.input.std[0]
    return NUMBERS.uniform(low, high, (count, 1, 8, 8, 3)).astype(np.float32)


def compare(network: Network, file: Path, most: float = 0.08) -> None:
    """LiteRT's shares are the network's, but for rounding."""
    model = parse(file.read_bytes(), file.name)
    taken = model.tensors[model.inputs[0]]
    wanted, found = [], []
    for x in images(network):
        codes = x
        if taken.quantisation is not None:
            limits = np.iinfo(taken.dtype)
            codes = np.rint(x / taken.quantisation.scale[0] + taken.quantisation.zero_point[0])
            codes = np.clip(codes, limits.min, limits.max).astype(taken.dtype)
        found.append(litert_output(file, codes).ravel())
        logits = run_graph(network.model, np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        wanted.append(probabilities(logits, network.end)[0])
    off = np.abs(np.array(found) - np.array(wanted)).max(1)
    span = 1.0 if network.end else np.ptp(wanted)
    assert off.max() <= most * span and off.mean() <= most / 3 * span, (off.max(), off.mean())


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("method", ["last", "bias", "full"])
@pytest.mark.parametrize("end", ["SOFTMAX", ""])
def test_what_trained_is_in_it_and_nothing_else_is_another(dtype: str, method: str, end: str, tmp_path: Path) -> None:
    source = quantised(tmp_path, dtype, end=end)
    network = read_tflite(source)
    trainable = transform(network.model, method).trainable
    file = trained(network, tflite_template(network, trainable, False), tmp_path)
    compare(network, file)
    before, after = (parse(path.read_bytes(), "m") for path in (source, file))
    data, ranges, shapes = differences(before, after)
    layers = [o for o in after.operators if len(o.inputs) == 3]
    names = [[after.tensors[index].name for index in layer.inputs[1:]] for layer in layers]
    weights, biases = [name for name, _ in names], [name for _, name in names]
    logits = after.tensors[layers[-1].outputs[0]].name
    assert not shapes
    if method == "last":
        assert (data, ranges) == ({weights[-1], biases[-1]}, {weights[-1], biases[-1], logits})
    elif method == "bias":
        assert (data, ranges) == ({weights[-1], *biases}, {weights[-1], biases[-1], logits})
    else:
        assert (data, ranges) == ({*weights, *biases}, {*weights, *biases, logits})


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_a_layer_without_a_bias_gets_one(dtype: str, tmp_path: Path) -> None:
    source = quantised(tmp_path, dtype, bias=False)
    network = read_tflite(source)
    new_outputs(network.model, find_classifier(network.model), 4, 0)
    file = trained(network, tflite_template(network, transform(network.model, "bias").trainable, False), tmp_path)
    compare(network, file)
    before, after = (parse(path.read_bytes(), "m") for path in (source, file))
    (without,), (layer,) = ([o for o in m.operators if o.kind == "FULLY_CONNECTED"] for m in (before, after))
    assert without.inputs[2] == -1
    bias = after.tensors[layer.inputs[2]]
    assert (bias.shape, bias.dtype) == ((4,), "float32" if dtype == "float32" else "int32")
    assert bias.codes().any()


@pytest.mark.parametrize("end", ["SOFTMAX", ""])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_other_classes_change_shapes_alone(dtype: str, end: str, tmp_path: Path) -> None:
    source = quantised(tmp_path, dtype, end=end)
    network = read_tflite(source)
    more_outputs(network.model, find_classifier(network.model), 3)
    content = tflite_template(network, transform(network.model, "bias").trainable, False)
    assert content.table.output.shape == (1, 7)
    file = trained(network, content, tmp_path)
    compare(network, file)
    _, _, shapes = differences(parse(source.read_bytes(), "m"), parse(file.read_bytes(), "m"))
    assert len(shapes) == (4 if end else 3)


@pytest.mark.parametrize("pool", ["mean", "average"])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_scores_that_are_pooled_stay_in_the_range_of_their_map(dtype: str, pool: str, tmp_path: Path) -> None:
    layers = Layers(dtype, seed=2)
    x = layers.input((1, 8, 8, 3))
    y = layers.conv(layers.conv(x, 8, stride=2, relu6=True), 4, kernel=1)
    y = layers.mean(y) if pool == "mean" else layers.average_pool(y, 4)
    source = layers.writer.write(tmp_path / "source.tflite", [x], [layers.end(y, "SOFTMAX")])
    network = read_tflite(source)
    content = tflite_template(network, transform(network.model, "bias").trainable, False)
    file = trained(network, content, tmp_path)
    compare(network, file)
    before, after = (parse(path.read_bytes(), "m") for path in (source, file))
    _, ranges, _ = differences(before, after)
    conv = after.tensors[
        next(o for o in after.operators if o.kind == "CONV_2D" and o.inputs[0] != after.inputs[0]).outputs[0]
    ]
    assert conv.name not in ranges


@pytest.mark.parametrize("more", [0, 2])
@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
def test_scores_whose_shape_is_computed(dtype: str, more: int, tmp_path: Path) -> None:
    """MobileNetV3 of Keras: a 1x1 convolution of one pixel, flattened to a shape that is made of the batch."""
    layers = Layers(dtype, seed=2)
    x = layers.input((1, 8, 8, 3))
    y = layers.conv(layers.conv(layers.conv(x, 8, stride=2, relu6=True), 8, stride=4, relu6=True), 4, kernel=1)
    source = layers.writer.write(tmp_path / "source.tflite", [x], [layers.end(layers.flat(y), "SOFTMAX")])
    network = read_tflite(source)
    if more:
        more_outputs(network.model, find_classifier(network.model), more)
    content = tflite_template(network, transform(network.model, "bias").trainable, False)
    assert content.table.output.shape == (1, 4 + more)
    compare(network, trained(network, content, tmp_path))


def test_multi_label_makes_sigmoids_of_a_softmax(tmp_path: Path) -> None:
    network = read_tflite(quantised(tmp_path))
    content = tflite_template(network, transform(network.model, "bias").trainable, True)
    assert content.table.end == "sigmoid"
    network.end = "sigmoid"
    compare(network, trained(network, content, tmp_path))


def test_one_sigmoid_stays_one_sigmoid(tmp_path: Path) -> None:
    network = read_tflite(quantised(tmp_path, outputs=1, end="LOGISTIC"))
    two_outputs(network.model, find_classifier(network.model))
    content = tflite_template(network, transform(network.model, "full").trainable, False)
    file = trained(network, content, tmp_path)
    for x in images(network):
        codes = np.clip(np.rint(x / (2 / 255)), -128, 127).astype(np.int8)
        odds = probabilities(run_graph(network.model, np.ascontiguousarray(x.transpose(0, 3, 1, 2))), "softmax")
        np.testing.assert_allclose(litert_output(file, codes), odds[:, 1:], atol=0.08)


@pytest.mark.parametrize("float_input", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_an_input_that_says_the_wrong_range_is_mended(dtype: str, float_input: bool, tmp_path: Path) -> None:
    source = quantised(tmp_path, dtype, range_of_input=(0.0, 1.0), float_input=float_input)
    network = read_tflite(source)
    network.input = replace(network.input, mean=(127.5,) * 3, std=(127.5,) * 3)
    content = tflite_template(network, transform(network.model, "bias").trainable, False)
    assert "was trained on -1 to 1" in content.notes[0]
    file = trained(network, content, tmp_path)
    compare(network, file)
    before, after = (parse(path.read_bytes(), "m") for path in (source, file))
    told = next(t for t in after.tensors if t.name == "image").quantisation
    assert told is not None
    assert told.scale[0] == pytest.approx(2 / 255)
    differences(before, after)


def test_its_labels_and_words_stand_behind_it(tmp_path: Path, workplace: Path) -> None:
    source = quantised(tmp_path, outputs=3, labels="0 Dog\r\n1 Fox\r\n2 Cat\r\n")
    ok("prepare", source, "--data", workplace / "train", "--train", "bias", "--out", tmp_path / "bundle")
    ok("train", tmp_path / "bundle", "--data", workplace / "train", "--epochs", 1, "--out", tmp_path / "run")
    model = tmp_path / "model.tflite"
    out = json.loads(ok("export", tmp_path / "run", "--out", model, "--check", workplace / "val", "--json"))
    assert out["checked"]["largest_difference"] < 0.1
    with zipfile.ZipFile(model) as archive:
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}
        assert sorted(archive.namelist()) == ["labels.txt", "tinytl-edge.json"]
        assert archive.read("labels.txt") == b"0 Dog\r\n1 Fox\r\n2 Cat\r\n"
        assert archive.testzip() is None
    assert parse(model.read_bytes(), "m").metadata["TFLITE_METADATA"][4:8] == b"M001"
    # It says all that is needed by itself, and is prepared again as what it is.
    assert json.loads(ok("evaluate", model, "--data", workplace / "val", "--json"))["images"] == 9
    network = read_tflite(model)
    assert network.classes == ("Dog", "Fox", "Cat") or network.classes == ("dog", "fox", "cat")
    assert network.fit_known and network.range_known and network.colours_known
    said = ok("prepare", model, "--data", workplace / "train", "--train", "bias", "--out", tmp_path / "again")
    assert "TFLite file again" not in said


def test_real_files_come_out_as_they_went_in(tmp_path: Path) -> None:
    folder = os.environ.get("TINYTL_EDGE_DEPLOYED")
    if not folder:
        pytest.skip("TINYTL_EDGE_DEPLOYED is not set")
    for number, source in enumerate(sorted(Path(folder).rglob("*.tflite"))):
        network = read_tflite(source)
        if network.end == "sigmoid" or find_classifier(network.model).outputs < 2:
            continue
        file = trained(
            network,
            tflite_template(network, transform(network.model, "bias").trainable, False),
            (tmp_path / str(number)),
        )
        before, after = (parse(path.read_bytes(), "m") for path in (source, file))
        _, _, shapes = differences(before, after)
        assert not shapes
