"""A deployed classifier in a place of which there are images without labels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import events
from conftest import CLASSES, COLOURS, fails, make_image, ok
from runtimes import RUNTIMES, needs_ort, needs_trainer

from tinytl_edge import evaluate, report, train
from tinytl_edge.runtime.files.run import open_run
from tinytl_edge.runtime.files.tensors import open_tensors


@pytest.fixture(scope="module")
def dusk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classes as they are elsewhere: `inbox` without labels, `labelled` a few, `test`; `one`: of one class."""
    folder = tmp_path_factory.mktemp("dusk")
    seed = 0
    for name, colour in COLOURS.items():
        dark = tuple(round(0.45 * channel) + 25 for channel in colour)
        for part, count in (("inbox", 8), (f"labelled/{name}", 3), (f"test/{name}", 8)):
            for number in range(count):
                seed += 1
                make_image(folder / part / f"{name if part == 'inbox' else ''}{number}.png", dark, seed=seed)
    for number in range(16):
        make_image(folder / "one" / f"{number}.png", COLOURS["cat"], seed=900 + number)
    return folder


def aligned(run: Path) -> dict[str, Any]:
    (event,) = [event for event in events(run) if event["event"] == "aligned"]
    return event


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_biases_alone_follow(runtime: str, place: Path, dusk: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ok("train", place / "bundle", "--unlabelled", dusk / "inbox", "--out", out, "--runtime", runtime)
    event = aligned(out)
    assert (event["images"], event["kept_images"]) == (24, 36)
    assert 0 < event["share"] <= 0.6
    opened = open_run(out)
    head = opened.bundle.manifest.head
    assert head is not None and opened.record.first_pass is not None and opened.record.first_pass.aligned
    ok("train", place / "bundle", "--unlabelled", dusk / "one", "--out", tmp_path / "other", "--runtime", runtime)
    one, other = (open_tensors(run / "adapter.safetensors") for run in (out, tmp_path / "other"))
    differ = {name for name in one.entries if one.read(name) != other.read(name)}
    assert event["taken"] and not aligned(tmp_path / "other")["taken"]  # of one class alone it stays as it is
    assert differ == {head.bias}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_labelled_images_judge(runtime: str, place: Path, dusk: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ok("train", place / "bundle", "--unlabelled", dusk / "inbox", "--val", dusk / "labelled", "--out", out,
       "--runtime", runtime)  # fmt: skip
    event, done = aligned(out), events(out)[-1]
    assert done["judge"] == "val" and done["val_images"] == 9
    assert done["start_accuracy"] == event["accuracy_before"]
    if event["taken"]:
        assert event["val_loss"] == done["val_loss"] < done["start_loss"]
    else:
        assert event["val_loss"] >= done["val_loss"] == done["start_loss"]
    assert evaluate(out, dusk / "labelled")["accuracy"] == pytest.approx(done["val_accuracy"])
    as_it_was = evaluate(place / "bundle", dusk / "labelled")["accuracy"]
    assert event["accuracy_before"] == pytest.approx(as_it_was)


@needs_ort
@needs_trainer
def test_both_runtimes_find_the_same(place: Path, dusk: Path, tmp_path: Path) -> None:
    found = []
    for runtime in ("native", "onnxruntime-training"):
        done = train(place / "bundle", unlabelled=dusk / "inbox", out=tmp_path / runtime, runtime=runtime)
        assert done["steps"] == 0
        event = aligned(tmp_path / runtime)
        found.append(event)
        adapter = open_tensors(tmp_path / runtime / "adapter.safetensors")
        event["biases"] = [np.frombuffer(adapter.read(name), np.float32) for name in sorted(adapter.entries)]
    one, other = found
    assert one["taken"] == other["taken"]
    for name in ("share", "sure", "sure_before", "agreed", "agreed_before", "kept_accuracy", "kept_accuracy_before"):
        assert one[name] == pytest.approx(other[name], abs=1e-4), name
    for mine, yours in zip(one["biases"], other["biases"]):
        np.testing.assert_allclose(mine, yours, atol=1e-4 * max(np.abs(mine).max(), 1))


@needs_trainer
def test_what_it_comes_to_is_reported_and_exported(place: Path, dusk: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ok("train", place / "bundle", "--unlabelled", dusk / "inbox", "--out", out)
    content = report(out, out=tmp_path / "page.html")
    assert content["judged"] is None and content["aligned"]["images"] == 24
    assert "without labels" in content["verdict"]["sentences"][0]
    assert {entry["images"] for entry in content["classes"]} == {None}
    judged = report(out, dusk / "test")["judged"]
    assert judged["before_is"] == "as deployed" and judged["images"] == 24
    ok("export", out, "--out", tmp_path / "adapted.onnx")


@needs_trainer
def test_images_in_folders_packed_or_with_broken_ones_among_them(place: Path, dusk: Path, tmp_path: Path) -> None:
    shutil.copytree(dusk / "inbox", tmp_path / "inbox" / "monday")
    (tmp_path / "inbox" / "broken.jpg").write_bytes(b"no image")
    ok("train", place / "bundle", "--unlabelled", tmp_path / "inbox", "--out", tmp_path / "folders")
    (said,) = [event["message"] for event in events(tmp_path / "folders") if event["event"] == "warning"]
    assert "broken.jpg was skipped" in said
    ok("pack", dusk / "test", "--bundle", place / "bundle", "--out", tmp_path / "packed.safetensors")
    ok("train", place / "bundle", "--unlabelled", tmp_path / "packed.safetensors", "--out", tmp_path / "packed")
    ok("train", place / "bundle", "--unlabelled", dusk / "test", "--out", tmp_path / "plain")
    packed, plain = ({**aligned(tmp_path / name), "ms": 0} for name in ("packed", "plain"))
    for volatile in ("peak_rss_bytes", "rss_bytes"):
        packed.pop(volatile, None), plain.pop(volatile, None)
    assert packed == plain  # labels that are there are not looked at


@needs_trainer
def test_what_cannot_be_is_said(place: Path, dusk: Path, tmp_path: Path) -> None:
    def said(*words: object) -> str:
        return fails(2, "train", *words, "--out", tmp_path / "run")

    inbox = ("--unlabelled", dusk / "inbox")
    assert "two ways" in said(place / "bundle", *inbox, "--data", dusk / "labelled")
    assert "--resume goes on" in said(place / "bundle", *inbox, "--resume")
    assert "name its bundle" in said(place / "source", *inbox)
    assert "new and knows nothing yet" in said(place / "first", *inbox)
    ok("prepare", place / "model.onnx", "--classes", ",".join(CLASSES), "--out", tmp_path / "bare")
    assert "has kept nothing of such images of 'cat', 'dog', 'fox'" in said(tmp_path / "bare", *inbox)
    assert "has kept nothing of such images" in said(place / "bundle", "--unlabelled", place / "old")
    (tmp_path / "empty").mkdir()
    assert "has no images" in fails(4, "train", place / "bundle", "--unlabelled", tmp_path / "empty", "--out",
                                    tmp_path / "run")  # fmt: skip
    ok("train", place / "bundle", *inbox, "--out", tmp_path / "done")
    sentence = fails(2, "train", tmp_path / "done", "--data", dusk / "labelled", "--out", tmp_path / "on")
    assert "train its bundle" in sentence
