"""A deployed ONNX file with its labels, from `prepare` to the same place: the app goes on with both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

for module in ("onnx_ir", "onnxruntime", "torch"):
    pytest.importorskip(module)

from conftest import CLASSES, answer_of_the_docs, fails, make_images, ok  # noqa: E402
from onnx_files import CLASSIFIER, SOFTMAX, run_bytes, write  # noqa: E402

import tinytl_edge  # noqa: E402
from tinytl_edge.export.sources.properties import class_text  # noqa: E402
from tinytl_edge.runtime.images.decoding import read_image  # noqa: E402
from tinytl_edge.runtime.images.framing import Framing  # noqa: E402

# In another order than the folders', one spelled otherwise, and one without images; and as the folders spell them.
KNOWN = (CLASSES[2], CLASSES[0].upper(), "zebra", CLASSES[1])
NAMES = (CLASSES[2], CLASSES[0], "zebra", CLASSES[1])
LINES = "".join(f"{index}: {name}\n" for index, name in enumerate(KNOWN))
HALF = "[0.5, 0.5, 0.5]"
PROPERTIES = {"names": str(dict(enumerate(KNOWN))), "author": "somebody", "mean": HALF, "std": HALF}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployed model, adapted to one class more."""
    place = tmp_path_factory.mktemp("app")
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])
    write(place / "model.onnx", [*CLASSIFIER, SOFTMAX], outputs=[output], properties=PROPERTIES)
    (place / "labels.txt").write_text(LINES)
    images = make_images(place / "images", dict.fromkeys((*CLASSES, "emu"), 6))
    ok("prepare", place / "model.onnx", "--labels", place / "labels.txt", "--data", images, "--train", "full",
       "--fit", "squash", "--out", place / "bundle")  # fmt: skip
    ok("train", place / "bundle", "--data", images, "--epochs", 30, "--lr", 0.02, "--out", place / "run")
    (place / "model.engine").write_text("built")
    ok("export", place / "run", "--out", place / "model.onnx", "--overwrite")
    return place


def test_the_app_finds_model_and_labels_where_they_were(place: Path) -> None:
    names = {path.name for path in place.iterdir() if path.is_file()}
    assert names == {
        "model.onnx", "model.onnx.before", "model.json", "labels.txt", "labels.txt.before", "model.engine",
    }  # fmt: skip
    assert (place / "labels.txt").read_text() == f"{LINES}4: emu\n"
    assert (place / "labels.txt.before").read_text() == LINES


def test_it_is_the_same_model_with_one_output_more(place: Path) -> None:
    after, before = (onnx.load(place / name) for name in ("model.onnx", "model.onnx.before"))
    assert after.graph.node == before.graph.node and after.graph.input == before.graph.input
    assert after.opset_import == before.opset_import and after.ir_version == before.ir_version
    assert [d.dim_value for d in after.graph.output[0].type.tensor_type.shape.dim] == [1, 5]
    about = {entry.key: entry.value for entry in after.metadata_props}
    assert about["author"] == "somebody"
    assert about["names"] == str(dict(enumerate((*KNOWN, "emu"))))
    assert json.loads(about["tinytl-edge"])["classes"] == [*NAMES, "emu"]
    assert (about["mean"], about["std"]) == (HALF, HALF)
    assert len(after.metadata_props) == len(about) == 5


def test_onnxruntime_says_what_predict_says(place: Path) -> None:
    images = sorted((place / "images").glob("*/*.png"))
    right = 0
    for image, expected in zip(images, tinytl_edge.predict(place / "run", images)):
        pixels = np.frombuffer(read_image(image, Framing(16, 16, fit="squash", margin=False)), np.uint8)
        x = (pixels.reshape(16, 16, 3) / np.float32(127.5) - 1).transpose(2, 0, 1)[None].astype(np.float32)
        given = run_bytes(place / "model.onnx", x)[0]
        odds = [expected["probabilities"][name] for name in (*NAMES, "emu")]
        np.testing.assert_allclose(given, odds, atol=1e-4)
        right += expected["prediction"] == image.parent.name
    assert right >= 0.8 * len(images)


def test_the_files_themselves_are_measured_before_and_after(place: Path) -> None:
    images = place / "images"
    run = json.loads(ok("evaluate", place / "run", "--data", images, "--json"))
    after = json.loads(ok("evaluate", place / "model.onnx", "--data", images, "--json"))
    assert after["confusion"] == run["confusion"] and after["classes"] == run["classes"] == [*NAMES, "emu"]
    assert after["loss"] == pytest.approx(run["loss"], rel=1e-3)
    with pytest.raises(tinytl_edge.TinyTLError, match="--bundle"):  # it does not say all
        tinytl_edge.evaluate(place / "model.onnx.before", images)
    known = make_images(place / "known", dict.fromkeys(CLASSES, 6))
    before = tinytl_edge.evaluate(place / "model.onnx.before", known, bundle=place / "bundle")
    assert before["classes"] == list(NAMES) and before["accuracy"] < after["accuracy"]
    (image,) = (place / "images" / CLASSES[0]).glob("0.png")
    (mine,), (theirs,) = (tinytl_edge.predict(each, [image]) for each in (place / "model.onnx", place / "run"))
    assert mine["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-4)


def test_the_example_of_the_docs(place: Path) -> None:
    image = place / "images" / CLASSES[0] / "0.png"
    (expected,) = tinytl_edge.predict(place / "run", [image])
    assert answer_of_the_docs(1, place, image) == expected["prediction"]


def test_its_input_stays_what_it_is(place: Path) -> None:
    answer = fails(2, "prepare", place / "model.onnx", "--classes", 5, "--raw-pixels", "--out", place / "raw")
    assert "keeps its own input" in answer and not (place / "raw").exists()


def test_a_second_time_changes_nothing_but_keeps_what_is_there(place: Path) -> None:
    content = (place / "model.onnx").read_bytes()
    said = json.loads(ok("export", place / "run", "--out", place / "model.onnx", "--overwrite", "--json"))
    assert (place / "model.onnx").read_bytes() == content == (place / "model.onnx.before").read_bytes()
    assert (place / "labels.txt.before").read_text() == LINES  # it was not written
    assert said["kept"] == [str(place / "model.onnx.before")]  # what export itself wrote beside it is not kept
    assert said["stale"] == [str(place / "model.engine")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{0: 'a', 1: 'b'}", "{0: 'x', 1: 'ü', 2: 'z'}"),
        ('{"0": "a", "1": "b"}', '{"0": "x", "1": "ü", "2": "z"}'),
        ('{"a": 0, "b": 1}', '{"x": 0, "ü": 1, "z": 2}'),
        ('["a", "b"]', '["x", "ü", "z"]'),
        ("['a', 'b']", "['x', 'ü', 'z']"),
        ("a,b", "x,ü,z"),
        ("a;b", "x;ü;z"),
        ("a\nb", "x\nü\nz"),
    ],
)
def test_class_names_in_metadata_keep_their_spelling(text: str, expected: str) -> None:
    found = class_text("names", text, 2)
    assert found is not None and found.of(("x", "ü", "z")) == expected and found.of(()) == text
    assert class_text("names", text, 3) is None and class_text("other", text, 2) is None
