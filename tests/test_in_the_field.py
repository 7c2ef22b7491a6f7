"""A deployed classifier in another place: it learns what its classes look like there, and keeps what it knew."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import events
from conftest import CLASSES, ELSEWHERE, fails, make_image, make_images, ok
from runtimes import RUNTIMES, needs_ort, needs_trainer

from tinytl_edge import TrainOptions, evaluate, report, train
from tinytl_edge.runtime.course import SHARES
from tinytl_edge.runtime.errors import DataError, InterruptedTrainingError
from tinytl_edge.runtime.evaluate import Trained
from tinytl_edge.runtime.files.adapter import open_adapter, write_adapter
from tinytl_edge.runtime.files.run import open_run
from tinytl_edge.runtime.files.tensors import open_tensors
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.images.packing import pack_part
from tinytl_edge.runtime.learning.scaled import scaled_losses
from tinytl_edge.runtime.learning.within_error import within_error


def trained(place: Path, run: Path, *options: object) -> dict[str, float]:
    """Its accuracy in both places."""
    ok("train", place / "bundle", "--data", place / "new", "--epochs", 0, "--out", run, *options)
    return {part: float(evaluate(run, place / f"{part}-test")["accuracy"]) for part in ("old", "new")}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_it_was_prepared_with_stays_what_it_is(runtime: str, place: Path, tmp_path: Path) -> None:
    before = {part: evaluate(place / "bundle", place / f"{part}-test")["accuracy"] for part in ("old", "new")}
    assert before["old"] == 1 and before["new"] < 0.7
    after = trained(place, tmp_path / "run", "--runtime", runtime)
    assert after == {"old": 1, "new": 1}
    (fitted,) = [event for event in events(tmp_path / "run") if event["event"] == "one_pass"]
    assert (fitted["images"], fitted["stood_in"]) == (18, 36)
    assert fitted["kept_accuracy_before"] == fitted["kept_accuracy"] == pytest.approx(1)
    assert fitted["accuracy_before"] == pytest.approx(evaluate(place / "bundle", place / "new")["accuracy"])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["first_pass"]["keep"] == 0.3
    (note,) = [event["message"] for event in events(tmp_path / "run") if event["event"] == "images"]
    assert note.startswith("Features of 36 images") and "their share is 30%" in note


@needs_ort
@needs_trainer
def test_both_runtimes_find_the_same(place: Path, tmp_path: Path) -> None:
    found = []
    for runtime in ("native", "onnxruntime-training"):
        trained(place, tmp_path / runtime, "--runtime", runtime)
        found.append(parameters(tmp_path / runtime / "adapter.safetensors"))
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], atol=1e-3 * max(np.abs(value).max(), 1))


@needs_trainer
def test_it_can_be_told_to_keep_nothing_or_more(place: Path, tmp_path: Path) -> None:
    trained(place, tmp_path / "nothing", "--keep", 0)
    (fitted,) = [event for event in events(tmp_path / "nothing") if event["event"] == "one_pass"]
    assert fitted["stood_in"] == 0 and fitted["kept_accuracy"] is None
    trained(place, tmp_path / "more", "--keep", 0.8)
    record = json.loads((tmp_path / "more" / "run.json").read_text())
    assert record["first_pass"]["keep"] == 0.8


@needs_trainer
def test_images_that_it_was_prepared_with_do_not_count_twice(place: Path, tmp_path: Path) -> None:
    """Nor do those that it is judged on, which it would have seen."""
    for held_out, few in (("all", ()), ("val", ("--val", place / "old"))):
        data = place / ("old" if held_out == "all" else "new")
        ok("train", place / "bundle", "--data", data, *few, "--epochs", 0, "--out", tmp_path / held_out)
        (fitted,) = [event for event in events(tmp_path / held_out) if event["event"] == "one_pass"]
        assert fitted["stood_in"] == 0 and fitted["kept_accuracy"] is None


@needs_trainer
@pytest.mark.parametrize("keep", [0, 0.3])
def test_what_is_known_of_classes_without_images_stays(keep: float, place: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "some", {"cat": 12, "dog": 0, "fox": 0}, seed=7)
    ok("train", place / "bundle", "--data", tmp_path / "some", "--keep", keep, "--out", tmp_path / "run")
    said = [event["message"] for event in events(tmp_path / "run") if event["event"] in ("images", "warning")]
    assert any(message.startswith("There are no images here of 'dog', 'fox': what is known") for message in said)
    assert not any("may unlearn" in message for message in said)
    assert events(tmp_path / "run")[-1]["steps"] == 0
    assert evaluate(tmp_path / "run", place / "old-test")["accuracy"] == 1


@needs_trainer
def test_a_bundle_that_was_shown_no_images_has_nothing_to_keep(place: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    ok("prepare", place / "model.onnx", "--classes", ",".join(CLASSES), "--out", bundle)
    said = fails(2, "train", bundle, "--data", place / "new", "--keep", 0.5, "--epochs", 0, "--out", tmp_path / "run")
    assert said.startswith("--keep is of images that the bundle was prepared with")
    ok("train", bundle, "--data", place / "new", "--epochs", 0, "--out", tmp_path / "other")
    assert evaluate(tmp_path / "other", place / "new-test")["accuracy"] == 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_of_shares_that_are_about_as_good_the_nearest_to_the_start_is_taken(
    runtime: str, place: Path, tmp_path: Path
) -> None:
    """What is held out is looked at again, as every share has it."""
    for name, colour in ELSEWHERE.items():
        for number in range(15):
            mixed = ELSEWHERE[CLASSES[number % 3]] if number % 2 == 0 else colour  # some are taken for others
            make_image(tmp_path / "images" / name / f"{number}.png", mixed, seed=number)
    out = tmp_path / "run"
    ok("train", place / "bundle", "--data", tmp_path / "images", "--epochs", 8, "--lr", 0.003, "--runtime", runtime,
       "--out", out)  # fmt: skip
    run = open_run(out)
    (choice,) = [event for event in events(out) if event["event"] == "choice"]
    assert choice["share"] > 0
    start, chosen = (parameters(out / f"{name}.safetensors") for name in ("judged-start", "judged"))
    with open_dataset(out / "train.safetensors") as dataset:
        pack_part(dataset, run.record.held_out, tmp_path / "held-out.safetensors")
        labels = np.array([dataset.labels[image] for image in run.record.held_out])
    losses = {}
    for share in SHARES:
        moved = {name: value + share / choice["share"] * (chosen[name] - value) for name, value in start.items()}
        tensors = {name: (value.shape, value.astype(np.float32).tobytes()) for name, value in moved.items()}
        write_adapter(tmp_path / "some.safetensors", run.bundle, list(CLASSES), 1, tensors, (-1, 1))
        adapter = open_adapter(tmp_path / "some.safetensors", run.bundle)
        found = np.array(Trained(run.bundle, adapter, runtime, None).predict(tmp_path / "held-out.safetensors"))
        equal = np.ones(len(labels)) / len(labels)  # of each class as many are held out
        losses[share] = scaled_losses(np.log(found), np.eye(len(CLASSES))[labels], equal, multi_label=False)
    least = min(losses.values(), key=np.mean)
    about = [share for share in SHARES if share and within_error(losses[share], least, np.ones(len(labels)))]
    assert choice["share"] == min(about)


@pytest.fixture(scope="module")
def elsewhere(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was prepared with images of the new place, and has kept nothing of the old one."""
    folder = tmp_path_factory.mktemp("elsewhere")
    ok("prepare", place / "model.onnx", "--data", place / "new", "--out", folder / "bundle")
    for name, colour in ELSEWHERE.items():
        for number in range(15):
            make_image(folder / "images" / name / f"{number}.png", colour, seed=500 + number)
    return folder


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_images_of_the_old_place_are_learnt_from_and_judged(
    runtime: str, place: Path, elsewhere: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    ok("train", elsewhere / "bundle", "--data", place / "new", "--keep-images", place / "old", "--out", out,
       "--runtime", runtime)  # fmt: skip
    first = open_run(out).record.first_pass
    assert first is not None and first.kept_images is not None
    assert len(first.kept_learnt) == len(first.kept_judged) == 18
    assert set(first.kept_learnt) | set(first.kept_judged) == set(range(36))
    (fitted,) = [event for event in events(out) if event["event"] == "one_pass"]
    done = events(out)[-1]
    assert (fitted["stood_in"], done["kept_images"]) == (18, 18)
    assert done["kept_accuracy_before"] == fitted["kept_accuracy_before"] == 1
    assert done["kept_accuracy"] == fitted["kept_accuracy"] == 1
    assert evaluate(out, place / "old-test")["accuracy"] == evaluate(out, place / "new-test")["accuracy"] == 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_training_gives_up_no_more_than_three_points_there(
    runtime: str, place: Path, elsewhere: Path, tmp_path: Path
) -> None:
    lost = {}
    for kept, more in (("kept", ("--keep-images", place / "old")), ("freely", ())):
        out = tmp_path / kept
        ok("train", elsewhere / "bundle", "--data", elsewhere / "images", "--epochs", 8, "--lr", 0.03,
           "--runtime", runtime, "--out", out, *more)  # fmt: skip
        lost[kept] = 1 - evaluate(out, place / "old-test")["accuracy"]
    *_, start = (event for event in events(tmp_path / "kept") if event["event"] == "one_pass")
    done = events(tmp_path / "kept")[-1]
    assert done["kept_accuracy"] >= min(done["kept_accuracy_before"] - 0.03, start["kept_accuracy"])
    assert lost["freely"] > 0.1 > lost["kept"]
    said = [event["message"] for event in events(tmp_path / "freely") if event["event"] == "images"]
    assert any("--keep-images" in message for message in said)


@needs_ort
@needs_trainer
def test_both_runtimes_look_back_alike(place: Path, elsewhere: Path, tmp_path: Path) -> None:
    found = []
    for runtime in ("native", "onnxruntime-training"):
        out = tmp_path / runtime
        ok("train", elsewhere / "bundle", "--data", elsewhere / "images", "--keep-images", place / "old", "--epochs", 3,
           "--runtime", runtime, "--out", out)  # fmt: skip
        wanted = ("kept_images", "kept_accuracy", "kept_accuracy_before", "share", "pull", "stood_in")
        kinds = ("one_pass", "choice", "done")
        found.append([{name: event.get(name) for name in wanted} for event in events(out) if event["event"] in kinds])
    assert len(found[0]) == 4
    for one, other in zip(*found):
        assert one == {name: pytest.approx(value) for name, value in other.items()}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("validated", [False, True])
def test_what_is_given_up_there_is_known_where_it_is_resumed(
    runtime: str, validated: bool, place: Path, elsewhere: Path, tmp_path: Path
) -> None:
    """And a best epoch, which images of --val choose, is looked at as well."""
    val = place / "new-test" if validated else None
    how = TrainOptions(epochs=4, lr=0.003, log_every=1)

    def run(out: Path, **more: Any) -> dict[str, Any]:
        return train(elsewhere / "bundle", elsewhere / "images", val, out, runtime=runtime, options=how,
                     keep_images=place / "old", **more)  # fmt: skip

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptedTrainingError):
        run(tmp_path / "on", on_event=stop)
    resumed = train(elsewhere / "bundle", out=tmp_path / "on", runtime=runtime, resume=True)
    for name in ("kept_images", "kept_accuracy_before", "kept_accuracy", "share", "val_accuracy"):
        assert resumed[name] == whole[name], name
    assert whole["kept_accuracy"] == pytest.approx(evaluate_some(tmp_path / "whole"))
    (tmp_path / "on" / "adapter.safetensors").unlink()
    (tmp_path / "on" / "kept.safetensors").unlink()
    with pytest.raises(DataError, match=r"kept\.safetensors, on which .* is gone"):
        train(elsewhere / "bundle", out=tmp_path / "on", runtime=runtime, resume=True)


def evaluate_some(run: Path) -> float:
    """The accuracy of a run on what is judged of the old place."""
    opened = open_run(run)
    first = opened.record.first_pass
    assert first is not None and first.kept_images is not None
    with open_dataset(run / first.kept_images) as dataset:
        pack_part(dataset, first.kept_judged, run.parent / "judged.safetensors")
    return float(evaluate(run, run.parent / "judged.safetensors")["accuracy"])


@needs_trainer
def test_both_places_are_reported(place: Path, elsewhere: Path, tmp_path: Path) -> None:
    def found(name: str, *options: object) -> dict[str, Any]:
        ok("train", *options, "--out", tmp_path / name)
        return report(tmp_path / name, out=tmp_path / f"{name}.html")

    images = found("images", elsewhere / "bundle", "--data", place / "new", "--keep-images", place / "old")
    assert images["old_place"]["images"] == 18
    assert images["old_place"]["after"]["accuracy"] == 1 and images["old_place"]["after"]["interval"][0] < 0.9
    assert any("right in 18 of 18 images" in sentence for sentence in images["verdict"]["sentences"])
    assert "where it comes from, as deployed" in (tmp_path / "images.html").read_text()
    features = found("features", place / "bundle", "--data", place / "new")
    assert features["old_place"]["images"] is None and features["old_place"]["after"]["accuracy"] > 0.9
    nothing = found("nothing", elsewhere / "bundle", "--data", elsewhere / "images", "--epochs", 2)
    assert nothing["old_place"] == {"images": 0, "before": None, "after": None}
    assert any("--keep-images" in sentence for sentence in nothing["verdict"]["sentences"])
    new = found("new", place / "first", "--data", place / "old", "--epochs", 0)
    assert new["old_place"] is None


@needs_trainer
def test_images_of_the_old_place_are_of_a_deployed_classifier(place: Path, tmp_path: Path) -> None:
    said = fails(2, "train", place / "first", "--data", place / "new", "--keep-images", place / "old", "--out",
                 tmp_path / "run")  # fmt: skip
    assert said.startswith("--keep-images are of the place that a deployed classifier comes from")


def parameters(path: Path) -> dict[str, np.ndarray]:
    file = open_tensors(path)
    return {
        name: np.frombuffer(file.read(name), np.float32).reshape(entry.shape) for name, entry in file.entries.items()
    }
