"""Several labels a photograph: the table, the packed file, and that both runtimes train them alike."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import COLOURS, TINY, fails, ok, photographs, picture
from reference_step import ReferenceStep
from small_net import SPEC, images, smooth_network
from test_native import OPTIONS, adapter, losses, make_bundle
from torch.nn import functional

from tinytl_edge import TrainOptions, evaluate, predict, train
from tinytl_edge.export.forward import export_forward
from tinytl_edge.export.step.compile import compile_step
from tinytl_edge.runtime.batches import Batches
from tinytl_edge.runtime.bundle import FORWARD, Bundle, open_bundle
from tinytl_edge.runtime.dataset import FORMAT, open_dataset, pack
from tinytl_edge.runtime.errors import DamagedFileError, DataError
from tinytl_edge.runtime.label_table import read_table
from tinytl_edge.runtime.tensors import write_tensors
from tinytl_edge.transfer import METHODS

NAMES = tuple(COLOURS)
RUNTIMES = ("native", "onnxruntime-training")


def labelled(folder: Path, count: int, seed: int = 0) -> Path:
    """`count` pictures, some of no class and some of several, and their table."""
    rows = ["file," + ",".join(NAMES)]
    for number in range(count):
        marks = [number >> bit & 1 for bit in range(len(NAMES))]
        colour = [sum(c[i] for c, mark in zip(COLOURS.values(), marks) if mark) // 3 + 30 for i in range(3)]
        picture(folder / "pictures" / f"{number}.png", (colour[0], colour[1], colour[2]), seed=100 * seed + number)
        rows.append(f"pictures/{number}.png," + ",".join(map(str, marks)))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


# The table ----------------------------------------------------------------------------------------------


def test_a_table_is_read(tmp_path: Path) -> None:
    for name in ("a.png", "b, c.png"):
        picture(tmp_path / name, (1, 2, 3))
    table = '\ufefffile, hat ,"long, hair"\r\na.png,0,1\r\n\r\n"b, c.png",1, 0\r\n'
    (tmp_path / "labels.csv").write_bytes(table.encode())
    read = read_table(tmp_path)
    assert read.classes == ("hat", "long, hair")
    assert read.rows == ((tmp_path / "a.png", b"\0\1"), (tmp_path / "b, c.png", b"\1\0"))
    assert read.in_order(("long, hair", "hat")).rows[0] == (tmp_path / "a.png", b"\1\0")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("", "has to begin with the row file,NAME,NAME"),
        ("file\na.png\n", "has to begin with the row file,NAME,NAME"),
        ("file;hat\na.png;1\n", "has to begin with the row file,NAME,NAME"),
        ("a.png,1\n", "has to begin with the row file,NAME,NAME"),
        ("file,hat,\na.png,1,0\n", "has a column without a name"),
        ("file,hat,hat\na.png,1,0\n", "has two columns 'hat'"),
        ("file,hat\n", "names no photographs"),
        ("file,hat\na.png,1\nb.png,1\n", "row 3 names 'b.png', which is no file in"),
        ("file,hat\na.png,1\n,1\n", "row 3 names '', which is no file in"),
        ("file,hat,wig\na.png,1,-1\n", "row 2 says '-1' of 'wig': it has to be 0 or 1"),
        ("file,hat,wig\na.png,1\n", "row 2 has 1 labels, not 2"),
        ("file,hat\na.png,1\n\n./a.png,1\n", "row 4 names './a.png' again, after row 2"),
        ('file,hat\n"a.png,1\n', "cannot be read as a table"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, table: str, sentence: str) -> None:
    picture(tmp_path / "a.png", (1, 2, 3))
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(DataError) as refused:
        read_table(tmp_path)
    assert sentence in str(refused.value) and str(tmp_path / "labels.csv") in str(refused.value)


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("file,Hüte\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_table(tmp_path)


# The file -----------------------------------------------------------------------------------------------


def test_packing(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "photographs", 8)
    (folder / "pictures" / "7.png").write_bytes(b"?")
    warnings: list[str] = []
    report = pack(folder, tmp_path / "data", 7, on_warning=warnings.append)
    assert (report.count, report.counts, len(report.skipped), len(warnings)) == (7, dict.fromkeys(NAMES, 3), 1, 1)
    with open_dataset(tmp_path / "data") as dataset:
        assert (dataset.kind, dataset.count, dataset.classes) == ("several", 7, list(NAMES))
        assert dataset.labels == [] and dataset.counts() == [3, 3, 3]
        assert dataset.marks == [bytes(number >> bit & 1 for bit in range(3)) for number in range(7)]
    pack(folder, tmp_path / "turned", 7, ("fox", "cat", "dog"))
    with open_dataset(tmp_path / "turned") as dataset:
        assert dataset.marks[1] == b"\0\1\0"


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [(("cat", "dog"), "has the column 'fox'"), ((*NAMES, "owl"), "lacks the column 'owl'")],
)
def test_other_columns_than_the_models_are_refused(tmp_path: Path, classes: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        pack(labelled(tmp_path / "photographs", 2), tmp_path / "data", 7, classes)


DAMAGED: dict[str, tuple[dict[str, str], str, tuple[int, ...], bytes, str]] = {
    "kind": ({"labels": "x"}, "U8", (2, 2), bytes(4), "its labels are of an unknown kind"),
    "no classes": ({"classes": "[]"}, "U8", (2, 0), b"", "several labels a photograph, but no classes"),
    "numbers": ({}, "I32", (2,), bytes(8), r"its labels are I32 \[2\], not U8 \[2, 2\]"),
    "too few": ({}, "U8", (1, 2), bytes(2), r"its labels are U8 \[1, 2\], not U8 \[2, 2\]"),
    "too many classes": ({}, "U8", (2, 3), bytes(6), r"its labels are U8 \[2, 3\], not U8 \[2, 2\]"),
    "no bit": ({}, "U8", (2, 2), b"\0\1\2\0", "the label 2 of sample 1 is neither 0 nor 1"),
    "marks of one": ({"labels": "one"}, "U8", (2, 2), bytes(4), r"its labels are U8 \[2, 2\], not I32 \[2\]"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_each_kind_of_damage_is_named(tmp_path: Path, case: str) -> None:
    """The trainer is held to the same sentences in tests/test_native_sampling.py."""
    changes, dtype, shape, content, sentence = DAMAGED[case]
    metadata = {"format": FORMAT, "version": "1", "classes": '["a", "b"]', "resolution": "7", "labels": "several"}
    pixels = ("images", "U8", (2, 8, 8, 3), bytes(384))
    write_tensors(tmp_path / "data", [pixels, ("labels", dtype, shape, content)], {**metadata, **changes})
    with pytest.raises(DamagedFileError, match=sentence):
        open_dataset(tmp_path / "data")


# Training -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed photographs; 14, so that the last batch is smaller."""
    folder = tmp_path_factory.mktemp("several")
    for part, seed in (("train", 0), ("val", 1)):
        pack(labelled(folder / part, 14, seed), folder / f"{part}.safetensors", SPEC.resolution, NAMES)
    return folder


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_agree_step_by_step(tmp_path: Path, data: Path, method: str, optimizer: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network(method), optimizer, several=True)
    done = {}
    for runtime in RUNTIMES:
        sources = (data / "train.safetensors", data / "val.safetensors")
        done[runtime] = train(bundle.path, *sources, tmp_path / runtime, runtime=runtime, options=OPTIONS)
    np.testing.assert_allclose(*(losses(tmp_path / runtime) for runtime in RUNTIMES), rtol=1e-3)
    for key in ("val_loss", "train_loss"):
        assert done["native"][key] == pytest.approx(done["onnxruntime-training"][key], rel=2e-3)
    accuracies = [event["train_accuracy"] for event in epochs(tmp_path / "native")]
    assert accuracies == pytest.approx([e["train_accuracy"] for e in epochs(tmp_path / RUNTIMES[1])], abs=0.05)
    assert any(accuracy * 14 % 1 > 1e-6 for accuracy in accuracies), "each class is an answer"


def epochs(run: Path) -> list[dict[str, Any]]:
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == "epoch"]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("method", ["last", "lite-residual+bias"])
def test_gradients_against_autograd_in_float64(tmp_path: Path, data: Path, method: str, runtime: str) -> None:
    """One step of SGD over one batch: what changed is the gradient."""
    network = smooth_network(method)
    bundle = make_bundle(tmp_path / "bundle", network, "sgd", several=True)
    options = TrainOptions(
        epochs=1, batch_size=14, lr=1e-3, lr_bias=1e-3, lr_lite_residual=1e-3, lr_weight=1e-3, seed=5
    )
    train(bundle.path, data / "train.safetensors", None, tmp_path / "run", runtime=runtime, options=options)
    with open_dataset(data / "train.safetensors") as dataset:
        (batch,) = Batches(bundle.manifest, dataset).training(options, 14, 0)
        smooth = np.array([list(dataset.marks[i]) for i in range(14)]) * 0.9 + 0.05
    assert sorted(map(tuple, batch.feeds["targets"].round(5))) == sorted(map(tuple, smooth.astype("f4").round(5)))

    exact = network.double()
    x, targets, mask = (torch.from_numpy(batch.feeds[n]).double() for n in ("images", "targets", "dropout/dropout"))
    features = exact.pool(exact.head(exact.blocks(exact.stem(x)))).flatten(1)
    functional.binary_cross_entropy_with_logits(exact.classifier(features * mask), targets).backward()
    after = adapter(tmp_path / "run")
    steepest = max(float(p.grad.abs().max()) for p in exact.parameters() if p.grad is not None)
    for name, parameter in exact.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            before, gradient = parameter.detach().numpy(), parameter.grad.numpy()
            rounding = 1e3 * np.abs(before).max() * 2e-7 + 5e-5 * np.abs(gradient).max() + 2e-6 * steepest
            np.testing.assert_allclose((before - after[name]) * 1e3, gradient, rtol=0, atol=rounding, err_msg=name)


def test_the_compiled_step_against_autograd() -> None:
    network = smooth_network("full")
    forward, dropouts = export_forward(network, SPEC.resolution)
    trainable = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    step = compile_step(forward, trainable, several=True)
    x = images(1, seed=3).double()
    targets = torch.tensor([0.95, 0.05, 0.05, 0.95, 0.95], dtype=torch.float64)
    exact = network.double()
    expected = functional.binary_cross_entropy_with_logits(exact(x)[0], targets)
    expected.backward()
    reference = ReferenceStep(step.graph, {n: p.detach() for n, p in exact.named_parameters()})
    ones = [torch.ones(d.shape, dtype=torch.float64) for d in dropouts]
    assert reference.run(x[0], targets, ones) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert set(reference.gradients) == set(trainable)
    for name, gradient in reference.gradients.items():
        torch.testing.assert_close(gradient, exact.get_parameter(name).grad, rtol=1e-6, atol=1e-12)


def test_evaluate_and_predict_agree(tmp_path: Path, data: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network("bias"), several=True)
    options = replace(OPTIONS, epochs=20, min_area=1, flip=False)
    train(bundle.path, data / "train.safetensors", None, tmp_path / "run", runtime="native", options=options)
    ours, theirs = (evaluate(tmp_path / "run", data / "val.safetensors", runtime=runtime) for runtime in RUNTIMES)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert (ours["accuracy"], ours["per_class"]) == (pytest.approx(theirs["accuracy"]), theirs["per_class"])
    assert ours["accuracy"] == pytest.approx(np.mean(ours["per_class"]))
    assert "confusion" not in ours and ours["classes"] == list(NAMES)
    image = data / "val" / "pictures" / "3.png"
    mine, others = (predict(tmp_path / "run", [image], runtime=runtime)[0] for runtime in RUNTIMES)
    assert mine["probabilities"] == pytest.approx(others["probabilities"], abs=1e-4)
    assert mine["prediction"] == [name for name, share in mine["probabilities"].items() if share > 0.5]


# The commands -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of both kinds, and a bundle for each."""
    folder = tmp_path_factory.mktemp("place")
    labelled(folder / "several", 14)
    photographs(folder / "one", dict.fromkeys(NAMES, 2))
    for kind in ("one", "several"):
        ok("prepare", *TINY, "--batch-size", 4, "--data", folder / kind, "--out", folder / f"bundle-{kind}")
    return folder


def manifest(place: Path, kind: str = "several") -> Bundle:
    return open_bundle(place / f"bundle-{kind}")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_whole_way(tmp_path: Path, place: Path, runtime: str) -> None:
    source, run = place / "several", tmp_path / "run"
    assert (manifest(place).manifest.labels, manifest(place).manifest.classes) == ("several", NAMES)
    assert "several a photograph" in ok("inspect", place / "bundle-several")
    chosen = ("--runtime", runtime)
    ok("train", place / "bundle-several", "--data", source, "--val", source, *chosen, "--epochs", 30, "--lr", 0.03,
       "--min-area", 1, "--no-flip", "--out", run)  # fmt: skip
    assert "accuracy" in ok("evaluate", run, "--data", source, *chosen)
    result = json.loads(ok("evaluate", run, "--data", source, *chosen, "--json"))
    assert result["accuracy"] > 0.6 and len(result["per_class"]) == 3
    (answer,) = [json.loads(ok("predict", run, source / "pictures" / "7.png", *chosen, "--json"))]
    assert set(answer["probabilities"]) == set(NAMES) and isinstance(answer["prediction"], list)
    assert "cat" in ok("predict", run, source / "pictures" / "7.png", *chosen)
    assert "several labels each" in ok("inspect", run / "train.safetensors")
    ok("inspect", run)
    ok("export", run, "--out", tmp_path / "model.onnx")
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert metadata["labels"] == "several"


def test_the_other_kind_of_photographs_is_refused(tmp_path: Path, place: Path) -> None:
    for kind, other, words in (("one", "several", "for one class each"), ("several", "one", "has no labels.csv")):
        bundle = place / f"bundle-{kind}"
        assert words in fails(4, "train", bundle, "--data", place / other, "--out", tmp_path / "run")
        assert words in fails(4, "pack", place / other, "--bundle", bundle, "--out", tmp_path / "packed")
        ok("pack", place / other, "--resolution", 32, "--out", tmp_path / kind)
        sentence = fails(4, "evaluate", bundle, "--data", tmp_path / kind)
        assert "a photograph" in sentence and "prepare" in sentence
    assert "no labels.csv" in fails(2, "prepare", *TINY, "--several-labels", "--data", place / "one", "--out", "x")
    assert "demo takes class folders" in fails(4, "demo", "--data", place / "several", "--out", tmp_path / "demo")


def test_preparing_without_photographs(tmp_path: Path, place: Path) -> None:
    ok("prepare", *TINY, "--classes", 3, "--several-labels", "--out", tmp_path / "bundle")
    assert open_bundle(tmp_path / "bundle").manifest.labels == "several"
    ok("train", tmp_path / "bundle", "--data", place / "several", "--epochs", 1, "--out", tmp_path / "run")


def test_a_single_class_is_enough(tmp_path: Path) -> None:
    """Training is hopeless by the loss of guessing yes or no, not one of so many classes."""
    picture(tmp_path / "photos" / "a.png", (200, 0, 0))
    picture(tmp_path / "photos" / "b.png", (0, 0, 200))
    (tmp_path / "photos" / "labels.csv").write_text("file,red\na.png,1\nb.png,0\n")
    data = ("--data", tmp_path / "photos")
    ok("prepare", *TINY, *data, "--out", tmp_path / "bundle")
    for runtime in RUNTIMES:
        run = tmp_path / runtime
        ok("train", tmp_path / "bundle", *data, "--runtime", runtime, "--epochs", 2, "--out", run)
        assert json.loads(ok("evaluate", run, *data, "--json"))["classes"] == ["red"]


def test_the_bundle_holds_the_forward_graph_of_one_label(place: Path) -> None:
    """The loss alone is another one."""
    ones, severals = (onnx.load(manifest(place, kind).file(FORWARD)) for kind in ("one", "several"))
    assert [node.op_type for node in ones.graph.node] == [node.op_type for node in severals.graph.node]
