"""Classes that come in the field, behind those that a classifier was prepared for."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import events
from conftest import CLASSES, fails, make_image, make_images, ok, prepare
from hypothesis import given
from hypothesis import strategies as st
from runtimes import needs_ort
from test_going_on import adapter, recorded

from tinytl_edge import TrainOptions, evaluate, train
from tinytl_edge.runtime.errors import DamagedFileError, InterruptedTrainingError
from tinytl_edge.runtime.files.bundle import open_bundle
from tinytl_edge.runtime.files.features import open_features, which_to_keep
from tinytl_edge.runtime.files.records import read_record
from tinytl_edge.runtime.files.run import FirstPass, open_run
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.learning.kept_features import as_bfloat16, read_features
from tinytl_edge.runtime.learning.known_classes import keep_known
from tinytl_edge.runtime.model_files.template import Template, filled, table_of

OPTIONS = TrainOptions(epochs=4, batch_size=4, log_every=1)
MORE = (*CLASSES, "owl")


def images_of(folder: Path, name: str, count: int, colour: tuple[int, int, int], seed: int = 7) -> Path:
    for number in range(count):
        make_image(folder / name / f"{number}.png", colour, seed=100 * seed + number)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """known/: twelve images of each class; owls/: eight of another one alone; all/: four of each of them."""
    folder = tmp_path_factory.mktemp("photos")
    make_images(folder / "known", dict.fromkeys(CLASSES, 12), seed=5)
    images_of(folder / "owls", "owl", 8, (230, 220, 40))
    make_images(folder / "all", dict.fromkeys(CLASSES, 4), seed=6)
    images_of(folder / "all", "owl", 4, (230, 220, 40), seed=8)
    return folder


@pytest.fixture(scope="module")
def bundle(photos: Path) -> Path:
    return prepare(photos / "bundle", "--data", photos / "known", "--train", "bias")


@pytest.fixture(scope="module")
def run(runtime: str, bundle: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the known classes."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(bundle, photos / "known", out=out, runtime=runtime, options=OPTIONS)
    return out


def without_images(run: Path, place: Path) -> Path:
    """A copy of a run whose images are gone."""
    shutil.copytree(run, place)
    (place / "train.safetensors").unlink()
    record = recorded(run)
    record["bundle"] = os.path.relpath(os.path.normpath(run / record["bundle"]), place)
    (place / "run.json").write_text(json.dumps(record))
    return place


def said(run: Path, kind: str) -> list[str]:
    return [event["message"] for event in events(run) if event["event"] == kind]


def one_passes(run: Path) -> list[dict[str, Any]]:
    return [event for event in events(run) if event["event"] == "one_pass"]


# Room --------------------------------------------------------------------------------------------------


def test_outputs_that_wait_change_nothing(runtime: str, photos: Path, tmp_path: Path) -> None:
    """Neither a loss nor what is learnt, but for the order in which floats are added."""
    torch = pytest.importorskip("torch")
    runs = []
    for room in (0, 3):
        torch.manual_seed(0)
        made = prepare(tmp_path / f"bundle{room}", "--data", photos / "known", "--room", room, "--train", "bias")
        assert open_bundle(made).manifest.outputs == 3 + room
        runs.append(tmp_path / f"run{room}")
        train(made, photos / "known", out=runs[-1], runtime=runtime, options=OPTIONS)
    steps = [[event["loss"] for event in events(run) if event["event"] == "step"] for run in runs]
    np.testing.assert_allclose(*steps, rtol=1e-4)
    tight, roomy = map(adapter, runs)
    head = open_bundle(tmp_path / "bundle3").manifest.head
    assert head is not None
    for name in tight:
        one, other = (np.frombuffer(values[name], np.float32) for values in (tight, roomy))
        np.testing.assert_allclose(one, other[: one.size], rtol=1e-3, atol=1e-4)
        assert {head.weight: 0.0, head.bias: -1e4}.get(name, 0.0) == pytest.approx(other[one.size :])


def test_pytorch_learns_the_same(bundle: Path, tmp_path: Path) -> None:
    """With priors of the classes, and none of outputs that wait."""
    pytest.importorskip("torch")
    from tinytl_edge.export.eager_training import train_eager

    images = make_images(tmp_path / "uneven", {"cat": 12, "dog": 3, "fox": 5}, seed=9)
    options = TrainOptions(epochs=2, batch_size=4, log_every=1, start="prepared", hold_out=0.0, blend=1.0, dropout=0.0)
    train(bundle, images, out=tmp_path / "run", runtime="native", options=options)
    ours = [event["loss"] for event in events(tmp_path / "run") if event["event"] == "step"]
    with open_dataset(tmp_path / "run" / "train.safetensors") as dataset:
        theirs = [step.loss for step in train_eager(open_bundle(bundle), dataset, options)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_there_is_room_with_images_and_with_names(photos: Path, tmp_path: Path) -> None:
    def room(*arguments: object) -> int:
        return open_bundle(prepare(tmp_path / "bundle", *arguments, "--overwrite")).manifest.room

    assert room("--data", photos / "known") == 4
    assert room("--classes", "cat,dog") == 0
    assert room("--classes", "cat,dog", "--room", 2) == 2
    assert room("--classes", "cat,dog", "--multi-label") == 0
    tiny = ("prepare", "tiny_models:Tiny", "--resolution", 32, "--out", tmp_path / "none")
    assert "classes have no names: leave --room out" in fails(2, *tiny, "--classes", 3, "--room", 1)
    words = fails(2, *tiny, "--classes", "cat,dog", "--multi-label", "--room", 1)
    assert "an image may have any of its classes" in words
    assert "--room -1 is out of range" in fails(2, *tiny, "--classes", "cat,dog", "--room", -1)


# A bundle ----------------------------------------------------------------------------------------------


def test_a_bundle_learns_a_class_without_images_of_those_it_knows(
    runtime: str, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = train(bundle, photos / "owls", out=run, runtime=runtime, options=TrainOptions(batch_size=4))
    assert done["steps"] == 0
    new, stands_in = said(run, "images")
    assert new == "'owl' is a new class: the classifier tells 4 apart now, and there is room for 3 more."
    assert stands_in.startswith("There are no images here of 'cat', 'dog', 'fox': features kept of 36 images stand in")
    (fitted,) = one_passes(run)
    assert (fitted["images"], fitted["stood_in"], fitted["known"]) == (8, 36, 0)
    seen = evaluate(run, photos / "all", runtime=runtime)
    assert seen["classes"] == list(MORE) and seen["accuracy"] == 1
    assert "4, of which the bundle does not know 'owl'" in ok("inspect", run)
    # What comes next may lack images of either.
    kept = open_features(run / "features.safetensors", 16)
    assert kept.classes == MORE and [kept.labels.count(label) for label in range(4)] == [12, 12, 12, 8]


def test_with_images_of_all_it_learns_as_ever(runtime: str, bundle: Path, photos: Path, tmp_path: Path) -> None:
    done = train(bundle, photos / "all", out=tmp_path / "run", runtime=runtime, options=OPTIONS)
    assert done["steps"] == 16
    assert said(tmp_path / "run", "images") == [
        "'owl' is a new class: the classifier tells 4 apart now, and there is room for 3 more."
    ]
    assert not said(tmp_path / "run", "warning")
    assert open_run(tmp_path / "run").record.first_pass == FirstPass(0)


def test_a_class_that_is_forgotten_is_not_lost(runtime: str, bundle: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "known" / "cat", tmp_path / "cats" / "cat")
    train(bundle, tmp_path / "cats", out=tmp_path / "run", runtime=runtime)
    assert evaluate(tmp_path / "run", photos / "known", runtime=runtime)["accuracy"] == 1
    # Unless the person wants it.
    train(bundle, tmp_path / "cats", out=tmp_path / "trained", runtime=runtime, options=OPTIONS)
    assert recorded(tmp_path / "trained")["result"]["steps"] > 0


def test_what_does_not_fit_is_refused(bundle: Path, photos: Path, tmp_path: Path) -> None:
    five = make_images(tmp_path / "five", {f"class{number}": 1 for number in range(5)})
    refused = ("train", bundle, "--data", five, "--out", tmp_path / "run")
    assert "and there is room for 4 more: rename or remove folders, or prepare" in fails(4, *refused)
    tight = prepare(tmp_path / "tight", "--data", photos / "known", "--room", 0)
    sentence = fails(4, "train", tight, "--data", photos / "all", "--out", tmp_path / "run")
    assert "owl is not a class of the model, which knows 'cat', 'dog', 'fox'" in sentence
    alike = make_images(tmp_path / "alike", {"Cat ": 2})
    sentence = fails(4, "train", bundle, "--data", alike, "--out", tmp_path / "run")
    assert "('cat' is, which differs in case or spaces only)" in sentence
    blind = prepare(tmp_path / "blind", "--classes", "cat,dog", "--room", 2)
    sentence = fails(4, "train", blind, "--data", photos / "owls", "--out", tmp_path / "run2")
    assert "nothing that shows what it knows ('cat', 'dog')" in sentence


def test_a_packed_dataset(bundle: Path, photos: Path, tmp_path: Path) -> None:
    ok("pack", photos / "all", "--bundle", bundle, "--out", tmp_path / "packed")
    ok("train", bundle, "--data", tmp_path / "packed", "--epochs", 0, "--out", tmp_path / "run")
    assert json.loads(ok("evaluate", tmp_path / "run", "--data", tmp_path / "packed", "--json"))["classes"] == [*MORE]


# A run -------------------------------------------------------------------------------------------------


def test_a_run_learns_a_class_beside_its_images(runtime: str, run: Path, photos: Path, tmp_path: Path) -> None:
    on = tmp_path / "on"
    train(run, photos / "owls", out=on, runtime=runtime, options=OPTIONS)
    told = said(on, "images")
    assert told[0] == "36 images of the run, and 8 further ones" and told[1].startswith("'owl' is a new class")
    assert open_run(on).record.first_pass == FirstPass(3)
    fits = one_passes(on)
    assert [fit["anew"] for fit in fits] == [False, True] and fits[1]["known"] == 36
    assert fits[1]["known_accuracy"] == fits[1]["known_accuracy_before"] == 1
    assert evaluate(on, photos / "all", runtime=runtime)["accuracy"] == 1
    # And another class behind that.
    images_of(tmp_path / "bats", "bat", 4, (20, 10, 30))
    train(on, tmp_path / "bats", out=tmp_path / "bat", runtime=runtime, options=OPTIONS)
    seen = evaluate(tmp_path / "bat", photos / "all", runtime=runtime)
    assert seen["classes"] == [*MORE, "bat"] and seen["accuracy"] == 1


def test_where_its_images_are_gone_features_stand_in(runtime: str, run: Path, photos: Path, tmp_path: Path) -> None:
    moved = without_images(run, tmp_path / "moved")
    done = train(moved, photos / "owls", out=tmp_path / "on", runtime=runtime, options=TrainOptions(batch_size=4))
    assert done["steps"] == 0
    (fit,) = one_passes(tmp_path / "on")
    assert (fit["images"], fit["stood_in"], fit["known"]) == (8, 36, 36)
    assert fit["known_accuracy"] == 1
    assert evaluate(tmp_path / "on", photos / "all", runtime=runtime)["accuracy"] == 1
    # Only its classifier is another.
    before, after = adapter(run), adapter(tmp_path / "on")
    assert {name for name in before if before[name] != after[name]} == {"classifier.weight", "classifier.bias"}


def test_further_images_without_the_runs_own(runtime: str, run: Path, photos: Path, tmp_path: Path) -> None:
    """The classifier is what one pass over all finds, those that are gone among them."""
    moved, more = without_images(run, tmp_path / "moved"), make_images(tmp_path / "more", dict.fromkeys(CLASSES, 3))
    train(moved, more, out=tmp_path / "on", runtime=runtime, options=TrainOptions(batch_size=4))
    (fit,) = one_passes(tmp_path / "on")
    assert (fit["images"], fit["stood_in"], fit["known"]) == (9, 36, 45)
    assert said(tmp_path / "on", "images")[0].startswith(
        "The images that the run learnt from are gone: features kept of"
    )
    assert not said(tmp_path / "on", "warning")
    kept = open_features(tmp_path / "on" / "features.safetensors", 16)
    assert [kept.labels.count(label) for label in range(3)] == [15, 15, 15]
    # Without features there is nothing but the further images.
    (moved / "features.safetensors").unlink()
    train(moved, more, out=tmp_path / "alone", runtime=runtime, options=OPTIONS)
    (warning,) = (words for words in said(tmp_path / "alone", "warning") if "unlearn" in words)
    assert warning.startswith(f"The images that {moved} learnt from are gone: it goes on with the new ones alone")


@needs_ort
@pytest.mark.parametrize("gone", [False, True])
def test_both_runtimes_find_the_same(gone: bool, bundle: Path, photos: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("native", "onnxruntime-training"):
        train(bundle, photos / "known", out=tmp_path / f"{name}-1", runtime=name, options=OPTIONS)
        first = without_images(tmp_path / f"{name}-1", tmp_path / f"{name}-gone") if gone else tmp_path / f"{name}-1"
        runs.append(tmp_path / f"{name}-2")
        train(first, photos / "owls", out=runs[-1], runtime=name, options=TrainOptions(batch_size=4, log_every=1))
    ours, theirs = map(adapter, runs)
    for name in ours:
        one, other = (np.frombuffer(values[name], np.float32) for values in (ours, theirs))
        np.testing.assert_allclose(one, other, rtol=2e-2, atol=2e-2 if gone else 5e-3)
    kept = [read_features(run / "features.safetensors", 16) for run in runs]
    assert kept[0][1].tolist() == kept[1][1].tolist()
    np.testing.assert_allclose(kept[0][0], kept[1][0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("gone", [False, True])
def test_it_is_resumed_where_it_was_stopped(gone: bool, runtime: str, run: Path, photos: Path, tmp_path: Path) -> None:
    if gone:
        run = without_images(run, tmp_path / "moved")
    train(run, photos / "owls", out=tmp_path / "whole", runtime=runtime, options=OPTIONS)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedTrainingError):
        train(run, photos / "owls", out=tmp_path / "on", runtime=runtime, options=OPTIONS, on_event=stop)
    train(run, out=tmp_path / "on", runtime=runtime, resume=True)
    assert adapter(tmp_path / "on") == adapter(tmp_path / "whole")


def test_a_run_of_other_classes_is_no_adapter_of_the_bundle(run: Path, tmp_path: Path) -> None:
    moved = without_images(run, tmp_path / "moved")
    content = (moved / "adapter.safetensors").read_bytes()
    (moved / "adapter.safetensors").write_bytes(content.replace(b'\\"dog\\"', b'\\"cow\\"'))
    with pytest.raises(DamagedFileError, match="damaged metadata"):
        evaluate(moved, tmp_path)


def test_its_report_knows_all_classes(run: Path, photos: Path, tmp_path: Path) -> None:
    train(run, photos / "owls", out=tmp_path / "on", options=OPTIONS)
    content = json.loads(ok("report", tmp_path / "on", "--out", tmp_path / "report.html", "--json"))
    assert [entry["name"] for entry in content["classes"]] == [*MORE]
    assert [entry["images"] for entry in content["judged"]["after"]["per_class"]] == [2, 2, 2, 2]


def test_they_are_said_before_anything_is_learnt(bundle: Path, photos: Path) -> None:
    content = json.loads(ok("doctor", photos / "all", "--bundle", bundle, "--json"))
    (new,) = [finding["message"] for finding in content["findings"] if finding["kind"] == "new-class"]
    assert new == f"{photos / 'all'}: 'owl' would be a new class; the bundle has room for 4."
    assert content["unexamined"] is None
    assert "room for" in ok("inspect", bundle)


# What comes out ----------------------------------------------------------------------------------------


def test_the_exported_file_has_another_output(bundle: Path, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(bundle, photos / "owls", out=run, options=TrainOptions(batch_size=4))
    told = json.loads(ok("export", run, "--out", tmp_path / "model.onnx", "--check", photos / "all", "--json"))
    assert told["classes"] == [*MORE] and "a number for each of 4 classes" in " ".join(told["in_words"])
    assert told["checked"]["same_class"] == 1 and told["checked"]["largest_difference"] < 1e-4
    words = ok("export", run, "--out", tmp_path / "model.onnx", "--overwrite")
    assert "It gives 4 numbers, where the file as it was prepared gave 3: the app has to expect them." in words
    ok("export", bundle, "--out", tmp_path / "before.onnx")
    assert json.loads((tmp_path / "before.json").read_text())["output"]["shape"][-1] == 3
    assert json.loads((tmp_path / "model.json").read_text())["output"]["shape"][-1] == 4


@pytest.mark.parametrize("kind", ["tflite", "onnx"])
def test_a_file_is_written_again_with_further_outputs(kind: str, tmp_path: Path) -> None:
    for module in ("ai_edge_litert", "torch"):
        pytest.importorskip(module)
    from onnx_files import run_graph
    from test_tflite_template import small

    from tinytl_edge.export.sources import read_network
    from tinytl_edge.export.sources.tflite_file import read_tflite
    from tinytl_edge.export.targets import write_templates
    from tinytl_edge.export.tinytl.classifier import find_classifier
    from tinytl_edge.export.tinytl.room import add_room, without_room
    from tinytl_edge.export.tinytl.transform import transform

    network = read_tflite(small(tmp_path, archive=True))
    add_room(network.model, find_classifier(network.model), 2)
    trainable = transform(network.model, "last").trainable
    assert not write_templates(tmp_path, network, trainable, False, False, 4, 2, None, lambda words: None)
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    for further in range(3):
        model = without_room(network.model, 4 + further)
        folder = tmp_path / "template"
        place = folder / table_of(kind, further)
        template = read_record(Template, json.loads(place.read_text()), place)

        def read(name: str, graph: Any = model.graph) -> bytes:
            return bytes(graph.initializers[name].const_value.numpy().astype("<f4").tobytes())

        file = tmp_path / f"{further}.{kind}"
        file.write_bytes(b"".join(filled(folder, template, 0, read)))
        assert template.outputs == 4 + further
        again = read_network(os.fspath(file), None, None, 4 + further, 0).model
        np.testing.assert_allclose(run_graph(again, images), run_graph(model, images), atol=1e-4)
    new = sum(path.stat().st_size for path in folder.glob("*.bin"))
    assert new < 20 * 192 * 4  # rows of the classifier, and little more


def test_a_class_beyond_what_can_be_written(bundle: Path, photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(bundle, photos / "owls", out=run, options=TrainOptions(batch_size=4))
    sentence = fails(2, "export", run, "--out", tmp_path / "model.tflite")
    assert "with 4 classes can be written as: a name that ends in .onnx is" in sentence


# Parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--memory-limit", "3MB")])
def test_images_of_which_none_can_be_read_are_refused(options: tuple[str, ...], tmp_path: Path) -> None:
    for name in CLASSES:
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "1.jpg").write_bytes(b"no image")
    words = ("prepare", "mobilenet-v2-0.35", "--weights", "random", "--resolution", 96, "--data", tmp_path / "images")
    sentence = fails(4, *words, *options, "--out", tmp_path / "bundle")
    assert (
        f"None of the images can be read, as {tmp_path / 'images' / CLASSES[0] / '1.jpg'}: it is not an image"
        in sentence
    )
    assert not (tmp_path / "bundle").exists()


@given(st.lists(st.integers(0, 5), max_size=400))
def test_features_are_kept_of_each_class(labels: list[int]) -> None:
    kept = which_to_keep(labels)
    assert kept == sorted(set(kept)) and all(0 <= index < len(labels) for index in kept)
    for label in set(labels):
        assert sum(labels[index] == label for index in kept) == min(labels.count(label), 50)


def test_features_are_rounded_to_the_nearest() -> None:
    numbers = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    stored = np.frombuffer(as_bfloat16(numbers), "<u2").astype(np.uint32) << np.uint32(16)
    assert np.abs(stored.view(np.float32) / numbers - 1).max() <= 2**-8


def test_known_rows_keep_a_quarter_of_what_they_had() -> None:
    rng = np.random.default_rng(0)
    before, found = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    rows = keep_known(before, found, np.array([True, False, True, True]))
    assert rows[1].tolist() == before[1].tolist()  # nothing shows it
    both = [0, 2]
    wanted = 0.25 * (before - before[both].mean(0)) + 0.75 * (found[:3] - found[both].mean(0))
    np.testing.assert_allclose((rows - rows[both].mean(0))[both], wanted[both])
    np.testing.assert_allclose(rows[3] - rows[both].mean(0), found[3] - found[both].mean(0))


def test_damaged_features_are_refused(bundle: Path, photos: Path, tmp_path: Path) -> None:
    file = bundle / "features.safetensors"
    content = file.read_bytes()
    with pytest.raises(DamagedFileError, match="not those of this network"):
        open_features(file, 17)
    (tmp_path / "cut").write_bytes(content[:-3])
    with pytest.raises(DamagedFileError):
        open_features(tmp_path / "cut", 16)
    (tmp_path / "label").write_bytes(content[: -1440 - 4] + b"\x09\0\0\0" + content[-1440:])
    with pytest.raises(DamagedFileError, match="a label is none of its 3 classes"):
        open_features(tmp_path / "label", 16)
