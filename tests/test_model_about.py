"""What a model file says of itself, for every kind of input and output."""

from __future__ import annotations

import json
from dataclasses import replace

import onnx
import pytest
from graph_cases import CASES, classifier, manifest

from tinytl_edge.runtime.files.bundle import Input, Manifest
from tinytl_edge.runtime.model_files.about import about, onnx_metadata, sentences
from tinytl_edge.runtime.model_files.class_text import ClassText
from tinytl_edge.runtime.model_files.template import Port, Template

NAMES = ("cat", "Häschen", "fox", "owl", "bee")
INPUT = Input(7, 6, 3, (10.0, 120.0, 250.0), (1.5, 50.0, 127.5), "squash", False)
TEMPLATE = Template(("model.onnx",), (), Port("images", (0, 3, 7, 6), "float32"), Port("logits", (0, 5), "float32"))


@pytest.fixture(scope="module")
def of() -> Manifest:
    model, trainable, _ = classifier(*CASES["conv 8 bits, zero point"])
    return replace(manifest(model, trainable), input=INPUT)


def test_metadata_stand_behind_an_onnx_file(of: Manifest) -> None:
    model = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    onnx.helper.set_model_props(model, {"author": "somebody", "mean": "0.5", "labels": "a;b"})
    said = {**about(of, TEMPLATE, NAMES), "long": "ü" * 20_000, "": ""}
    own = (ClassText("names", "commas", "Cat,fox", ("Cat", "fox")),)
    content = model.SerializeToString() + onnx_metadata(said, replace(TEMPLATE, class_texts=own), NAMES)
    read = onnx.ModelProto.FromString(content)
    found = {entry.key: entry.value for entry in read.metadata_props}
    assert json.loads(found.pop("tinytl-edge")) == said
    # A file's own entries stay, and its names as it spells them.
    assert found == {"author": "somebody", "mean": "0.5", "labels": "a;b", "names": "Cat,Häschen,fox,owl,bee"}
    assert read.graph == model.graph


def test_what_it_says(of: Manifest) -> None:
    said = about(of, TEMPLATE, NAMES)
    assert json.loads(json.dumps(said)) == said
    assert said["classes"] == list(NAMES)
    assert (said["height"], said["width"], said["channels"]) == (7, 6, 3)
    assert (said["mean"], said["std"]) == ([10.0, 120.0, 250.0], [1.5, 50.0, 127.5])
    assert (said["fit"], said["labels"], said["backbone"], said["method"]) == ("squash", "single", "small", "test")
    assert (said["layout"], said["colours"], said["take"], said["end"]) == ("NCHW", "RGB", "all", "logits")
    assert about(replace(of, labels="multi"), TEMPLATE, NAMES)["labels"] == "multi"
    raw = about(of, replace(TEMPLATE, raw_pixels=True), NAMES)
    assert (raw["mean"], raw["std"]) == ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])


CASES_OF_WORDS = [
    (INPUT, TEMPLATE, ("whole image, whatever its shape", "6 pixels across and 7 down", "mean 10, 120, 250")),
    (replace(INPUT, fit="pad"), TEMPLATE, ("centred on black",)),
    (replace(INPUT, fit="crop"), TEMPLATE, ("shape 6:7 (width to height); scale",)),
    (replace(INPUT, fit="crop", margin=True), TEMPLATE, ("6:7 (width to height), and of that the middle 7/8",)),
    (Input(7, 6, 1, (33.0,), (70.0,)), replace(TEMPLATE, colours="grey"), ("is grey", "mean 33 and std 70")),
    (INPUT, replace(TEMPLATE, colours="BGR", layout="NHWC"), ("colours are BGR", "(NHWC)")),
    (INPUT, replace(TEMPLATE, raw_pixels=True), ("Pixels go in as they are",)),
    (replace(INPUT, mean=(0.0,) * 3, std=(1.0,) * 3), TEMPLATE, ("Pixels go in as they are",)),
    (INPUT, replace(TEMPLATE, end="softmax"), ("add up to 1",)),
    (INPUT, replace(TEMPLATE, end="sigmoid", one_output=True), ("one number, the share of the second class",)),
]


@pytest.mark.parametrize(("taken", "template", "expected"), CASES_OF_WORDS)
def test_in_words(taken: Input, template: Template, expected: tuple[str, ...], of: Manifest) -> None:
    said = " ".join(sentences(replace(of, input=taken), template, NAMES))
    assert all(words in said for words in (*expected, "1 Häschen")), said
