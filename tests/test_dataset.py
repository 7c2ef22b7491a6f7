"""Photographs of every kind become samples, and whatever cannot is named."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tinytl_edge.runtime.dataset import (
    FORMAT,
    Dataset,
    find_photographs,
    open_dataset,
    pack,
    pack_files,
    stored_size,
)
from tinytl_edge.runtime.errors import DamagedFileError, DataError, StorageError, UsageError
from tinytl_edge.runtime.tensors import open_tensors, write_tensors

RED, GREEN, BLUE, WHITE = (200, 30, 40), (20, 180, 60), (30, 50, 190), (255, 255, 255)
R = 7  # packs to 8 x 8


def photograph(
    path: Path, colour: Any = RED, size: tuple[int, int] = (20, 16), mode: str = "RGB", **how: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **how)
    return path


def packed(path: Path, tmp_path: Path, resolution: int = R) -> list[list[tuple[int, ...]]]:
    """The one picture as packed: rows of (r, g, b)."""
    out = tmp_path / "one.safetensors"
    pack_files([path], out, resolution)
    with open_dataset(out) as dataset:
        pixels, side = dataset.image(0), dataset.size
    triples: list[tuple[int, ...]] = list(zip(pixels[0::3], pixels[1::3], pixels[2::3]))
    return [triples[row * side : (row + 1) * side] for row in range(side)]


def assert_plain(rows: list[list[tuple[int, ...]]], colour: tuple[int, int, int], tolerance: int = 0) -> None:
    worst = max(abs(a - b) for row in rows for pixel in row for a, b in zip(pixel, colour))
    assert worst <= tolerance, f"{rows[0][0]} is not {colour}"


# The file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resolution", "size"), [(1, 2), (7, 8), (96, 110), (160, 183), (224, 256), (260, 298)]
)
def test_stored_size(resolution: int, size: int) -> None:
    assert stored_size(resolution) == size


def test_packing_and_opening(tmp_path: Path) -> None:
    photographs = tmp_path / "flowers"
    for path, colour in {"tulip/b.png": RED, "tulip/a.PNG": GREEN, "daisy/1.bmp": BLUE}.items():
        photograph(photographs / path, colour)
    progress: list[tuple[int, int]] = []
    warnings: list[str] = []
    out = tmp_path / "data.safetensors"
    report = pack(
        photographs, out, R, on_warning=warnings.append, on_progress=lambda *step: progress.append(step)
    )
    assert report.counts == {"daisy": 1, "tulip": 2}
    assert (report.path, report.count, report.skipped, warnings) == (out, 3, [], [])
    assert progress == [(1, 3), (2, 3), (3, 3)]
    with open_dataset(out) as dataset:
        assert (dataset.path, dataset.count, dataset.size, dataset.resolution) == (out, 3, 8, 7)
        assert (dataset.classes, dataset.labels) == (["daisy", "tulip"], [0, 1, 1])
        assert [dataset.image(i) for i in range(3)] == [bytes(c) * 64 for c in (BLUE, GREEN, RED)]
        for index in (-1, 3):
            with pytest.raises(IndexError):
                dataset.image(index)


def test_an_open_dataset_is_let_go_and_not_mixed_up(tmp_path: Path) -> None:
    red, blue = photograph(tmp_path / "red.png", RED), photograph(tmp_path / "blue.png", BLUE)
    out = tmp_path / "data"
    pack_files([red], out, R)
    dataset = open_dataset(out)
    pack_files([blue], out, R)
    assert dataset.image(0) == bytes(RED) * 64, "the replaced file was read"
    dataset.close()
    dataset.close()
    with pytest.raises(ValueError, match="closed"):
        dataset.image(0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        open_dataset(out)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_importing_is_cheap() -> None:
    code = "import sys, tinytl_edge.runtime.dataset; print([m for m in ('PIL', 'numpy') if m in sys.modules])"
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


GOOD = {"format": FORMAT, "version": "1", "classes": '["a", "b"]', "resolution": "7"}
IMAGES = ("images", "U8", (2, 8, 8, 3), bytes(384))
LABELS = ("labels", "I32", (2,), struct.pack("<2i", 0, 1))


def labels(*numbers: int) -> tuple[str, str, tuple[int, ...], bytes]:
    return "labels", "I32", (len(numbers),), struct.pack(f"<{len(numbers)}i", *numbers)


DAMAGED: dict[str, tuple[list[Any], dict[str, str], str]] = {
    "another file": ([IMAGES, LABELS], {"format": "pt"}, "not written by 'tinytl-edge pack'"),
    "later version": ([IMAGES, LABELS], {"version": "2"}, "version '2', not '1'"),
    "no resolution": ([IMAGES, LABELS], {"resolution": ""}, "resolution is not a number"),
    "odd resolution": ([IMAGES, LABELS], {"resolution": "7_0"}, "resolution is not a number"),
    "other resolution": ([IMAGES, LABELS], {"resolution": "14"}, r"not U8 \[N, 16, 16, 3\] as resolution 14"),
    "classes no JSON": ([IMAGES, LABELS], {"classes": "a, b"}, "classes are not a list"),
    "classes without end": ([IMAGES, LABELS], {"classes": "[" * 200_000}, "classes are not a list"),
    "classes a table": ([IMAGES, LABELS], {"classes": '{"a": 1}'}, "classes are not a list"),
    "classes numbers": ([IMAGES, LABELS], {"classes": "[1, 2]"}, "classes are not a list"),
    "no images": ([LABELS], {}, "no tensor 'images'"),
    "no labels": ([IMAGES], {}, "no tensor 'labels'"),
    "images of bytes": ([("images", "I8", *IMAGES[2:]), LABELS], {}, r"images are I8 \[2, 8, 8, 3\], not U8"),
    "images flat": (
        [("images", "U8", (2, 192), bytes(384)), LABELS],
        {},
        r"images are U8 \[2, 192\], not U8",
    ),
    "labels wide": ([IMAGES, ("labels", "I64", (2,), bytes(16))], {}, r"labels are I64 \[2\], not I32 \[2\]"),
    "labels too few": ([IMAGES, labels(0)], {}, r"labels are I32 \[1\], not I32 \[2\]"),
    "label too high": ([IMAGES, labels(0, 2)], {}, "label 2 of sample 1 is none of its 2 classes"),
    "label negative": ([IMAGES, labels(-1, 0)], {}, "label -1 of sample 0"),
    "label without classes": ([IMAGES, labels(-1, 0)], {"classes": "[]"}, "label 0 of sample 1"),
    "no samples": ([("images", "U8", (0, 8, 8, 3), b""), labels()], {}, "no samples"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_each_kind_of_damage_is_named(tmp_path: Path, case: str) -> None:
    tensors, metadata, sentence = DAMAGED[case]
    path = tmp_path / "broken.safetensors"
    write_tensors(path, tensors, {**GOOD, **metadata})
    with pytest.raises(DamagedFileError, match=sentence) as caught:
        open_dataset(path)
    assert str(path) in str(caught.value)


def test_the_undamaged_file_of_these_cases_opens(tmp_path: Path) -> None:
    write_tensors(tmp_path / "f", [IMAGES, LABELS], GOOD)
    assert open_dataset(tmp_path / "f").labels == [0, 1]


def test_a_file_that_shrinks_while_open_is_named(tmp_path: Path) -> None:
    write_tensors(tmp_path / "f", [LABELS, IMAGES], GOOD)
    dataset = open_dataset(tmp_path / "f")
    os.truncate(tmp_path / "f", (tmp_path / "f").stat().st_size - 1)
    assert len(dataset.image(0)) == 192
    with pytest.raises(DamagedFileError, match="ends inside image 1"):
        dataset.image(1)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed-dataset.safetensors"
    write_tensors(path, [IMAGES, LABELS], GOOD)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) - 20, len(content)))])
    try:
        dataset = open_dataset(path)
    except DamagedFileError:
        return
    assert all(len(dataset.image(i)) == 192 for i in range(dataset.count))


# Finding ------------------------------------------------------------------------------------------------


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")


def test_photographs_are_found_by_class_and_sorted(tmp_path: Path) -> None:
    wanted = ["b/1.jpg", "b/2.JPEG", "b/3.Png", "a/x.webp", "ä ö/1.ppm", "line\nbreak/1.gif", "1.jpg/1.heic"]
    other = [
        ".hidden/1.jpg",
        "a/.1.jpg",
        "a/notes.txt",
        "a/jpg",
        "a/deep/1.jpg",
        "loose.jpg",
        "__MACOSX/b/1.jpg",
    ]
    touch(*(tmp_path / name for name in wanted + other))
    (tmp_path / "a" / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "linked.jpg").symlink_to(tmp_path / "b" / "1.jpg")
    found = find_photographs(tmp_path)
    assert list(found) == ["1.jpg", "a", "b", "empty", "line\nbreak", "link", "ä ö"]
    assert {name: [path.name for path in paths] for name, paths in found.items()} == {
        "1.jpg": ["1.heic"],
        "a": ["gone.jpg", "linked.jpg", "x.webp"],
        "b": ["1.jpg", "2.JPEG", "3.Png"],
        "empty": [],
        "line\nbreak": ["1.gif"],
        "link": ["1.jpg", "2.JPEG", "3.Png"],
        "ä ö": ["1.ppm"],
    }
    assert found["b"][0] == tmp_path / "b" / "1.jpg"


def test_a_decomposed_name_is_the_same_class(tmp_path: Path) -> None:
    photograph(tmp_path / "photos" / "Blu\u0308te" / "1.png")
    assert list(find_photographs(tmp_path / "photos")) == ["Bl\u00fcte"]
    for name in ("Bl\u00fcte", "Blu\u0308te"):
        assert pack(tmp_path / "photos", tmp_path / "out", R, classes=[name]).counts == {name: 1}


def test_a_class_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).mkdir()
    with pytest.raises(DataError, match=r"caf\\udce9' has a name that is not Unicode text"):
        find_photographs(tmp_path)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "has no class folders: it needs one for each class"),
        (["notes.txt"], "has no class folders: it needs one for each class"),
        (["1.jpg", "2.jpg"], r"holds photographs but no class folders: put each into .*daisy/1\.jpg"),
        (["test/a/1.jpg", "train/a/1.jpg"], r"'test', 'train' inside it does: .* for example .*/train\."),
        (["flowers/a/1.jpg"], r"'flowers' inside it does: .* for example .*/flowers\."),
    ],
)
def test_a_folder_arranged_otherwise_is_explained(tmp_path: Path, files: list[str], sentence: str) -> None:
    touch(*(tmp_path / name for name in files))
    with pytest.raises(DataError, match=sentence) as caught:
        find_photographs(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "file")
    with pytest.raises(DataError, match=r"nothing does not exist"):
        find_photographs(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"file cannot be read as a folder"):
        find_photographs(tmp_path / "file")


# Packing ------------------------------------------------------------------------------------------------


def test_the_models_classes_give_the_labels(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photograph(tmp_path / "photos" / name / "1.png")
    warnings: list[str] = []
    out = tmp_path / "out"
    report = pack(tmp_path / "photos", out, R, classes=["b", "c", "a"], on_warning=warnings.append)
    assert report.counts == {"b": 1, "c": 0, "a": 1}
    assert warnings == [f"{tmp_path / 'photos'} has no usable photographs of 'c'."]
    with open_dataset(out) as dataset:
        assert (dataset.classes, dataset.labels) == (["b", "c", "a"], [2, 0])


def test_a_class_that_the_model_does_not_know_is_named(tmp_path: Path) -> None:
    photograph(tmp_path / "photos" / "weed" / "1.png")
    known = [f"c{i}" for i in range(1000)]
    with pytest.raises(DataError, match=r"photos/weed is not a class .* 'c0', .*'c9' and 990 more: rename"):
        pack(tmp_path / "photos", tmp_path / "out", R, classes=known)
    assert not (tmp_path / "out").exists()


def test_many_missing_classes_are_one_warning(tmp_path: Path) -> None:
    photograph(tmp_path / "photos" / "c5" / "1.png")
    warnings: list[str] = []
    known = [f"c{i}" for i in range(20_000)]
    pack(tmp_path / "photos", tmp_path / "out", R, classes=known, on_warning=warnings.append)
    assert len(warnings) == 1
    assert warnings[0].endswith("'c10' and 19989 more.")
    with open_dataset(tmp_path / "out") as dataset:
        assert (dataset.classes, dataset.labels) == (known, [5])


def jpeg(**how: Any) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, "JPEG", **how)
    return file.getvalue()


def test_what_is_no_picture_is_skipped_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "a"
    photograph(folder / "good.png")
    contents = {
        "empty.jpg": (b"", "it is empty"),
        "text.png": (b"hello", "not a picture in a format that can be read here"),
        "truncated.jpg": (jpeg()[:1500], "image file is truncated"),
        "script.gif": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture in a format"),
        "phone.heic": (b"\0\0\0\x18ftypheic", "not a picture in a format"),
        "line\nbreak.jpg": (b"hello", "not a picture in a format"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    (folder / "gone.jpg").symlink_to("nowhere")
    Image.new("F", (9, 9), 0.5).save(folder / "float.tiff")
    png = bytearray((folder / "good.png").read_bytes())
    png[png.index(b"IDAT") + 8] ^= 0xFF
    (folder / "corrupt.png").write_bytes(png)

    warnings: list[str] = []
    report = pack(tmp_path / "photos", tmp_path / "out", R, on_warning=warnings.append)
    reasons = {path.name: reason for path, reason in report.skipped}
    expected = {name: reason for name, (_, reason) in contents.items()}
    expected.update(
        {"gone.jpg": "No such file", "float.tiff": "unknown range", "corrupt.png": "it is damaged"}
    )
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name]
    assert report.counts == {"a": 1}
    assert len(warnings) == len(expected)
    assert all("\n" not in sentence and " was skipped: " in sentence for sentence in warnings)


@pytest.mark.parametrize("limit", [200, 399])  # an error from twice the limit on, a warning before
def test_a_decompression_bomb_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    photograph(tmp_path / "photos" / "a" / "bomb.png", size=(20, 21))
    photograph(tmp_path / "photos" / "a" / "good.png", size=(10, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    report = pack(tmp_path / "photos", tmp_path / "out", R)
    assert report.count == 1
    assert [(path.name, reason) for path, reason in report.skipped] == [
        ("bomb.png", "it has more pixels than are safe to decode")
    ]


def test_a_class_of_broken_pictures_is_a_warning_and_all_broken_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "photos" / "a" / "1.jpg")
    (tmp_path / "photos" / "b").mkdir()
    out = tmp_path / "out"
    out.write_bytes(b"the earlier one")
    with pytest.raises(DataError, match="has no photographs that can be used"):
        pack(tmp_path / "photos", out, R)
    assert out.read_bytes() == b"the earlier one"
    (tmp_path / "photos" / "a" / "1.jpg").unlink()
    with pytest.raises(DataError, match="has no photographs in its class folders"):
        pack(tmp_path / "photos", out, R)
    touch(tmp_path / "photos" / "a" / "1.jpg")
    photograph(tmp_path / "photos" / "b" / "1.png")
    warnings: list[str] = []
    pack(tmp_path / "photos", out, R, on_warning=warnings.append)
    assert len(warnings) == 2
    assert warnings[1].endswith("has no usable photographs of 'a'.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_a_resolution_must_be_positive(tmp_path: Path) -> None:
    photograph(tmp_path / "photos" / "a" / "1.png")
    with pytest.raises(UsageError, match="resolution cannot be 0"):
        pack(tmp_path / "photos", tmp_path / "out", 0)


def test_a_full_disk_leaves_the_earlier_dataset(tmp_path: Path) -> None:
    photograph(tmp_path / "photos" / "a" / "1.png")
    out = tmp_path / "out"
    out.write_bytes(b"the earlier one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match="out could not be written"):
            pack(tmp_path / "photos", out, 224)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_bytes() == b"the earlier one"
    with pytest.raises(StorageError):
        pack(tmp_path / "photos", out / "below", R)


def test_unlabelled_pictures_keep_their_order(tmp_path: Path) -> None:
    paths = [photograph(tmp_path / f"{i}.png", colour) for i, colour in enumerate((RED, GREEN, BLUE))]
    pack_files(reversed(paths), tmp_path / "out", R)
    with open_dataset(tmp_path / "out") as dataset:
        assert (dataset.classes, dataset.labels) == ([], [-1, -1, -1])
        assert [dataset.image(i)[:3] for i in range(3)] == [bytes(c) for c in (BLUE, GREEN, RED)]


def test_an_unreadable_picture_to_predict_is_an_error(tmp_path: Path) -> None:
    good = photograph(tmp_path / "good.png")
    bad = {"missing.png": "No such file", "folder": "not a file", "empty.png": "it is empty"}
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    for name, reason in bad.items():
        with pytest.raises(DataError, match=f"{name} cannot be used: .*{reason}"):
            pack_files([good, tmp_path / name], tmp_path / "out", R)
    with pytest.raises(DataError, match="No picture was named"):
        pack_files([], tmp_path / "out", R)
    assert not (tmp_path / "out").exists()


def test_other_programs_can_read_the_file(tmp_path: Path) -> None:
    photograph(tmp_path / "photos" / 'a "quoted" naïve' / "1.png")
    photograph(tmp_path / "photos" / "b" / "1.png")
    touch(*(tmp_path / "photos" / "b" / f"{i}.png" for i in range(2, 12)))  # the header's room is for 12
    pack(tmp_path / "photos", tmp_path / "out", R)
    file = open_tensors(tmp_path / "out")
    assert [(name, e.dtype, e.shape) for name, e in file.entries.items()] == [
        ("images", "U8", (2, 8, 8, 3)),
        ("labels", "I32", (2,)),
    ]
    assert file.metadata["format"] == "tinytl-edge-dataset"
    assert json.loads(file.metadata["classes"]) == ['a "quoted" naïve', "b"]
    assert struct.unpack("<2i", file.read("labels")) == (0, 1)


# One picture --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (5000, 10), (10, 5000), (8, 8), (9, 8), (3, 500)])
def test_any_size_becomes_the_square(tmp_path: Path, size: tuple[int, int]) -> None:
    assert_plain(packed(photograph(tmp_path / "1.png", RED, size), tmp_path), RED)


def test_a_picture_of_the_stored_size_is_kept_exactly(tmp_path: Path) -> None:
    pixels = bytes(i * 7 % 256 for i in range(192))
    Image.frombytes("RGB", (8, 8), pixels).save(tmp_path / "1.png")
    pack_files([tmp_path / "1.png"], tmp_path / "out", R)
    assert open_dataset(tmp_path / "out").image(0) == pixels


def test_the_middle_is_kept_and_scaled_smoothly(tmp_path: Path) -> None:
    picture = Image.new("RGB", (300, 100), RED)
    picture.paste(GREEN, (100, 0, 200, 100))
    picture.save(tmp_path / "wide.png")
    inside = [row[1:-1] for row in packed(tmp_path / "wide.png", tmp_path)]
    assert_plain(inside, GREEN, 12)
    stripes = Image.new("RGB", (200, 200))
    for column in range(0, 200, 2):
        stripes.paste(WHITE, (column, 0, column + 1, 200))
    stripes.save(tmp_path / "stripes.png")
    assert_plain(packed(tmp_path / "stripes.png", tmp_path), (128, 128, 128), 8)


MODES: dict[str, tuple[Any, str, dict[str, Any], tuple[int, int, int], int]] = {
    "grey": ("L", "png", {"colour": 90}, (90, 90, 90), 0),
    "grey jpeg": ("L", "jpg", {"colour": 90}, (90, 90, 90), 2),
    "black and white": ("1", "png", {"colour": 1}, WHITE, 0),
    "16-bit grey": ("I;16", "png", {"colour": 0x8040}, (128, 128, 128), 1),
    "32-bit grey": ("I", "tiff", {"colour": 0x8040}, (128, 128, 128), 1),
    "palette": ("P", "png", {"colour": 0}, (0, 0, 0), 0),
    "cmyk jpeg": ("CMYK", "jpg", {"colour": (0, 255, 255, 0)}, (255, 0, 0), 3),
    "cmyk tiff": ("CMYK", "tiff", {"colour": (0, 255, 255, 0)}, (255, 0, 0), 3),
    "opaque": ("RGBA", "png", {"colour": (*RED, 255)}, RED, 0),
    "half transparent": ("RGBA", "png", {"colour": (0, 0, 0, 128)}, (127, 127, 127), 1),
    "transparent": ("RGBA", "png", {"colour": (*RED, 0)}, WHITE, 0),
    "transparent grey": ("LA", "png", {"colour": (90, 0)}, WHITE, 0),
    "transparent palette": ("P", "png", {"colour": 0, "transparency": 0}, WHITE, 0),
    "transparent gif": ("P", "gif", {"colour": 0, "transparency": 0}, WHITE, 0),
    "transparent colour": ("RGB", "png", {"colour": RED, "transparency": RED}, WHITE, 0),
    "transparent webp": ("RGBA", "webp", {"colour": (*RED, 0), "lossless": True}, WHITE, 0),
    "ppm": ("RGB", "ppm", {"colour": RED}, RED, 0),
    "bmp": ("RGB", "bmp", {"colour": RED}, RED, 0),
    "tiff": ("RGB", "tiff", {"colour": RED}, RED, 0),
}


@pytest.mark.parametrize("case", MODES)
def test_every_kind_of_pixel_becomes_rgb(tmp_path: Path, case: str) -> None:
    mode, suffix, how, colour, tolerance = MODES[case]
    path = photograph(tmp_path / f"1.{suffix}", mode=mode, **how)
    assert_plain(packed(path, tmp_path), colour, tolerance)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    how: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"1.{suffix}", save_all=True, append_images=frames[1:], **how)
    assert_plain(packed(tmp_path / f"1.{suffix}", tmp_path), RED)


def quarters(size: int) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right."""
    half = size // 2
    picture = Image.new("RGB", (size, size), WHITE)
    picture.paste(RED, (0, 0, half, half))
    picture.paste(GREEN, (half, 0, size, half))
    picture.paste(BLUE, (0, half, half, size))
    return picture


ORIENTED = {
    1: (RED, GREEN, BLUE, WHITE),
    2: (GREEN, RED, WHITE, BLUE),
    3: (WHITE, BLUE, GREEN, RED),
    4: (BLUE, WHITE, RED, GREEN),
    5: (RED, BLUE, GREEN, WHITE),
    6: (BLUE, RED, WHITE, GREEN),
    7: (WHITE, GREEN, BLUE, RED),
    8: (GREEN, WHITE, RED, BLUE),
    9: (RED, GREEN, BLUE, WHITE),  # no such orientation
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "mpo"])
@pytest.mark.parametrize("orientation", ORIENTED)
def test_pictures_are_turned_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"1.{suffix}"
    picture = quarters(64)
    if suffix == "mpo":
        picture.save(path, exif=exif, save_all=True, append_images=[Image.new("RGB", (64, 64))], quality=95)
    else:
        picture.save(path, exif=exif, quality=95)
    rows = packed(path, tmp_path)
    corners = (rows[1][1], rows[1][6], rows[6][1], rows[6][6])
    for seen, meant in zip(corners, ORIENTED[orientation]):
        assert max(abs(a - b) for a, b in zip(seen, meant)) < 20


def test_broken_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    photograph(tmp_path / "1.jpg", RED, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03")
    assert_plain(packed(tmp_path / "1.jpg", tmp_path), RED, 3)


def test_a_large_photograph_takes_little_memory(tmp_path: Path) -> None:
    """12 megapixels are 36 MB when decoded whole."""
    photograph(tmp_path / "small.jpg", size=(600, 400))
    photograph(tmp_path / "large.jpg", size=(4000, 3000))
    code = (
        "import sys; from tinytl_edge.runtime.dataset import pack_files\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int(next(line.split()[1] for line in lines if line.startswith('VmHWM')))\n"
        "pack_files(['small.jpg'], 'out', 224); before = peak()\n"
        "pack_files(['large.jpg'], 'out', 224); print(peak() - before)\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 12_000  # kB


def test_datasets_of_one_process_are_independent(tmp_path: Path) -> None:
    pack_files([photograph(tmp_path / "1.png", RED)], tmp_path / "a", R)
    pack_files([photograph(tmp_path / "2.png", BLUE)], tmp_path / "b", R)
    first, second = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
    assert isinstance(first, Dataset)
    first.close()
    assert second.image(0) == bytes(BLUE) * 64
