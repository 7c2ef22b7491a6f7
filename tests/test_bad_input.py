"""Everything that can be wrong is one sentence and one exit code, and nothing that was there before is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSES, COLOURS, TINY, content_of, fails, make_image, make_images, ok, prepare, tinytl
from PIL import Image
from runtimes import needs_ort

import tinytl_edge
from tinytl_edge.runtime.files.run import CHECKPOINTS
from tinytl_edge.runtime.workers.native_worker import find_trainer

ADAPTER = "adapter.safetensors"
CHECKPOINT = CHECKPOINTS["native" if find_trainer() else "onnxruntime-training"]  # what `auto` writes


def flip(path: Path) -> None:
    """One byte in the middle is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b"") and None,
    "missing": Path.unlink,
}


# Bundles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name",
    ["manifest.json", "forward.onnx", "step.safetensors", *(pytest.param(f"ort/{n}", marks=needs_ort) for n in (
        "training_model.onnx", "eval_model.onnx", "optimizer_model.onnx", "checkpoint"
    ))],
)  # fmt: skip
def test_a_damaged_bundle_is_refused(name: str, damage: str, bundle: Path, workplace: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    DAMAGE[damage](copy / name)
    sentence = fails(3, "train", copy, "--data", workplace / "train", "--out", tmp_path / "run")
    assert name in sentence
    assert not (tmp_path / "run").exists()
    for command in (["evaluate", copy, "--data", workplace / "val"], ["inspect", copy]):
        assert tinytl(*command).code == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 99}, "version 99"),
        ({"format": "another"}, "not the manifest of a tinytl-edge bundle"),
        ({"batch_size": 64}, "checksum"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(
    change: dict[str, Any], words: str, bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, **change}))
    assert words in fails(3, "inspect", copy)


@pytest.mark.parametrize("content", ["", "no JSON", "[]", "{}", '{"format": "tinytl-edge-bundle", "version": 2}'])
def test_what_is_no_manifest_is_refused(content: str, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "manifest.json").write_text(content)
    assert "manifest.json" in fails(3, "inspect", copy)


def test_what_is_no_bundle_is_refused(workplace: Path, run: Path, tmp_path: Path) -> None:
    data = ("--data", workplace / "train", "--out", tmp_path / "run")
    for place in (tmp_path / "nothing", workplace / "train", run / ADAPTER):
        assert f"{place} is no bundle" in fails(3, "train", place, *data)
    assert not (tmp_path / "run").exists()
    assert "is neither a run" in fails(3, "evaluate", tmp_path / "nothing", "--data", workplace / "val")
    assert "is neither a run" in fails(3, "export", workplace, "--out", tmp_path / "model.onnx")
    assert "is neither a bundle nor a run" in fails(3, "inspect", tmp_path / "nothing")


# Images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"cat": 2, "Dog": 2, "fox": 2}, "Dog is not a class of the model ('dog' is, which differs in case"),
        ({"cat": 0, "dog": 0, "fox": 0}, "no images"),
        ({}, "no class folders"),
    ],
)
def test_images_that_do_not_fit_the_bundle(counts: dict[str, int], words: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data = make_images(tmp_path / "data", counts)
    for command in (["train", bundle, "--out", tmp_path / "run"], ["evaluate", bundle]):
        assert words in fails(4, *command, "--data", data)
    assert not (tmp_path / "run" / ADAPTER).exists()
    make_images(data, dict.fromkeys(CLASSES, 2))
    shutil.rmtree(data / "Dog", ignore_errors=True)
    ok("train", bundle, "--data", data, "--epochs", 1, "--out", tmp_path / "run")  # what failed is not in the way


@pytest.mark.parametrize("option", ["--data", "--val"])
def test_images_that_are_not_there(option: str, bundle: Path, workplace: Path, tmp_path: Path) -> None:
    places = {"--data": workplace / "train", "--val": workplace / "val", option: tmp_path / "nothing"}
    data = [word for pair in places.items() for word in pair]
    assert "nothing does not exist" in fails(4, "train", bundle, *data, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()  # found out before anything was packed


def test_images_must_be_named(bundle: Path, tmp_path: Path) -> None:
    assert "--data" in fails(2, "train", bundle, "--out", tmp_path / "run")


def test_too_few_classes_for_the_bundle(workplace: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    ok("prepare", *TINY, "--classes", 5, "--train", "last", "--out", bundle)
    sentence = fails(4, "train", bundle, "--data", workplace / "train", "--out", tmp_path / "run")
    assert "has 3 classes, the bundle was prepared for 5" in sentence


def test_classes_without_images_are_a_warning(bundle: Path, run: Path, tmp_path: Path) -> None:
    data = make_images(tmp_path / "data", {"cat": 1, "dog": 0})
    answer = tinytl("evaluate", run, "--data", data, "--json")
    assert answer.code == 0
    assert "no usable images of 'dog', 'fox'" in answer.err
    assert json.loads(answer.out)["per_class"][1:] == [None, None]
    blind = prepare(tmp_path / "bundle", "--classes", ",".join(CLASSES))
    answer = tinytl("train", blind, "--data", data, "--val", data, "--epochs", 1, "--out", tmp_path / "run")
    assert answer.code == 0  # one image is little, but not nothing
    assert answer.err.count("no usable images of 'dog', 'fox'") == 2


def test_every_kind_of_picture_is_used_and_what_is_none_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "data/cat"
    folder.mkdir(parents=True)
    image = Image.open(make_image(tmp_path / "one.png", COLOURS["cat"]))
    for mode, suffix in {"RGB": "jpg", "L": "jpg", "CMYK": "jpg", "RGBA": "png", "LA": "png", "P": "gif"}.items():
        image.convert(mode).save(folder / f"{mode}.{suffix}")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    (folder / "text.jpg").write_text("This is no image.")
    (folder / "empty.jpg").touch()
    (folder / "broken.jpg").write_bytes((folder / "RGB.jpg").read_bytes()[:400])
    (folder / "notes.txt").write_text("Nobody takes this for an image.")
    answer = tinytl("pack", tmp_path / "data", "--resolution", 16, "--out", tmp_path / "out", "--json")
    assert answer.code == 0
    content = json.loads(answer.out)
    assert content["images"] == 7
    assert {Path(name).name for name in content["skipped"]} == {"text.jpg", "empty.jpg", "broken.jpg"}
    assert answer.err.count("was skipped: ") == 3


def test_a_picture_to_predict_must_be_one(run: Path, workplace: Path, tmp_path: Path) -> None:
    good, text = workplace / "val/cat/0.png", tmp_path / "text.jpg"
    text.write_text("This is no image.")
    assert "text.jpg cannot be used" in fails(4, "predict", run, good, text)
    assert "nothing.jpg is no file" in fails(4, "predict", run, good, tmp_path / "nothing.jpg")
    assert "is no file" in fails(4, "predict", run, workplace)


def test_a_packed_dataset_must_fit(bundle: Path, workplace: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    packed = tmp_path / "packed.safetensors"
    ok("pack", workplace / "train", "--resolution", 48, "--out", packed)
    sentence = fails(4, "train", bundle, "--data", packed, *out)
    assert "packed for 48 x 48 px, RGB, cropped, with a margin; the bundle takes 32 x 32 px" in sentence
    ok("pack", workplace / "train", "--size", "32x32", "--fit", "squash", "--out", packed)
    assert "px, RGB, squashed, with a margin; the bundle takes" in fails(4, "train", bundle, "--data", packed, *out)
    ok("pack", make_images(tmp_path / "data", {"ant": 1, "bee": 1, "cow": 1}), "--resolution", 32, "--out", packed)
    sentence = fails(4, "train", bundle, "--data", packed, *out)
    assert "has the classes 'ant', 'bee', 'cow', where the model knows 'cat', 'dog', 'fox'" in sentence
    assert "packed.safetensors" in fails(3, "train", bundle, "--data", damaged(packed, truncate), *out)
    assert "is an ONNX file" in fails(3, "train", bundle, "--data", bundle / "forward.onnx", *out)


def damaged(path: Path, damage: Callable[[Path], None]) -> Path:
    damage(path)
    return path


def test_no_number_is_taken_that_makes_no_sense(bundle: Path, workplace: Path, tmp_path: Path) -> None:
    train = ("train", bundle, "--data", workplace / "train", "--out", tmp_path / "run")
    for option, value in {
        "--epochs": -1, "--batch-size": 0, "--lr": -1, "--lr-bias": "nan", "--dropout": 1, "--label-smoothing": 1,
        "--min-area": 0, "--threads": 0, "--log-every": 0, "--seed": -1,
    }.items():  # fmt: skip
        assert f"{option} " in fails(2, *train, option, value)
    assert not (tmp_path / "run").exists()
    for option, value in {"--resolution": 8, "--batch-size": 0}.items():
        assert f"{option} {value} is out of range" in fails(
            2, "prepare", "--classes", 3, option, value, "--out", tmp_path / "bundle"
        )
    pack = ("pack", workplace / "train", "--out", tmp_path / "packed")
    assert "--resolution" in fails(2, *pack)
    assert "--size 8 is out of range: 16 to 4096" in fails(2, *pack, "--size", "8x32")
    assert "--size HxW" in fails(2, *pack, "--size", "32x32", "--resolution", 32)
    assert "--fit: the bundle says" in fails(2, *pack, "--bundle", bundle, "--fit", "pad")
    for size in ("32x", "x", "32x32x3", "-32", "32 x 32", "1234567"):
        assert tinytl(*pack, "--size", size).code == 2


# Runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_adapter_is_refused(damage: str, run: Path, workplace: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    bundle = ("--bundle", workplace / "bundle")
    DAMAGE[damage](copy / ADAPTER)
    for command in (
        ["predict", copy, workplace / "val/cat/0.png"],
        ["evaluate", copy, "--data", workplace / "val"],
        ["export", copy, "--out", tmp_path / "model.onnx"],
    ):
        sentence = fails(3, *command, *bundle)
        assert ADAPTER in sentence or "has no adapter" in sentence
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("name", "damage"),
    [*((CHECKPOINT, damage) for damage in DAMAGE), *(("run.json", d) for d in ("truncated", "empty", "missing"))],
)
def test_a_damaged_run_is_not_resumed(name: str, damage: str, run: Path, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    DAMAGE[damage](copy / name)
    adapter = (copy / ADAPTER).read_bytes()
    sentence = fails(3, "train", bundle, "--resume", "--out", copy)
    assert name in sentence or f"{copy} is no run" in sentence
    assert (copy / ADAPTER).read_bytes() == adapter


@pytest.mark.parametrize(
    ("key", "value"),
    [("format", "another"), ("version", 2), ("bundle", 5), ("options", []), ("options", {"epochs": "many"})],
)
def test_a_garbled_record_is_not_resumed(key: str, value: Any, run: Path, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    record = json.loads((copy / "run.json").read_text())
    record[key] = {**record[key], **value} if value and isinstance(value, dict) else value
    (copy / "run.json").write_text(json.dumps(record))
    assert "run.json" in fails(3, "train", bundle, "--resume", "--out", copy)


def test_what_was_never_started_or_has_lost_its_data_is_not_resumed(run: Path, bundle: Path, tmp_path: Path) -> None:
    assert "is no run" in fails(3, "train", bundle, "--resume", "--out", tmp_path / "nothing")
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "train.safetensors").unlink()
    assert "train.safetensors, on which" in fails(4, "train", bundle, "--resume", "--out", copy)


def test_a_trained_run_is_not_trained_over(run: Path, bundle: Path, workplace: Path) -> None:
    before = content_of(run)
    sentence = fails(2, "train", bundle, "--data", workplace / "train", "--out", run)
    assert "already holds a trained run: choose another --out" in sentence
    assert content_of(run) == before


def test_a_folder_of_something_else_is_not_used(bundle: Path, workplace: Path) -> None:
    before = content_of(workplace / "val")
    sentence = fails(2, "train", bundle, "--data", workplace / "train", "--out", workplace / "val")
    assert "holds something else" in sentence
    assert content_of(workplace / "val") == before


def test_an_adapter_goes_with_its_own_bundle(run: Path, workplace: Path, tmp_path: Path) -> None:
    image = workplace / "val/cat/0.png"
    other = prepare(tmp_path / "other", "--classes", "cat,dog,fox", "--seed", 1)
    for sentence in (
        fails(3, "predict", run, image, "--bundle", other),
        fails(3, "train", other, "--resume", "--out", run),
    ):
        assert f"{other} is not the bundle that {run} was trained from" in sentence
    ok("train", other, "--data", workplace / "train", "--epochs", 1, "--out", tmp_path / "run")
    shutil.copy(run / ADAPTER, tmp_path / "run" / ADAPTER)
    assert "was trained from another bundle" in fails(3, "predict", tmp_path / "run", image)


def test_a_moved_bundle_is_found_again_by_name(run: Path, bundle: Path, workplace: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "elsewhere/run")
    moved = shutil.copytree(bundle, tmp_path / "moved")
    image = workplace / "val/cat/0.png"
    sentence = fails(3, "predict", copy, image)
    assert "is no longer at" in sentence
    assert "--bundle" in sentence
    expected = ok("predict", run, image)
    assert ok("predict", copy, image, "--bundle", moved) == expected
    assert str(moved) in ok("inspect", copy, "--bundle", moved)
    moved.rename(copy.parent / "bundle")  # both together need no option
    assert ok("predict", copy, image) == expected


# Training that fails ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sgd_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With plain gradient descent steps can be as long as one likes."""
    return prepare(tmp_path_factory.mktemp("sgd") / "bundle", "--classes", ",".join(CLASSES), "--optimizer", "sgd")


WILD = ("--start", "prepared", "--lr", 10, "--lr-bias", 10, "--lr-lite-residual", 10)


@pytest.mark.usefixtures("reproducible")
@pytest.mark.parametrize("how", ["no number", "hopeless"])
def test_training_that_diverges_says_so(how: str, run: Path, workplace: Path, tmp_path: Path) -> None:
    bundle, words, options = tmp_path / "bundle", "far above that of guessing", WILD
    if how == "hopeless":
        prepare(bundle, "--classes", ",".join(CLASSES), "--optimizer", "sgd", "--std", "4")
    else:  # pixels become infinite
        words, options = "the loss is", ("--start", "prepared")
        prepare(bundle, "--data", workplace / "train", "--std", "1e-38")
    out = tmp_path / "run"
    sentence = fails(7, "train", bundle, "--data", run / "train.safetensors", "--out", out, *options)
    assert "diverged at step" in sentence
    assert words in sentence
    assert "there is no adapter yet" in sentence
    record = json.loads((out / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", sentence)
    assert json.loads((out / "events.jsonl").read_text().splitlines()[-1])["exit_code"] == 7
    assert sentence in " ".join(ok("inspect", out).split())


def test_training_that_diverges_leaves_the_last_good_adapter(
    sgd_bundle: Path, run: Path, workplace: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    record: dict[str, Any] = {}

    def lead_astray(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            record.update(json.loads((out / "run.json").read_text()))
            raise KeyboardInterrupt  # and the worker is gone

    options = tinytl_edge.TrainOptions(epochs=10)  # its rates have warmed up after one
    with pytest.raises(KeyboardInterrupt):
        tinytl_edge.train(sgd_bundle, run / "train.safetensors", out=out, options=options, on_event=lead_astray)
    good = (out / ADAPTER).read_bytes()
    record["options"].update(lr=10, lr_bias=10, lr_lite_residual=10)
    (out / "run.json").write_text(json.dumps(record))
    sentence = fails(7, "train", sgd_bundle, "--resume", "--out", out)
    assert "the last good adapter stays" in sentence
    assert (out / ADAPTER).read_bytes() == good
    ok("predict", out, workplace / "val/cat/0.png")


# Models that cannot be prepared -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words", "arguments"),
    [
        (2, "no backbone named 'mobilenet-v9'", ["mobilenet-v9"]),
        (2, "did you mean efficientnet-lite0?", ["eficientnet-lite0"]),
        (2, "give --weights FILE, or --weights random", ["mobilenet-v2"]),
        (2, "nothing.tflite does not exist", ["nothing.tflite"]),
        (2, "nothing.onnx does not exist", ["nothing.onnx"]),
        (2, "does not exist", ["--weights", "nothing.pth"]),
        (3, "holds no PyTorch weights: it is a text", ["--weights", __file__]),
        (2, "not of the form", ["tiny_models:"]),
        (2, "No module named 'nothing_like_it'", ["nothing_like_it:Tiny"]),
        (2, "RuntimeError: a message of two lines", ["tiny_models:broken"]),
        (2, "--std is above zero", ["tiny_models:Tiny", "--std", "1,1,0"]),
        (2, "DFT", ["tiny_models:Fourier", "--train", "bias"]),
        (2, "CumSum", ["tiny_models:RunningSum", "--train", "bias"]),
    ],
)
def test_a_model_that_cannot_be_prepared(code: int, words: str, arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert words in fails(code, "prepare", "--classes", 3, "--resolution", 32, *arguments, "--out", out)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "words", "arguments"),
    [
        (2, "--classes", []),
        (2, "at least 2 classes", ["--classes", "1"]),
        (2, "names a class twice", ["--classes", "cat,cat"]),
        (4, "does not exist", ["--data", "nothing"]),
        (4, "'dog' in", ["--data", "{}"]),
    ],
)
def test_classes_that_cannot_be_told_apart(code: int, words: str, arguments: list[str], tmp_path: Path) -> None:
    data = make_images(tmp_path / "data", {"cat": 1, "dog": 0})
    arguments = [argument.format(data) for argument in arguments]
    assert words in fails(code, "prepare", *arguments, "--out", tmp_path / "bundle")
