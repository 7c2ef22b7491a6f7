"""What was meant as images and is none, or lies where it is not looked for, is named."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest
from bundles import FRAMING
from conftest import CLASSES, TINY, fails, make_images, ok, prepare
from hypothesis import given
from hypothesis import strategies as st

from tinytl_edge.runtime.errors import DataError
from tinytl_edge.runtime.images.folders import IMAGE_ENDINGS
from tinytl_edge.runtime.images.overlooked import passed_over
from tinytl_edge.runtime.images.packing import pack


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    make_images(tmp_path / "photos", dict.fromkeys(CLASSES, 4))
    return tmp_path / "photos"


def test_files_with_other_endings_are_counted_by_class(photos: Path) -> None:
    first, second, third = (photos / name for name in CLASSES)
    for name in ("0.dng", "1.jpg_large", "2", "3", "x.JXL"):
        (first / name).write_bytes(b"x")
    (second / "1.jpg.1").write_bytes(b"x")
    for name in ("notes.txt", "labels.json", "Thumbs.db", ".hidden", "5.JPEG"):
        (third / name).write_bytes(b"x")
    (third / "folder.dng").mkdir()
    said = {
        first: f"{first}: 5 files are passed over, by their endings no images that can be read "
        "(.dng, .jpg_large, .jxl, 2 without an ending).",
        second: f"{second}: 1 file is passed over, by its ending no image that can be read (.1).",
    }
    assert [finding.message for finding in passed_over(photos)] == [said[path] for path in sorted(said)]


@given(st.sampled_from(sorted(IMAGE_ENDINGS)), st.booleans())
def test_what_is_taken_is_not_passed_over(tmp_path_factory: pytest.TempPathFactory, ending: str, upper: bool) -> None:
    folder = tmp_path_factory.mktemp("taken") / "cat"
    folder.mkdir()
    (folder / f"1{ending.upper() if upper else ending}").write_bytes(b"x")
    assert passed_over(folder.parent) == []


def test_every_command_says_so(photos: Path, tmp_path: Path) -> None:
    (photos / CLASSES[0] / "9.dng").write_bytes(b"x")
    sentence = f"{photos / CLASSES[0]}: 1 file is passed over"
    assert sentence in ok("prepare", *TINY, "--data", photos, "--out", tmp_path / "bundle")
    warnings: list[str] = []
    pack(photos, tmp_path / "packed", FRAMING, on_warning=warnings.append)
    assert [warning for warning in warnings if warning.startswith(sentence)]
    out = ok("train", tmp_path / "bundle", "--data", photos, "--epochs", 1, "--out", tmp_path / "run", "--json")
    assert sentence in out
    for path in (photos / CLASSES[0]).glob("*.png"):
        path.unlink()
    why = fails(4, "prepare", *TINY, "--data", photos, "--out", tmp_path / "none")
    assert "has no images" in why and sentence in why


def test_an_archive_or_an_image_in_the_place_of_a_folder_is_named(photos: Path, tmp_path: Path) -> None:
    bundle = prepare(tmp_path / "bundle", "--data", photos)
    zipped = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos))
    with tarfile.open(tmp_path / "photos.tgz", "w:gz") as archive:
        archive.add(photos)
    picture = photos / CLASSES[0] / "0.png"
    for file, said in (
        (zipped, "is a zip archive: unpack it first and name the folder of its images"),
        (tmp_path / "photos.tgz", "is an archive: unpack it first and name the folder of its images"),
        (picture, "is an image (PNG): name a folder of images, or a packed dataset"),
    ):
        assert f"{file} {said}." in fails(3, "train", bundle, "--data", file, "--out", tmp_path / "run")
        assert f"{file} {said}." in fails(3, "prepare", *TINY, "--data", file, "--out", tmp_path / "b")
        assert f"{file} {said}." in fails(3, "evaluate", bundle, "--data", file)


def test_folders_in_the_names_of_files(photos: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.glob("*/*.png"):
        shutil.copy(path, flat / f"train\\{path.parent.name}\\{path.name}")
    with pytest.raises(DataError, match=r"names hold their folders \(train\\\w+\\0\.png\): an archive from Windows"):
        pack(flat, tmp_path / "packed", FRAMING)


def test_a_table_that_was_written_on_windows(photos: Path, tmp_path: Path) -> None:
    rows = ("Filename,hat,smile", f"{CLASSES[0]}\\0.png,1,0", f"{CLASSES[0]}/1.png,0,1", "")
    (photos / "labels.csv").write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    assert pack(photos, tmp_path / "packed", FRAMING).counts == {"hat": 1, "smile": 1}


@pytest.mark.parametrize("table", ["id,breed\n1,a\n", "file,label\n{0}/0.png,{0}\n"])
def test_a_table_beside_class_folders_is_named_as_the_reason(photos: Path, tmp_path: Path, table: str) -> None:
    (photos / "labels.csv").write_text(table.format(CLASSES[0]))
    with pytest.raises(DataError, match=r"It makes the images multi-label; where .* has a folder for each class"):
        pack(photos, tmp_path / "packed", FRAMING)
