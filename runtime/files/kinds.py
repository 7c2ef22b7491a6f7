"""What a file or folder is that is not what it was taken for, in words that go on after "is"."""

from __future__ import annotations

from pathlib import Path

_START = 4096
_TO_TFLITE = "convert it with `tflite_convert --{option} {path} --output_file model.tflite`"
_IMAGES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP"}


def kind_in_words(path: Path) -> str | None:
    """Of what people have in the place of a model, and what to do with it; None for what is not known."""
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return f"a SavedModel folder: {_TO_TFLITE.format(option='saved_model_dir', path=path)}"
        return "a folder"
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError:
        return None
    return _by_content(path, start)


def _by_content(path: Path, start: bytes) -> str | None:
    if not start:
        return "empty"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: fetch that with `git lfs pull`"
    if start[4:8] == b"TFL3":
        return "a TFLite file"
    if start[4:8] == b"ORTM":
        return "an ORT-format file of onnxruntime: give the ONNX file that it was made from"
    if start.startswith(b"\x89HDF"):
        return f"a Keras HDF5 file: {_TO_TFLITE.format(option='keras_model_file', path=path)}"
    if start.startswith(b"PK\x03\x04"):
        return _archive(path)
    if start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
        return "an archive: unpack it first"
    if start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "a Python pickle, as PyTorch writes it"
    if any(start.startswith(mark) for mark in _IMAGES):
        return f"an image ({next(name for mark, name in _IMAGES.items() if start.startswith(mark))})"
    if (
        start[:1] == b"\x08"
        and start[4:8] != bytes(4)
        and (path.suffix.lower() == ".onnx" or b"onnx" in start[:200].lower())
    ):
        return "an ONNX file"
    if path.suffix.lower() == ".pb":
        how = _TO_TFLITE.format(option="saved_model_dir", path="DIR")
        return f"a TensorFlow graph: of its SavedModel folder, {how}"
    if start.lstrip()[:1] == b"<":
        return "a web page, not the file itself: the download went wrong"
    if not any(start):
        return "filled with zeros: the copy went wrong"
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in start):
        return "a text"
    return None


def _archive(path: Path) -> str:
    import zipfile  # only here: a board has better uses for its memory

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged zip archive: the download went wrong"
    models = [name for name in names if name.lower().endswith((".tflite", ".lite", ".onnx"))]
    if models:
        return f"a zip archive with {models[0]} in it: unpack it first"
    if "config.json" in names and any(name.endswith(".h5") for name in names):
        return f"a Keras file: {_TO_TFLITE.format(option='keras_model_file', path=path)}"
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch file"
    return "a zip archive: unpack it first"
