"""PyTorch modules as network graphs: the same numbers, parameters under their names, mistakes explained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_cases import run_onnx
from small_net import CLASSES, SPEC, images, smooth_network
from torch import nn
from torch.nn import functional

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.onnx_graph import constant
from tinytl_edge.export.sources.backbone import read_backbone
from tinytl_edge.export.sources.backbones import InvertedResidualNetwork
from tinytl_edge.export.sources.factory import IMAGENET_MEAN, IMAGENET_STD, read_factory
from tinytl_edge.export.sources.network import Network
from tinytl_edge.export.sources.torch_module import from_module
from tinytl_edge.export.tinytl.classifier import find_classifier
from tinytl_edge.export.tinytl.methods import METHODS
from tinytl_edge.runtime.errors import DamagedFileError, UsageError

# The graph ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_onnxruntime_computes_what_pytorch_does_for_any_batch(method: str) -> None:
    network = smooth_network(method)
    for batch in (1, 3):
        x = images(batch)
        masks = {d.name: np.ones((batch, *d.shape), np.float32) for d in network.dropouts}
        expected = EagerNetwork(network.model)(x).detach().numpy()
        (logits,) = run_onnx(network.model, {"images": x.numpy(), **masks})
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_is_an_initializer_with_its_value() -> None:
    """Of a fresh network, which holds many equal tensors that an exporter would merge."""
    module = InvertedResidualNetwork(SPEC, CLASSES, SPEC.resolution).eval()
    model, _ = from_module(module, (3, SPEC.resolution, SPEC.resolution))
    for name, parameter in module.named_parameters():
        np.testing.assert_array_equal(
            constant(model.graph.initializers[name]), parameter.detach().numpy(), err_msg=name
        )


class Custom(nn.Module):
    """What users' networks hold that ours do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.drop = nn.Dropout2d(0.1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.hardswish(self.conv(functional.pad(x, (0, 1, 0, 1))))
        x = x * functional.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True))).expand_as(x)
        y = functional.silu(functional.max_pool2d(x, 2))
        y = self.drop(self.norm(y))
        y = functional.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.fc((x + y).mean((2, 3)))


def test_custom_network() -> None:
    torch.manual_seed(0)
    network = Custom().eval()
    model, (dropout,) = from_module(network, (3, 15, 15))
    assert (dropout.name, dropout.shape, dropout.rate) == ("dropout/drop", (8, 8, 8), 0.1)
    x, ones = images(3, size=15), np.ones((3, 8, 8, 8), np.float32)
    (logits,) = run_onnx(model, {"images": x.numpy(), dropout.name: ones})
    np.testing.assert_allclose(logits, network(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    (without,) = run_onnx(model, {"images": x.numpy(), dropout.name: 0 * ones})
    assert np.abs(without - logits).max() > 1e-3


class TwoHeads(nn.Module):
    """As RepViT ends: two classifiers of the same features, averaged; one of them normalises these first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.one, self.other = nn.Linear(8, 4), nn.Linear(8, 4, bias=False)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = functional.relu(self.conv(x)).mean((2, 3))
        return (self.one(self.norm(features)) + self.other(features)) / 2


def test_two_heads_become_one_classifier() -> None:
    torch.manual_seed(0)
    network = TwoHeads().eval()
    model, _ = from_module(network, (3, 15, 15))
    assert find_classifier(model).outputs == 4
    assert [node.op_type for node in model.graph if node.op_type in ("Gemm", "BatchNormalization")] == ["Gemm"]
    x = images(3, size=15)
    (logits,) = run_onnx(model, {"images": x.numpy()})
    np.testing.assert_allclose(logits, network(x).detach().numpy(), rtol=1e-4, atol=1e-5)


class _Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 8 * 8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.reshape(-1)[: 3 * 8 * 8]).reshape(1, 2)


class _Orthogonal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.linalg.svdvals(x).mean(2))


@pytest.mark.parametrize(("network", "reason"), [(_Fixed(), "batch"), (_Orthogonal(), "cannot be exported to ONNX")])
def test_what_has_no_graph_is_refused_in_one_sentence(network: nn.Module, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        from_module(network, (3, 8, 8))
    assert "\n" not in str(caught.value)


# Factories ----------------------------------------------------------------------------------------------

MODULE = '''
"""A user's module of networks."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=10, size=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Linear(8, classes)
        self.size = size

    def forward(self, x):
        if self.size and x.shape[2:] != (self.size, self.size):
            raise ValueError(f"this network takes\\n{self.size} pixels")
        return self.head(self.stem(x).relu().mean((2, 3)))


def net():
    return Net()

def at_40():
    return Net(size=40)

def fixed_size():
    """A linear layer that takes 20 x 20 pixels, as old networks do."""
    return nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 20 * 20, 6))

def grey():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    module.default_cfg = {"input_size": (1, 24, 48), "mean": (0.5,), "std": (0.25,)}
    return module

def raises():
    raise KeyError("weights of\\nthe network")

def needs_argument(classes):
    return Net(classes)

def gives_dict():
    return {"model": Net()}

def gives_class():
    return Net

class Tuple(Net):
    def forward(self, x):
        return super().forward(x), x

class Map(Net):
    def forward(self, x):
        return super().forward(x)[:, :, None].expand(-1, -1, 2)

class OneDimension(Net):
    def forward(self, x):
        return super().forward(x)[0]

instance = Net(classes=4)
number = 3
'''


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module `user.nets`; whatever is imported or put on the path is gone afterwards."""
    package = tmp_path / "lib" / "user"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(MODULE)
    (package / "broken.py").write_text("import nowhere_to_be_found\n")
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "lib"), *sys.path])
    yield
    for name in set(sys.modules) - modules:
        if name.split(".")[0] in ("user", "beside"):
            del sys.modules[name]


def load(factory: str, size: tuple[int, int] | None = (32, 32), weights: str | None = None) -> Network:
    return read_factory(f"user.nets:{factory}", weights, size)


def parameter(network: Network, name: str) -> np.ndarray:
    array = constant(network.model.graph.initializers[name])
    assert array is not None
    return array


def test_a_factory_or_a_module_by_name(user_module: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load("net")
    assert network.name == "user.nets:net" and not network.is_new and network.range_known
    assert parameter(network, "head.weight").shape == (10, 8)
    assert (network.input.mean, network.input.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert parameter(load("instance"), "head.weight").shape == (4, 8)
    assert parameter(load("Net"), "head.weight").shape == (10, 8)
    (tmp_path / "beside.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    assert read_factory("beside:net", None, (32, 32)).name == "beside:net"


def test_what_a_module_says_of_its_input(user_module: None) -> None:
    taken = load("grey", None).input
    assert (taken.height, taken.width, taken.channels) == (24, 48, 1)
    assert (taken.mean, taken.std) == ((127.5,), (63.75,))


@pytest.mark.parametrize("reference", ["", "user.nets", ":net", "user.nets:", "user/nets.py"])
def test_references_of_another_form(reference: str) -> None:
    with pytest.raises(UsageError, match=f"'{reference}' is not of the form package.module:factory"):
        read_factory(reference, None, None)


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("user.nowhere:net", "user.nowhere:net failed with ModuleNotFoundError: No module named"),
        ("user.broken:net", "failed with ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("user.nets:nothing", "failed with AttributeError: .* has no attribute 'nothing'"),
        ("user.nets:raises", "user.nets:raises failed with KeyError: .*weights of"),
        ("user.nets:needs_argument", "failed with TypeError: .*missing 1 required positional argument"),
        ("user.nets:number", "failed with TypeError: 'int' object is not callable"),
        ("user.nets:gives_dict", "user.nets:gives_dict gives a dict, not a torch.nn.Module"),
        ("user.nets:gives_class", "gives a type, not a torch.nn.Module"),
        ("user.nets:fixed_size", r"does not run on images of 32 x 32 \(RuntimeError: .*\): set --resolution"),
        ("user.nets:at_40", r"\(ValueError: this network takes 40 pixels\): set --resolution"),
        ("user.nets:Tuple", r"gives tuple for two images, a classifier gives \[2, classes\]"),
        ("user.nets:Map", r"gives \[2, 10, 2\] for two images"),
        ("user.nets:OneDimension", r"gives \[10\] for two images"),
    ],
)
def test_what_cannot_be_used_says_why(user_module: None, reference: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        read_factory(reference, None, (32, 32))
    assert "\n" not in str(caught.value)


def test_a_network_may_need_another_resolution(user_module: None) -> None:
    with pytest.raises(UsageError, match=r"user.nets:at_40 does not run on images of 224 x 224"):
        load("at_40", None)
    assert load("at_40", (40, 40)).input.height == 40
    assert load("net", None).input.height == 224


def saved(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object] = lambda state: None) -> str:
    shapes = {"stem.weight": (8, 3, 3, 3), "stem.bias": (8,), "head.weight": (10, 8), "head.bias": (10,)}
    state = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    change(state)
    torch.save(state, tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


def test_a_weight_file_is_loaded(user_module: None, tmp_path: Path) -> None:
    network = load("net", weights=saved(tmp_path))
    assert (parameter(network, "stem.weight") == 0.5).all() and (parameter(network, "head.bias") == 0.5).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("stem.weight"), "stem.weight"),
        (lambda state: state.update(extra=torch.ones(1)), "extra"),
        (lambda state: state.update({"head.bias": torch.ones(3)}), "head.bias"),
    ],
)
def test_weights_that_do_not_fit(
    user_module: None, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], named: str
) -> None:
    with pytest.raises(DamagedFileError, match=r"w.pth does not fit user.nets:net: .*") as caught:
        load("net", weights=saved(tmp_path, change))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_weights_of_a_factory(user_module: None, tmp_path: Path) -> None:
    assert load("net", weights="random").name == "user.nets:net"
    with pytest.raises(UsageError, match=r"user.nets:net brings its own weights: leave --weights out"):
        load("net", weights="imagenet")
    with pytest.raises(UsageError, match=r"gone.pth does not exist"):
        load("net", weights=str(tmp_path / "gone.pth"))


# Backbones ----------------------------------------------------------------------------------------------


def test_a_backbone_with_random_weights() -> None:
    network = read_backbone("mobilenet-v2-0.1", "random", 32, 5, 1)
    assert (network.name, network.input.height, network.is_new) == ("mobilenet-v2-0.1", 32, True)
    assert any("RANDOM" in note for note in network.notes)
    again, other = (read_backbone("mobilenet-v2-0.1", "random", 32, 5, seed) for seed in (1, 2))
    first = next(name for name in network.model.graph.initializers if name.startswith("stem"))
    assert np.array_equal(parameter(network, first), parameter(again, first))
    assert not np.array_equal(parameter(network, first), parameter(other, first))


def test_a_backbone_with_weights_from_a_file(tmp_path: Path) -> None:
    from tinytl_edge.export.sources.backbones import network_spec

    torch.manual_seed(3)
    source = InvertedResidualNetwork(network_spec("mobilenet-v2-0.1"), 5, 32)
    path = str(tmp_path / "w.pth")
    torch.save(source.state_dict(), path)
    kept = read_backbone("mobilenet-v2-0.1", path, 32, 5, 2)
    assert not kept.is_new
    np.testing.assert_array_equal(parameter(kept, "classifier.weight"), source.classifier.weight.detach().numpy())
    assert read_backbone("mobilenet-v2-0.1", path, 32, 6, 2).is_new
    with pytest.raises(DamagedFileError, match=r"w.pth has no weights for layer|w.pth has \("):
        read_backbone("mobilenet-v2-0.5", path, 32, 5, 2)


def test_a_backbone_without_weights_of_its_own() -> None:
    for name in ("mobilenet-v2", "proxylessnas-mobile"):
        with pytest.raises(UsageError, match=f"{name} has no ImageNet weights of its own: give --weights FILE"):
            read_backbone(name, None, 32, 5, 0)
        with pytest.raises(UsageError, match=f"No package carries ImageNet weights of '{name}'"):
            read_backbone(name, "imagenet", 32, 5, 0)
    with pytest.raises(UsageError, match="no backbone named 'lenet'"):
        read_backbone("lenet", None, 32, 5, 0)
