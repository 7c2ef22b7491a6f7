"""The whole way of a deployed TFLite file: in, adapted with a class that it did not know, and out in its own place."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from conftest import CLASSES, answer_of_the_docs, make_images, ok

for module in ("onnx_ir", "torch", "ai_edge_litert"):
    pytest.importorskip(module)

from tflite_files import Layers  # noqa: E402

import tinytl_edge  # noqa: E402
from tinytl_edge.export.sources.tflite_metadata import read_metadata  # noqa: E402
from tinytl_edge.export.sources.tflite_reader import parse  # noqa: E402

SIZE = 32
NOTES = "these\nare\nno\nclasses\n"
INSIDE = "".join(f"{name}\n" for name in CLASSES)


@pytest.fixture(scope="module", params=["float32", "int8", "uint8"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an app has its model: adapted, with a class more, and exported over the file."""
    folder = tmp_path_factory.mktemp(str(request.param))
    layers = Layers(str(request.param), seed=5)
    x = layers.input((1, SIZE, SIZE, 3))
    y = layers.conv(layers.conv(x, 8, stride=2, relu6=True), 8, kernel=1)
    for channels, stride in ((8, 1), (16, 2), (16, 1)):
        z = layers.conv(layers.conv(y, 16, kernel=1, relu6=True), 16, stride=stride, depthwise=True, relu6=True)
        z = layers.conv(z, channels, kernel=1)
        y = layers.add(y, z) if stride == 1 else z
    y = layers.end(layers.linear(layers.mean(y), len(CLASSES)), "SOFTMAX")
    layers.writer.write(folder / "v1.tflite", [x], [y], {"labels.txt": INSIDE, "notes.txt": NOTES})
    (folder / "model.tflite").symlink_to("v1.tflite")
    (folder / "labels.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(CLASSES)))
    images = make_images(folder / "images", dict.fromkeys((*CLASSES, "emu"), 6))
    labels = (
        "--labels",
        folder / "labels.txt",
        "--fit",
        "squash",
        "--colours",
        "rgb",
        "--mean",
        "127.5",
        "--std",
        "127.5",
    )
    said = ok("prepare", folder / "model.tflite", *labels, "--data", images, "--out", folder / "bundle")
    assert "normal form" not in said and "TFLite file again" not in said
    ok("train", folder / "bundle", "--data", images, "--epochs", 30, "--lr", 0.02, "--out", folder / "run")
    (folder / "said.json").write_text(
        ok("export", folder / "run", "--out", folder / "model.tflite", "--overwrite", "--check", images, "--json")
    )
    return folder


def test_the_file_answers_as_the_run(place: Path) -> None:
    checked = json.loads((place / "said.json").read_text())["checked"]
    is_float = parse((place / "model.tflite").read_bytes(), "m").tensors[0].dtype == "float32"
    assert checked["images"] == 24
    assert checked["largest_difference"] < (1e-4 if is_float else 0.2)
    assert checked["same_class"] >= (1 if is_float else 0.95)
    assert checked["accuracy"] > 0.7


def test_it_stands_in_its_own_place_with_what_it_brought(place: Path) -> None:
    assert (place / "model.tflite").is_symlink()
    before, after = place / "v1.tflite.before", place / "v1.tflite"
    old, new = (parse(path.read_bytes(), "m") for path in (before, after))
    assert old.tensors[old.inputs[0]].dtype == new.tensors[new.inputs[0]].dtype
    assert old.tensors[old.outputs[0]].dtype == new.tensors[new.outputs[0]].dtype
    assert new.tensors[new.outputs[0]].shape == (1, 4)
    with zipfile.ZipFile(after) as archive:
        assert archive.read("notes.txt").decode() == NOTES
        assert archive.read("labels.txt").decode() == INSIDE + "emu\n"
    assert (place / "labels.txt").read_text().splitlines()[-1] == "3 emu"
    metadata = read_metadata(new.metadata["TFLITE_METADATA"], after.read_bytes(), 4)
    assert metadata.labels is not None and metadata.labels.names == (*CLASSES, "emu")
    assert (metadata.mean, metadata.std) == ((127.5,) * 3, (127.5,) * 3)


def test_it_says_all_that_is_needed(place: Path) -> None:
    after = tinytl_edge.evaluate(place / "model.tflite", place / "images")
    assert after["classes"] == [*CLASSES, "emu"]
    known = make_images(place / "known", dict.fromkeys(CLASSES, 6))
    before = tinytl_edge.evaluate(place / "v1.tflite.before", known, bundle=place / "bundle")
    assert before["classes"] == list(CLASSES)
    with pytest.raises(tinytl_edge.TinyTLError, match="--bundle"):
        tinytl_edge.evaluate(place / "v1.tflite.before", known)


def test_the_example_of_the_docs(place: Path) -> None:
    image = place / "images" / CLASSES[0] / "0.png"
    (expected,) = tinytl_edge.predict(place / "model.tflite", [image])
    assert answer_of_the_docs(2, place, image) == expected["prediction"]


def test_a_second_export_is_the_same(place: Path) -> None:
    content = (place / "model.tflite").read_bytes()
    ok("export", place / "run", "--out", place / "model.tflite", "--overwrite")
    assert (place / "model.tflite").read_bytes() == content
