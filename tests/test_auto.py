"""What `auto` trains: the weights of widening layers that read little, fewer where memory is short, and biases."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from conftest import CLASSES, fails, ok
from runtimes import needs_trainer
from torch import nn

from tinytl_edge.export.sources.backbones import InvertedResidualNetwork, network_spec
from tinytl_edge.export.sources.torch_module import from_module
from tinytl_edge.export.tinytl.classifier import find_classifier
from tinytl_edge.export.tinytl.trainables import cheap_weights, choose_trainables

BACKBONE = ("mobilenet-v2-0.35", "--weights", "random", "--resolution", 96, "--classes", ",".join(CLASSES))


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


def test_biases_train_from_the_first_of_them_on_and_the_last_weights_come_first() -> None:
    model, _ = from_module(Plain().eval(), (3, 16, 16))
    classifier = find_classifier(model).parameters
    early = {"early.bias", "same.bias", "by_channel.bias", "narrower.bias"}
    everywhere = choose_trainables(model, "bias", classifier)
    assert early < set(everywhere)
    biases = {name: group for name, group in everywhere.items() if name not in early}
    for weights, names in (
        (None, ["wide.weight", "linear.weight"]),
        (1, ["linear.weight"]),
        (0, []),
        (9, ["wide.weight", "linear.weight"]),
    ):
        chosen = choose_trainables(model, "auto", classifier, weights=weights)
        assert chosen == {**biases, **dict.fromkeys(names, "weight")}
    more = choose_trainables(model, "auto", classifier, ["same.*"], weights=0)
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
def test_weights_give_way_to_the_memory_limit(tmp_path: Path) -> None:
    trained, said = [], []
    for limit in ("none", "3.1MB", "2.5MB"):
        options = [] if limit == "none" else ["--memory-limit", limit]
        out = tmp_path / limit
        said.append(ok("prepare", *BACKBONE, "--batch-size", 1, *options, "--out", out))
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["memory_limit"] is None or sum(manifest["planned_memory"].values()) <= manifest["memory_limit"]
        trained.append([name for name, group in manifest["trainable"].items() if group == "weight"])
    assert len(trained[0]) > len(trained[1]) >= len(trained[2])
    assert trained[0][len(trained[0]) - len(trained[2]) :] == trained[2]
    assert f"{len(trained[2])} of {len(trained[0])} fit the limit" in said[2]
    assert "the smallest --memory-limit that would do" in fails(
        5, "prepare", *BACKBONE, "--batch-size", 1, "--memory-limit", "1MB", "--out", tmp_path / "x"
    )


@needs_trainer
def test_what_was_left_out_for_memory_leaves_the_way_back_as_it_was(workplace: Path, tmp_path: Path) -> None:
    """The network is read once and tried several times."""
    ok("prepare", *BACKBONE, "--batch-size", 1, "--memory-limit", "3MB", "--out", tmp_path / "bundle")
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
