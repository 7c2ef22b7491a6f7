"""A training that goes on from a run: with further images, or for more epochs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import FRAMING, events, make_bundle
from conftest import CLASSES, fails, make_images, ok, tinytl
from hypothesis import given
from hypothesis import strategies as st
from runtimes import RUNTIMES
from small_net import prepared
from test_held_out import Labelled, prints
from tiny_models import Tiny

from tinytl_edge import TrainOptions, evaluate, train
from tinytl_edge.runtime.errors import DamagedFileError, DataError, InterruptedTrainingError, UsageError
from tinytl_edge.runtime.files.bundle import Bundle
from tinytl_edge.runtime.files.tensors import open_tensors
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.images.held_out import Known, held_out
from tinytl_edge.runtime.images.joining import join
from tinytl_edge.runtime.images.packing import pack_part, write_dataset

OPTIONS = TrainOptions(epochs=4, batch_size=4, log_every=1)


def adapter(run: Path, name: str = "adapter") -> dict[str, bytes]:
    tensors = open_tensors(run / f"{name}.safetensors")
    return {name: tensors.read(name) for name in tensors.entries}


def recorded(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "run.json").read_text())
    return content


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders first/ and all/: twelve images of each class, and these with six more."""
    folder = tmp_path_factory.mktemp("photos")
    make_images(folder / "first", dict.fromkeys(CLASSES, 12), seed=5)
    make_images(folder / "all", dict.fromkeys(CLASSES, 18), seed=5)
    make_images(folder / "val", dict.fromkeys(CLASSES, 4), seed=6)
    return folder


@pytest.fixture(scope="module")
def run(runtime: str, tiny: Bundle, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished one on first/."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(tiny.path, photos / "first", out=out, runtime=runtime, options=OPTIONS)
    return out


# What it begins with ------------------------------------------------------------------------------------


def test_more_epochs_begin_with_what_the_run_learnt(runtime: str, run: Path, tiny: Bundle, tmp_path: Path) -> None:
    out = recorded(run)["held_out"]
    assert len(out) == 6
    with open_dataset(run / "train.safetensors") as dataset:
        pack_part(dataset, out, tmp_path / "judged.safetensors")
    none_of_it = replace(OPTIONS, blend=0.0)
    done = train(run, out=tmp_path / "more", runtime=runtime, options=none_of_it)
    assert adapter(tmp_path / "more") == adapter(run)
    assert recorded(tmp_path / "more")["held_out"] == out
    # Its trial begins with an adapter that has not learnt from what is judged.
    shutil.copytree(run, tmp_path / "trial")
    (tmp_path / "trial" / "judged.safetensors").replace(tmp_path / "trial" / "adapter.safetensors")
    seen = evaluate(tmp_path / "trial", tmp_path / "judged.safetensors", bundle=tiny.path, runtime=runtime)
    assert done["start_loss"] == pytest.approx(seen["loss"], rel=1e-5)
    assert adapter(run, "judged") != adapter(run)


def test_what_was_judged_is_an_adapter_that_was_not_shown_the_images(
    runtime: str, run: Path, tiny: Bundle, tmp_path: Path
) -> None:
    """The same training on the others, judged on those that were held out."""
    out = recorded(run)["held_out"]
    with open_dataset(run / "train.safetensors") as dataset:
        others = [index for index in range(dataset.count) if index not in out]
        pack_part(dataset, out, tmp_path / "held.safetensors")
        pack_part(dataset, others, tmp_path / "others.safetensors")
    share = recorded(run)["result"]["share"]
    shorter = TrainOptions(epochs=2, batch_size=4, log_every=1, blend=share)
    trial = tmp_path / "trial"
    train(tiny.path, tmp_path / "others.safetensors", out=trial, runtime=runtime, options=shorter)
    for name, content in adapter(trial).items():
        ours, theirs = (np.frombuffer(values, np.float32) for values in (adapter(run, "judged")[name], content))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_both_runtimes_go_on_alike(tiny: Bundle, photos: Path, tmp_path: Path) -> None:
    runs = []
    for parameter in RUNTIMES:
        if any(mark.args[0] for mark in parameter.marks):
            pytest.skip("there is one runtime")
        name = str(parameter.values[0])
        first, second = tmp_path / f"{name}-1", tmp_path / f"{name}-2"
        train(tiny.path, photos / "first", out=first, runtime=name, options=OPTIONS)
        train(first, photos / "all", out=second, runtime=name, options=OPTIONS)
        runs.append(second)
    ours, theirs = map(adapter, runs)
    for name in ours:
        one, other = (np.frombuffer(values[name], np.float32) for values in (ours, theirs))
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    told = ("share", "start_accuracy", "val_accuracy", "val_images", "steps")
    assert [recorded(runs[0])["result"][name] for name in told] == [recorded(runs[1])["result"][name] for name in told]


# Which images -------------------------------------------------------------------------------------------


def test_further_images_come_behind_the_runs_own(runtime: str, run: Path, photos: Path, tmp_path: Path) -> None:
    train(run, photos / "all", out=tmp_path / "on", runtime=runtime, options=OPTIONS)
    said = [event["message"] for event in events(tmp_path / "on") if event["event"] == "images"]
    assert said == ["36 images of the run, and 18 further ones (36 were there before)"]
    before, after = recorded(run)["held_out"], recorded(tmp_path / "on")["held_out"]
    assert after[: len(before)] == before and len(after) == len(before) + 3
    with open_dataset(tmp_path / "on" / "train.safetensors") as dataset, open_dataset(run / "train.safetensors") as own:
        assert dataset.counts() == [18, 18, 18]
        assert [dataset.image(index) for index in range(36)] == [own.image(index) for index in range(36)]
    assert not (tmp_path / "on" / "further.safetensors").exists()


def test_where_they_are_gone_it_goes_on_with_the_new_ones(
    run: Path, runtime: str, photos: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(run, tmp_path / "run")
    (moved / "train.safetensors").unlink()
    record = recorded(run)
    record["bundle"] = os.path.relpath(os.path.normpath(run / record["bundle"]), moved)
    (moved / "run.json").write_text(json.dumps(record))
    train(moved, photos / "val", out=tmp_path / "on", runtime=runtime, options=OPTIONS)
    said = [event["message"] for event in events(tmp_path / "on") if event["event"] == "images"]
    assert said[0].startswith("The images that the run learnt from are gone: features kept of 36 images stand in")
    assert recorded(tmp_path / "on")["held_out"] == []
    with pytest.raises(DataError, match="name images with --data"):
        train(moved, out=tmp_path / "none", runtime=runtime, options=OPTIONS)


def test_it_is_judged_on_the_same_val(tiny: Bundle, runtime: str, photos: Path, tmp_path: Path) -> None:
    first = train(tiny.path, photos / "first", photos / "val", tmp_path / "run", runtime=runtime, options=OPTIONS)
    done = train(tmp_path / "run", photos / "all", out=tmp_path / "on", runtime=runtime, options=OPTIONS)
    assert (done["judge"], done["val_images"]) == ("val", 12)
    assert done["start_loss"] == pytest.approx(first["val_loss"], rel=1e-5)


def test_anew_from_the_bundle_with_all_images(
    tiny: Bundle, run: Path, runtime: str, photos: Path, tmp_path: Path
) -> None:
    anew = TrainOptions(epochs=2, batch_size=4, start="one-pass")
    train(run, photos / "all", out=tmp_path / "on", runtime=runtime, options=anew)
    train(tiny.path, tmp_path / "on" / "train.safetensors", out=tmp_path / "run", runtime=runtime, options=anew)
    passes = [
        [event["left_out_accuracy"] for event in events(tmp_path / name) if event["event"] == "one_pass"][-1]
        for name in ("on", "run")
    ]
    assert passes[0] == passes[1]
    assert set(recorded(run)["held_out"]) <= set(recorded(tmp_path / "on")["held_out"])


@pytest.mark.parametrize("where", ["first step", "anew", "last step"])
def test_it_is_resumed_wherever_it_was_stopped(
    where: str, runtime: str, run: Path, photos: Path, tmp_path: Path
) -> None:
    train(run, photos / "all", out=tmp_path / "whole", runtime=runtime, options=OPTIONS)
    steps = next(event["total_steps"] for event in events(tmp_path / "whole") if event["event"] == "start")
    at = {"first step": 1, "anew": steps - 4 * 14, "last step": steps}[where]

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == at:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        train(run, photos / "all", out=tmp_path / "on", runtime=runtime, options=OPTIONS, on_event=stop)
    except InterruptedTrainingError:
        train(run, out=tmp_path / "on", runtime=runtime, resume=True)
    assert adapter(tmp_path / "on") == adapter(tmp_path / "whole")


# Joined, and held out -----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=10), st.data())
def test_what_both_have_keeps_its_place_and_takes_the_newer_label(
    tmp_path_factory: pytest.TempPathFactory, own: list[tuple[int, int]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("joined")
    own = list(dict(own).items())
    other = list(dict(data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1))).items())

    def packed(name: str, images: list[tuple[int, int]]) -> Path:
        rng = {seed: np.random.default_rng(seed).integers(0, 256, FRAMING.stored, np.uint8) for seed, _ in images}
        samples = ((np.int32(label).tobytes(), rng[seed].tobytes()) for seed, label in images)
        write_dataset(folder / name, FRAMING, CLASSES, samples, len(images), "single")
        return folder / name

    with open_dataset(packed("first", own)) as first, open_dataset(packed("second", other)) as second:
        further, again, relabelled = join(first, second, folder / "joined")
        images = {first.image(index): seed for index, (seed, _) in enumerate(own)}
        images.update({second.image(index): seed for index, (seed, _) in enumerate(other)})
    with open_dataset(folder / "joined") as joined:
        found = [(images[joined.image(index)], joined.labels[index]) for index in range(joined.count)]
    newer, known = dict(other), dict(own)
    assert found == [(seed, newer.get(seed, label)) for seed, label in own] + [
        (seed, label) for seed, label in other if seed not in known
    ]
    assert (further, again) == (len(set(newer) - set(known)), len(set(newer) & set(known)))
    assert relabelled == sum(newer[seed] != known[seed] for seed in set(newer) & set(known))


@given(st.lists(st.integers(0, 25), min_size=1, max_size=5), st.lists(st.integers(0, 12), min_size=5, max_size=5),
       st.integers(0, 2**32))  # fmt: skip
def test_what_was_held_out_stays_so_and_what_was_learnt_from_does_not_become_it(
    counts: list[int], more: list[int], seed: int
) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    content = prints(len(labels) + 60, seed)
    before = held_out(Labelled(labels, content[: len(labels)]), 0.2, seed)
    known = Known(len(labels), tuple(before))
    both = labels + [label for label, count in enumerate(more[: len(counts)]) for _ in range(count)]
    after = held_out(Labelled(both, content[: len(both)]), 0.2, seed, known)
    assert [index for index in after if index < len(labels)] == before
    new = {label: [index for index in after if index >= len(labels) and both[index] == label] for label in set(both)}
    fresh = {label for label, count in enumerate(more[: len(counts)]) if count}
    if not before and len(both) - len(labels) < 10 * len(fresh):
        assert not after
        return
    for label, count in enumerate(more[: len(counts)]):
        if count:
            kept = any(both[index] == label for index in before)
            wanted = max(0 if kept else 1, round(0.2 * count)) if counts[label] + count >= 4 else 0
            assert len(new.get(label, [])) == wanted


# What cannot be gone on from ----------------------------------------------------------------------------


def test_what_is_no_finished_run_is_refused(tiny: Bundle, run: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--start run goes on from a run, and .* is a bundle"):
        train(tiny.path, photos / "first", out=tmp_path / "a", options=TrainOptions(start="run"))
    with pytest.raises(UsageError, match="say --start one-pass"):
        train(run, photos / "all", out=tmp_path / "none", options=TrainOptions(epochs=0))
    broken = shutil.copytree(run, tmp_path / "run")
    record = {**recorded(run), "bundle": os.path.relpath(tiny.path, broken)}

    def refused(error: type[Exception], words: str, **changes: Any) -> None:
        (broken / "run.json").write_text(json.dumps({**record, **changes}))
        with pytest.raises(error, match=words):
            train(broken, photos / "all", out=tmp_path / "a", options=OPTIONS)

    refused(UsageError, r"did not come to its end \(interrupted\): go on with --resume", status="interrupted")
    refused(DataError, "is another dataset now", held_out=[99])
    (broken / "judged.safetensors").write_bytes(b"x")
    refused(DamagedFileError, "judged.safetensors")
    assert not (tmp_path / "a").exists()


def test_the_command(tiny: Bundle, photos: Path, tmp_path: Path) -> None:
    run, on = tmp_path / "run", tmp_path / "on"
    ok("train", tiny.path, "--data", photos / "first", "--epochs", 2, "--out", run)
    said = fails(2, "train", tiny.path, "--data", photos / "all", "--epochs", 2, "--out", run)
    assert "with a run in the place of the bundle, training goes on from that" in said
    answer = tinytl("train", run, "--data", photos / "all", "--epochs", 2, "--out", on)
    assert answer.code == 0 and "36 images of the run, and 18 further ones (36 were there before)\n" in answer.err
    ok("train", on, "--epochs", 2, "--out", tmp_path / "more")
    moved = shutil.copytree(tiny.path, tmp_path / "moved")
    record = {**recorded(on), "bundle": "../gone"}
    (on / "run.json").write_text(json.dumps(record))
    assert "name it with --bundle" in fails(3, "train", on, "--epochs", 2, "--out", tmp_path / "none")
    ok("train", on, "--bundle", moved, "--epochs", 2, "--out", tmp_path / "again")
    assert "no bundle" in fails(3, "train", photos, "--data", photos, "--out", tmp_path / "none")


def test_further_multi_label_images(tmp_path: Path) -> None:
    many = make_bundle(tmp_path / "bundle", prepared(Tiny(len(CLASSES)), "bias"), multi_label=True)
    make_images(tmp_path / "photos", dict.fromkeys(CLASSES, 4))

    def table(rows: int) -> None:
        lines = [f"{name}/{index}.png,1,{index % 2},0" for index in range(rows) for name in CLASSES]
        (tmp_path / "photos" / "labels.csv").write_text("\n".join([f"file,{','.join(CLASSES)}", *lines]))

    table(2)
    train(many.path, tmp_path / "photos", out=tmp_path / "run", options=OPTIONS)
    table(4)
    done = train(tmp_path / "run", tmp_path / "photos", out=tmp_path / "on", options=OPTIONS)
    assert done["judge"] is None
    with open_dataset(tmp_path / "on" / "train.safetensors") as dataset:
        assert dataset.counts() == [12, 6, 0]
