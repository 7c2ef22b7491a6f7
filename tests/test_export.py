"""`export`: a run becomes a model file, on a board; files of a deployment are replaced with care."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from conftest import CLASSES, RESOLUTION, fails, make_image, ok, prepare, tinytl
from PIL import Image

import tinytl_edge
from tinytl_edge.runtime.evaluate import compare
from tinytl_edge.runtime.files.tensors import open_tensors

# In a process of its own, and without torch, which onnxruntime-training imports where it can. Otherwise what a
# user's program would do.
INFERENCE = """
import json, sys
sys.modules["torch"] = None
import numpy as np
import onnxruntime
from PIL import Image

def odds(path, image, prepare):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["tinytl-edge"])
    pixels = np.asarray(Image.open(image).convert("RGB"))
    assert pixels.shape == (about["height"], about["width"], about["channels"])
    logits, = session.run(["logits"], {"images": prepare(pixels, about)[None]})
    shares = np.exp(logits[0] - logits[0].max())
    return dict(zip(about["classes"], (shares / shares.sum()).tolist()))

def normalised(pixels, about):
    normal = (pixels - np.array(about["mean"])) / about["std"]
    return normal.astype(np.float32).transpose(2, 0, 1)

model, kind, image = sys.argv[1:]
print(json.dumps(odds(model, image, normalised if kind == "normalised" else lambda pixels, about: pixels)))
"""
# What a board has not.
BARE = """
import sys
for module in ("torch", "numpy", "onnx", "onnx_ir", "onnxruntime", "matplotlib", "flatbuffers", "ai_edge_litert"):
    sys.modules[module] = None
from tinytl_edge.cli import main
main()
"""


@pytest.fixture(scope="module")
def raw_run(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a bundle that is to give a model of pixels as a camera has them."""
    folder = tmp_path_factory.mktemp("raw")
    bundle = prepare(folder / "bundle", "--data", workplace / "train", "--raw-pixels")
    ok("train", bundle, "--data", workplace / "train", "--epochs", 2, "--out", folder / "run")
    return folder / "run"


@pytest.mark.parametrize("kind", ["normalised", "raw"])
def test_the_exported_model_says_what_predict_says(
    kind: str, tmp_path: Path, run: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("onnxruntime")
    run = run if kind == "normalised" else request.getfixturevalue("raw_run")
    model = tmp_path / "model.onnx"
    ok("export", run, "--out", model)
    # The input is the middle 7/8 of the stored square: what predict sees of the large image is the small one.
    large, small = make_image(tmp_path / "large.png", (90, 100, 120), size=(37, 37)), tmp_path / "small.png"
    Image.open(large).crop((2, 2, 2 + RESOLUTION, 2 + RESOLUTION)).save(small)
    (expected,) = tinytl_edge.predict(run, [large])
    command = [sys.executable, "-W", "ignore", "-c", INFERENCE, model, kind, small]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == pytest.approx(expected["probabilities"], abs=1e-5)


def test_it_needs_what_a_board_has(tmp_path: Path, run: Path) -> None:
    command = [sys.executable, "-c", BARE, "export", run, "--out", tmp_path / "model.onnx"]
    subprocess.run(command, check=True, capture_output=True)
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)


def test_what_was_trained_is_in_the_file_and_nothing_else_is_new(tmp_path: Path, run: Path, bundle: Path) -> None:
    ok("export", run, "--out", tmp_path / "after.onnx")
    ok("export", bundle, "--out", tmp_path / "before.onnx")
    after, before = (onnx.load(tmp_path / name).graph for name in ("after.onnx", "before.onnx"))
    adapter = open_tensors(run / "adapter.safetensors")
    assert after.node == before.node and after.input == before.input and after.output == before.output
    changed = set()
    for new, old in zip(after.initializer, before.initializer):
        assert (new.name, new.dims, new.data_type) == (old.name, old.dims, old.data_type)
        if new.raw_data != old.raw_data:
            changed.add(new.name)
            assert new.raw_data == adapter.read(new.name)[: len(new.raw_data)]  # there may be room for further classes
    assert changed and changed <= set(adapter.entries)


def test_it_says_all_that_an_app_needs(tmp_path: Path, run: Path) -> None:
    answer = json.loads(ok("export", run, "--out", tmp_path / "model.onnx", "--json"))
    assert answer["format"] == "onnx"
    assert answer["bytes"] == (tmp_path / "model.onnx").stat().st_size
    (entry,) = onnx.load(tmp_path / "model.onnx").metadata_props
    beside = json.loads((tmp_path / "model.json").read_text())
    assert entry.key == "tinytl-edge" and {"model": "model.onnx", **json.loads(entry.value)} == beside
    assert beside["classes"] == list(CLASSES)
    assert (beside["height"], beside["channels"], beside["colours"]) == (RESOLUTION, 3, "RGB")
    assert (beside["fit"], beside["take"], beside["filter"]) == ("crop", "the middle 7/8", "bicubic, antialiased")
    assert beside["input"] == {"name": "images", "shape": [0, 3, RESOLUTION, RESOLUTION], "dtype": "float32"}
    assert beside["in words"] == answer["in_words"]
    words = " ".join(answer["in_words"])
    for expected in ("middle 7/8", f"{RESOLUTION} pixels across", "RGB", "(p - mean) / std", "0 cat", "softmax"):
        assert expected in words


# Writing over --------------------------------------------------------------------------------------------


def test_a_file_is_replaced_only_when_asked(tmp_path: Path, bundle: Path) -> None:
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    answer = tinytl("export", bundle, "--out", out)
    assert (answer.code, out.read_text()) == (2, "mine")
    ok("export", bundle, "--out", out, "--overwrite")
    assert out.stat().st_size > 1000
    assert out.with_name("model.onnx.before").read_text() == "mine"
    (tmp_path / "other.json").write_text("{}")
    assert "other.json already exists" in fails(2, "export", bundle, "--out", tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_what_was_there_is_not_kept_when_not_wanted(tmp_path: Path, bundle: Path) -> None:
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    ok("export", bundle, "--out", out, "--overwrite", "--keep", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.onnx"]


def test_a_link_stays_and_mode_and_owner_too(tmp_path: Path, bundle: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "v1.onnx").write_text("mine")
    (models / "v1.onnx").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(models / "v1.onnx", 12345, 54321)
    before = (models / "v1.onnx").stat()
    link = tmp_path / "current.onnx"
    link.symlink_to("models/v1.onnx")
    answer = json.loads(ok("export", bundle, "--out", link, "--overwrite", "--json"))
    assert link.is_symlink() and link.readlink() == Path("models/v1.onnx")
    after = (models / "v1.onnx").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_size == answer["bytes"]
    assert (models / "v1.onnx.before").read_text() == "mine"
    assert answer["kept"] == [str(models / "v1.onnx.before")]


def test_what_lies_beside_the_file_that_a_link_leads_to_is_written_there(tmp_path: Path, workplace: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "labels.txt").write_text("0 fox\n")
    (models / "v1.onnx").write_text("mine")
    (tmp_path / "current.onnx").symlink_to("models/v1.onnx")
    bundle = prepare(tmp_path / "bundle", "--data", workplace / "train")
    table = bundle / "template" / "onnx.json"
    content = json.loads(table.read_text())
    content["labels"] = {"name": "labels.txt", "names": ["fox"], "kind": "numbered"}
    table.write_text(json.dumps(content))
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["files"]["template/onnx.json"], manifest["checksum"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    ok("export", bundle, "--out", tmp_path / "current.onnx", "--overwrite")
    assert (models / "labels.txt").read_text() == "".join(f"{i} {name}\n" for i, name in enumerate(CLASSES))
    assert (models / "labels.txt.before").read_text() == "0 fox\n"
    assert not (tmp_path / "labels.txt").exists()


def test_a_hard_link_keeps_the_old_content(tmp_path: Path, bundle: Path) -> None:
    """An app that holds the file open, or has it under another name, is not disturbed."""
    (tmp_path / "model.onnx").write_text("mine")
    os.link(tmp_path / "model.onnx", tmp_path / "other.onnx")
    ok("export", bundle, "--out", tmp_path / "model.onnx", "--overwrite")
    assert (tmp_path / "other.onnx").read_text() == "mine"


def test_engines_that_were_built_of_the_old_file_are_named(tmp_path: Path, bundle: Path) -> None:
    for name in ("model.onnx", "model.engine", "model_fp16.plan", "model.onnx.ort", "another.engine"):
        (tmp_path / name).write_text("mine")
    said = ok("export", bundle, "--out", tmp_path / "model.onnx", "--overwrite")
    for name, stale in (
        ("model.engine", True),
        ("model_fp16.plan", True),
        ("model.onnx.ort", True),
        ("another", False),
    ):
        assert (f"{tmp_path / name} was built" in said) is stale
    assert "was built" not in ok("export", bundle, "--out", tmp_path / "new.onnx")


@pytest.mark.parametrize("name", ["model.tflite", "model.pt", "model"])
def test_another_ending_is_refused(name: str, tmp_path: Path, bundle: Path) -> None:
    assert "a name that ends in .onnx is." in fails(2, "export", bundle, "--out", tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_parameter_that_does_not_fit_is_damage(tmp_path: Path, workplace: Path) -> None:
    """A table that says other than the adapter: nothing is written."""
    bundle = prepare(tmp_path / "bundle", "--data", workplace / "train")
    table = bundle / "template" / "onnx.json"
    content = json.loads(table.read_text())
    content["holes"][0]["count"] += 1
    table.write_text(json.dumps(content))
    assert "onnx.json" in fails(3, "export", bundle, "--out", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_the_file_is_compared_with_the_run(tmp_path: Path, run: Path, workplace: Path) -> None:
    pytest.importorskip("onnxruntime")
    how = ("export", run, "--out", tmp_path / "model.onnx", "--check", workplace / "val")
    checked = json.loads(ok(*how, "--json"))["checked"]
    assert checked["images"] == 9
    assert (
        checked["accuracy"] == checked["trainer_accuracy"] == tinytl_edge.evaluate(run, workplace / "val")["accuracy"]
    )
    assert checked["same_class"] == 1
    assert 0 <= checked["largest_difference"] < 1e-5
    assert "the same class in 100.0%" in ok(*how, "--overwrite")
    # What is no longer the run's is seen.
    other = onnx.load(tmp_path / "model.onnx")
    for tensor in other.graph.initializer:
        if tensor.name.endswith("bias"):
            tensor.raw_data = bytes(len(tensor.raw_data))
    onnx.save(other, tmp_path / "other.onnx")
    assert compare(run, tmp_path / "other.onnx", workplace / "val")["largest_difference"] > 1e-3
