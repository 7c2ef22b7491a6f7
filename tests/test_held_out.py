"""Images held out of the training's own: which, and what becomes of a training that is judged on them."""

from __future__ import annotations

import io
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import FRAMING, events
from conftest import CLASSES, make_images
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import draw_arrows, picture
from PIL import Image
from runtimes import RUNTIMES

from tinytl_edge import TrainOptions, evaluate, train
from tinytl_edge.runtime.errors import InterruptedTrainingError
from tinytl_edge.runtime.files.bundle import Bundle
from tinytl_edge.runtime.files.tensors import open_tensors
from tinytl_edge.runtime.images.dataset import Dataset, open_dataset
from tinytl_edge.runtime.images.fingerprint import SAME, alike, fingerprint
from tinytl_edge.runtime.images.held_out import held_out
from tinytl_edge.runtime.images.packing import pack, pack_part

SEEDS = st.integers(0, 2**32)


# Images that are nearly the same ------------------------------------------------------------------------


def print_of(image: Image.Image) -> bytes:
    small = image.convert("RGB")
    return fingerprint(small.tobytes(), (small.height, small.width, 3))


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(60, 95), st.floats(0.8, 1.2), st.sampled_from([64, 100, 150]))
def test_a_picture_saved_again_is_the_same(seed: int, quality: int, brightness: float, size: int) -> None:
    """Of twenty at least eighteen, however they were saved: places that are as bright as their neighbours may turn."""
    found = 0
    for index in range(20):
        file = io.BytesIO()
        first = picture(seed + index)
        again = first.resize((size, size)).point(lambda value: 20 + 0.75 * brightness * value)
        again.save(file, "JPEG", quality=quality)
        found += alike([(0, print_of(first)), (1, print_of(Image.open(file)))]) == [[0, 1]]
    assert found >= 18


@given(st.sets(SEEDS, min_size=2, max_size=12))
@settings(deadline=None, max_examples=30)
def test_other_pictures_are_others(seeds: set[int]) -> None:
    assert len(alike(enumerate(print_of(picture(seed)) for seed in seeds))) == len(seeds)


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 63), max_size=8)), max_size=30))
def test_each_is_with_the_first_that_is_near_enough(pictures: list[tuple[int, list[int]]]) -> None:
    """Whatever is looked up to find it."""
    base = pictures[0][0] if pictures else 0
    bits = [base ^ sum(1 << bit for bit in set(flips)) if len(flips) % 2 else own for own, flips in pictures]
    groups: list[list[int]] = []
    for number, own in enumerate(bits):
        near = [group for group in groups if bin(bits[group[0]] ^ own).count("1") <= SAME]
        if near:
            near[0].append(number)
        else:
            groups.append([number])
    assert alike((number, own.to_bytes(8, "big")) for number, own in enumerate(bits)) == groups


# Which are held out -------------------------------------------------------------------------------------


class Labelled(Dataset):
    """A dataset without pixels."""

    def __init__(self, labels: list[int], fingerprints: list[bytes]) -> None:
        self.labels, self.marks, self.fingerprints, self.classes = labels, [], fingerprints, []


def prints(count: int, seed: int = 0) -> list[bytes]:
    return [bytes(row) for row in np.random.default_rng(seed).integers(0, 256, (count, 8), dtype=np.uint8)]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.floats(0.05, 0.5), SEEDS)
def test_a_share_of_each_class_is_held_out(counts: list[int], share: float, seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    out = held_out(Labelled(labels, prints(len(labels), seed)), share, seed)
    assert out == sorted(set(out))
    if not labels or len(labels) < 10 * len(set(labels)):
        assert not out
        return
    found = Counter(labels[index] for index in out)
    assert found == {label: max(1, round(share * count)) for label, count in enumerate(counts) if count >= 4}


@given(st.integers(12, 40), st.integers(2, 4), SEEDS)
def test_what_is_nearly_the_same_stays_together(different: int, copies: int, seed: int) -> None:
    """Pictures of bursts, in any order."""
    groups = [group for group in range(different) for _ in range(copies if group % 4 == 0 else 1)]
    order = np.random.default_rng(seed).permutation(len(groups))
    own = prints(different, seed)
    of = [groups[at] for at in order]
    out = held_out(Labelled([0] * len(of), [own[group] for group in of]), 0.2, seed)
    assert 0 < len(out) <= max(1, round(0.2 * len(of)), copies)
    assert not {of[index] for index in out} & {group for at, group in enumerate(of) if at not in out}


def test_where_a_camera_stands_still_images_are_held_out_nevertheless() -> None:
    assert len(held_out(Labelled([0] * 20 + [1] * 20, [bytes(8)] * 40), 0.2, 0)) == 8


def test_further_images_change_little_of_it() -> None:
    first = prints(50)
    before = {first[index] for index in held_out(Labelled([0] * 50, first), 0.2, 1)}
    more = [*prints(5, seed=2), *first]
    after = {more[index] for index in held_out(Labelled([0] * 55, more), 0.2, 1)}
    assert len(before & after) >= len(before) - 2
    assert before != {first[index] for index in held_out(Labelled([0] * 50, first), 0.2, 2)}


# A training that is judged on them ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all.safetensors, and of it part.safetensors and held.safetensors as `held_out` parts it."""
    folder = tmp_path_factory.mktemp("images")
    make_images(folder / "all", dict.fromkeys(CLASSES, 12), seed=5)
    pack(folder / "all", folder / "all.safetensors", FRAMING, CLASSES)
    with open_dataset(folder / "all.safetensors") as dataset:
        out = held_out(dataset, 0.2, 0)
        others = [index for index in range(dataset.count) if index not in out]
        pack_part(dataset, others, folder / "part.safetensors")
        pack_part(dataset, out, folder / "held.safetensors")
    return folder


def options(**changes: Any) -> TrainOptions:
    return TrainOptions(**{"epochs": 4, "start": "one-pass", "batch_size": 4, "log_every": 1, **changes})


def one(run: Path, kind: str) -> dict[str, Any]:
    return next(event for event in events(run) if event["event"] == kind)


def adapter(run: Path, name: str = "adapter.safetensors") -> dict[str, bytes]:
    tensors = open_tensors(run / name)
    return {name: tensors.read(name) for name in tensors.entries}


def close(found: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    assert set(found) == set(wanted)
    for name in wanted:
        np.testing.assert_allclose(
            np.frombuffer(found[name], np.float32), np.frombuffer(wanted[name], np.float32), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_trial_without_them_chooses_and_then_all_are_learnt_from(
    runtime: str, tiny: Bundle, data: Path, tmp_path: Path
) -> None:
    def trained(name: str, source: str, val: str | None, **changes: Any) -> Path:
        place = data / f"{val}.safetensors" if val else None
        source_file = data / f"{source}.safetensors"
        train(tiny.path, source_file, place, tmp_path / name, runtime=runtime, options=options(**changes))
        return tmp_path / name

    run = trained("run", "all", None)
    trial = trained("trial", "part", "held", epochs=2, blend=None)
    ours, theirs = one(run, "choice"), one(trial, "choice")
    assert (ours["judge"], theirs["judge"]) == ("held-out", "val")
    assert ours["val_images"] == open_dataset(data / "held.safetensors").count
    wanted = ("share", "val_loss", "val_accuracy", "val_class_accuracy", "start_loss", "start_accuracy")
    assert {name: ours[name] for name in wanted} == pytest.approx({name: theirs[name] for name in wanted}, rel=1e-4)
    final = trained("final", "all", None, hold_out=0.0, blend=ours["share"])
    close(adapter(run), adapter(final))
    said = evaluate(trial, data / "held.safetensors")
    assert (said["loss"], said["accuracy"]) == pytest.approx((theirs["val_loss"], theirs["val_accuracy"]), rel=1e-4)
    done = events(run)[-1]
    assert {name: done[name] for name in wanted} == {name: ours[name] for name in wanted}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_training_that_harms_ends_with_one_pass(runtime: str, tiny: Bundle, data: Path, tmp_path: Path) -> None:
    source = data / "all.safetensors"
    harmful = options(epochs=2, lr=0.5, lr_bias=0.5)
    done = train(tiny.path, source, None, tmp_path / "run", runtime=runtime, options=harmful)
    assert done["share"] == 0
    assert (done["val_loss"], done["val_accuracy"]) == (done["start_loss"], done["start_accuracy"])
    train(tiny.path, source, None, tmp_path / "pass", runtime=runtime, options=options(epochs=0))
    close(adapter(tmp_path / "run"), adapter(tmp_path / "pass"))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("where", ["fitting", "first step", "trial's end", "choice", "anew", "after it", "last step"])
def test_it_goes_on_wherever_it_was_stopped(
    runtime: str, where: str, tiny: Bundle, data: Path, tmp_path: Path, whole: dict[str, Path]
) -> None:
    source, run = data / "all.safetensors", tmp_path / "run"
    steps = one(whole[runtime], "start")["total_steps"]
    trial = next(event["step"] for event in events(whole[runtime]) if event["event"] == "epoch" and event["epoch"] == 2)
    at = {
        "fitting": lambda event: event["event"] == "fitting",
        "first step": lambda event: event["event"] == "step" and event["step"] == 1,
        "trial's end": lambda event: event["event"] == "step" and event["step"] == trial,
        "choice": lambda event: event["event"] == "choice",
        "anew": lambda event: event["event"] == "one_pass" and event["anew"],
        "after it": lambda event: event["event"] == "step" and event["step"] == trial + 3,
        "last step": lambda event: event["event"] == "step" and event["step"] == steps,
    }[where]

    def stop(event: dict[str, Any]) -> None:
        if at(event):
            os.kill(os.getpid(), signal.SIGINT)

    try:
        train(tiny.path, source, None, run, runtime=runtime, options=options(), on_event=stop)
    except InterruptedTrainingError:
        train(tiny.path, out=run, runtime=runtime, resume=True)
    # Otherwise its last event was said before the signal came.
    assert adapter(run) == adapter(whole[runtime])
    ours, theirs = events(run)[-1], events(whole[runtime])[-1]
    for name in ("steps", "share", "train_loss", "val_loss", "val_accuracy", "start_loss", "unknown"):
        assert ours[name] == theirs[name], name


@pytest.fixture(scope="module")
def whole(tiny: Bundle, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run by each runtime that nobody stopped."""
    runs = {}
    for parameter in RUNTIMES:
        (runtime,) = parameter.values
        assert isinstance(runtime, str)
        if any(mark.args[0] for mark in parameter.marks):
            continue
        runs[runtime] = tmp_path_factory.mktemp("whole") / "run"
        train(tiny.path, data / "all.safetensors", None, runs[runtime], runtime=runtime, options=options())
    return runs


@given(st.integers(1, 20_000))
def test_few_images_are_looked_at_more_often(images: int) -> None:
    rounds = TrainOptions().rounds(images)
    assert 3 <= rounds <= 30
    assert rounds >= TrainOptions().rounds(images + 1)
    assert rounds in (3, 30) or 3000 < rounds * images < 4500
    assert TrainOptions(epochs=7).rounds(images) == 7


def test_the_epochs_of_a_run_are_recorded(tiny: Bundle, tmp_path: Path) -> None:
    make_images(tmp_path / "few", dict.fromkeys(CLASSES, 2), seed=1)
    done = train(tiny.path, tmp_path / "few", None, tmp_path / "run", options=options(epochs=None))
    assert done["steps"] == 30 * 2
    assert json.loads((tmp_path / "run" / "run.json").read_text())["options"]["epochs"] == 30


def test_without_enough_images_none_is_held_out(tiny: Bundle, tmp_path: Path) -> None:
    make_images(tmp_path / "few", dict(zip(CLASSES, (9, 9, 9))), seed=1)
    done = train(tiny.path, tmp_path / "few", None, tmp_path / "run", options=options(epochs=1))
    assert (done["judge"], done["val_images"], done["share"]) == (None, 0, 0.65)
    assert one(tmp_path / "run", "start")["held_out"] == 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_with_val_the_best_epoch_or_blend_is_kept(runtime: str, tiny: Bundle, data: Path, tmp_path: Path) -> None:
    """What is written is what was judged; with rates as high, an epoch before the last is the best."""
    for seed in range(8):
        run = tmp_path / f"{seed}"
        done = train(
            tiny.path, data / "part.safetensors", data / "held.safetensors", run, runtime=runtime,
            options=options(epochs=8, lr=0.5, lr_bias=0.1, start="prepared", seed=seed),
        )  # fmt: skip
        epochs = [event for event in events(run) if event["event"] == "epoch"]
        assert done["val_loss"] == pytest.approx(min(event["val_loss"] for event in epochs))
        said = evaluate(run, data / "held.safetensors")
        assert said["loss"] == pytest.approx(done["val_loss"], rel=1e-4)
        if one(run, "choice")["epoch"] < 8:
            best = epochs[one(run, "choice")["epoch"] - 1]
            assert done["val_loss"] == best["val_loss"]
            assert adapter(run) == adapter(run, "best.safetensors")
            return
    pytest.fail("the last epoch was always the best")


# Classes that are each other's mirror image -------------------------------------------------------------


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("mirrored", [True, False])
def test_mirror_images_of_each_other_are_not_mirrored(
    runtime: str, mirrored: bool, tiny: Bundle, tmp_path: Path
) -> None:
    draw_arrows(tmp_path / "arrows", mirrored)
    pack(tmp_path / "arrows", tmp_path / "arrows.safetensors", FRAMING, CLASSES)

    def trained(name: str, **changes: Any) -> Path:
        how = options(epochs=1, blend=1.0, **changes)
        done = train(tiny.path, tmp_path / "arrows.safetensors", None, tmp_path / name, runtime=runtime, options=how)
        assert done["start_accuracy"] > 0.9
        return tmp_path / name

    run = trained("run")
    said = [event["message"] for event in events(run) if event["event"] == "warning"]
    assert adapter(run) == adapter(trained("same", flip=not mirrored))
    assert adapter(run) != adapter(trained("other", flip=mirrored))
    assert [message.startswith("Mirrored, 1") for message in said] == ([True] if mirrored else [])
    for name in ("same", "other"):
        assert not [event for event in events(tmp_path / name) if event["event"] == "warning"]
