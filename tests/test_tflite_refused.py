"""TFLite files that are damaged or no classifiers: one sentence each; and what metadata says."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest

for module in ("onnx_ir", "ai_edge_litert"):
    pytest.importorskip(module)

from tflite_files import RELU, FileWriter  # noqa: E402

from tinytl_edge.export.sources.tflite_file import read_tflite  # noqa: E402
from tinytl_edge.runtime.errors import DamagedFileError, TinyTLError, UsageError  # noqa: E402

FLOATS = np.random.default_rng(3)


def small(
    writer: FileWriter, shape: tuple[int, ...] = (1, 4, 4, 3), outputs: int = 3, dtype: str = "float32", **more: Any
) -> tuple[int, int]:
    """The input and the output of one layer and a softmax."""
    x = writer.tensor(shape, dtype, **more)
    width = int(np.prod(shape[1:]))
    weight = writer.constant(FLOATS.normal(size=(outputs, width)).astype(np.float32), name="head/weight")
    y = writer.linear(x, weight, writer.constant(np.zeros(outputs, np.float32), name="head/bias"), (1, outputs))
    return x, writer.softmax(y, (1, outputs))


def sentence(path: Path, kind: type[TinyTLError]) -> str:
    with pytest.raises(kind) as caught:
        read_tflite(path)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    return text


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"PK\x03\x04rest of an archive", "zip archive"),
        (b"\x08\x0a\x12\x04onnx" + b"\x00" * 50, "ONNX"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"cat\ndog\nfox\n", "it is a text"),
        (b"\x00" * 100, "zeros"),
        (b"\x9c\x81\xff\x03\x99\x12\x00\xab\xcd\xef", "is not a TFLite file"),
        (b"\x1c\x00\x00\x00TFL3", "damaged"),
    ],
)
def test_what_is_no_tflite_file(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    assert words in sentence(path, DamagedFileError)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "none.tflite cannot be read" in sentence(tmp_path / "none.tflite", UsageError)
    assert "cannot be read" in sentence(tmp_path, UsageError)


@pytest.mark.parametrize(
    "custom, words", [("ethos-u", "Vela"), ("edgetpu-custom-op", "Edge TPU"), ("mine", "custom mine")]
)
def test_compiled_files_and_custom_operators(custom: str, words: str, tmp_path: Path) -> None:
    writer = FileWriter()
    x, y = writer.tensor((1, 4, 4, 3), name="image"), writer.tensor((1, 3), name="scores")
    writer.operator("CUSTOM", [x], [y], custom=custom)
    assert words in sentence(writer.write(tmp_path / "m.tflite", [x], [y]), UsageError)


def test_an_unknown_operator_is_named_with_its_tensor(tmp_path: Path) -> None:
    writer = FileWriter()
    x, y = writer.tensor((1, 4, 4, 3)), writer.tensor((1, 3), name="scores")
    writer.operator("L2_NORMALIZATION", [x], [y], "L2NormOptions")
    text = sentence(writer.write(tmp_path / "m.tflite", [x], [y]), UsageError)
    assert "L2_NORMALIZATION" in text and "'scores'" in text


def test_detectors_and_maps(tmp_path: Path) -> None:
    writer = FileWriter()
    x, y = small(writer)
    assert "2 outputs" in sentence(writer.write(tmp_path / "two.tflite", [x], [y, y]), UsageError)
    writer = FileWriter()
    x, y = writer.tensor((1, 4, 4, 3)), writer.tensor((1, 4, 4, 3))
    writer.operator("RELU", [x], [y])
    assert "[1, 4, 4, 3]" in sentence(writer.write(tmp_path / "map.tflite", [x], [y]), UsageError)


@pytest.mark.parametrize(
    "shape, signature, words",
    [
        ((1, 1, 1, 3), (1, -1, -1, 3), "any size"),
        ((1, 4, 4, 5), None, "not an image"),
        ((1, 48), None, "not an image"),
        ((8, 4, 4, 3), None, "8 images"),
    ],
)
def test_inputs_that_are_no_image(shape: tuple[int, ...], signature: Any, words: str, tmp_path: Path) -> None:
    writer = FileWriter()
    x, y = small(writer, shape, signature=signature)
    assert words in sentence(writer.write(tmp_path / "m.tflite", [x], [y]), UsageError)


def test_several_graphs(tmp_path: Path) -> None:
    writer = FileWriter()
    x, y = small(writer)
    writer.model.subgraphs.append(writer.graph)
    assert "2 graphs" in sentence(writer.write(tmp_path / "m.tflite", [x], [y]), UsageError)


def test_damaged_files_never_end_in_a_traceback(tmp_path: Path) -> None:
    """Cut at any place, and with bytes changed anywhere: an answer, or one of our sentences."""
    writer = FileWriter()
    x = writer.tensor((1, 8, 8, 3), "int8", 0.01, 3)
    weight = writer.constant(FLOATS.integers(-9, 9, (4, 3, 3, 3)).astype(np.int8), scale=[0.1] * 4)
    y = writer.conv(
        x, weight, writer.constant(np.zeros(4, np.int32), scale=0.001), (1, 4, 4, 4), stride=2, activation=RELU,
        dtype="int8", scale=0.1, zero=-128,
    )  # fmt: skip
    padded = writer.tensor((1, 5, 5, 4), "int8", 0.1, -128)
    rims = writer.constant(np.array([[0, 0], [0, 1], [1, 0], [0, 0]], np.int32))
    writer.operator("PAD", [y, rims], [padded])
    flat = writer.tensor((1, 100), "int8", 0.1, -128)
    writer.operator("RESHAPE", [padded, writer.constant(np.array([-1, 100], np.int32))], [flat], "ReshapeOptions")
    head = writer.constant(FLOATS.integers(-9, 9, (3, 100)).astype(np.int8), scale=0.1)
    z = writer.linear(flat, head, None, (1, 3), dtype="int8", scale=0.2)
    out = writer.softmax(z, (1, 3), dtype="int8", scale=1 / 256, zero=-128)
    path = writer.write(
        tmp_path / "whole.tflite", [x], [out], {"labels.txt": "a\nb\nc\n"}, normalisation([0.0], [255.0])
    )
    content = path.read_bytes()
    assert read_tflite(path).classes == ("a", "b", "c")
    chance = random.Random(11)
    damaged = tmp_path / "damaged.tflite"
    answers = 0
    for trial in range(400):
        if trial % 4 == 0:
            changed = content[: chance.randrange(len(content))]
        else:
            changed = bytearray(content)
            for _ in range(chance.choice((1, 2, 8))):
                changed[chance.randrange(8, len(changed))] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        damaged.write_bytes(changed)
        try:
            read_tflite(damaged)
            answers += 1
        except TinyTLError as error:
            assert str(error)
    assert 20 < answers < 380


# Metadata -------------------------------------------------------------------------------------------------


def normalisation(mean: list[float], std: list[float], labels: str = "labels.txt") -> bytes:
    """A metadata buffer: the input's normalisation, and the output's label file."""
    builder = flatbuffers.Builder(256)

    def floats(values: list[float]) -> int:
        builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            builder.PrependFloat32(value)
        return int(builder.EndVector())

    def tables(*entries: int) -> int:
        builder.StartVector(4, len(entries), 4)
        for entry in reversed(entries):
            builder.PrependUOffsetTRelative(entry)
        return int(builder.EndVector())

    def table(fields: dict[int, int], bytes_: dict[int, int] | None = None) -> int:
        builder.StartObject(8)
        for place, offset in fields.items():
            builder.PrependUOffsetTRelativeSlot(place, offset, 0)
        for place, value in (bytes_ or {}).items():
            builder.PrependUint8Slot(place, value, 0)
        return int(builder.EndObject())

    options = table({0: floats(mean), 1: floats(std)})
    unit = table({1: options}, {0: 1})
    inputs = tables(table({4: tables(unit)}))
    file = table({0: builder.CreateString(labels)}, {2: 2})
    outputs = tables(table({6: tables(file)}))
    graph = table({2: inputs, 3: outputs})
    builder.Finish(table({3: tables(graph)}), b"M001")
    return bytes(builder.Output())


@pytest.mark.parametrize(
    "text, classes",
    [
        ("cat\ndog\nfox\n", ("cat", "dog", "fox")),
        ("0 red cat\n1 dog\n2 fox", ("red cat", "dog", "fox")),
        ("1: cat\r\n2: dog\r\n3: fox\r\n", ("cat", "dog", "fox")),
        ("7 cats\ndog\nfox\n", ("7 cats", "dog", "fox")),
        ("cat\ndog\n", ()),
    ],
)
def test_labels_in_the_file(text: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    writer = FileWriter()
    x, y = small(writer)
    files = {"other.txt": "a\nb\nc\n" if classes else "a", "labels.txt": text}
    network = read_tflite(writer.write(tmp_path / "m.tflite", [x], [y], files, normalisation([0.0], [255.0])))
    assert network.classes == classes
    assert (network.input.mean, network.input.std, network.range_known) == ((0.0,) * 3, (255.0,) * 3, True)


@pytest.mark.parametrize("mean, known", [(127.5, True), (0.0, False)])
def test_normalisation_that_the_quantisation_confirms_or_not(mean: float, known: bool, tmp_path: Path) -> None:
    writer = FileWriter()
    x, y = small(writer, dtype="uint8", scale=1 / 127.5, zero=128)
    network = read_tflite(writer.write(tmp_path / "m.tflite", [x], [y], metadata=normalisation([mean], [127.5])))
    np.testing.assert_allclose((network.input.mean, network.input.std), [[128] * 3, [127.5] * 3])
    assert network.range_known is known


def test_the_range_of_a_float_input_that_is_quantised(tmp_path: Path) -> None:
    for scale, zero, mean, std in (
        (1 / 255, -128, 0, 255),
        (0.00784, 0, 127.5, 127.5),
        (1.0, -128, 0, 1),
        (0.02, 0, 128, 50),
    ):
        writer = FileWriter()
        x, q = writer.tensor((1, 4, 4, 3)), writer.tensor((1, 4, 4, 3), "int8", scale, zero)
        writer.operator("QUANTIZE", [x], [q])
        weight = writer.constant(np.ones((3, 48), np.int8), scale=0.1)
        y = writer.linear(q, weight, None, (1, 3), dtype="int8", scale=0.1)
        network = read_tflite(writer.write(tmp_path / "m.tflite", [x], [y]))
        np.testing.assert_allclose((network.input.mean, network.input.std), [[mean] * 3, [std] * 3], rtol=1e-5)
        assert not network.range_known
        assert [node.op_type for node in network.model.graph][-1] == "Gemm"
        assert not any(node.op_type == "Clip" for node in network.model.graph)
