"""Training begins with the classifier that one pass over the images finds; without epochs it ends there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import FRAMING, events, make_bundle
from conftest import CLASSES, fails, make_images, ok, prepare
from runtimes import RUNTIMES, needs_ort, needs_trainer
from small_net import SmallNetwork, prepared
from test_label_table import NAMES, labelled
from tiny_models import Tiny
from torch import nn

from tinytl_edge import TrainOptions, evaluate, report, train
from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.onnx_graph import constant
from tinytl_edge.export.step.compile import Knobs
from tinytl_edge.export.tinytl.classifier import features_of, find_classifier
from tinytl_edge.runtime.errors import DataError, UsageError
from tinytl_edge.runtime.files.bundle import Bundle
from tinytl_edge.runtime.files.features import FILE as FEATURES_FILE
from tinytl_edge.runtime.files.tensors import open_tensors
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.images.packing import pack
from tinytl_edge.runtime.learning.discriminant import fit_discriminant
from tinytl_edge.runtime.learning.label_regression import fit_labels
from tinytl_edge.runtime.learning.pulled import fit_pulled
from tinytl_edge.runtime.training_plan import FEW_ALONE

FEATURES = 64
ONE_PASS = TrainOptions(epochs=0, start="one-pass")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed images of the tests' classes, not as many of each."""
    folder = tmp_path_factory.mktemp("images")
    for part, counts in (("train", (9, 7, 6)), ("val", (5, 5, 5)), ("few", (2, 3, 2))):
        make_images(folder / part, dict(zip(CLASSES, counts)), seed=len(part))
        pack(folder / part, folder / f"{part}.safetensors", FRAMING, CLASSES)
    return folder


class Headed(Tiny):
    """As the networks that people have, with a wide layer in front of its classifier; 64 features."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(16, FEATURES, 1, bias=False), nn.BatchNorm2d(FEATURES), nn.ReLU6())
        self.classifier: nn.Module = self.last()
        self.settle()

    def last(self) -> nn.Module:
        return nn.Linear(FEATURES, len(CLASSES))

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(x)
        return y


@pytest.fixture(scope="module")
def network() -> SmallNetwork:
    torch.manual_seed(1)
    return prepared(Headed(), "bias")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, network: SmallNetwork) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("one_pass") / "bundle", network)


def adapter(run: Path, name: str = "adapter") -> dict[str, np.ndarray]:
    tensors = open_tensors(run / f"{name}.safetensors")
    return {
        name: np.frombuffer(tensors.read(name), np.float32).reshape(entry.shape)
        for name, entry in tensors.entries.items()
    }


def features(bundle: Bundle, network: SmallNetwork, dataset: Path) -> tuple[np.ndarray, np.ndarray]:
    """What the classifier reads, by PyTorch, and the labels."""
    value = features_of(find_classifier(network.model))
    assert value is not None
    model = network.model.clone()
    model.graph.outputs[0] = next(out for node in model.graph for out in node.outputs if out.name == value.name)
    with open_dataset(dataset) as opened:
        batch = next(iter(Batches(bundle.manifest, opened).evaluation(opened.count)))
    with torch.no_grad():
        made = EagerNetwork(model)(torch.from_numpy(batch.feeds["images"]))
    return made.numpy().reshape(len(batch.labels), -1), batch.labels


class Flattened(Headed):
    """Its classifier reads every pixel of its last map, [channels, 2, 4]."""

    def last(self) -> nn.Module:
        return nn.Linear(FEATURES * 8, len(CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        x = nn.functional.avg_pool2d(self.middle(x), (4, 2))
        return self.classify(x)

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.dropout(x.flatten(1)))
        return logits


class OfAWholeMap(Flattened):
    """The same by a convolution as large as the map."""

    def last(self) -> nn.Module:
        return nn.Conv2d(FEATURES, len(CLASSES), (2, 4))

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(x).flatten(1)
        return logits


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("module", [Flattened, OfAWholeMap])
def test_a_classifier_of_maps_is_fitted_in_the_order_of_its_weights(
    runtime: str, module: type[Flattened], data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    network = prepared(module(), "last")
    made = make_bundle(tmp_path / "bundle", network)
    check_discriminant(runtime, data / "train.safetensors", made, network, data, tmp_path)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("part", ["train", "few"])
def test_it_is_the_discriminant_of_the_networks_features(
    runtime: str, part: str, bundle: Bundle, network: SmallNetwork, data: Path, tmp_path: Path
) -> None:
    check_discriminant(runtime, data / f"{part}.safetensors", bundle, network, data, tmp_path)


def check_discriminant(
    runtime: str, source: Path, bundle: Bundle, network: SmallNetwork, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = train(bundle.path, source, data / "val.safetensors", run, runtime=runtime, options=ONE_PASS)
    x, labels = features(bundle, network, source)
    wanted = fit_discriminant(x, labels, len(CLASSES), ONE_PASS.label_smoothing)
    head, found = bundle.manifest.head, adapter(run)
    assert head is not None
    logits = x @ found[head.weight].reshape(len(CLASSES), -1).T + found[head.bias]
    np.testing.assert_allclose(logits, x @ wanted.weight.T + wanted.bias, atol=0.02)
    one_pass = next(event for event in events(run) if event["event"] == "one_pass")
    assert one_pass["left_out_loss"] == pytest.approx(wanted.loss, rel=0.02)
    assert one_pass["left_out_accuracy"] == pytest.approx(wanted.accuracy)
    said = evaluate(run, data / "val.safetensors")
    assert one_pass["val_accuracy"] == done["val_accuracy"] == pytest.approx(said["accuracy"])
    assert done["steps"] == 0
    assert done["train_loss"] == pytest.approx(-np.log(_chance(logits, labels)).mean(), rel=1e-3)


def _chance(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True))[np.arange(len(labels)), labels]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_labels_that_stand_beside_each_other_are_fitted_each(
    runtime: str, network: SmallNetwork, tmp_path: Path
) -> None:
    made = make_bundle(tmp_path / "bundle", network, multi_label=True, classes=NAMES)
    for part, seed in (("train", 3), ("val", 4)):
        pack(labelled(tmp_path / part, 23, seed), tmp_path / f"{part}.safetensors", FRAMING, NAMES)
    source = tmp_path / "train.safetensors"
    done = train(made.path, source, tmp_path / "val.safetensors", tmp_path / "run", runtime=runtime, options=ONE_PASS)
    x, marks = features(made, network, source)
    wanted = fit_labels(x, marks.astype(np.uint8), ONE_PASS.label_smoothing)
    head, found = made.manifest.head, adapter(tmp_path / "run")
    assert head is not None
    logits = x @ found[head.weight].reshape(len(NAMES), -1).T + found[head.bias]
    np.testing.assert_allclose(logits, x @ wanted.weight.T + wanted.bias, atol=0.02)
    one_pass = next(event for event in events(tmp_path / "run") if event["event"] == "one_pass")
    assert one_pass["left_out_loss"] == pytest.approx(wanted.loss, rel=0.02)
    assert one_pass["left_out_accuracy"] == done["left_out_accuracy"] == pytest.approx(wanted.accuracy)
    assert one_pass["val_accuracy"] == evaluate(tmp_path / "run", tmp_path / "val.safetensors")["accuracy"]
    assert done["train_loss"] == pytest.approx(np.logaddexp(0, np.where(marks > 0, -logits, logits)).mean(), rel=1e-3)
    assert done["unknown"] is None
    assert not (tmp_path / "run" / FEATURES_FILE).exists()


def rows(values: Mapping[str, np.ndarray], bundle: Bundle) -> np.ndarray:
    """The classifier's, biases behind the weights."""
    head = bundle.manifest.head
    assert head is not None
    return np.concatenate([values[name].reshape(bundle.manifest.outputs, -1) for name in (head.weight, head.bias)], 1)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("multi_label", [False, True])
def test_a_classifier_that_knows_its_classes_is_pulled_towards_what_it_was(
    runtime: str, multi_label: bool, network: SmallNetwork, data: Path, tmp_path: Path
) -> None:
    classes, source = (NAMES if multi_label else CLASSES), data / "train.safetensors"
    made = make_bundle(tmp_path / "bundle", network, multi_label=multi_label, classes=classes, classifier="kept")
    if multi_label:
        source = tmp_path / "train.safetensors"
        pack(labelled(tmp_path / "images", 23, 3), source, FRAMING, NAMES)
    run = tmp_path / "run"
    done = train(made.path, source, None, run, runtime=runtime, options=TrainOptions(epochs=0))
    x, labels = features(made, network, source)
    before = rows({str(v.name): constant(v) for v in network.model.graph.initializers.values()}, made)
    wanted = fit_pulled(x, labels.astype(np.int64), before.astype(np.float64))
    found = rows(adapter(run), made)
    np.testing.assert_allclose(found[:, :-1], wanted.weight, atol=1e-4)
    np.testing.assert_allclose(found[:, -1], wanted.bias, atol=1e-4)
    (fitted,) = [event for event in events(run) if event["event"] == "one_pass"]
    assert fitted["pull"] == wanted.pull and fitted["shrinkage"] is None
    assert done["left_out_accuracy"] == fitted["left_out_accuracy"] == pytest.approx(wanted.accuracy)
    logits = x @ before[:, :-1].T + before[:, -1]
    right = (logits > 0) == labels if multi_label else logits.argmax(1) == labels
    assert fitted["accuracy_before"] == pytest.approx(right.mean())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_behind_the_trial_it_is_pulled_towards_what_it_was_deployed_as(
    runtime: str, network: SmallNetwork, tmp_path: Path
) -> None:
    make_images(tmp_path / "images", dict.fromkeys(CLASSES, 12), seed=1)
    source = tmp_path / "train.safetensors"
    pack(tmp_path / "images", source, FRAMING, CLASSES)
    made = make_bundle(tmp_path / "bundle", network, classifier="kept")
    run = tmp_path / "run"
    train(made.path, source, None, run, runtime=runtime, options=TrainOptions(epochs=1))
    x, labels = features(made, network, source)
    before = rows({str(v.name): constant(v) for v in network.model.graph.initializers.values()}, made)
    wanted = fit_pulled(x, labels.astype(np.int64), before.astype(np.float64))
    found = rows(adapter(run, "start"), made)
    np.testing.assert_allclose(found[:, :-1], wanted.weight, atol=1e-4)
    trial, whole = [event for event in events(run) if event["event"] == "one_pass"]
    assert (trial["anew"], whole["anew"]) == (False, True)
    assert whole["accuracy_before"] == pytest.approx(evaluate(made.path, source)["accuracy"])
    judged = report(run)["judged"]
    assert judged["before_is"] == "as deployed"
    assert judged["before"]["accuracy"] == pytest.approx(trial["accuracy_before"])


def test_of_few_images_a_deployed_classifier_learns_in_one_pass_alone(
    network: SmallNetwork, data: Path, tmp_path: Path
) -> None:
    made = make_bundle(tmp_path / "bundle", network, classifier="kept")
    few = data / "few.safetensors"
    assert train(made.path, few, out=tmp_path / "run")["steps"] == 0
    assert any(event.get("message") == FEW_ALONE for event in events(tmp_path / "run"))
    assert train(made.path, few, out=tmp_path / "more", options=TrainOptions(epochs=2))["steps"] > 0
    assert train(made.path, few, data / "val.safetensors", tmp_path / "judged")["steps"] > 0
    assert train(made.path, few, out=tmp_path / "all", options=TrainOptions(hold_out=0))["steps"] > 0


@needs_ort
@needs_trainer
@pytest.mark.parametrize("multi_label", [False, True])
def test_both_runtimes_go_on_from_there_alike(
    multi_label: bool, bundle: Bundle, network: SmallNetwork, data: Path, tmp_path: Path
) -> None:
    source = data / "train.safetensors"
    if multi_label:
        bundle = make_bundle(tmp_path / "bundle", network, multi_label=True, classes=NAMES)
        source = tmp_path / "train.safetensors"
        pack(labelled(tmp_path / "images", 23, 3), source, FRAMING, NAMES)
    options = TrainOptions(epochs=3, start="one-pass", log_every=1, batch_size=4, dropout=0 if multi_label else None)
    losses = {}
    for runtime in ("native", "onnxruntime-training"):
        train(bundle.path, source, None, tmp_path / runtime, runtime=runtime, options=options)
        losses[runtime] = [event["loss"] for event in events(tmp_path / runtime) if event["event"] == "step"]
    np.testing.assert_allclose(losses["native"], losses["onnxruntime-training"], rtol=5e-3)


@needs_trainer
def test_a_head_in_chunks_gives_the_same_features(network: SmallNetwork, data: Path, tmp_path: Path) -> None:
    found = []
    for scratch in (1_000, 2**40):
        knobs = Knobs(scratch_bytes=scratch, accumulation="float32")
        made = make_bundle(tmp_path / f"{scratch}", network, knobs=knobs)
        train(
            made.path, data / "train.safetensors", None, tmp_path / f"run{scratch}", runtime="native", options=ONE_PASS
        )
        found.append(adapter(tmp_path / f"run{scratch}"))
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], rtol=1e-3, atol=1e-3 * np.abs(value).max())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_run_that_goes_on_is_not_fitted_again(runtime: str, bundle: Bundle, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = TrainOptions(epochs=2, start="one-pass", batch_size=4)
    train(bundle.path, data / "train.safetensors", None, run, runtime=runtime, options=options)
    trained = adapter(run)
    train(bundle.path, out=run, resume=True)
    assert [event["event"] for event in events(run)].count("one_pass") == 1
    for name, value in adapter(run).items():
        np.testing.assert_array_equal(value, trained[name])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_was_trained_is_blended_with_the_start(runtime: str, bundle: Bundle, data: Path, tmp_path: Path) -> None:
    found, ranges = {}, {}
    for share in (1.0, 0.25):
        options = TrainOptions(epochs=3, start="one-pass", batch_size=4, blend=share)
        run = tmp_path / f"{share}"
        done = train(
            bundle.path, data / "train.safetensors", data / "val.safetensors", run, runtime=runtime, options=options
        )
        assert done["val_accuracy"] == pytest.approx(evaluate(run, data / "val.safetensors")["accuracy"])
        found[share] = adapter(run)
        ranges[share] = json.loads(open_tensors(run / "adapter.safetensors").metadata["logits"])
    start = open_tensors(tmp_path / "0.25" / "start.safetensors")
    for name, trained in found[1.0].items():
        first = np.frombuffer(start.read(name), np.float32).reshape(trained.shape)
        np.testing.assert_allclose(found[0.25][name], first + 0.25 * (trained - first), rtol=1e-5, atol=1e-6)
        assert not np.array_equal(first, trained) or not trained.any()
    first = json.loads(start.metadata["logits"])
    assert ranges[0.25] == [min(first[0], ranges[1.0][0]), max(first[1], ranges[1.0][1])]

    train(bundle.path, out=tmp_path / "0.25", resume=True)  # from what was trained, not from the blend
    for name, value in adapter(tmp_path / "0.25").items():
        np.testing.assert_array_equal(value, found[0.25][name])


def test_what_begins_at_random_is_not_blended(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    options = TrainOptions(epochs=1, start="prepared")
    train(bundle.path, data / "train.safetensors", None, tmp_path / "run", options=options)
    assert "choice" not in {event["event"] for event in events(tmp_path / "run")}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["result"]["share"] == 1


def test_where_it_begins_by_itself(network: SmallNetwork, data: Path, tmp_path: Path) -> None:
    """With one pass, unless the file's classifier knows but some of the classes."""
    for classifier, start in (("new", "one-pass"), ("kept", "one-pass"), ("extended", "prepared")):
        made = make_bundle(tmp_path / classifier, network, classifier=classifier)
        train(
            made.path, data / "train.safetensors", None, tmp_path / f"{classifier}-run", options=TrainOptions(epochs=1)
        )
        record = json.loads((tmp_path / f"{classifier}-run" / "run.json").read_text())
        assert record["options"]["start"] == start
    with pytest.raises(UsageError, match="say --start one-pass"):
        train(tmp_path / "extended", data / "train.safetensors", None, tmp_path / "run", options=TrainOptions(epochs=0))


def test_files_keep_their_classifier_and_backbones_get_a_new_one(workplace: Path, tmp_path: Path) -> None:
    first = prepare(tmp_path / "first", "--data", workplace / "train")
    ok("train", first, "--data", workplace / "train", "--epochs", 0, "--out", tmp_path / "run")
    ok("export", tmp_path / "run", "--out", tmp_path / "model.onnx")
    ok("prepare", tmp_path / "model.onnx", "--data", workplace / "train", "--out", tmp_path / "again")
    found = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("first", "again")]
    assert [manifest["classifier"] for manifest in found] == ["new", "kept"]
    assert [manifest["head"]["features"] for manifest in found] == [16, 16]


class OfMaps(nn.Module):
    """Classifies every pixel, and takes the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.classifier = nn.Conv2d(8, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(x)).mean((2, 3))
        return logits


class Clipped(nn.Module):
    """Its logits are not linear in its features."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.classifier = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.classifier(self.features(x).mean((2, 3))))


@pytest.mark.parametrize("module", [OfMaps, Clipped])
def test_what_cannot_be_fitted_in_one_pass_says_so(module: type[nn.Module], data: Path, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle", prepared(module(), "last"))
    assert made.manifest.head is None
    with pytest.raises(UsageError, match="does not end in one linear layer with a bias"):
        train(made.path, data / "train.safetensors", None, tmp_path / "run", options=ONE_PASS)
    train(made.path, data / "train.safetensors", None, tmp_path / "run", options=TrainOptions(epochs=1))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_features_that_are_no_numbers_are_said(runtime: str, workplace: Path, tmp_path: Path) -> None:
    made = prepare(tmp_path / "bundle", "--data", workplace / "train", "--std", "1e-38")
    with pytest.raises(DataError, match="features of these images are no numbers"):
        train(made, workplace / "train", None, tmp_path / "run", runtime=runtime)


def test_it_is_told_in_words(workplace: Path, tmp_path: Path) -> None:
    made = prepare(tmp_path / "bundle", "--data", workplace / "train")
    out = ok("train", made, "--data", workplace / "train", "--epochs", 0, "--out", tmp_path / "run")
    assert "0 steps" in out
    sentence = fails(
        2, "train", made, "--data", workplace / "train", "--out", tmp_path / "x", "--epochs", 0, "--start", "prepared"
    )
    assert "one pass" in sentence
