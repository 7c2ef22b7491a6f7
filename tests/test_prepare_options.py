"""What `prepare` can be told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import TINY, fails, ok

from tinytl_edge import PrepareOptions, TinyTLError
from tinytl_edge.cli.preparing import prepare
from tinytl_edge.export.tinytl.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_method_a_pattern_or_both(method: str) -> None:
    assert (PrepareOptions(train=method).method, PrepareOptions(train=method).patterns) == (method, ())
    both = PrepareOptions(train=["*.weight", method, "head.*"]).check()
    assert (both.method, both.patterns) == (method, ("*.weight", "head.*"))
    assert PrepareOptions(train="*.weight").method == "last"


def test_only_what_is_named_trains_with_the_classifier(tmp_path: Path) -> None:
    def trained(*train: str) -> set[str]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        words = [word for value in train for word in ("--train", value)]
        ok("prepare", *TINY, "--classes", 3, *words, "--out", out)
        return set(json.loads((out / "manifest.json").read_text())["trainable"])

    last, bias = trained("last"), trained("bias")
    weights = {name for name in trained("full") if name.startswith("blocks.0.") and name.endswith(".weight")}
    assert weights
    assert trained("blocks.0.*.weight") == last | weights
    assert trained("bias", "blocks.0.*.weight") == bias | weights


def test_two_methods_are_refused(tmp_path: Path) -> None:
    sentence = fails(2, "prepare", *TINY, "--train", "bias", "--train", "full", "--out", tmp_path / "b")
    assert sentence.startswith("--train bias and --train full: choose one of auto, last, ")


def test_a_mistyped_method_is_told_the_methods(tmp_path: Path) -> None:
    sentence = fails(2, "prepare", *TINY, "--classes", 3, "--train", "biass", "--out", tmp_path / "b")
    assert sentence.startswith("--train 'biass' is neither a method (auto, last, bias, ")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"optimizer": "adamw"}, "'adamw' is no optimizer: choose one of adam, sgd, momentum."),
        ({"frozen_weights": "int4"}, "'int4' is no kind of frozen weights: choose one of float32, int8."),
        ({"fit": "stretch"}, "'stretch' is no way to fit an image: choose one of crop, squash, pad."),
        ({"colours": "gbr"}, "'gbr' is no order of colours: choose one of rgb, bgr."),
        ({"batch_size": 0}, "--batch-size 0 is out of range: 1 to 4096."),
        ({"resolution": (32, 8)}, "--resolution 8 is out of range: 16 to 1024."),
        ({"threads": 2000}, "--threads 2000 is out of range: 1 to 1024."),
        ({"std": (0.0,)}, "--mean and --std are of pixels in 0..255, and --std is above zero."),
    ],
)
def test_what_is_out_of_range_is_named(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(TinyTLError, match="^" + sentence.replace(".", r"\.") + "$"):
        PrepareOptions(**wrong).check()  # type: ignore[arg-type]


def test_the_command_has_every_option_with_the_same_default() -> None:
    defaults = prepare.make_context("prepare", ["--out", "bundle"]).params
    for field in dataclasses.fields(PrepareOptions):
        expected = (field.default,) if field.name == "train" else field.default
        assert defaults[field.name] == expected, field.name
