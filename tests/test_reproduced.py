"""An import is held against the file that it came from, before anything is changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

for module in ("onnx_ir", "onnxruntime", "torch"):
    pytest.importorskip(module)

from conftest import make_images  # noqa: E402
from onnx_files import CLASSIFIER, FLOAT, SOFTMAX, export, node, quantised, small_network, write  # noqa: E402

from tinytl_edge.export.matching.reproduced import compare_with_file  # noqa: E402
from tinytl_edge.export.onnx_graph import constant, set_initializer  # noqa: E402
from tinytl_edge.export.sources.network import Network  # noqa: E402
from tinytl_edge.export.sources.onnx_file import read_onnx  # noqa: E402
from tinytl_edge.runtime.errors import UsageError  # noqa: E402

ENDS = {
    "logits": ([], "scores to"),
    "softmax": ([SOFTMAX], "scores to"),
    "log softmax": ([node("LogSoftmax", ["l"], ["y"], axis=1)], "of their span"),
    "sigmoid": ([node("Sigmoid", ["l"], ["y"])], "scores to"),
}


def spoil(network: Network) -> None:
    """The first convolution's weights the other way round."""
    value = network.model.graph.initializers["w"]
    array = constant(value)
    assert array is not None
    set_initializer(value, np.ascontiguousarray(array[:, ::-1]))


@pytest.mark.parametrize("end", ENDS)
def test_a_good_import_is_said_and_a_bad_one_refused(end: str, tmp_path: Path) -> None:
    nodes, words = ENDS[end]
    last = [] if nodes else [node("Identity", ["l"], ["y"])]
    path = write(tmp_path / "model.onnx", [*CLASSIFIER, *nodes, *last])
    network = read_onnx(path)
    for folders in ({}, {"a": sorted((make_images(tmp_path / "images", {"cat": 3}) / "cat").iterdir())}):
        said = compare_with_file(network, folders)
        assert words in said and f"on {3 if folders else 8} images" in said
    spoil(network)
    with pytest.raises(UsageError, match=r"is not understood: on 8 images .* off by"):
        compare_with_file(network, {})


@pytest.mark.parametrize("kind", ["dynamic", "QDQ", "QOperator"])
def test_quantised_files_may_differ_by_what_codes_do(kind: str, tmp_path: Path) -> None:
    path = quantised(export(small_network(), tmp_path / "float.onnx", 13), tmp_path / "model.onnx", kind)
    said = compare_with_file(read_onnx(path), {})
    # An older onnxruntime, as onnxruntime-training has it, does not run every dynamically quantised file.
    assert "the same class on" in said or (kind == "dynamic" and "could not be compared" in said)


def test_blue_first(tmp_path: Path) -> None:
    properties = {"Image.BitmapPixelFormat": "Bgr8"}
    path = write(tmp_path / "model.onnx", [*CLASSIFIER, SOFTMAX], properties=properties)
    network = read_onnx(path)
    assert network.takes_bgr and "scores to" in compare_with_file(network, {})


def test_without_an_interpreter_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.onnx", [*CLASSIFIER, SOFTMAX])
    network = read_onnx(path)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert "was not compared" in compare_with_file(network, {})


def test_a_file_of_several_images_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "model.onnx", [*CLASSIFIER, SOFTMAX], x=("x", FLOAT, [3, 3, 16, 16]))
    assert "on 8 images" in compare_with_file(read_onnx(path), {})
