"""Each method trains exactly its parameters, and folding BatchNorm keeps outputs, gradients and what trains."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tinytl_edge.backbones import InvertedResidualNetwork, network_spec
from tinytl_edge.lite_residual import ATTRIBUTE, LiteResidual, attach_lite_residuals
from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.transfer import (
    METHODS,
    ChannelAffine,
    choose_trainables,
    fold_batchnorm,
    parameter_group,
    uses_lite_residuals,
)

CLASSES = 102
BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def trainables(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def randomise(model: nn.Module) -> None:
    """BatchNorm's scale, shift and statistics as if trained, lite residual modules too."""
    for module in model.modules():
        if isinstance(module, BATCHNORMS) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.3, 2)
        if isinstance(module, (*BATCHNORMS, nn.GroupNorm)) and module.affine:
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)


# Which parameters train ---------------------------------------------------------------------------------


def proxyless(method: str) -> InvertedResidualNetwork:
    """ProxylessNAS-Mobile as `prepare` makes it, up to the folding; no result depends on the resolution."""
    spec = network_spec("proxylessnas-mobile")
    model = InvertedResidualNetwork(spec, CLASSES, 64).eval()
    if uses_lite_residuals(method):
        names = [f"blocks.{i}" for i in range(1, len(spec.blocks))]
        attach_lite_residuals(model, names, torch.zeros(1, 3, 64, 64))
    choose_trainables(model, method, "classifier")
    return model


def expected_names(model: nn.Module, method: str) -> set[str]:
    """Written down layer by layer, from what layers are rather than from what they are called."""
    names = {"classifier.weight", "classifier.bias"}
    for name, module in model.named_modules():
        inside = ATTRIBUTE in name.split(".")
        parameters = {f"{name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)}
        if method == "full" or (inside and method == "lite-residual"):
            names |= parameters
        elif inside and method == "lite-residual+bias":
            names |= parameters - {f"{name}.bias" for _ in "1" if name.endswith("norm2")}
        elif isinstance(module, nn.BatchNorm2d) and method in ("bias", "lite-residual+bias"):
            names.add(f"{name}.bias")
        elif isinstance(module, nn.BatchNorm2d) and method == "norm+last":
            names |= parameters
    return names


@pytest.mark.parametrize(
    ("method", "trained", "total"),
    [
        ("last", 130_662, 2_930_174),
        ("bias", 147_910, 2_930_174),
        ("lite-residual", 1_947_078, 4_746_590),
        ("lite-residual+bias", 1_962_310, 4_746_590),
        ("norm+last", 165_158, 2_930_174),
        ("full", 2_930_174, 2_930_174),
    ],
)
def test_trainables_of_proxylessnas_mobile(method: str, trained: int, total: int) -> None:
    model = proxyless(method)
    assert trainables(model) == expected_names(model, method)
    assert count(model) == trained
    assert sum(p.numel() for p in model.parameters()) == total
    has_lite_residuals = any(isinstance(module, LiteResidual) for module in model.modules())
    assert has_lite_residuals == uses_lite_residuals(method) == method.startswith("lite")


@pytest.mark.parametrize("method", METHODS)
def test_folding_proxylessnas_mobile(method: str) -> None:
    """The same outputs, no BatchNorm, and its shift's training goes to the convolution's bias."""
    model = proxyless(method)
    randomise(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(x)
    trained, names = count(model), trainables(model)
    fold_batchnorm(model, x[:1])
    with torch.no_grad():
        torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(m, BATCHNORMS) for m in model.modules())
    main = re.compile(r"norm\.(bias|weight)")  # not norm1, norm2 of the lite residual modules
    if method == "norm+last":
        assert trainables(model) == names
        assert count(model) == trained
    else:
        folded = {main.sub(r"conv.\1", name) for name in names}
        assert trainables(model) == folded
        if method != "full":  # there the scale becomes part of the weight
            assert count(model) == trained
    if method in ("bias", "lite-residual+bias"):
        assert {"stem.conv.bias", "blocks.0.depthwise.conv.bias", "head.conv.bias"} <= trainables(model)


def test_unknown_methods_and_patterns() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(UsageError, match="'biases' is no method: choose one of last, bias, lite-residual,"):
        choose_trainables(model, "biases", "0")
    with pytest.raises(UsageError, match=r"--train 'head.\*' matches no parameter"):
        choose_trainables(model, "last", "0", ("*.bias", "head.*"))


def test_choosing_again_forgets_what_was_chosen_before() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Conv2d(4, 2, 1))
    last = {"3.weight", "3.bias"}
    for method, expected in {
        "full": {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"},
        "last": set(),
        "norm+last": {"1.weight", "1.bias", "2.weight", "2.bias"},
        "lite-residual": set(),
        "bias": {"0.bias", "1.bias", "2.bias"},
        "lite-residual+bias": {"0.bias", "1.bias", "2.bias"},
    }.items():
        choose_trainables(model, method, "3")
        assert trainables(model) == expected | last, method
    choose_trainables(model, "last", "3", ("0.*", "[12].weight"))
    assert trainables(model) == {"0.weight", "0.bias", "1.weight", "2.weight"} | last


def test_a_model_s_own_parameters_are_chosen_too() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))
            self.bias = nn.Parameter(torch.ones(3))
            self.fc = nn.Linear(3, 2)

    model = Scaled()
    choose_trainables(model, "bias", "fc")
    assert trainables(model) == {"bias", "fc.weight", "fc.bias"}
    choose_trainables(model, "last", "fc", ("scale",))
    assert trainables(model) == {"scale", "fc.weight", "fc.bias"}


def test_parameter_groups() -> None:
    model = proxyless("lite-residual+bias")
    fold_batchnorm(model, torch.zeros(1, 3, 64, 64))
    groups: dict[str, int] = {}
    for name in trainables(model):
        group = parameter_group(name, "classifier")
        groups[group] = groups.get(group, 0) + 1
    blocks = len(model.blocks)
    # Two convolutions in the first block, three in the others; four layers in a module, less norm2's bias.
    assert groups == {
        "classifier": 2,
        "bias": 2 + 2 + 3 * (blocks - 1),
        "lite_residual": 5 * (blocks - 1),
    }
    assert parameter_group("features.0.weight", "classifier") == "weight"
    assert parameter_group("classifier.0.bias", "classifier") == "bias"
    assert parameter_group("bias", "fc") == "bias"


# Folding ------------------------------------------------------------------------------------------------


def features(*layers: nn.Module, channels: int) -> nn.Sequential:
    """A classifier of three classes in float64 from these layers, as if trained."""
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))
    randomise(model)
    return model.double().eval()


def image(batch: int = 1, size: int = 9) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64)


def assert_folds(model: nn.Module) -> nn.Module:
    """Folds `model`; outputs and input gradients stay the same to float64's precision."""
    original = copy.deepcopy(model).eval()
    x = image(3)
    fold_batchnorm(model, x[:1])
    assert not any(isinstance(m, BATCHNORMS) for m in model.modules())
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [original(inputs[0]), model(inputs[1])]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    for output in outputs:
        output.sin().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-9, atol=1e-9)
    return original


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Convolutions, BatchNorms and activations in any order; hence BatchNorms before or after anything."""
    layers: list[nn.Module] = []
    channels = 3
    for kind in draw(st.lists(st.sampled_from(["conv", "norm", "act", "again"]), min_size=1, max_size=7)):
        if kind == "conv":
            out = draw(st.integers(1, 3)) * 2
            groups = draw(st.sampled_from([n for n in (1, 2, channels) if channels % n == 0]))
            out = out if groups <= 2 else channels
            layers.append(
                nn.Conv2d(
                    channels,
                    out,
                    draw(st.sampled_from([1, 3])),
                    stride=draw(st.integers(1, 2)),
                    padding=1,
                    groups=groups,
                    bias=draw(st.booleans()),
                )
            )
            channels = out
        elif kind == "norm":
            eps = draw(st.sampled_from([1e-5, 1e-1]))
            layers.append(nn.BatchNorm2d(channels, eps=eps, affine=draw(st.booleans())))
        elif kind == "act":
            # Where something else needs its input for the gradient, an activation in place is no valid network.
            in_place = bool(layers) and isinstance(layers[-1], (nn.Conv2d, nn.BatchNorm2d)) and draw(st.booleans())
            layers.append(draw(st.sampled_from([nn.ReLU6(in_place), nn.ReLU(in_place), nn.Tanh(), nn.Identity()])))
        elif layers:
            layer = draw(st.sampled_from(layers))
            if isinstance(layer, nn.Tanh) or (
                getattr(layer, "in_channels", None) == getattr(layer, "out_channels", 0) == channels
                or getattr(layer, "num_features", None) == channels
            ):
                layers.append(layer)  # used twice
    tail: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if draw(st.booleans()):
        tail.append(nn.BatchNorm1d(channels, affine=draw(st.booleans())))
    model = nn.Sequential(*layers, *tail, nn.Linear(channels, 3))
    randomise(model)
    method = draw(st.sampled_from(METHODS))
    choose_trainables(model, method, str(len(model) - 1))
    return model.double().eval()


@settings(max_examples=150, deadline=None)
@given(networks(), st.integers(0, 2**31))
def test_folding_keeps_outputs_and_input_gradients(model: nn.Sequential, seed: int) -> None:
    torch.manual_seed(seed)
    trained = bool(trainables(model))
    assert_folds(model)
    assert trained == bool(trainables(model))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_into_a_convolution(bias: bool, groups: int) -> None:
    model = features(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, 2, 1, groups=groups, bias=bias), nn.BatchNorm2d(8), channels=8
    )
    conv, norm = copy.deepcopy(model[1]), copy.deepcopy(model[2])
    assert_folds(model)
    assert isinstance(model[2], nn.Identity)
    for channel in range(8):  # by the definition, one channel at a time
        scale = float(norm.weight[channel].detach() / (norm.running_var[channel] + norm.eps).sqrt())
        torch.testing.assert_close(model[1].weight[channel], conv.weight[channel] * scale)
        before = conv.bias[channel] if bias else 0
        expected = (before - norm.running_mean[channel]) * scale + norm.bias[channel]
        torch.testing.assert_close(model[1].bias[channel], expected)
    # The convolution before it has no BatchNorm of its own.
    assert model[0].weight.shape == (4, 3, 1, 1)


@pytest.mark.parametrize("affine", [False, True])
def test_without_a_convolution_before_it_an_affine_map_stays(affine: bool) -> None:
    model = features(
        nn.BatchNorm2d(3, affine=affine),
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.BatchNorm2d(4, affine=affine),
        channels=4,
    )
    choose_trainables(model, "bias", "6")
    assert_folds(model)
    assert isinstance(model[0], ChannelAffine)
    assert isinstance(model[3], ChannelAffine)
    own = {"0.bias", "3.bias"} if affine else set()
    assert trainables(model) == own | {"1.bias", "6.weight", "6.bias"}


def test_behind_an_activation_in_place() -> None:
    """It hands on the convolution's own tensor, changed."""
    model = features(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4), channels=4)
    assert_folds(model)
    assert isinstance(model[2], ChannelAffine)


def test_a_network_may_normalise_its_image_in_place() -> None:
    class Normalise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sub_(1).div_(2)

    model = features(Normalise(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), channels=4)
    x = image()
    before = model(x.clone())
    original = x.clone()
    fold_batchnorm(model, x)
    assert torch.equal(x, original)
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("flat", [False, True])
def test_batchnorm1d(flat: bool) -> None:
    """On [N, C] and on [N, C, L]."""
    inner = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()) if flat else nn.Flatten(2)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), inner, nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(4 if flat else 4 * 49, 3)
    )
    randomise(model)
    model.double()
    assert_folds(model)
    assert isinstance(model[2], ChannelAffine)


class Shared(nn.Module):
    """conv, norm, ReLU, conv, norm: of one or two convolutions; the second norm absent, shared or its own."""

    def __init__(self, convs: int, norms: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.other = self.conv if convs == 1 else nn.Conv2d(3, 3, 3, padding=1)
        self.first = nn.BatchNorm2d(3)
        self.second = {0: nn.Identity(), 1: self.first, 2: nn.BatchNorm2d(3)}[norms]
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.conv(x)).relu()
        return self.fc(self.second(self.other(x)).mean((2, 3)))


@pytest.mark.parametrize(("convs", "norms"), [(1, 0), (1, 1), (1, 2), (2, 1)])
def test_what_is_used_twice_is_not_folded(convs: int, norms: int) -> None:
    model = Shared(convs, norms).double()
    randomise(model)
    weight = model.conv.weight.detach().clone()
    assert_folds(model)
    assert torch.equal(model.conv.weight, weight)
    assert isinstance(model.first, ChannelAffine)
    assert isinstance(model.second, nn.Identity if norms == 0 else ChannelAffine)
    assert (model.first is model.second) == (norms == 1)


def test_each_pair_of_a_convolution_and_a_batchnorm_is_folded() -> None:
    model = Shared(2, 2).double()
    randomise(model)
    assert_folds(model)
    assert isinstance(model.first, nn.Identity)
    assert isinstance(model.second, nn.Identity)


class Branches(nn.Module):
    """A convolution whose output goes to `norms` BatchNorms, and on by itself."""

    def __init__(self, norms: int, itself: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(norms))
        self.itself = itself
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.fc((sum(norm(x) for norm in self.norms) + self.itself * x).mean((2, 3)))


def test_an_output_for_two_batchnorms_is_not_folded() -> None:
    model = Branches(2, 0.0).double()
    randomise(model)
    assert_folds(model)
    assert all(isinstance(norm, ChannelAffine) for norm in model.norms)


def test_an_output_for_more_than_the_batchnorm_is_refused() -> None:
    model = Branches(1, 1.0)
    randomise(model)
    with pytest.raises(UsageError, match="a convolution's output is used by more than its BatchNorm"):
        fold_batchnorm(model, torch.randn(1, 3, 9, 9))


def test_without_running_statistics_nothing_can_be_frozen() -> None:
    model = features(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), channels=4)
    with pytest.raises(UsageError, match="without running statistics"):
        fold_batchnorm(model, image())


def test_a_network_in_training_mode_is_folded_in_evaluation_mode() -> None:
    model = features(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), channels=4)
    x = image(2)
    expected, mean = model(x), model[1].running_mean.clone()
    norm = model[1]
    model.train()
    fold_batchnorm(model, x)
    assert not model.training
    assert torch.equal(norm.running_mean, mean)
    torch.testing.assert_close(model(x), expected)


# Gradients ----------------------------------------------------------------------------------------------


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    functional.cross_entropy(model(x), torch.arange(len(x)) % 3).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bias", [False, True])
def test_the_folded_bias_has_the_gradient_of_the_shift(bias: bool) -> None:
    model = features(
        nn.Conv2d(3, 4, 3, bias=bias),
        nn.BatchNorm2d(4),
        nn.ReLU6(),
        nn.Conv2d(4, 6, 3, groups=2, bias=bias),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        channels=6,
    )
    choose_trainables(model, "bias", "8")
    original = assert_folds(model)
    x = image(6)
    before, after = gradients(original, x), gradients(model, x)
    assert after.keys() == {"0.bias", "3.bias", "8.weight", "8.bias"}
    for folded, shift in (("0.bias", "1.bias"), ("3.bias", "4.bias"), ("8.weight", "8.weight"), ("8.bias", "8.bias")):
        assert before[shift].abs().max() > 1e-6
        torch.testing.assert_close(after[folded], before[shift], rtol=1e-9, atol=1e-12)


def test_norm_and_last_keeps_scale_and_shift() -> None:
    model = features(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), channels=4
    )
    choose_trainables(model, "norm+last", "8")
    names = trainables(model)
    original = assert_folds(model)
    assert trainables(model) == names == {"1.weight", "1.bias", "5.weight", "5.bias", "8.weight", "8.bias"}
    assert torch.equal(model[1].weight, original[1].weight)
    assert torch.equal(model[1].bias, original[1].bias)
    x = image(6)
    before, after = gradients(original, x), gradients(model, x)
    assert after.keys() == names
    for name in ("1.weight", "1.bias", "5.bias", "8.weight", "8.bias"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-9, atol=1e-12)


def test_requirements_of_gradients_carry_over() -> None:
    def folded(*trained: str, bias: bool = True, affine: bool = True) -> set[str]:
        model = features(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=affine), channels=4)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name in trained
        fold_batchnorm(model, image())
        return trainables(model)

    assert folded() == set()
    assert folded("1.bias") == folded("1.bias", bias=False) == {"0.bias"}
    assert folded("0.weight") == {"0.weight"}
    assert folded("0.weight", "1.weight") == {"0.weight"}  # the scale trains as part of the weight
    assert folded("0.weight", "1.weight", "1.bias") == {"0.weight", "0.bias"}
    assert folded("1.weight") == {"1.weight"}
    assert folded("1.weight", "1.bias") == {"1.weight", "1.bias"}
    # A bias of the convolution's own trains on, with a shift behind it or without.
    assert folded("0.bias") == {"0.bias"}
    assert folded("0.bias", "1.bias") == {"0.bias"}
    assert folded("0.bias", affine=False) == {"0.bias"}
    assert folded("0.bias", "1.weight", "1.bias") == {"0.bias", "1.weight", "1.bias"}


def test_a_channel_affine_takes_any_number_of_axes() -> None:
    affine = ChannelAffine(torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0]))
    for shape in ((5, 2), (5, 2, 7), (5, 2, 3, 4)):
        x = torch.randn(shape)
        y = affine(x)
        assert y.shape == shape
        torch.testing.assert_close(y[:, 0], 2 * x[:, 0] + 1)
        torch.testing.assert_close(y[:, 1], 3 * x[:, 1] - 1)
    assert math.prod(affine.weight.shape) == 2
