"""Each method trains exactly its parameters, in the right groups of learning rates."""

from __future__ import annotations

from functools import cache

import onnx_ir as ir
import pytest
from torch import nn

from tinytl_edge.export.sources.backbones import InvertedResidualNetwork, network_spec
from tinytl_edge.export.sources.torch_module import from_module
from tinytl_edge.export.tinytl.blocks import find_blocks
from tinytl_edge.export.tinytl.lite_residual import attach_lite_residuals
from tinytl_edge.export.tinytl.methods import METHODS, uses_lite_residuals
from tinytl_edge.export.tinytl.parameters import find_parameters
from tinytl_edge.export.tinytl.trainables import LITE_RESIDUAL, choose_trainables
from tinytl_edge.export.tinytl.transform import transform
from tinytl_edge.runtime.errors import UsageError

CLASSES = 102
CLASSIFIER = ("classifier.weight", "classifier.bias")


@cache
def module() -> InvertedResidualNetwork:
    """ProxylessNAS-Mobile; no result depends on the resolution."""
    return InvertedResidualNetwork(network_spec("proxylessnas-mobile"), CLASSES, 64).eval()


@cache
def plain() -> ir.Model:
    return from_module(module(), (3, 64, 64))[0]


def proxyless(method: str) -> ir.Model:
    """As `prepare` makes it, up to the folding."""
    model = plain().clone()
    if uses_lite_residuals(method):
        attach_lite_residuals(model, find_blocks(model), 0)
    return model


def count(model: ir.Model, names: object) -> int:
    parameters = find_parameters(model)
    return sum(parameters[name].value.const_value.size for name in names)  # type: ignore[union-attr, attr-defined]


def expected_names(model: ir.Model, method: str) -> set[str]:
    """Written down layer by layer, from what the modules are."""
    names = set(CLASSIFIER)
    for name, layer in module().named_modules():
        parameters = {f"{name}.{leaf}" for leaf, _ in layer.named_parameters(recurse=False)}
        if method == "full" or (isinstance(layer, nn.BatchNorm2d) and method == "norm+last"):
            names |= parameters
        elif isinstance(layer, nn.BatchNorm2d) and method in ("bias", "lite-residual+bias"):
            names.add(f"{name}.bias")
    inside = {name for name in find_parameters(model) if LITE_RESIDUAL in name.split(".")}
    if method == "lite-residual":
        names |= inside
    elif method == "lite-residual+bias":
        names |= {name for name in inside if not name.endswith("norm2.bias")}
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
    chosen = choose_trainables(model, method, CLASSIFIER)
    assert set(chosen) == expected_names(model, method)
    assert count(model, chosen) == trained
    assert count(model, find_parameters(model)) == total


@pytest.mark.parametrize("method", METHODS)
def test_what_trains_is_the_same_behind_the_folding(method: str) -> None:
    """BatchNorm's shift trains as the convolution's bias; its scale, in full fine-tuning, as part of the weight."""
    model = plain().clone()
    before = choose_trainables(proxyless(method), method, CLASSIFIER)
    transformed = transform(model, method)
    assert not any(node.op_type == "BatchNormalization" for node in model.graph)
    assert transformed.trainable.keys() <= find_parameters(model).keys()
    if method == "norm+last":
        assert transformed.trainable == before
    elif method != "full":
        assert transformed.trainable_count == count(proxyless(method), before)
        assert len(transformed.trainable) == len(before)
    if method in ("bias", "lite-residual+bias"):
        assert {"stem.conv.bias", "blocks.0.depthwise.conv.bias", "head.conv.bias"} <= transformed.trainable.keys()


def test_groups() -> None:
    groups = list(transform(plain().clone(), "lite-residual+bias").trainable.values())
    blocks = len(module().blocks)
    # Two convolutions in the first block, three in the others; four layers in a module, less norm2's bias.
    assert groups.count("classifier") == 2
    assert groups.count("bias") == 2 + 2 + 3 * (blocks - 1)
    assert groups.count("lite_residual") == 5 * (blocks - 1)
    full = choose_trainables(plain(), "full", CLASSIFIER)
    assert full["stem.0.weight" if "stem.0.weight" in full else "stem.conv.weight"] == "weight"


def test_patterns_add_to_a_method() -> None:
    chosen = choose_trainables(plain(), "last", CLASSIFIER, ("head.*weight", "blocks.3.*.bias"))
    more = set(chosen) - set(CLASSIFIER)
    assert more and all(name.startswith(("head.", "blocks.3.")) for name in more)
    assert {chosen[name] for name in more} == {"weight", "bias"}


def test_unknown_methods_and_patterns() -> None:
    with pytest.raises(UsageError, match="'biases' is no method: choose one of auto, last, bias, lite-residual,"):
        choose_trainables(plain(), "biases", CLASSIFIER)
    with pytest.raises(UsageError, match=r"--train 'neck.\*' is neither a method"):
        choose_trainables(plain(), "last", CLASSIFIER, ("*.bias", "neck.*"))
