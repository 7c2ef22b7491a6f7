"""Images with more than 8 bits a pixel: a thermal camera's few counts become all grey values, everywhere alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, fails, ok, tinytl
from PIL import Image

from tinytl_edge.runtime.errors import DamagedFileError
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.images.decoding import UnusableImageError, find_deep, read_image
from tinytl_edge.runtime.images.framing import Framing

LOW, HIGH = 51000, 51900
SIZE = 32


def framing(*pixel_range: float) -> Framing:
    return Framing(SIZE, SIZE, 1, "squash", margin=False, pixel_range=pixel_range)


def ramp(path: Path, low: float = LOW, high: float = HIGH, kind: type = np.uint16) -> Path:
    """Rows of one number each, from low to high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.linspace(low, high, SIZE).astype(kind)
    Image.fromarray(np.repeat(rows[:, None], SIZE, axis=1)).save(path)
    return path


@pytest.fixture
def thermal(tmp_path: Path) -> Path:
    for number, name in enumerate("abc" * 4):
        ramp(tmp_path / "thermal" / name / f"{number}.png")
    return tmp_path / "thermal"


@pytest.mark.parametrize(
    ("ending", "kind"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32), ("tif", np.float32)]
)
def test_the_range_becomes_all_grey_values(tmp_path: Path, ending: str, kind: type) -> None:
    path = ramp(tmp_path / f"x.{ending}", kind=kind)
    pixels = np.frombuffer(read_image(path, framing(LOW, HIGH)), np.uint8).reshape(SIZE, SIZE)
    assert np.abs(pixels[:, 0] - np.linspace(0, 255, SIZE)).max() <= 1
    assert (pixels == pixels[:, :1]).all()


def test_what_lies_beyond_is_black_and_white(tmp_path: Path) -> None:
    pixels = np.frombuffer(read_image(ramp(tmp_path / "x.png"), framing(LOW + 300, HIGH - 300)), np.uint8)
    rows = pixels.reshape(SIZE, SIZE)[:, 0]
    assert (rows[:10] == 0).all()
    assert (rows[-10:] == 255).all()


def test_eight_bits_stay_as_they_are(tmp_path: Path) -> None:
    path = ramp(tmp_path / "x.png", 10, 200, np.uint8)
    assert read_image(path, framing(50, 60)) == read_image(path, framing())


def test_floating_point_needs_a_range(tmp_path: Path) -> None:
    path = ramp(tmp_path / "x.tif", -20.0, 45.0, np.float32)
    with pytest.raises(UnusableImageError, match="--pixel-range tells it"):
        read_image(path, framing())
    assert len(set(read_image(path, framing(-20.0, 45.0)))) == SIZE


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (LOW, HIGH, "use 51000 to 51900, 1.4 % of 0 to 65536: about 5 grey values are left. Prepare with"),
        (700, 700, "about 1 grey values are left. Prepare with --pixel-range 700:701"),
        (0, 30000, None),
    ],
)  # fmt: skip
def test_a_narrow_range_is_told_with_its_figures(tmp_path: Path, low: int, high: int, told: str | None) -> None:
    seen = find_deep([ramp(tmp_path / "x.png", low, high), ramp(tmp_path / "y.png", 0, 255, np.uint8)])
    assert (seen.images, seen.low, seen.high) == (1, low, high)
    assert told is None if (warning := seen.warning(())) is None else (told or "nothing") in warning
    assert seen.warning((low, max(high, low + 1))) is None or low == high


def test_the_bundle_keeps_the_range_for_everything(tmp_path: Path, thermal: Path) -> None:
    told = "about 5 grey values are left"
    bundle, how = tmp_path / "bundle", ("--data", thermal, "--out", tmp_path / "bundle")
    assert told in ok("prepare", *TINY, *how)
    assert told in ok("train", bundle, "--data", thermal, "--epochs", 1, "--out", tmp_path / "narrow", "--json")
    assert told not in ok("prepare", *TINY, "--pixel-range", "50900:52000", *how, "--overwrite")
    assert json.loads((bundle / "manifest.json").read_text())["input"]["pixel_range"] == [50900, 52000]
    assert told not in ok("train", bundle, "--data", thermal, "--epochs", 1, "--out", tmp_path / "run", "--json")
    ok("pack", thermal, "--bundle", bundle, "--out", tmp_path / "packed")
    with open_dataset(tmp_path / "packed") as packed:
        assert packed.framing.pixel_range == (50900, 52000)
        assert len(set(packed.image(0))) > SIZE / 2
    ok("predict", tmp_path / "run", next(thermal.rglob("*.png")))
    ok("export", tmp_path / "run", "--out", tmp_path / "model.onnx")
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["pixel_range"] == [50900, 52000]
    assert any("50900 becomes 0 and 52000 becomes 255" in sentence for sentence in about["in words"])
    ok("prepare", tmp_path / "model.onnx", "--data", thermal, "--out", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "manifest.json").read_text())["input"]["pixel_range"] == [50900, 52000]


def test_a_packed_file_of_another_range_is_not_taken(tmp_path: Path, thermal: Path) -> None:
    ok("pack", thermal, "--resolution", TINY[-1], "--pixel-range", "1:2", "--out", tmp_path / "packed")
    ok("prepare", *TINY, "--classes", "a,b,c", "--out", tmp_path / "bundle")
    assert "1:2 of deeper pixels" in fails(
        4, "train", tmp_path / "bundle", "--data", tmp_path / "packed", "--out", tmp_path / "run"
    )
    content = (tmp_path / "packed").read_bytes()
    (tmp_path / "packed").write_bytes(content.replace(b'"1:2"', b'"2:1"'))
    with pytest.raises(DamagedFileError, match="its pixel range is no low and high"):
        open_dataset(tmp_path / "packed")


@pytest.mark.parametrize("text", ["5", "a:b", "3:3", "9:1", "0:inf", "1:2:3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    answer = tinytl("prepare", *TINY, "--pixel-range", text, "--out", "x")
    assert answer.code == 2
    assert "is no range, as in 50900:52000" in answer.err
