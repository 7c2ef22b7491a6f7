"""Classes of which there are not as many images: weighed alike, judged alike, and said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import FRAMING, events, make_bundle
from conftest import CLASSES, make_images, ok
from hypothesis import given
from hypothesis import strategies as st
from runtimes import RUNTIMES, needs_ort, needs_trainer
from small_net import SmallNetwork, prepared
from tiny_models import Tiny

from tinytl_edge import TrainOptions, evaluate, train
from tinytl_edge.export.eager_training import train_eager
from tinytl_edge.runtime.files.bundle import Bundle
from tinytl_edge.runtime.files.tensors import open_tensors
from tinytl_edge.runtime.images.balance import log_priors, uneven
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.images.packing import pack


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8))
def test_priors_are_the_shares_of_the_images(counts: list[int]) -> None:
    found = np.exp(log_priors(counts))
    np.testing.assert_allclose(found / found.sum(), np.array(counts) / sum(counts))
    assert found.max() == 1


def test_a_class_without_images_counts_as_one_with_one() -> None:
    assert log_priors([20, 0, 1]) == [0, -math.log(20), -math.log(20)]
    assert log_priors([0, 0]) == [0, 0]


@given(st.lists(st.integers(0, 300), min_size=2, max_size=6))
def test_what_is_uneven_is_said(counts: list[int]) -> None:
    names = [f"class {index}" for index in range(len(counts))]
    present = [count for count in counts if count]
    said = uneven(names, counts)
    if len(present) < 2 or max(present) <= 3 * min(present):
        assert said is None
    else:
        assert said is not None
        assert f"{max(present)} images of 'class {counts.index(max(present))}'" in said
        assert f"{min(present)} of 'class {counts.index(min(present))}'" in said


@pytest.fixture(scope="module")
def network() -> SmallNetwork:
    torch.manual_seed(3)
    return prepared(Tiny(len(CLASSES)), "bias")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, network: SmallNetwork) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("balance") / "bundle", network)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20, 4 and 2 images of the classes."""
    folder = tmp_path_factory.mktemp("uneven")
    make_images(folder / "images", dict(zip(CLASSES, (20, 4, 2))), seed=7)
    pack(folder / "images", folder / "data.safetensors", FRAMING, CLASSES)
    return folder / "data.safetensors"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_priors_are_added_while_training(runtime: str, bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """As PyTorch does it, where they are added to the logits; what comes out is without them."""
    options = TrainOptions(epochs=3, start="prepared", batch_size=4, log_every=1, hold_out=0.0)
    train(bundle.path, data, None, tmp_path / "run", runtime=runtime, options=options)
    ours = [event["loss"] for event in events(tmp_path / "run") if event["event"] == "step"]
    with open_dataset(data) as dataset:
        theirs = [step.loss for step in train_eager(bundle, dataset, options)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


@needs_ort
@needs_trainer
def test_both_runtimes_learn_the_same(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    adapters = {}
    options = TrainOptions(epochs=3, start="one-pass", batch_size=4, hold_out=0.0)
    for runtime in ("native", "onnxruntime-training"):
        train(bundle.path, data, None, tmp_path / runtime, runtime=runtime, options=options)
        adapters[runtime] = open_tensors(tmp_path / runtime / "adapter.safetensors")
    ours, theirs = adapters["native"], adapters["onnxruntime-training"]
    for name in ours.entries:
        values = [np.frombuffer(adapter.read(name), np.float32) for adapter in (ours, theirs)]
        np.testing.assert_allclose(*values, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(json.loads(ours.metadata["logits"]), json.loads(theirs.metadata["logits"]), rtol=1e-2)


def test_a_run_says_so_and_tells_the_mean_of_the_classes(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    options = TrainOptions(epochs=1, start="one-pass", batch_size=4)
    run = tmp_path / "run"
    done = train(bundle.path, data, data, run, options=options)
    said = [event["message"] for event in events(run) if event["event"] == "warning"]
    (warning,) = [message for message in said if "nearly the same" not in message]
    assert warning.startswith(
        f"There are 20 images of '{CLASSES[0]}' and 2 of '{CLASSES[2]}': classes are weighed alike"
    )
    said = evaluate(run, data)
    rows = np.array(said["confusion"])
    assert done["val_class_accuracy"] == pytest.approx((rows.diagonal() / rows.sum(1)).mean())
    assert said["class_accuracy"] == pytest.approx(done["val_class_accuracy"])


def test_evaluate_tells_it_where_it_differs(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    train(bundle.path, data, None, tmp_path / "run", options=TrainOptions(epochs=0, start="one-pass"))
    said = evaluate(tmp_path / "run", data)
    first = ok("evaluate", tmp_path / "run", "--data", data).splitlines()[0]
    differs = abs(said["class_accuracy"] - said["accuracy"]) >= 0.005
    assert (f", mean of the classes {said['class_accuracy']:.1%}, " in first) == differs
