"""Images of none of the classes: how sure a classifier has to be, and what is said of images of which it is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import events, make_bundle
from conftest import CLASSES, make_images, ok, prepare
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runtimes import RUNTIMES, needs_trainer
from small_net import prepared
from tiny_models import Tiny

from tinytl_edge import TrainOptions, evaluate, predict, train
from tinytl_edge.runtime.files.bundle import Bundle
from tinytl_edge.runtime.files.tensors import open_tensors
from tinytl_edge.runtime.unknown import find_unknown

OPTIONS = TrainOptions(epochs=4, start="one-pass", batch_size=4)
ANSWERS = st.lists(st.tuples(st.floats(0.25, 1, width=32), st.booleans()), max_size=80)


@given(st.floats(-1, 3), st.floats(0.5, 1.5), st.integers(0, 2**32))
def test_about_a_twentieth_of_right_answers_is_rejected(middle: float, spread: float, seed: int) -> None:
    def drawn(count: int) -> list[float]:
        odds = np.random.default_rng([seed, count]).normal(middle, spread, count)
        return (1 / (1 + np.exp(-odds))).tolist()

    found = find_unknown([(probability, True) for probability in drawn(2000)], 1000)
    assert found is not None
    assert 0.02 < np.mean(np.array(drawn(20_000)) < found.below) < 0.08


def test_one_unsure_answer_among_sure_ones_is_no_measure_of_their_width() -> None:
    found = find_unknown([(1.0, True)] * 9 + [(0.75, True)], 2)
    assert found is not None
    assert (found.right, found.right_rejected) == (10, 1)


def _a_twentieth(right: list[float]) -> float:
    """The probability below which a twentieth would lie."""
    odds = np.sort([np.log(p / (1 - p)) for p in np.minimum(right, 1 - 1e-6)])
    half = len(odds) // 2
    return float(1 / (1 + np.exp(1.645 * np.sqrt(np.mean((odds[:half] - odds[half]) ** 2)) - odds[half])))


@given(ANSWERS, st.integers(2, 20))
def test_answers_are_counted(answers: list[tuple[float, bool]], classes: int) -> None:
    found = find_unknown(answers, classes)
    right = [probability for probability, is_right in answers if is_right]
    wrong = [probability for probability, is_right in answers if not is_right]
    if found is None:  # no answer is so unsure that a normal distribution as wide would reject a twentieth
        assert len(right) < 10 or _a_twentieth(right) < 1 / classes + 0.002
        return
    assert len(right) >= 10
    assert 1 / classes < found.below <= np.median(right) + 1e-9
    assert (found.right, found.wrong) == (len(right), len(wrong))
    assert found.right_rejected == sum(probability < found.below for probability in right)
    assert found.wrong_rejected == sum(probability < found.below for probability in wrong)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("photos"), dict.fromkeys(CLASSES, 20), seed=7)


@pytest.fixture(scope="module")
def run(runtime: str, tiny: Bundle, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(tiny.path, photos, out=out, runtime=runtime, options=OPTIONS)
    return out


def metadata(run: Path, name: str = "adapter") -> dict[str, str]:
    return dict(open_tensors(run / f"{name}.safetensors").metadata)


def test_it_is_found_on_what_was_held_out(runtime: str, run: Path, tiny: Bundle, tmp_path: Path) -> None:
    done = events(run)[-1]
    unknown = done["unknown"]
    assert unknown["right"] + unknown["wrong"] == done["val_images"] == 12
    assert unknown["right"] == round(done["val_accuracy"] * 12)
    assert unknown["junk"] == 32 and 0 <= unknown["junk_rejected"] <= 32
    assert float(metadata(run)["unknown_below"]) == unknown["below"]
    assert json.loads((run / "run.json").read_text())["result"]["unknown"] == unknown


def test_both_runtimes_find_the_same(tiny: Bundle, photos: Path, tmp_path: Path) -> None:
    found: list[Any] = []
    for parameter in RUNTIMES:
        if any(mark.args[0] for mark in parameter.marks):
            pytest.skip("there is one runtime")
        for epochs in (0, 4):
            options = TrainOptions(epochs=epochs, start="one-pass", batch_size=4)
            out = tmp_path / f"{parameter.values[0]}-{epochs}"
            found.append(train(tiny.path, photos, out=out, runtime=str(parameter.values[0]), options=options))
    for ours, theirs in zip(found[:2], found[2:]):
        ours, theirs = ours["unknown"], theirs["unknown"]
        assert ours.pop("below") == pytest.approx(theirs.pop("below"), abs=0.0021)
        assert ours == theirs


def test_without_a_judge_it_comes_from_leaving_out(runtime: str, tiny: Bundle, photos: Path, tmp_path: Path) -> None:
    options = TrainOptions(epochs=0, start="one-pass", batch_size=4)
    done = train(tiny.path, photos, out=tmp_path / "run", runtime=runtime, options=options)
    assert done["unknown"]["right"] + done["unknown"]["wrong"] == 60
    assert done["unknown"]["right"] == round(done["left_out_accuracy"] * 60)


def test_evaluate_counts_what_it_rejects(runtime: str, run: Path, photos: Path) -> None:
    unknown = evaluate(run, photos, runtime=runtime)["unknown"]
    answers = predict(run, sorted(photos.glob("*/*.png")), runtime=runtime)
    right = [answer for answer in answers if next(iter(answer["probabilities"])) == Path(answer["image"]).parent.name]
    assert unknown["below"] == float(metadata(run)["unknown_below"])
    assert (unknown["right"], unknown["wrong"]) == (len(right), len(answers) - len(right))
    assert unknown["right_rejected"] == sum(not answer["known"] for answer in right)
    for answer in answers:
        likeliest, probability = next(iter(answer["probabilities"].items()))
        assert answer["known"] == (probability >= unknown["below"])
        assert answer["prediction"] == (likeliest if answer["known"] else "unknown")


def test_nothing_is_unknown_to_a_bundle(tiny: Bundle, photos: Path) -> None:
    assert evaluate(tiny.path, photos)["unknown"] is None
    assert all(answer["known"] for answer in predict(tiny.path, sorted(photos.glob("*/0.png"))))


def test_multi_label_nothing_is_unknown(runtime: str, photos: Path, tmp_path: Path) -> None:
    many = make_bundle(tmp_path / "bundle", prepared(Tiny(len(CLASSES)), "bias"), multi_label=True)
    make_images(tmp_path / "photos", dict.fromkeys(CLASSES, 4))
    rows = [f"{name}/{index}.png,1,{index % 2},0" for name in CLASSES for index in range(4)]
    (tmp_path / "photos" / "labels.csv").write_text("\n".join([f"file,{','.join(CLASSES)}", *rows]))
    val = tmp_path / "photos"
    done = train(many.path, val, val, tmp_path / "run", runtime=runtime, options=TrainOptions(epochs=1, batch_size=4))
    assert done["unknown"] is None
    assert "known" not in predict(tmp_path / "run", [val / CLASSES[0] / "0.png"], runtime=runtime)[0]


@needs_trainer
def test_the_commands_and_the_file_say_so(photos: Path, tmp_path: Path) -> None:
    bundle = prepare(tmp_path / "bundle", "--data", photos)
    run, grey = tmp_path / "run", tmp_path / "grey.png"
    Image.new("RGB", (40, 40), (127, 127, 127)).save(grey)
    said = ok("train", bundle, "--data", photos, "--epochs", 4, "--out", run)
    below = float(metadata(run)["unknown_below"])
    assert f"Less sure than {below:.1%} it says unknown: " in said
    assert f"less sure than {below:.1%}, unknown: " in ok("evaluate", run, "--data", photos)
    answer = json.loads(ok("predict", run, grey, "--json"))
    assert answer["known"] == (max(answer["probabilities"].values()) >= below)
    assert (": unknown (" in ok("predict", run, grey)) == (not answer["known"])
    sentence = f"Where the highest probability is below {below:g}, the image is likely of none of these classes."
    assert sentence in ok("export", run, "--out", tmp_path / "model.onnx")
    assert json.loads((tmp_path / "model.json").read_text())["unknown_below"] == below
    ours, theirs = (predict(path, [grey])[0] for path in (run, tmp_path / "model.onnx"))
    assert ours["known"] == theirs["known"] and ours["prediction"] == theirs["prediction"]
    assert evaluate(tmp_path / "model.onnx", photos)["unknown"]["below"] == below
