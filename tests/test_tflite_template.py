"""A TFLite file comes out as the file that came in, but for the numbers that were trained."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

for module in ("onnx_ir", "tflite", "torch", "ai_edge_litert"):
    pytest.importorskip(module)

from onnx_files import probabilities, run_graph  # noqa: E402
from tflite_files import RELU, FileWriter, litert_output  # noqa: E402

from tinytl_edge.export.onnx_graph import constant, set_initializer  # noqa: E402
from tinytl_edge.export.sources.network import Network  # noqa: E402
from tinytl_edge.export.sources.tflite_file import read_tflite  # noqa: E402
from tinytl_edge.export.sources.tflite_reader import parse  # noqa: E402
from tinytl_edge.export.targets.content import Content, UnwritableError  # noqa: E402
from tinytl_edge.export.targets.proof import fill  # noqa: E402
from tinytl_edge.export.targets.tflite_template import tflite_template  # noqa: E402
from tinytl_edge.export.tinytl.classifier import find_classifier, more_outputs, two_outputs  # noqa: E402
from tinytl_edge.export.tinytl.transform import transform  # noqa: E402

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
    for name in {hole.parameter for hole in content.table.holes}:
        value = network.model.graph.initializers[name]
        array = constant(value)
        assert array is not None
        numbers[name] = (array + 0.05 * random.standard_normal(array.shape)).astype("<f4")
        set_initializer(value, numbers[name])
    return fill(content, folder, numbers)


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
    before, after = source.read_bytes(), file.read_bytes()
    assert len(before) == len(after)
    changed = set(np.flatnonzero(np.frombuffer(before, np.uint8) != np.frombuffer(after, np.uint8)).tolist())
    width = 2 if half else 4
    places = {b for hole in content.table.holes for b in range(hole.offset, hole.offset + width * hole.count)}
    assert changed and changed <= places
    assert zipfile.ZipFile(file).read("labels.txt") == b"a\nb\n"
    assert [t.quantisation for t in parse(after, "m").tensors] == [t.quantisation for t in parse(before, "m").tensors]


def test_one_sigmoid_stays_one_sigmoid(tmp_path: Path) -> None:
    network = read_tflite(small(tmp_path, outputs=1, end="sigmoid"))
    two_outputs(network.model, find_classifier(network.model))
    content = tflite_template(network, transform(network.model, "bias").trainable, False)
    assert content.table.one_output and content.table.end == "sigmoid"
    file = trained(network, content, tmp_path)
    x = normal(1, 8, 8, 3)
    odds = probabilities(run_graph(network.model, np.ascontiguousarray(x.transpose(0, 3, 1, 2))), "softmax")
    np.testing.assert_allclose(litert_output(file, x), odds[:, 1:], atol=1e-5)


def test_what_it_cannot_take_yet_is_said(tmp_path: Path) -> None:
    source = small(tmp_path)
    network = read_tflite(source)
    with pytest.raises(UnwritableError, match="does not fit how it trains"):
        tflite_template(network, transform(network.model, "bias").trainable, True)
    more_outputs(network.model, find_classifier(network.model), 2)
    with pytest.raises(UnwritableError, match=r"has the shape \[4.*, not \[6"):
        tflite_template(network, transform(network.model, "bias").trainable, False)


def test_codes_whose_ranges_would_move_are_refused() -> None:
    folder = os.environ.get("TINYTL_EDGE_DEPLOYED")
    if not folder:
        pytest.skip("TINYTL_EDGE_DEPLOYED is not set")
    network = read_tflite(Path(folder) / "teachable-machine-fruit" / "model.tflite")
    with pytest.raises(UnwritableError, match="8-bit codes"):
        tflite_template(network, transform(network.model, "bias").trainable, False)


def test_it_says_its_ports(tmp_path: Path) -> None:
    network = read_tflite(small(tmp_path))
    table = tflite_template(network, transform(network.model, "last").trainable, False).table
    assert (table.input.shape, table.input.dtype, table.layout) == ((1, 8, 8, 3), "float32", "NHWC")
    assert (table.output.shape, table.end, table.source) == ((1, 4), "softmax", "source.tflite")
