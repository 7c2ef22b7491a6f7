"""The demo goes the whole way, on given images, and its digits are what they should be."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from conftest import CLASSES, make_images
from PIL import Image

from tinytl_edge.demo import METHODS, TEST_DIGITS, TRAIN_DIGITS, demo, table, write_digits
from tinytl_edge.runtime.errors import DataError, UsageError


def test_both_methods_end_with_a_model(tmp_path: Path) -> None:
    data = make_images(tmp_path / "data", dict.fromkeys(CLASSES, 5))
    results = demo(tmp_path / "demo", data=data, resolution=32, epochs=1, threads=1)
    assert [result["method"] for result in results] == list(METHODS)
    for result in results:
        assert 0 <= result["accuracy"] <= 1 and result["peak_rss_bytes"] > 1_000_000
        assert onnx.load(result["onnx"]).graph.output[0].name == "logits"
    text = table(results)
    assert all(method in text for method in METHODS)
    with pytest.raises(UsageError, match="not an empty folder"):
        demo(tmp_path / "demo", data=data)


def test_every_fourth_image_is_held_out(tmp_path: Path) -> None:
    from tinytl_edge.demo import _split

    data = make_images(tmp_path / "data", {"cat": 8, "dog": 2})
    train, test = _split(data, tmp_path / "links")
    assert len(list((train / "cat").iterdir())) == 6 and len(list((test / "cat").iterdir())) == 2
    assert len(list((train / "dog").iterdir())) == 1 and len(list((test / "dog").iterdir())) == 1
    with pytest.raises(DataError, match="two or more"):
        _split(make_images(tmp_path / "few", {"cat": 1}), tmp_path / "other")


def test_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    train, test = write_digits(tmp_path)
    assert all(len(list((train / str(digit)).iterdir())) == TRAIN_DIGITS for digit in range(10))
    assert all(len(list((test / str(digit)).iterdir())) == TEST_DIGITS for digit in range(10))
    with Image.open(next((train / "0").iterdir())) as image:
        assert image.size == (8, 8) and image.mode == "L"
