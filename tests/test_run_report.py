"""A run's report: its figures, its words, its page."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import events, make_bundle
from conftest import CLASSES, fails, make_images, ok
from hypothesis import example, given
from hypothesis import strategies as st
from small_net import prepared
from tiny_models import Tiny

from tinytl_edge import TrainOptions, evaluate, predict, report, train
from tinytl_edge.pictures.charts import _ticks, calibration, lines
from tinytl_edge.pictures.report_page import _pairs
from tinytl_edge.runtime.errors import DataError, UsageError
from tinytl_edge.runtime.files.bundle import Bundle
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.verdict import verdict

OPTIONS = TrainOptions(epochs=4, start="one-pass", batch_size=4, log_every=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ with fifteen images of each class, one of them wrong; val/ with four."""
    folder = tmp_path_factory.mktemp("photos")
    make_images(folder / "data", dict.fromkeys(CLASSES, 15), seed=5)
    make_images(folder / "val", dict.fromkeys(CLASSES, 4), seed=6)
    first, second = sorted(CLASSES)[:2]
    (folder / "val" / first / "0.png").rename(folder / "val" / second / "wrong.png")
    return folder


@pytest.fixture(scope="module")
def run(runtime: str, tiny: Bundle, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(tiny.path, photos / "data", out=out, runtime=runtime, options=OPTIONS)
    return out


def test_what_was_held_out_is_judged_as_training_judged_it(run: Path) -> None:
    content, done = report(run), events(run)[-1]
    judged = content["judged"]
    assert (judged["on"], judged["images"]) == ("held-out", done["val_images"])
    for when, prefix in (("before", "start"), ("after", "val")):
        assert judged[when]["accuracy"] == pytest.approx(done[f"{prefix}_accuracy"])
        assert judged[when]["loss"] == pytest.approx(done[f"{prefix}_loss"], rel=1e-4)
    assert judged["after"]["interval"] == pytest.approx(done["val_interval"])
    assert [entry["images"] for entry in content["classes"]] == [15, 15, 15]


def test_validation_images_are_judged_by_what_was_written(
    tiny: Bundle, runtime: str, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(tiny.path, photos / "data", photos / "val", run, runtime=runtime, options=OPTIONS)
    judged, seen = report(run)["judged"], evaluate(run, photos / "val")
    assert judged["on"] == "val"
    assert judged["after"]["confusion"] == seen["confusion"]
    assert judged["after"]["loss"] == pytest.approx(seen["loss"], rel=1e-4)
    (mistake,) = [found for found in judged["mistakes"] if found["guess"] == sorted(CLASSES)[0]]
    with open_dataset(run / "val.safetensors") as dataset:
        assert dataset.classes[dataset.labels[mistake["image"]]] == mistake["label"] == sorted(CLASSES)[1]


def test_other_images_can_be_named(run: Path, photos: Path) -> None:
    judged = report(run, photos / "val")["judged"]
    answers = predict(run, sorted((photos / "val").glob("*/*.png")))
    wrong = [answer for answer in answers if next(iter(answer["probabilities"])) != Path(answer["image"]).parent.name]
    assert (judged["on"], judged["images"]) == ("data", len(answers))
    assert len(judged["mistakes"]) == len(wrong) > 0
    assert judged["mistakes"][0]["probability"] == pytest.approx(
        max(max(answer["probabilities"].values()) for answer in wrong), rel=1e-4
    )
    sure = [max(answer["probabilities"].values()) for answer in answers]
    assert sum(entry["images"] for entry in judged["after"]["calibration"]["bins"]) == len(sure)


def test_without_a_judge_it_says_so(tiny: Bundle, photos: Path, tmp_path: Path) -> None:
    train(tiny.path, photos / "val", out=tmp_path / "run", options=OPTIONS)
    content = report(tmp_path / "run", out=tmp_path / "page.html")
    assert content["judged"] is None and content["verdict"]["enough"] is None
    assert "Nobody knows how good it is" in (tmp_path / "page.html").read_text()
    assert content["verdict"]["sentences"][0].endswith(
        " With ten of each class some are held out. Others can be named here with --data."
    )
    train(tiny.path, photos / "data", out=tmp_path / "pass", options=replace(OPTIONS, epochs=0))
    assert "One pass alone holds none out." in report(tmp_path / "pass")["verdict"]["sentences"][0]


def test_several_labels(tmp_path: Path) -> None:
    many = make_bundle(tmp_path / "bundle", prepared(Tiny(len(CLASSES)), "bias"), multi_label=True)
    make_images(tmp_path / "photos", dict.fromkeys(CLASSES, 4))
    rows = [f"{name}/{index}.png,1,{index % 2},0" for name in CLASSES for index in range(4)]
    (tmp_path / "photos" / "labels.csv").write_text("\n".join([f"file,{','.join(CLASSES)}", *rows]))
    options = TrainOptions(epochs=2, batch_size=4)
    train(many.path, tmp_path / "photos", tmp_path / "photos", tmp_path / "run", options=options)
    content = report(tmp_path / "run", out=tmp_path / "page.html")
    seen = evaluate(tmp_path / "run", tmp_path / "photos")
    assert content["judged"]["after"]["accuracy"] == pytest.approx(seen["accuracy"])
    assert [entry["right"] / 12 for entry in content["judged"]["after"]["per_class"]] == pytest.approx(
        seen["per_class"]
    )
    assert "of the answers are right" in content["verdict"]["sentences"][0]


def test_what_cannot_be_reported(tiny: Bundle, run: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no run"):
        report(tiny.path)
    out = tmp_path / "run"
    train(tiny.path, photos / "data", photos / "val", out, options=OPTIONS)
    record = json.loads((out / "run.json").read_text())
    (out / "val.safetensors").unlink()
    with pytest.raises(DataError, match="is gone: name other images with --data"):
        report(out)
    (out / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    with pytest.raises(UsageError, match="did not come to its end"):
        report(out)


# Words --------------------------------------------------------------------------------------------------


def told(confusion: list[list[int]], before: list[list[int]] | None = None, **changes: Any) -> dict[str, Any]:
    """What `verdict` takes."""

    def measures(rows: list[list[int]]) -> dict[str, Any]:
        counts = np.array(rows)
        accuracy = float(np.trace(counts) / counts.sum())
        return {
            "accuracy": accuracy, "interval": [accuracy - 0.1, 1.0], "confusion": rows,
            "per_class": [{"images": sum(row), "right": row[index]} for index, row in enumerate(rows)],
        }  # fmt: skip

    judged = {
        "on": "held-out", "images": sum(map(sum, confusion)), "gained": 0, "lost": 0, "after": measures(confusion),
        "before": measures(before) if before else None, "before_is": "at the start", **changes,
    }  # fmt: skip
    return {
        "classes": [{"name": name, "images": 20} for name in ("ant", "bee", "cow")],
        "judged": judged, "curve": {"epochs": [{"train_accuracy": 1.0}]}, "aligned": None, "old_place": None,
        "training": {"result": {"share": 0.5, "left_out_accuracy": 0.9}},
    }  # fmt: skip


def test_enough_is_said() -> None:
    said = verdict(told([[19, 1, 0], [0, 20, 0], [0, 0, 20]], [[10, 5, 5], [0, 20, 0], [0, 0, 20]], gained=9))
    assert (said["enough"], said["headline"]) == (True, "Learnt enough")
    assert said["sentences"] == [
        "It is right in 59 of 60 images that were held out, 98.3% (of all images likely 88% to 100%); at the start in "
        "50.",
        "9 images came right, 0 went wrong.",
    ]


def test_how_much_few_images_can_tell_is_said() -> None:
    content = told([[8, 0, 0], [0, 8, 0], [0, 0, 8]])
    content["judged"]["after"]["interval"] = [0.7, 1.0]
    assert verdict(content)["headline"] == "Learnt enough, as far as 24 images can tell"


def test_what_would_help_is_said() -> None:
    said = verdict(told([[2, 1, 5], [0, 8, 0], [0, 0, 8]], gained=3, lost=2))
    assert (said["enough"], said["headline"]) == (False, "Needs more images of 'ant'")
    assert said["sentences"][1:] == [
        "3 images came right, 2 went wrong: so small a difference may be chance.",
        "'ant' is right in 2 of 8, and most often taken for 'cow' (5); it learnt from 20 images of it.",
        "Of its own images it knows 100.0%, far more than of others: more images would help most.",
        "24 images tell little: more, in --val, would tell more exactly.",
    ]
    assert verdict(told([[8, 2, 0], [0, 8, 2], [2, 0, 8]]))["headline"] == "Needs more images of every class"


# Pages and charts ---------------------------------------------------------------------------------------


class _Tags(HTMLParser):
    """Checks that what opens is closed, and collects addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_by_itself(run: Path, photos: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    content = report(run, photos / "val", out=page)
    tags = _Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    assert not tags.open
    assert len(tags.addresses) == len(content["judged"]["mistakes"]) > 0
    assert all(address.startswith("data:image/jpeg;base64,") for address in tags.addresses)
    for words in (content["verdict"]["headline"], *content["verdict"]["sentences"], *CLASSES, "peak memory, training"):
        assert words in tags.text


def test_of_many_classes_the_most_frequent_confusions_are_listed() -> None:
    confusion = np.diag(np.full(40, 9))
    confusion[3, 5], confusion[7, 0] = 4, 6
    text = _pairs(confusion.tolist(), [f"kind {index}" for index in range(40)])
    assert re.findall(r"<td>(.*?)</td>", text) == ["kind 7", "kind 0", "6 of 15", "kind 3", "kind 5", "4 of 13"]


def test_names_of_classes_are_no_markup(tiny: Bundle, tmp_path: Path) -> None:
    names = ("<b>&", "a\"'", "<script>alert(1)</script>")
    other = make_bundle(tmp_path / "bundle", prepared(Tiny(len(CLASSES)), "bias"), classes=names)
    for name, kind in zip(names, CLASSES):
        make_images(tmp_path / "made", {kind: 4})
        (tmp_path / "photos").mkdir(exist_ok=True)
        if "/" in name:
            continue
        (tmp_path / "made" / kind).rename(tmp_path / "photos" / name)
    train(other.path, tmp_path / "photos", tmp_path / "photos", tmp_path / "run", options=OPTIONS)
    report(tmp_path / "run", out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "&lt;b&gt;&amp;" in page


def test_the_command(run: Path, tmp_path: Path) -> None:
    text = ok("report", run)
    assert text.endswith(f"{run / 'report.html'}: the page, to be opened in a browser\n")
    content = json.loads(ok("report", run, "--json"))
    assert text.startswith(content["verdict"]["headline"] + ".\n")
    assert "is no run" in fails(2, "report", tmp_path)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_inside(low: float, width: float) -> None:
    ticks = _ticks(low, low + width)
    assert 1 <= len(ticks) <= 7
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in ticks)


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 1)), max_size=30), st.booleans())
@example([(0.0, 5e-324)], False)
def test_lines_stay_inside_their_chart(points: list[tuple[float, float]], percent: bool) -> None:
    svg = lines([("ours", "<name>", points)], "x", "y", percent)
    assert (svg == "") == (not points)
    for x, y in re.findall(r'cx="([^"]+)" cy="([^"]+)"', svg):
        assert 0 <= float(x) <= 640 and 0 <= float(y) <= 240 and math.isfinite(float(x))
    assert "<name>" not in svg


def test_dots_are_as_large_as_many_images() -> None:
    svg = calibration([(0.5, 0.5, 1), (0.9, 0.8, 100)], "title")
    small, large = (float(radius) for radius in re.findall(r' r="([^"]+)"', svg))
    assert large > 2 * small


def test_images_of_several_labels_are_held_out_too(runtime: str, tmp_path: Path) -> None:
    many = make_bundle(tmp_path / "bundle", prepared(Tiny(len(CLASSES)), "bias"), multi_label=True)
    make_images(tmp_path / "photos", dict.fromkeys(CLASSES, 12), seed=3)
    rows = [f"{name}/{index}.png,{name < 'd':d},{index % 2},0" for name in CLASSES for index in range(12)]
    (tmp_path / "photos" / "labels.csv").write_text("\n".join([f"file,{','.join(CLASSES)}", *rows]))
    options = TrainOptions(epochs=4, batch_size=4)
    done = train(many.path, tmp_path / "photos", out=tmp_path / "run", runtime=runtime, options=options)
    assert (done["judge"], done["val_images"], done["unknown"]) == ("held-out", 7, None)
    judged = report(tmp_path / "run")["judged"]
    assert (judged["images"], judged["after"]["accuracy"]) == (7, pytest.approx(done["val_accuracy"]))
