"""A file that is something else than it was taken for is told what it is, and what to do."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, fails, make_image

from tinytl_edge.runtime.files.kinds import kind_in_words


def archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"content")


def saved_model(path: Path) -> None:
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"\x08\x01")


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "lfs.tflite": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid"), "a Git LFS pointer, not"),
    "page.onnx": (lambda p: p.write_text("\n<!DOCTYPE html><html></html>"), "a web page, not the file itself"),
    "empty.tflite": (lambda p: p.touch(), "empty"),
    "zeros.tflite": (lambda p: p.write_bytes(bytes(99)), "filled with zeros"),
    "keras.h5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), "a Keras HDF5 file: convert it with"),
    "model.keras": (lambda p: archive(p, "config.json", "model.weights.h5"), "a Keras file: convert it with"),
    "converted_tflite.zip": (lambda p: archive(p, "labels.txt", "model.tflite"), "a zip archive with model.tflite"),
    "cut.zip": (lambda p: p.write_bytes(b"PK\x03\x04rest"), "a damaged zip archive"),
    "saved_model": (saved_model, "a SavedModel folder: convert it with `tflite_convert --saved_model_dir "),
    "graph.pb": (lambda p: p.write_bytes(b"\x0a\x10\x0a\x05input\xff"), "a TensorFlow graph"),
    "pickled.onnx": (lambda p: p.write_bytes(pickle.dumps({}, 2)), "a Python pickle"),
    "photo.tflite": (lambda p: make_image(p.with_suffix(".png"), (1, 2, 3)).rename(p), "an image (PNG)"),
    "text.onnx": (lambda p: p.write_text("cat\ndog\n"), "a text"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_everywhere_where_a_file_is_given(name: str, tmp_path: Path) -> None:
    make, words = CASES[name]
    path = tmp_path / name
    make(path)
    found = kind_in_words(path)
    assert found is not None
    assert found.startswith(words)
    out = tmp_path / "out"
    if name != "pickled.onnx" and name != "graph.pb":
        assert f"it is {words}" in fails(3, "prepare", path, "--classes", "a,b", "--out", out)
        weights = fails(3, "prepare", *TINY, "--classes", 2, "--weights", path, "--out", out)
        assert f"it is {words}" in weights
    assert f"it is {words}" in fails(3, "inspect", path)
    assert not out.exists()


def test_what_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"\x9c\x81\xff\x03\x99\x12\x00\xab\xcd\xef")
    assert kind_in_words(tmp_path / "noise") is None
    assert kind_in_words(tmp_path / "gone") is None
