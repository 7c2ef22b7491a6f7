"""What `auto` trains: the weights of widening layers that read little, fewer where memory is short, and biases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import make_bundle
from conftest import CLASSES, fails, ok
from runtimes import needs_trainer
from small_net import prepared
from tiny_models import Tiny
from torch import nn

from tinytl_edge import TrainOptions
from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.eager_training import loss
from tinytl_edge.export.gains import measure_gains
from tinytl_edge.export.packed_images import packed
from tinytl_edge.export.sources.backbones import InvertedResidualNetwork, network_spec
from tinytl_edge.export.sources.torch_module import from_module
from tinytl_edge.export.tinytl.classifier import find_classifier
from tinytl_edge.export.tinytl.trainables import cheap_weights, choose_trainables
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.folders import find_images
from tinytl_edge.weight_choice import as_many_as_fit, in_order

BACKBONE = ("mobilenet-v2-0.35", "--weights", "random", "--resolution", 96)


def cheap(module: nn.Module, size: int) -> list[str]:
    model, _ = from_module(module.eval(), (3, size, size))
    return cheap_weights(model, find_classifier(model).parameters)


def test_of_inverted_residuals_it_is_the_widening_layers_of_the_later_blocks() -> None:
    network = InvertedResidualNetwork(network_spec("efficientnet-lite0"), 5, 160)
    later = [f"blocks.{number}.expand.conv.weight" for number in range(6, 16)]
    assert cheap(network, 160) == [*later, "head.conv.weight"]


class Plain(nn.Module):
    """One layer of each kind; the images are 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 32, 1)  # widens, but reads 768 numbers and holds 96
        self.same = nn.Conv2d(32, 32, 3, 2, 1)  # does not widen
        self.by_channel = nn.Conv2d(32, 64, 3, 2, 1, groups=32)
        self.narrower = nn.Conv2d(64, 16, 1)
        self.wide = nn.Conv2d(16, 32, 3, 2, 1)  # reads 256, holds 4608
        self.linear = nn.Linear(32, 40)
        self.classifier = nn.Linear(40, 200)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.narrower(self.by_channel(self.same(self.early(x))))
        x = torch.relu(self.linear(torch.relu(self.wide(x)).mean((2, 3))))
        logits: torch.Tensor = self.classifier(x)
        return logits


def test_of_other_networks_it_is_what_widens_and_holds_more_than_it_reads() -> None:
    assert cheap(Plain(), 16) == ["wide.weight", "linear.weight"]


def test_biases_train_from_the_first_of_them_on() -> None:
    model, _ = from_module(Plain().eval(), (3, 16, 16))
    classifier = find_classifier(model).parameters
    early = {"early.bias", "same.bias", "by_channel.bias", "narrower.bias"}
    everywhere = choose_trainables(model, "bias", classifier)
    assert early < set(everywhere)
    biases = {name: group for name, group in everywhere.items() if name not in early}
    for weights in (None, ["linear.weight"], [], ["linear.weight", "wide.weight"]):
        chosen = choose_trainables(model, "auto", classifier, weights=weights)
        names = ["wide.weight", "linear.weight"] if weights is None else weights
        assert chosen == {**biases, **dict.fromkeys(names, "weight")}
    more = choose_trainables(model, "auto", classifier, ["same.*"], weights=[])
    assert more.keys() - biases.keys() == {"same.weight", "same.bias"}


def test_where_no_layer_widens_all_biases_train() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 2, 3)
            self.classifier = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.classifier(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))
            return logits

    model, _ = from_module(Narrow().eval(), (3, 16, 16))
    classifier = find_classifier(model).parameters
    chosen = choose_trainables(model, "auto", classifier)
    assert chosen == choose_trainables(model, "bias", classifier)
    assert {"first.bias", "second.bias"} < set(chosen)


@needs_trainer
@pytest.mark.parametrize("with_images", [False, True])
def test_weights_give_way_to_the_memory_limit(with_images: bool, workplace: Path, tmp_path: Path) -> None:
    """By what they bring, or the last ones stay; of both those behind one that does not fit, if they are smaller."""
    classes = ("--data", workplace / "train") if with_images else ("--classes", ",".join(CLASSES))
    trained, said, manifests = [], [], []
    for limit in ("none", "3.1MB", "2.5MB"):
        options = [] if limit == "none" else ["--memory-limit", limit]
        out = tmp_path / limit
        said.append(ok("prepare", *BACKBONE, *classes, "--batch-size", 1, *options, "--out", out))
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["memory_limit"] is None or sum(manifest["planned_memory"].values()) <= manifest["memory_limit"]
        trained.append([name for name, group in manifest["trainable"].items() if group == "weight"])
        manifests.append(manifest)
    assert len(trained[0]) > len(trained[1]) >= len(trained[2]) > 0
    for manifest, names in zip(manifests, trained):
        candidates = manifest["candidates"]
        assert [candidate["name"] for candidate in candidates if candidate["trains"]] == names
        assert [candidate["name"] for candidate in candidates] == trained[0]
        worth = [c["gain"] / c["numbers"] if c["gain"] is not None else at for at, c in enumerate(candidates)]
        left = [at for at, candidate in enumerate(candidates) if not candidate["trains"]]
        first = max(left, key=lambda at: worth[at], default=None)  # that did not fit
        for at, candidate in enumerate(candidates):
            if first is not None and candidate["trains"] and worth[at] < worth[first]:
                assert candidate["numbers"] < candidates[first]["numbers"]
        gains = [candidate["gain"] for candidate in candidates]
        if with_images and left:
            assert sum(gains) == pytest.approx(1)
        else:
            assert set(gains) == {None}
    assert f"{len(trained[2])} of {len(trained[0])} fit the limit" in said[2]
    shown = ok("inspect", tmp_path / "2.5MB")
    assert shown.count("no room") == len(trained[0]) - len(trained[2])
    assert ("take" in shown and "%" in shown) == with_images or "the last ones" in shown
    assert "the smallest --memory-limit that would do" in fails(
        5, "prepare", *BACKBONE, *classes, "--batch-size", 1, "--memory-limit", "1MB", "--out", tmp_path / "x"
    )


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_gains_are_what_a_step_takes_off_the_loss(optimizer: str, workplace: Path, tmp_path: Path) -> None:
    """Against the loss itself, each number of a weight moved by itself."""
    torch.manual_seed(3)
    network = prepared(Tiny(len(CLASSES)), "full")
    manifest = replace(make_bundle(tmp_path / "bundle", network).manifest, optimizer=optimizer, classifier="kept")
    folders = find_images(workplace / "train")
    names = [name for name, group in network.trainable.items() if group == "weight"][:1]
    found = measure_gains(network.model.clone(), manifest, folders, names, lambda text: None)
    assert found.keys() == set(names)
    with packed(manifest, folders, 50, 256) as dataset:
        batches = list(Batches(manifest, dataset).training(TrainOptions(), 8, 0))
    exact = EagerNetwork(network.model).double()

    def mean_loss() -> float:
        with torch.no_grad():
            parts = [
                len(batch.labels)
                * loss(
                    exact(torch.from_numpy(batch.feeds["images"]).double()),
                    torch.from_numpy(batch.feeds["targets"]).double(),
                    manifest,
                )
                for batch in batches
            ]
        return float(sum(parts)) / sum(len(batch.labels) for batch in batches)

    for name in names:
        parameter = exact.parameters_by_name[name].detach().view(-1)
        slopes = []
        for at in range(len(parameter)):
            parameter[at] += 1e-6
            above = mean_loss()
            parameter[at] -= 2e-6
            slopes.append((above - mean_loss()) / 2e-6)
            parameter[at] += 1e-6
        wanted = np.abs(slopes).sum() if optimizer == "adam" else np.square(slopes).sum()
        assert found[name] == pytest.approx(wanted, rel=1e-3)


def test_those_that_bring_most_for_their_bytes_come_first_and_smaller_ones_fill_the_room() -> None:
    numbers = {"a": 10, "b": 400, "c": 20, "d": 500, "e": 30}
    gains = {"a": 1.0, "b": 90.0, "c": 4.0, "d": 60.0, "e": 0.3}
    order = in_order(numbers, gains)
    assert order == ["b", "c", "d", "a", "e"]
    assert in_order(numbers, {}) == ["e", "d", "c", "b", "a"]
    tried = []

    def fits(names: list[str]) -> bool:
        tried.append(names)
        return sum(numbers[name] for name in names) <= 455

    assert as_many_as_fit(order, numbers, fits) == ["b", "c", "a"]
    assert len(tried) == len({tuple(names) for names in tried}) <= 5


@needs_trainer
def test_what_was_left_out_for_memory_leaves_the_way_back_as_it_was(workplace: Path, tmp_path: Path) -> None:
    """The network is read once and tried several times."""
    classes = ("--classes", ",".join(CLASSES))
    ok("prepare", *BACKBONE, *classes, "--batch-size", 1, "--memory-limit", "3MB", "--out", tmp_path / "bundle")
    ok(
        "train",
        tmp_path / "bundle",
        "--data",
        workplace / "train",
        "--epochs",
        1,
        "--start",
        "prepared",
        "--out",
        tmp_path / "run",
    )
    ok("export", tmp_path / "run", "--out", tmp_path / "model.onnx", "--check", workplace / "val")
