"""Ends of ONNX classifiers: softmax and the like are cut off, answers give way to scores, names are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

for module in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(module)

import onnx  # noqa: E402
from onnx_files import (  # noqa: E402
    CLASSIFIER,
    CONVOLUTION,
    FLOAT,
    LINEAR,
    POOL,
    RELU,
    SOFTMAX,
    faults,
    floats,
    images,
    node,
    probabilities,
    run_bytes,
    run_graph,
    write,
)

from tinytl_edge.export.sources.onnx_file import read_onnx  # noqa: E402
from tinytl_edge.runtime.errors import TinyTLError, UsageError  # noqa: E402

INT64, STRING = onnx.TensorProto.INT64, onnx.TensorProto.STRING
X = images(3, size=16)
MAPS = onnx.helper.make_sequence_type_proto(
    onnx.helper.make_map_type_proto(STRING, onnx.helper.make_tensor_type_proto(FLOAT, None))
)
ANIMALS = ["cat", "dog", "eel", "fox"]


def logits(tmp_path: Path) -> np.ndarray[Any, Any]:
    path = write(tmp_path / "logits.onnx", CLASSIFIER, outputs=[("l", FLOAT)])
    return np.concatenate([run_bytes(path, X[i : i + 1]) for i in range(len(X))])


EXP = [
    node("ReduceMax", ["l"], ["m"], axes=[1]),
    node("Sub", ["l", "m"], ["s"]),
    node("Exp", ["s"], ["e"]),
    node("ReduceSum", ["e", "one"], ["t"]),
    node("Div", ["e", "t"], ["y"]),
]
ENDS: dict[str, tuple[list[Any], str]] = {
    "softmax": ([SOFTMAX], "softmax"),
    "log softmax": ([node("LogSoftmax", ["l"], ["y"], axis=1)], "log_softmax"),
    "softmax spelled out": (EXP, "softmax"),
    "sigmoid": ([node("Sigmoid", ["l"], ["y"])], "sigmoid"),
    "nothing": ([node("Identity", ["l"], ["y"])], ""),
    "in one more axis": ([node("Unsqueeze", ["l", "one"], ["u"]), node("Softmax", ["u"], ["y"])], "softmax"),
    "argmax": (
        [SOFTMAX.__class__.FromString(SOFTMAX.SerializeToString()), node("ArgMax", ["y"], ["a"], axis=1)],
        "softmax",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_stands_behind_the_logits_is_cut_off(name: str, tmp_path: Path) -> None:
    tail, end = ENDS[name]
    outputs = [("a", INT64)] if name == "argmax" else [("y", FLOAT)]
    network = read_onnx(write(tmp_path / "m.onnx", [*CLASSIFIER, *tail], {"one": np.array([1])}, outputs=outputs))
    assert network.end == end and faults(network.model) == []
    assert bool(network.notes) == (name == "argmax")
    np.testing.assert_allclose(run_graph(network.model, X), logits(tmp_path), atol=1e-6)


@pytest.mark.parametrize("last", [node("Conv", ["p", "head/w4", "head/b"], ["l"])])
@pytest.mark.parametrize("opset", [9, 13])
def test_scores_of_one_pixel_become_a_vector(last: Any, opset: int, tmp_path: Path) -> None:
    constants = {"head/w4": floats(4, 8, 1, 1)}
    path = write(tmp_path / "m.onnx", [CONVOLUTION, RELU, POOL[0], last, SOFTMAX], constants, opset=opset)
    network = read_onnx(path)
    wanted = np.concatenate([run_bytes(path, X[i : i + 1]).reshape(1, 4) for i in range(3)])
    np.testing.assert_allclose(probabilities(run_graph(network.model, X), "softmax"), wanted, atol=1e-6)


def test_top_k_and_features_give_way(tmp_path: Path) -> None:
    tail = [SOFTMAX, node("TopK", ["y", "one"], ["v", "i"], axis=1)]
    outputs = [("f", FLOAT), ("v", FLOAT), ("i", INT64)]
    network = read_onnx(write(tmp_path / "m.onnx", [*CLASSIFIER, *tail], {"one": np.array([1])}, outputs=outputs))
    assert network.end == "softmax" and any("'f'" in note for note in network.notes)
    assert any("TopK" in note for note in network.notes)
    np.testing.assert_allclose(run_graph(network.model, X), logits(tmp_path), atol=1e-6)


def test_logits_beside_probabilities(tmp_path: Path) -> None:
    network = read_onnx(write(tmp_path / "m.onnx", [*CLASSIFIER, SOFTMAX], outputs=[("l", FLOAT), ("y", FLOAT)]))
    assert network.end == "softmax" and network.model.metadata_props["tinytl-edge.output"] == "y"
    np.testing.assert_allclose(run_graph(network.model, X), logits(tmp_path), atol=1e-6)


def test_custom_vision(tmp_path: Path) -> None:
    """Names in ZipMap and in a constant; blue first; pixels of 0..255."""
    tail = [
        SOFTMAX,
        node("ArgMax", ["y"], ["a"], axis=1),
        node("ArrayFeatureExtractor", ["names", "a"], ["n"], domain="ai.onnx.ml"),
        node("Cast", ["n"], ["classLabel"], to=STRING),
        node("ZipMap", ["y"], ["loss"], domain="ai.onnx.ml", classlabels_strings=ANIMALS),
    ]
    outputs = [("classLabel", STRING), onnx.helper.make_value_info("loss", MAPS)]
    properties = {"Image.BitmapPixelFormat": "Bgr8", "Image.NominalPixelRange": "NominalRange_0_255"}
    names = {"names": np.array(ANIMALS, object)}
    domains = [("ai.onnx.ml", 1)]
    file = write(
        tmp_path / "m.onnx", [*CLASSIFIER, *tail], names, outputs=outputs, properties=properties, domains=domains
    )
    network = read_onnx(file)
    assert network.classes == tuple(ANIMALS) and network.range_known and network.input.std == (1.0, 1.0, 1.0)
    assert faults(network.model) == []
    np.testing.assert_allclose(run_graph(network.model, X[:, ::-1]), logits(tmp_path), atol=1e-6)


@pytest.mark.parametrize(
    "properties",
    [
        {"names": "{0: 'cat', 1: 'dog', 2: \"eel\", 3: 'fox'}"},
        {"classes": '["cat", "dog", "eel", "fox"]'},
        {"labels": "cat,dog,eel,fox"},
        {"class_names": "cat\ndog\neel\nfox\n"},
        {"id2label": '{"0": "cat", "1": "dog", "2": "eel", "3": "fox"}'},
        {"Labels": "{'cat': 0, 'dog': 1, 'eel': 2, 'fox': 3}"},
    ],
)
def test_names_of_classes(properties: dict[str, str], tmp_path: Path) -> None:
    network = read_onnx(write(tmp_path / "m.onnx", [*CLASSIFIER, SOFTMAX], properties=properties))
    assert network.classes == tuple(ANIMALS) and network.notes == []


@pytest.mark.parametrize("text", ["", "cat", "{0: 'cat'", "{0: 'cat', 7: 'dog'}", "[" * 500, "os.system('false')"])
def test_names_that_are_none(text: str, tmp_path: Path) -> None:
    assert read_onnx(write(tmp_path / "m.onnx", [*CLASSIFIER, SOFTMAX], properties={"names": text})).classes == ()


def test_too_few_names_are_left_out_and_told(tmp_path: Path) -> None:
    network = read_onnx(write(tmp_path / "m.onnx", [*CLASSIFIER, SOFTMAX], properties={"names": "['a', 'b', 'c']"}))
    assert network.classes == () and "3 classes" in network.notes[0]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "regression": ({"nodes": [*CLASSIFIER, node("Tanh", ["l"], ["y"])]}, "regression"),
    "map": ({"nodes": [CONVOLUTION, RELU], "outputs": [("r", FLOAT)]}, "segmentation"),
    "two heads": (
        {
            "nodes": [*CLASSIFIER, node("Gemm", ["f", "head/w"], ["l2"], transB=1)],
            "outputs": [("l", FLOAT), ("l2", FLOAT)],
        },
        "'l2'",
    ),
    "detector": (
        {
            "nodes": [
                *CLASSIFIER,
                node("Unsqueeze", ["l", "one"], ["u"]),
                node("NonMaxSuppression", ["u", "u"], ["y"]),
            ],
            "outputs": [("y", INT64)],
        },
        "detector",
    ),
    "own operator": (
        {"nodes": [*CLASSIFIER, node("Magic", ["l"], ["y"], domain="my.own")], "domains": [("my.own", 1)]},
        "Magic",
    ),
    "unknown operator": ({"nodes": [*CLASSIFIER, node("PartitionedCall", ["l"], ["y"])]}, "PartitionedCall"),
    "loop": (
        {
            "nodes": [
                CONVOLUTION,
                RELU,
                node(
                    "Loop",
                    ["one", "", "r"],
                    ["r2"],
                    body=onnx.helper.make_graph(
                        [node("Relu", ["v"], ["v2"]), node("Identity", ["go"], ["go2"])],
                        "body",
                        [
                            onnx.helper.make_tensor_value_info("i", INT64, []),
                            onnx.helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
                            onnx.helper.make_tensor_value_info("v", FLOAT, None),
                        ],
                        [
                            onnx.helper.make_tensor_value_info("go2", onnx.TensorProto.BOOL, []),
                            onnx.helper.make_tensor_value_info("v2", FLOAT, None),
                        ],
                    ),
                ),
                node("GlobalAveragePool", ["r2"], ["p"]),
                POOL[1],
                LINEAR,
            ],
            "outputs": [("l", FLOAT)],
        },
        "control flow",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_classifier_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    options, words = REFUSED[name]
    path = write(tmp_path / "m.onnx", constants={"one": np.array([1])}, **options)
    with pytest.raises(TinyTLError) as caught:
        read_onnx(path)
    text = str(caught.value)
    assert isinstance(caught.value, UsageError) and words in text and text.startswith(str(path))
    assert text.rstrip(")").endswith(".") and "\n" not in text
