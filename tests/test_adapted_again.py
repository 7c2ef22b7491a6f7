"""What came out is deployed, and one day goes in again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TINY, ok

onnx = pytest.importorskip("onnx")


def adapted(model: list[object], train: str, images: Path, folder: Path) -> tuple[Path, dict[str, str], str]:
    """The model file after one epoch, what trained by group, and what `prepare` said."""
    said = ok("prepare", *model, "--data", images, "--train", train, "--out", folder / "bundle")
    ok("train", folder / "bundle", "--data", images, "--epochs", 1, "--out", folder / "run")
    ok("export", folder / "run", "--out", folder / "model.onnx")
    return folder / "model.onnx", json.loads((folder / "bundle" / "manifest.json").read_text())["trainable"], said


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("lite-residual+bias", "lite-residual+bias"),
        ("lite-residual", "lite-residual"),
        ("lite-residual+bias", "bias"),
        ("bias", "lite-residual+bias"),
        ("bias", "full"),
        ("full", "full"),
    ],
)
def test_a_file_that_was_adapted_is_adapted_again(first: str, second: str, tmp_path: Path, workplace: Path) -> None:
    images = workplace / "train"
    model, trained, _ = adapted(list(TINY), first, images, tmp_path / "1")
    again, trained_again, said = adapted([model], second, images, tmp_path / "2")
    assert "normal form" not in said  # it is the same file, and modules that it has are not given twice
    if first == second:
        assert trained_again == trained
    before, after = (onnx.load(path).graph for path in (model, again))
    if "lite" not in second or "lite" in first:
        assert [node.name for node in after.node] == [node.name for node in before.node]
        assert {tensor.name for tensor in after.initializer} == {tensor.name for tensor in before.initializer}
    else:
        assert len(after.node) > len(before.node)


def test_nothing_idle_and_no_note_of_ours_is_left_in_it(tmp_path: Path, workplace: Path) -> None:
    model, _, _ = adapted(list(TINY), "lite-residual+bias", workplace / "train", tmp_path)
    graph = onnx.load(model).graph
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read
    for part in (*graph.node, *graph.initializer, *graph.value_info, *graph.input):
        assert not [entry.key for entry in part.metadata_props], part.name


def test_what_a_file_says_in_our_notes_is_not_believed(tmp_path: Path, workplace: Path) -> None:
    model, _, _ = adapted(list(TINY), "bias", workplace / "train", tmp_path / "1")
    proto = onnx.load(model)
    for value in proto.graph.value_info:
        value.metadata_props.add(key="tinytl-edge.origin", value='[{"step": "copy", "of": "nothing"}]')
    for tensor in proto.graph.initializer:
        tensor.metadata_props.add(key="tinytl-edge.added", value="blocks")
    onnx.save(proto, tmp_path / "told.onnx")
    _, _, said = adapted([tmp_path / "told.onnx"], "bias", workplace / "train", tmp_path / "2")
    assert "normal form" not in said
