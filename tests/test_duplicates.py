"""Nearly the same image in two classes, or learnt from and judged on."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import FRAMING
from conftest import CLASSES, ok, prepare
from pictures import picture

from tinytl_edge.runtime.images.dataset import Dataset, open_dataset
from tinytl_edge.runtime.images.duplicates import in_two_classes_said, learnt_and_judged, of_two_classes, same_images
from tinytl_edge.runtime.images.packing import pack


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures of each class."""
    for number, name in enumerate(CLASSES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(5):
            picture(10 * number + index).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def packed(folder: Path) -> Dataset:
    pack(folder, folder.with_suffix(".safetensors"), FRAMING, CLASSES)
    return open_dataset(folder.with_suffix(".safetensors"))


def test_other_pictures_raise_no_doubt(photos: Path, tmp_path: Path) -> None:
    dataset = packed(photos)
    assert same_images(dataset) == []
    for number, name in enumerate(CLASSES):
        (tmp_path / "val" / name).mkdir(parents=True)
        picture(100 + number).save(tmp_path / "val" / name / "0.png")
    assert learnt_and_judged(dataset, packed(tmp_path / "val")) == []


def test_a_picture_saved_anew_is_found_in_another_class(photos: Path) -> None:
    picture(0).save(photos / CLASSES[1] / "9.jpg", quality=70)
    picture(1).save(photos / CLASSES[0] / "9.jpg", quality=70)  # of the same class
    dataset = packed(photos)
    pairs = same_images(dataset)
    assert pairs == [(0, 11), (1, 5)]
    assert of_two_classes(dataset, pairs) == [(0, 11)]
    assert in_two_classes_said(dataset, [(0, 11)]).startswith(
        f"1 image is nearly the same as one of another class, as in '{CLASSES[0]}' and '{CLASSES[1]}'"
    )


def test_what_looks_alike_from_afar_is_not_the_same(photos: Path) -> None:
    """The same fingerprint, but other pixels: darker, as another thing before the same wall."""
    picture(0).point(lambda value: 0.5 * value).save(photos / CLASSES[1] / "9.png")
    assert same_images(packed(photos)) == []


def test_validation_images_that_are_learnt_from_are_counted(photos: Path, tmp_path: Path) -> None:
    for index, (seed, name) in enumerate([(0, CLASSES[0]), (11, CLASSES[1]), (11, CLASSES[1]), (99, CLASSES[2])]):
        (tmp_path / "val" / name).mkdir(parents=True, exist_ok=True)
        picture(seed).save(tmp_path / "val" / name / f"{index}.jpg")
    pairs = learnt_and_judged(packed(photos), packed(tmp_path / "val"))
    assert pairs == [(0, 0), (6, 1), (6, 2)]


def test_train_says_so(photos: Path, tmp_path: Path) -> None:
    picture(0).save(photos / CLASSES[1] / "9.jpg")
    bundle = prepare(tmp_path / "bundle", "--data", photos)
    said = ok("train", bundle, "--data", photos, "--val", photos, "--epochs", 1, "--out", tmp_path / "run", "--json")
    assert "as one of another class" in said and "16 images are judged on (of 16)" in said
