"""Records in JSON: what a later version adds is ignored, everything else that is not as it should be is named."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import pytest
from conftest import fails, ok
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytl_edge.runtime.errors import DamagedFileError, UsageError
from tinytl_edge.runtime.files.bundle import (
    MANIFEST,
    Bundle,
    Dropout,
    Input,
    Manifest,
    open_bundle,
    read_json,
    write_json,
    write_manifest,
)
from tinytl_edge.runtime.files.records import read_record
from tinytl_edge.runtime.files.run import RUN, open_run, write_record
from tinytl_edge.runtime.knobs import Choice, Knobs
from tinytl_edge.runtime.options import TrainOptions
from tinytl_edge.runtime.workers import ort_available, runtimes, worker
from tinytl_edge.runtime.workers.runtimes import choose_runtime, worker_command

KINDS = ("arena", "gradients", "frozen", "trainable", "optimizer", "process")
MANIFEST_OF_ALL = Manifest(
    backbone="net",
    method="last",
    classes=("cat", "dög"),
    class_count=2,
    input=Input(24, 40, 1, (127.5,), (64.0,), "squash", False),
    optimizer="adam",
    batch_size=4,
    dropouts=(Dropout("dropout/a", (16, 1), 0.25),),
    trainable={"fc.weight": "classifier"},
    parameter_count=100,
    trainable_count=34,
    paper_memory={"activations": 10.0, "parameters": 400.0},
    runtimes=("native",),
    created_by="test",
    memory_limit=10**6,
    planned_memory=dict.fromkeys(KINDS, 1000),
    knobs=Knobs(streamed=True, recomputed=1),
    segments=3,
    work={"pointwise": 7},
    choices=(Choice("streamed", 100, 0.5),),
)
RECORD = {
    "runtime": "native",
    "options": dataclasses.asdict(TrainOptions(lr=1, dropout=0.5)),
    "data": "train.safetensors",
    "val": None,
    "result": {"steps": 5, "val_accuracy": 1, "step_ms_median": None, "event": "done", "rss_curve": [[0.1, 2]]},
    "status": "done",
}


def written(folder: Path, manifest: Manifest = MANIFEST_OF_ALL) -> Path:
    """A bundle of one file that holds nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / "step.safetensors").write_bytes(b"step")
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return written(tmp_path / "bundle")


@pytest.fixture
def run(bundle: Path) -> Path:
    folder = bundle.parent / "run"
    folder.mkdir()
    write_record(folder, open_bundle(bundle), **RECORD)
    return folder


def places(content: object) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON document."""
    if not isinstance(content, (dict, list)):
        return []
    items = list(content.items() if isinstance(content, dict) else enumerate(content))
    return [path for key, value in items for path in ((key,), *((key, *inner) for inner in places(value)))]


def change(path: Path, place: tuple[Any, ...], value: object) -> None:
    """Replace one value in a JSON file; a manifest's checksum goes."""
    content = read_json(path, "")
    content.pop("checksum", None)
    inner: Any = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    write_json(path, content)


def test_what_was_written_is_read(bundle: Path, run: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert dataclasses.replace(manifest, files={}) == MANIFEST_OF_ALL
    assert manifest.files["step.safetensors"].bytes == 4
    record = open_run(run).record
    assert (record.options, record.val, record.status) == (TrainOptions(lr=1, dropout=0.5), None, "done")
    assert (record.result.steps, record.result.val_accuracy, record.result.step_ms_median) == (5, 1.0, None)


def test_what_a_later_version_adds_is_ignored(bundle: Path, run: Path) -> None:
    for place in ("new",), ("input", "new"), ("knobs", "new"), ("dropouts", 0, "new"), ("choices", 0, "new"):
        change(bundle / MANIFEST, place, {"of": [1, 2]})
    assert dataclasses.replace(open_bundle(bundle).manifest, files={}) == MANIFEST_OF_ALL
    change(run / RUN, ("bundle_identity",), open_bundle(bundle).identity)
    for place in ("new",), ("options", "new"), ("result", "new"):
        change(run / RUN, place, 5)
    assert open_run(run).record.options == TrainOptions(lr=1, dropout=0.5)
    assert json.loads(ok("inspect", run, "--json"))["options"]["lr"] == 1


def test_inspecting_says_which_output_is_which_class(bundle: Path) -> None:
    text = ok("inspect", bundle)
    assert [line.split() for line in text.splitlines() if "output " in line] == [
        ["output", "0", "cat"],
        ["output", "1", "dög"],
    ]
    assert "24 x 40 px, grey, squashed, without a margin" in text
    content = json.loads(ok("inspect", bundle, "--json"))
    assert content["classes"] == ["cat", "dög"]
    assert content["input"] == {
        **dataclasses.asdict(MANIFEST_OF_ALL.input),
        "mean": [127.5],
        "std": [64.0],
        "pixel_range": [],
    }
    many = dataclasses.replace(MANIFEST_OF_ALL, classes=tuple(f"c{i}" for i in range(1000)), class_count=1000)
    written(bundle, many)
    assert "output 9 " in ok("inspect", bundle) and "... and 990 more" in ok("inspect", bundle)
    written(bundle, dataclasses.replace(many, classes=()))
    assert "1000, without names" in ok("inspect", bundle)


NOTHING = st.sampled_from((None, True, -1, 0, 1.5, "x", "", [], {}, [[]], {"a": 1}, 10**400, float("nan")))


@settings(deadline=None, max_examples=300)
@given(data=st.data(), value=NOTHING)
def test_whatever_stands_in_a_manifest(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any
) -> None:
    """Opened and shown, or refused with a sentence that names the file."""
    folder = written(tmp_path_factory.getbasetemp() / "garbled")
    change(folder / MANIFEST, data.draw(st.sampled_from(places(read_json(folder / MANIFEST, "")))), value)
    try:
        opened = open_bundle(folder)
    except DamagedFileError as error:
        assert str(folder) in str(error)
        assert fails(3, "inspect", folder)
    else:
        assert isinstance(opened, Bundle)
        ok("inspect", folder)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), value=NOTHING)
def test_whatever_stands_in_a_record(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any) -> None:
    base = tmp_path_factory.getbasetemp() / "garbled-run"
    written(base / "bundle")
    (base / "run").mkdir(exist_ok=True)
    write_record(base / "run", open_bundle(base / "bundle"), **RECORD)
    change(base / "run" / RUN, data.draw(st.sampled_from(places(read_json(base / "run" / RUN, "")))), value)
    try:
        open_run(base / "run")
    except DamagedFileError as error:
        assert str(base) in str(error)
    else:
        ok("inspect", base / "run")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("input", "height"), "24", r"'input\.height' \(it is not an integer\)"),
        (("input", "height"), 0, r"'input' \(height 0 is out of range"),
        (("input", "mean"), [1.0, 2.0], r"'input' \(mean and std are not of 1 channels\)"),
        (("input", "std", 0), 0, r"'input' \(std \[0.0\] is not positive\)"),
        (("input", "fit"), "zoom", "fit 'zoom' is none of crop, squash, pad"),
        (("dropouts", 0, "rate"), 1, r"'dropouts\.\[0\]'"),
        (("knobs", "streamed"), "yes", r"'knobs\.streamed' \(it is not true or false\)"),
        (("optimizer",), "adamw", "optimizer 'adamw'"),
        (("trainable", "fc.weight"), "all", "the group 'all' of 'fc.weight'"),
        (("classes",), ["cat"], "2 outputs, 1 classes"),
        (("files", "step.safetensors", "bytes"), None, r"'files\.step\.safetensors\.bytes' \(it is not an integer\)"),
    ],
)
def test_what_is_garbled_is_named(bundle: Path, place: tuple[Any, ...], value: Any, words: str) -> None:
    change(bundle / MANIFEST, place, value)
    with pytest.raises(DamagedFileError, match=words):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "it is no object"),
        ({"epochs": "many"}, r"'epochs' \(it is not an integer\)"),
        ({"epochs": -1}, "--epochs -1 is out of range"),
        ({"lr": True}, r"'lr' \(it is not a number\)"),
    ],
)
def test_options_that_are_none(content: Any, words: str) -> None:
    with pytest.raises(DamagedFileError, match=words):
        TrainOptions.from_json(content, "run.json")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(DamagedFileError, match=r"m is damaged: it lacks or garbles 'rate' \(it is missing\)"):
        read_record(Dropout, {"name": "a", "shape": [1]}, "m")


# Runtimes -----------------------------------------------------------------------------------------------


def held(bundle: Path, *runtimes: str) -> Bundle:
    return open_bundle(written(bundle, dataclasses.replace(MANIFEST_OF_ALL, runtimes=runtimes)))


def test_auto_without_a_trainer_does_not_start_the_other_runtime(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "find_trainer", lambda: None)
    for runtime in ("auto", "native"):
        with pytest.raises(UsageError, match="without the native trainer"):
            choose_runtime(runtime, held(bundle, "native"))
    with pytest.raises(UsageError, match="without the native trainer"):
        worker_command("native")
    monkeypatch.setattr(runtimes, "has_onnxruntime", lambda: True)
    assert choose_runtime("auto", held(bundle, "native", "onnxruntime-training")) == "onnxruntime-training"
    monkeypatch.setattr(runtimes, "find_trainer", lambda: Path("/trainer"))
    assert choose_runtime("auto", held(bundle, "native", "onnxruntime-training")) == "native"
    assert choose_runtime("auto", held(bundle, "onnxruntime-training")) == "onnxruntime-training"
    with pytest.raises(UsageError, match="holds nothing for onnxruntime-training"):
        choose_runtime("onnxruntime-training", held(bundle, "native"))


def test_a_trainer_that_cannot_be_started_is_named() -> None:
    with pytest.raises(UsageError, match="/nowhere/trainer cannot be started: No such file"):
        worker.run_worker(["/nowhere/trainer"], {}, lambda event: None)


@pytest.mark.parametrize(
    ("machine", "python", "words"),
    [
        ("aarch64", (3, 11), "has no wheel for aarch64 processors .*: use the native trainer"),
        ("x86_64", (3, 13), "has no wheel for Python 3.13"),
        ("x86_64", (3, 11), r"pip install 'tinytl-edge\[ort\]'"),
    ],
)
def test_where_onnxruntime_training_cannot_be_it_is_said(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, machine: str, python: tuple[int, int], words: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(ort_available.sys, "version_info", (*python, 0))
    monkeypatch.setattr(runtimes, "has_onnxruntime", lambda: False)
    with pytest.raises(UsageError, match=words):
        choose_runtime("onnxruntime-training", held(bundle, "native", "onnxruntime-training"))
