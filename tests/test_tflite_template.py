"""A TFLite file comes out as the file that came in, but for the numbers that were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

for module in ("onnx_ir", "torch", "ai_edge_litert"):
    pytest.importorskip(module)

from onnx_files import probabilities, run_graph  # noqa: E402
from tflite_files import RELU, FileWriter, litert_output  # noqa: E402

from tinytl_edge.export.onnx_graph import constant, set_initializer  # noqa: E402
from tinytl_edge.export.sources.network import Network  # noqa: E402
from tinytl_edge.export.sources.tflite_file import read_tflite  # noqa: E402
from tinytl_edge.export.sources.tflite_reader import TFLiteModel, parse  # noqa: E402
from tinytl_edge.export.targets import templates  # noqa: E402
from tinytl_edge.export.targets.content import Content  # noqa: E402
from tinytl_edge.export.targets.proof import as_codes, fill  # noqa: E402
from tinytl_edge.export.targets.tflite_template import tflite_template  # noqa: E402
from tinytl_edge.export.tinytl.classifier import find_classifier, more_outputs, two_outputs  # noqa: E402
from tinytl_edge.export.tinytl.rounding import round_frozen_weights  # noqa: E402
from tinytl_edge.export.tinytl.transform import transform  # noqa: E402
from tinytl_edge.runtime.errors import UsageError  # noqa: E402
from tinytl_edge.runtime.model_files.stored_numbers import LOGITS_RANGE  # noqa: E402

NUMBERS = np.random.default_rng(4)


def normal(*shape: int) -> Any:
    return (NUMBERS.standard_normal(shape) * 0.3).astype(np.float32)


def small(folder: Path, half: bool = False, outputs: int = 4, end: str = "softmax", archive: bool = False) -> Path:
    """A convolution, a depthwise one, a linear layer; `half`: all constants float16 behind DEQUANTIZE."""
    writer = FileWriter()

    def held(array: Any) -> int:
        if not half:
            return writer.constant(array)
        wide = writer.tensor(array.shape)
        writer.operator("DEQUANTIZE", [writer.constant(array.astype(np.float16))], [wide])
        writer.version(2)
        return wide

    x = writer.tensor((1, 8, 8, 3))
    y = writer.conv(x, held(normal(6, 3, 3, 3)), held(normal(6)), (1, 4, 4, 6), stride=2, activation=RELU)
    y = writer.conv(y, held(normal(1, 3, 3, 12)), held(normal(12)), (1, 4, 4, 12), depthwise=True, activation=RELU)
    y = writer.linear(y, held(normal(outputs, 192)), held(normal(outputs)), (1, outputs))
    if end == "softmax":
        y = writer.softmax(y, (1, outputs))
    elif end == "sigmoid":
        z = writer.tensor((1, outputs))
        writer.operator("LOGISTIC", [y], [z])
        y = z
    return writer.write(folder / "source.tflite", [x], [y], {"labels.txt": "a\nb\n"} if archive else None)


def trained(network: Network, content: Content, folder: Path) -> Path:
    """Move all that trains, in the network and, as a board does it, in the file."""
    random, numbers = np.random.default_rng(3), {}
    for name in {hole.parameter for hole in content.table.holes} - {LOGITS_RANGE}:
        value = network.model.graph.initializers[name]
        array = constant(value)
        assert array is not None
        numbers[name] = (array + 0.05 * random.standard_normal(array.shape)).astype("<f4")
        set_initializer(value, as_codes(numbers[name], name, content))
    numbers[LOGITS_RANGE] = np.array([-12, 12], "<f4")
    folder.mkdir(exist_ok=True)
    return fill(content, folder, numbers)


def differences(before: TFLiteModel, after: TFLiteModel) -> tuple[set[str], set[str], set[str]]:
    """Names of the tensors whose data, ranges and shapes are others; all else is the same."""
    assert [(o.kind, o.inputs, o.outputs, o.activation) for o in after.operators] == [
        (o.kind, o.inputs, o.outputs, o.activation) for o in before.operators
    ]
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    data, ranges, shapes = set(), set(), set()
    for old, new in zip(before.tensors, after.tensors):
        assert (old.name, old.dtype) == (new.name, new.dtype)
        if old.data != new.data:
            data.add(new.name)
        if repr(old.quantisation) != repr(new.quantisation):
            ranges.add(new.name)
        if old.shape != new.shape:
            shapes.add(new.name)
    return data, ranges, shapes


def compare(network: Network, file: Path, atol: float = 1e-5) -> None:
    x = normal(1, 8, 8, 3)
    logits = run_graph(network.model, np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(litert_output(file, x), probabilities(logits, network.end), atol=atol)


@pytest.mark.parametrize("method", ["last", "bias", "full"])
@pytest.mark.parametrize("half", [False, True])
def test_only_what_trains_is_another(method: str, half: bool, tmp_path: Path) -> None:
    source = small(tmp_path, half, archive=True)
    network = read_tflite(source)
    content = tflite_template(network, transform(network.model, method).trainable, False)
    assert {hole.dtype for hole in content.table.holes} == {"float16" if half else "float32"}
    file = trained(network, content, tmp_path)
    compare(network, file, 5e-3 if half else 1e-5)
    before, after = (parse(path.read_bytes(), "m") for path in (source, file))
    data, ranges, shapes = differences(before, after)
    layers = [o for o in after.operators if len(o.inputs) == 3]
    constants = {after.tensors[i].name: None for layer in layers for i in layer.inputs[1:]}
    if half:
        makers = {o.outputs[0]: o.inputs[0] for o in after.operators if o.kind == "DEQUANTIZE"}
        constants = {after.tensors[makers[i]].name: None for layer in layers for i in layer.inputs[1:]}
    *inner, weight, bias = constants
    wanted = {"last": {weight, bias}, "bias": {weight, bias, *inner[1::2]}, "full": {*constants}}
    assert (data, ranges, shapes) == (wanted[method], set(), set())


@pytest.mark.parametrize("half", [False, True])
def test_frozen_weights_that_were_rounded_are_so_in_the_file(half: bool, tmp_path: Path) -> None:
    """Where memory is short they have 8 bits while training: the file is to give what was trained."""
    source = small(tmp_path, half)
    network = read_tflite(source)
    trainable = transform(network.model, "bias").trainable
    round_frozen_weights(network.model, trainable)
    made, notes = templates(network, trainable, False, False)
    assert notes == [] and [content.kind for content in made] == ["onnx", "tflite"]
    assert {hole.parameter for content in made for hole in content.table.holes} == set(trainable)
    file = trained(network, made[1], tmp_path)
    compare(network, file, 5e-3 if half else 1e-5)
    data, ranges, shapes = differences(*(parse(path.read_bytes(), "m") for path in (source, file)))
    assert (len(data), ranges, shapes) == (6, set(), set())


def test_a_number_that_16_bits_cannot_hold_is_refused(tmp_path: Path) -> None:
    network = read_tflite(small(tmp_path, half=True))
    content = tflite_template(network, transform(network.model, "last").trainable, False)
    numbers = {hole.parameter: np.full(hole.count, 7e4, "<f4") for hole in content.table.holes}
    with pytest.raises(UsageError, match="grew beyond"):
        fill(content, tmp_path, numbers)


def test_one_sigmoid_stays_one_sigmoid(tmp_path: Path) -> None:
    network = read_tflite(small(tmp_path, outputs=1, end="sigmoid"))
    two_outputs(network.model, find_classifier(network.model))
    content = tflite_template(network, transform(network.model, "bias").trainable, False)
    assert content.table.one_output and content.table.end == "sigmoid"
    file = trained(network, content, tmp_path)
    x = normal(1, 8, 8, 3)
    odds = probabilities(run_graph(network.model, np.ascontiguousarray(x.transpose(0, 3, 1, 2))), "softmax")
    np.testing.assert_allclose(litert_output(file, x), odds[:, 1:], atol=1e-5)


def test_other_classes_and_multi_label(tmp_path: Path) -> None:
    network = read_tflite(small(tmp_path))
    more_outputs(network.model, find_classifier(network.model), 2)
    content = tflite_template(network, transform(network.model, "bias").trainable, True)
    assert (content.table.output.shape, content.table.end) == ((1, 6), "sigmoid")
    network.end = "sigmoid"
    compare(network, trained(network, content, tmp_path))


def test_layers_that_share_a_constant_of_zeros_get_biases_of_their_own(tmp_path: Path) -> None:
    writer = FileWriter()
    zeros = writer.constant(np.zeros(6, np.float32))
    x = writer.tensor((1, 8, 8, 3))
    y = writer.conv(x, writer.constant(normal(6, 3, 3, 3)), zeros, (1, 4, 4, 6), stride=2, activation=RELU)
    y = writer.conv(y, writer.constant(normal(6, 1, 1, 6)), zeros, (1, 4, 4, 6), activation=RELU)
    y = writer.linear(y, writer.constant(normal(4, 96)), writer.constant(normal(4)), (1, 4))
    network = read_tflite(writer.write(tmp_path / "source.tflite", [x], [y]))
    trainable = transform(network.model, "bias").trainable
    assert sorted(trainable.values()) == ["bias", "bias", "classifier", "classifier"]
    compare(network, trained(network, tflite_template(network, trainable, False), tmp_path))


def test_a_file_that_cannot_be_written_comes_out_as_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise AttributeError("a table that is not there")

    network = read_tflite(small(tmp_path))
    trainable = transform(network.model, "last").trainable
    made, notes = templates(network, trainable, False, False)
    assert [content.table.files[0] for content in made] == ["model.onnx", "model.tflite"]
    monkeypatch.setattr("tinytl_edge.export.targets.tflite_template.mend_input", fails)
    made, notes = templates(network, trainable, False, False)
    assert [content.table.files[0] for content in made] == ["model.onnx"]
    assert "a table that is not there" in notes[-1]


def test_it_says_its_ports(tmp_path: Path) -> None:
    network = read_tflite(small(tmp_path))
    table = tflite_template(network, transform(network.model, "last").trainable, False).table
    assert (table.input.shape, table.input.dtype, table.layout) == ((1, 8, 8, 3), "float32", "NHWC")
    assert (table.output.shape, table.end, table.source) == ((1, 4), "softmax", "source.tflite")
