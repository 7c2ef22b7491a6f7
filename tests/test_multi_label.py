"""Multi-label images: both runtimes train them alike; the file is tested in test_label_table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from bundles import FRAMING, check_moved_by_gradient, make_bundle
from conftest import TINY, fails, make_image, make_images, ok
from reference_step import ReferenceStep
from runtimes import HAS_ORT, needs_ort
from small_net import images, smooth_network
from test_label_table import NAMES, labelled
from test_native import OPTIONS, adapter, losses, losses_in_torch

from tinytl_edge import TrainOptions, evaluate, predict, train
from tinytl_edge.export.eager_training import loss
from tinytl_edge.export.step.compile import compile_step
from tinytl_edge.export.tinytl.methods import METHODS
from tinytl_edge.runtime.files.bundle import FORWARD, Bundle, open_bundle
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.images.packing import pack

RUNTIMES = ["native", pytest.param("onnxruntime-training", marks=needs_ort)]


# Training -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed images; 14, so that the last batch is smaller."""
    folder = tmp_path_factory.mktemp("multi")
    for part, seed in (("train", 0), ("val", 1)):
        pack(labelled(folder / part, 14, seed), folder / f"{part}.safetensors", FRAMING, NAMES)
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_are_pytorchs_step_by_step(
    tmp_path: Path, data: Path, method: str, optimizer: str, runtime: str
) -> None:
    bundle = make_bundle(
        tmp_path / "bundle", smooth_network(method, len(NAMES)), optimizer, multi_label=True, classes=NAMES
    )
    sources = (data / "train.safetensors", data / "val.safetensors")
    train(bundle.path, *sources, tmp_path / "run", runtime=runtime, options=OPTIONS)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses_in_torch(bundle, sources[0], OPTIONS), rtol=1e-3)
    accuracies = [event["train_accuracy"] for event in epochs(tmp_path / "run")]
    assert any(accuracy * 14 % 1 > 1e-6 for accuracy in accuracies), "each class is an answer"


def epochs(run: Path) -> list[dict[str, Any]]:
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == "epoch"]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("method", ["last", "lite-residual+bias"])
def test_gradients_against_autograd_in_float64(tmp_path: Path, data: Path, method: str, runtime: str) -> None:
    """One step of SGD over one batch: what changed is the gradient."""
    network = smooth_network(method, len(NAMES))
    bundle = make_bundle(tmp_path / "bundle", network, "sgd", multi_label=True, classes=NAMES)
    options = TrainOptions(
        epochs=1, batch_size=14, lr=1e-3, lr_bias=1e-3, lr_lite_residual=1e-3, lr_weight=1e-3, seed=5
    )
    train(bundle.path, data / "train.safetensors", None, tmp_path / "run", runtime=runtime, options=options)
    with open_dataset(data / "train.safetensors") as dataset:
        (batch,) = Batches(bundle.manifest, dataset).training(options, 14, 0)
        smooth = np.array([list(dataset.marks[i]) for i in range(14)]) * 0.9 + 0.05
    assert sorted(map(tuple, batch.feeds["targets"].round(5))) == sorted(map(tuple, smooth.astype("f4").round(5)))

    exact = network.exact()
    feeds = {name: torch.from_numpy(values).double() for name, values in batch.feeds.items()}
    loss(exact(feeds["images"], feeds), feeds["targets"], bundle.manifest).backward()  # type: ignore[no-untyped-call]
    check_moved_by_gradient(exact, adapter(tmp_path / "run"), 1e-3)


def test_the_compiled_step_against_autograd() -> None:
    network = smooth_network("full")
    step = compile_step(network.graph(), multi_label=True)
    x = images(1, seed=3).double()
    targets = torch.tensor([0.95, 0.05, 0.05, 0.95, 0.95], dtype=torch.float64)
    exact = network.exact()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(exact(x)[0], targets)
    expected.backward()
    reference = ReferenceStep(step.graph, {n: p.detach() for n, p in exact.parameters_by_name.items()})
    ones = [torch.ones(d.shape, dtype=torch.float64) for d in network.dropouts]
    assert reference.run(x[0], targets, ones) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert set(reference.gradients) == set(network.trainable)
    for name, gradient in reference.gradients.items():
        torch.testing.assert_close(gradient, exact.parameters_by_name[name].grad, rtol=1e-6, atol=1e-12)


@needs_ort
def test_evaluate_and_predict_agree(tmp_path: Path, data: Path) -> None:
    runtimes = ("native", "onnxruntime-training")
    network = smooth_network("bias", len(NAMES))
    bundle = make_bundle(tmp_path / "bundle", network, multi_label=True, classes=NAMES)
    options = replace(OPTIONS, epochs=20, min_area=1, flip=False)
    train(bundle.path, data / "train.safetensors", None, tmp_path / "run", runtime="native", options=options)
    ours, theirs = (evaluate(tmp_path / "run", data / "val.safetensors", runtime=runtime) for runtime in runtimes)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert (ours["accuracy"], ours["per_class"]) == (pytest.approx(theirs["accuracy"]), theirs["per_class"])
    assert ours["accuracy"] == pytest.approx(np.mean(ours["per_class"]))
    assert "confusion" not in ours and ours["classes"] == list(NAMES)
    image = data / "val" / "images" / "3.png"
    mine, others = (predict(tmp_path / "run", [image], runtime=runtime)[0] for runtime in runtimes)
    assert mine["probabilities"] == pytest.approx(others["probabilities"], abs=1e-4)
    assert mine["prediction"] == [name for name, share in mine["probabilities"].items() if share > 0.5]


# The commands -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of both kinds, and a bundle for each."""
    folder = tmp_path_factory.mktemp("place")
    labelled(folder / "multi", 14)
    make_images(folder / "single", dict.fromkeys(NAMES, 2))
    for kind in ("single", "multi"):
        ok("prepare", *TINY, "--batch-size", 4, "--data", folder / kind, "--out", folder / f"bundle-{kind}")
    return folder


def manifest(place: Path, kind: str = "multi") -> Bundle:
    return open_bundle(place / f"bundle-{kind}")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_whole_way(tmp_path: Path, place: Path, runtime: str) -> None:
    source, run = place / "multi", tmp_path / "run"
    assert (manifest(place).manifest.labels, manifest(place).manifest.classes) == ("multi", NAMES)
    assert "multi-label" in ok("inspect", place / "bundle-multi")
    chosen = ("--runtime", runtime)
    ok("train", place / "bundle-multi", "--data", source, "--val", source, *chosen, "--epochs", 30, "--lr", 0.03,
       "--min-area", 1, "--no-flip", "--out", run)  # fmt: skip
    assert "accuracy" in ok("evaluate", run, "--data", source, *chosen)
    result = json.loads(ok("evaluate", run, "--data", source, *chosen, "--json"))
    assert result["accuracy"] > 0.6 and len(result["per_class"]) == 3
    (answer,) = [json.loads(ok("predict", run, source / "images" / "7.png", *chosen, "--json"))]
    assert set(answer["probabilities"]) == set(NAMES) and isinstance(answer["prediction"], list)
    assert "cat" in ok("predict", run, source / "images" / "7.png", *chosen)
    assert "multi-label" in ok("inspect", run / "train.safetensors")
    ok("inspect", run)
    ok("export", run, "--out", tmp_path / "model.onnx")
    assert ir.load(tmp_path / "model.onnx").metadata_props["tinytl-edge"].count('"labels": "multi"') == 1


def test_the_other_kind_of_images_is_refused(tmp_path: Path, place: Path) -> None:
    for kind, other, words in (("single", "multi", "for one class each"), ("multi", "single", "has no labels.csv")):
        bundle = place / f"bundle-{kind}"
        assert words in fails(4, "train", bundle, "--data", place / other, "--out", tmp_path / "run")
        assert words in fails(4, "pack", place / other, "--bundle", bundle, "--out", tmp_path / "packed")
        ok("pack", place / other, "--resolution", 32, "--out", tmp_path / kind)
        sentence = fails(4, "evaluate", bundle, "--data", tmp_path / kind)
        assert "image" in sentence and "prepare" in sentence
    assert "no labels.csv" in fails(2, "prepare", *TINY, "--multi-label", "--data", place / "single", "--out", "x")
    assert "demo takes class folders" in fails(4, "demo", "--data", place / "multi", "--out", tmp_path / "demo")


def test_preparing_without_images(tmp_path: Path, place: Path) -> None:
    ok("prepare", *TINY, "--classes", 3, "--multi-label", "--out", tmp_path / "bundle")
    assert open_bundle(tmp_path / "bundle").manifest.labels == "multi"
    ok("train", tmp_path / "bundle", "--data", place / "multi", "--epochs", 1, "--out", tmp_path / "run")


def test_a_single_class_is_enough(tmp_path: Path) -> None:
    """Training is hopeless by the loss of guessing yes or no, not one of so many classes."""
    make_image(tmp_path / "photos" / "a.png", (200, 0, 0))
    make_image(tmp_path / "photos" / "b.png", (0, 0, 200))
    (tmp_path / "photos" / "labels.csv").write_text("file,red\na.png,1\nb.png,0\n")
    data = ("--data", tmp_path / "photos")
    ok("prepare", *TINY, *data, "--out", tmp_path / "bundle")
    for runtime in ("native", "onnxruntime-training")[: 1 + HAS_ORT]:
        run = tmp_path / runtime
        ok("train", tmp_path / "bundle", *data, "--runtime", runtime, "--epochs", 2, "--out", run)
        assert json.loads(ok("evaluate", run, *data, "--json"))["classes"] == ["red"]


def test_the_bundle_holds_the_forward_graph_of_one_label(place: Path) -> None:
    """The loss alone is another one."""
    single, multi = (ir.load(manifest(place, kind).file(FORWARD)) for kind in ("single", "multi"))
    assert [node.op_type for node in single.graph] == [node.op_type for node in multi.graph]
