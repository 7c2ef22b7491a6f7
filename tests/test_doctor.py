"""What is odd about images is found, and nothing in images that are as they should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSES, fails, ok
from pictures import draw_arrows, photograph
from PIL import Image
from runtimes import needs_trainer

from tinytl_edge.runtime.doctor import describe, doctor
from tinytl_edge.runtime.files.bundle import Bundle

COLOURS = {"cat": (190, 90, 90), "dog": (90, 180, 100), "fox": (100, 100, 190)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve sharp images of each class."""
    for number, (name, colour) in enumerate(COLOURS.items()):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(12):
            photograph(100 * number + index, colour).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def found(content: dict[str, Any]) -> dict[str, list[str]]:
    """By kind of finding its files' names."""
    return {finding["kind"]: [Path(file).name for file in finding["files"]] for finding in content["findings"]}


def said(content: dict[str, Any], kind: str) -> str:
    return " ".join(finding["message"] for finding in content["findings"] if finding["kind"] == kind)


def test_nothing_is_odd_about_what_is_as_it_should_be(photos: Path) -> None:
    content = doctor(photos)
    assert content == {
        "images": 36,
        "classes": dict.fromkeys(CLASSES, 12),
        "findings": [],
        "accuracy": None,
        "unexamined": None,
    }
    assert describe(content).splitlines() == [
        "36 images of 3 classes", "  cat  12", "  dog  12", "  fox  12", "Nothing odd was found.",
    ]  # fmt: skip


def test_images_that_show_little(photos: Path) -> None:
    cat = photos / "cat"
    Image.new("RGB", (200, 200), (90, 20, 20)).save(cat / "lens cap.png")
    photograph(1000, (128, 128, 128)).point(lambda value: value // 20).save(cat / "night.png")
    photograph(1001, (128, 128, 128)).point(lambda value: 245 + value // 26).save(cat / "sun.png")
    photograph(1002, (128, 128, 128)).resize((8, 8)).resize((200, 200), Image.Resampling.BICUBIC).save(cat / "soft.png")
    photograph(1003, (128, 128, 128)).resize((40, 40)).save(cat / "thumbnail.png")
    (cat / "broken.png").write_bytes((cat / "1.png").read_bytes()[:100])
    content = doctor(photos)
    assert found(content) == {
        "unreadable": [next(iter(found(content)["unreadable"]))],
        "blank": ["lens cap.png"],
        "dark": ["night.png"],
        "bright": ["sun.png"],
        "blurred": ["soft.png"],
        "small": ["thumbnail.png"],
    }
    assert found(content)["unreadable"][0].startswith("broken.png (it is damaged")
    assert "(the smallest, 40 x 40 px, 4.0 times)" in said(content, "small")
    assert doctor(photos, resolution=32)["findings"][-1]["kind"] != "small"


def test_images_that_lie_on_their_side(photos: Path) -> None:
    lying = Image.open(photos / "dog" / "1.png")
    exif = lying.getexif()
    exif[0x0112] = 6
    lying.save(photos / "dog" / "1.png", exif=exif)
    assert found(doctor(photos)) == {"turned": ["1.png"]}


def test_names_that_were_hardly_meant(photos: Path) -> None:
    for name, number in (("Cat ", 1000), ("New folder", 2000)):
        (photos / name).mkdir()
        for index in range(10):
            photograph(number + index, COLOURS["cat"]).save(photos / name / f"{index}.png")
    (photos / "@eaDir").mkdir()
    shutil.copy(photos / "cat" / "0.png", photos / "@eaDir")
    content = doctor(photos)
    assert set(content["classes"]) == {*CLASSES, "Cat ", "New folder"}
    assert found(content) == {"names": ["Cat ", "cat"], "junk": ["New folder"]}
    assert "the names 'Cat ', 'cat' differ in case or spaces only, and count as 2 classes" in said(content, "names")


def test_images_where_they_are_not_looked_for(photos: Path) -> None:
    shutil.copytree(photos / "cat", photos / "dog" / "indoors")
    shutil.copy(photos / "cat" / "0.png", photos / "which.png")
    (photos / "fox" / "raw.dng").write_bytes(b"x")
    (photos / "owl").mkdir()
    content = doctor(photos)
    assert found(content) == {
        "loose": ["which.png"],
        "deeper": [f"{index}.png" for index in sorted(range(12), key=str)],
        "ending": ["raw.dng"],
        "empty": [],
    }
    assert "12 images in folders below it ('indoors') passed over" in said(content, "deeper")


def test_few_and_uneven(photos: Path) -> None:
    for index in range(3, 12):
        (photos / "fox" / f"{index}.png").unlink()
    content = doctor(photos)
    assert set(found(content)) == {"few", "uneven"}
    assert "1 class has fewer than 10 images" in said(content, "few") and "fox (3)" in said(content, "few")


def test_what_gives_a_class_away(photos: Path) -> None:
    for path in (photos / "fox").iterdir():
        Image.open(path).convert("L").resize((200, 150)).save(path.with_suffix(".jpg"))
        path.unlink()
    content = doctor(photos)
    assert [finding["kind"] for finding in content["findings"]] == 3 * ["given-away"]
    for words in ("are grey, and 0 of 24 others", "are wider than high", "are JPEG files"):
        assert f"12 of 12 images of 'fox' {words}" in said(content, "given-away")


def test_the_same_image_twice(photos: Path, tmp_path: Path) -> None:
    image = Image.open(photos / "cat" / "1.png")
    image.save(photos / "dog" / "again.jpg", quality=80)
    image.save(photos / "cat" / "again.jpg", quality=80)
    for name in CLASSES:
        (tmp_path / "val" / name).mkdir(parents=True)
        photograph(500 + len(name), COLOURS[name]).save(tmp_path / "val" / name / "0.png")
    shutil.copy(photos / "fox" / "3.png", tmp_path / "val" / "fox")
    content = doctor(photos, tmp_path / "val")
    kinds = found(content)
    assert {"two-classes", "same", "judged-and-learnt"} <= set(kinds)
    assert content["findings"][0]["files"] == (f"{photos / 'dog' / 'again.jpg'} ({photos / 'cat' / '1.png'})",)
    assert "1 image is judged on (of 4) and learnt from" in said(content, "judged-and-learnt")


def test_classes_of_one_side_only(photos: Path, tmp_path: Path, tiny: Bundle) -> None:
    for name in ("Fox", "cat", "owl"):
        (tmp_path / "val" / name).mkdir(parents=True)
        photograph(500 + len(name), (9 * len(name), 100, 100)).save(tmp_path / "val" / name / "0.png")
    words = said(doctor(photos, tmp_path / "val"), "class")
    assert "'Fox' is not a class of the images to train on: 'fox' is, which differs in case or spaces only" in words
    assert "'owl' is not a class of the images to train on." in words
    assert "has no folder for 'dog', 'fox' of the images to train on" in words
    (photos / "fox").rename(photos / "wolf")
    words = said(doctor(photos, bundle=tiny.path), "class")
    assert "'wolf' is not a class of the bundle." in words and "has no folder for 'fox' of the bundle" in words
    said_of_it = ok("doctor", photos, "--bundle", tiny.path)
    assert "The bundle's classifier did not look at the images: it has other classes.\n" in said_of_it


@needs_trainer
def test_wrong_labels_are_doubted(photos: Path, tiny: Bundle, tmp_path: Path) -> None:
    assert not doctor(photos, bundle=tiny.path)["findings"]
    photograph(900, COLOURS["fox"]).save(photos / "cat" / "wrong.png")
    content = doctor(photos, bundle=tiny.path)
    assert content["accuracy"] == pytest.approx(36 / 37)
    (finding,) = content["findings"]
    assert finding["kind"] == "label"
    assert [file.split(" (rather ")[0] for file in finding["files"]] == [str(photos / "cat" / "wrong.png")]


@needs_trainer
@pytest.mark.parametrize("mirrored", [True, False])
def test_mirror_images_are_found(mirrored: bool, tiny: Bundle, tmp_path: Path) -> None:
    draw_arrows(tmp_path / "arrows", mirrored)
    content = doctor(tmp_path / "arrows", bundle=tiny.path)
    assert ("mirror" in found(content)) == mirrored


def test_a_table_of_labels(photos: Path) -> None:
    rows = [f"{name}/{index}.png,{index % 2},{index % 3 == 0:d}" for name in CLASSES for index in range(12)]
    (photos / "labels.csv").write_text("\n".join(["file,red,large", *rows]))
    content = doctor(photos)
    assert content["classes"] == {"red": 18, "large": 12} and not content["findings"]


def test_the_command(photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 50)).save(photos / "cat" / "black.png")
    text = ok("doctor", photos, "--resolution", 32)
    assert "- 1 image is nearly black.\n" in text
    assert f"    {photos / 'cat' / 'black.png'}\n" in text
    content = json.loads(ok("doctor", photos, "--resolution", 32, "--json"))
    assert [finding["kind"] for finding in content["findings"]] == ["dark"]
    ok("pack", photos, "--resolution", 32, "--out", tmp_path / "packed")
    assert "name the folder that it was packed from" in fails(2, "doctor", tmp_path / "packed")
    assert "does not exist" in fails(4, "doctor", tmp_path / "none")
    assert "leave out either" in fails(2, "doctor", photos, "--bundle", tmp_path, "--resolution", 32)


def test_train_names_what_was_meant(photos: Path, tiny: Bundle, tmp_path: Path) -> None:
    (photos / "cat").rename(photos / "Cat")
    why = fails(4, "train", tiny.path, "--data", photos, "--out", tmp_path / "run")
    assert "Cat is not a class of the model ('cat' is, which differs in case or spaces only)" in why
