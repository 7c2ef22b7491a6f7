"""Images become samples, what is packed can be read, and whatever is skipped or damaged is named."""

from __future__ import annotations

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

from tinytl_edge.runtime.errors import DamagedFileError, DataError, StorageError
from tinytl_edge.runtime.files.tensors import open_tensors, write_tensors
from tinytl_edge.runtime.images.dataset import FORMAT, Dataset, open_dataset
from tinytl_edge.runtime.images.framing import FITS, Framing, stored_size
from tinytl_edge.runtime.images.packing import pack, pack_files

RED, GREEN, BLUE = (200, 30, 40), (20, 180, 60), (30, 50, 190)
R = Framing(7, 7)  # packs to 8 x 8


def image(path: Path, colour: tuple[int, int, int] = RED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), colour).save(path)
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")


# The file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "size"), [(1, 2), (7, 8), (96, 110), (160, 183), (224, 256), (260, 298)])
def test_stored_size(side: int, size: int) -> None:
    assert stored_size(side, 7, margin=True) == (size, 8)
    assert stored_size(7, side, margin=True) == (8, size)
    assert stored_size(7, side, margin=False) == (7, side)


FRAMINGS = st.builds(
    Framing, st.integers(1, 30), st.integers(1, 30), st.sampled_from((1, 3)), st.sampled_from(FITS), st.booleans()
)


@settings(deadline=None, max_examples=50)
@given(framing=FRAMINGS)
def test_every_framing_is_packed_and_opened(tmp_path_factory: pytest.TempPathFactory, framing: Framing) -> None:
    folder = tmp_path_factory.getbasetemp()
    pack_files([image(folder / "framed.png", (255, 255, 255))], folder / "framed", framing)
    with open_dataset(folder / "framed") as dataset:
        assert (dataset.framing, dataset.shape, dataset.count) == (framing, framing.stored, 1)
        pixels = dataset.image(0)
    assert len(pixels) == framing.stored[0] * framing.stored[1] * framing.channels
    assert set(pixels) <= ({0, 255} if framing.fit == "pad" else {255})


@pytest.mark.parametrize(
    ("framing", "words", "options"),
    [
        (Framing(96, 96), "96 x 96 px, RGB, cropped, with a margin", "--resolution 96"),
        (
            Framing(96, 160, 1, "squash", False),
            "96 x 160 px, grey, squashed, without a margin",
            "--size 96x160 --channels 1 --fit squash --no-margin",
        ),
    ],
)
def test_a_framing_in_words(framing: Framing, words: str, options: str) -> None:
    assert (str(framing), framing.options) == (words, options)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0, 7), "height 0 is out of range: 1 to 16384"),
        ((7, 16385), "width 16385 is out of range"),
        ((7, 7, 2), "channels 2 are neither 3"),
        ((7, 7, 3, "stretch"), "fit 'stretch' is none of crop, squash, pad"),
    ],
)
def test_a_framing_that_cannot_be(values: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Framing(*values)


def test_packing_and_opening(tmp_path: Path) -> None:
    images = tmp_path / "flowers"
    for path, colour in {"tulip/b.png": RED, "tulip/a.PNG": GREEN, "daisy/1.bmp": BLUE}.items():
        image(images / path, colour)
    progress: list[tuple[int, int]] = []
    warnings: list[str] = []
    out = tmp_path / "data.safetensors"
    report = pack(images, out, R, on_warning=warnings.append, on_progress=lambda *step: progress.append(step))
    assert report.counts == {"daisy": 1, "tulip": 2}
    assert (report.path, report.count, report.skipped, warnings) == (out, 3, [], [])
    assert progress == [(1, 3), (2, 3), (3, 3)]
    with open_dataset(out) as dataset:
        assert (dataset.path, dataset.count, dataset.shape, dataset.framing) == (out, 3, (8, 8, 3), R)
        assert (dataset.classes, dataset.labels) == (["daisy", "tulip"], [0, 1, 1])
        assert [dataset.image(i) for i in range(3)] == [bytes(c) * 64 for c in (BLUE, GREEN, RED)]
        for index in (-1, 3):
            with pytest.raises(IndexError):
                dataset.image(index)


def test_an_open_dataset_is_let_go_and_not_mixed_up(tmp_path: Path) -> None:
    red, blue = image(tmp_path / "red.png", RED), image(tmp_path / "blue.png", BLUE)
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
    code = "import sys, tinytl_edge.runtime.images.dataset; print([m for m in ('PIL', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


GOOD = {
    "format": FORMAT, "version": "3", "classes": '["a", "b"]',
    "height": "7", "width": "7", "channels": "3", "fit": "crop", "margin": "true",
}  # fmt: skip
IMAGES = ("images", "U8", (2, 8, 8, 3), bytes(384))
PRINTS = ("fingerprints", "U8", (2, 8), bytes(16))
LABELS = ("labels", "I32", (2,), struct.pack("<2i", 0, 1))


def labels(*numbers: int) -> tuple[str, str, tuple[int, ...], bytes]:
    return "labels", "I32", (len(numbers),), struct.pack(f"<{len(numbers)}i", *numbers)


DAMAGED: dict[str, tuple[list[Any], dict[str, str], str]] = {
    "another file": ([IMAGES, PRINTS, LABELS], {"format": "pt"}, "not written by 'tinytl-edge pack'"),
    "earlier version": ([IMAGES, PRINTS, LABELS], {"version": "1"}, "version '1', not '3'"),
    "no height": ([IMAGES, PRINTS, LABELS], {"height": ""}, "height is not a number"),
    "odd width": ([IMAGES, PRINTS, LABELS], {"width": "7_0"}, "width is not a number"),
    "vast width": ([IMAGES, PRINTS, LABELS], {"width": "16385"}, "width is not a number"),
    "other height": ([IMAGES, PRINTS, LABELS], {"height": "14"}, r"not U8 \[N, 16, 8, 3\] as an input of 14 x 7 px"),
    "two channels": ([IMAGES, PRINTS, LABELS], {"channels": "2"}, "channels are neither 1 nor 3"),
    "one channel": ([IMAGES, PRINTS, LABELS], {"channels": "1"}, r"not U8 \[N, 8, 8, 1\] as"),
    "no fit": ([IMAGES, PRINTS, LABELS], {"fit": ""}, "fit is none of crop, squash, pad"),
    "odd margin": ([IMAGES, PRINTS, LABELS], {"margin": "1"}, "margin is neither true nor false"),
    "no margin": ([IMAGES, PRINTS, LABELS], {"margin": "false"}, r"not U8 \[N, 7, 7, 3\] as"),
    "classes no JSON": ([IMAGES, PRINTS, LABELS], {"classes": "a, b"}, "classes are not a list"),
    "classes without end": ([IMAGES, PRINTS, LABELS], {"classes": "[" * 200_000}, "classes are not a list"),
    "classes a table": ([IMAGES, PRINTS, LABELS], {"classes": '{"a": 1}'}, "classes are not a list"),
    "classes numbers": ([IMAGES, PRINTS, LABELS], {"classes": "[1, 2]"}, "classes are not a list"),
    "no images": ([PRINTS, LABELS], {}, "no tensor 'images'"),
    "no labels": ([IMAGES, PRINTS], {}, "no tensor 'labels'"),
    "images of bytes": ([("images", "I8", *IMAGES[2:]), PRINTS, LABELS], {}, r"images are I8 \[2, 8, 8, 3\], not U8"),
    "images flat": (
        [("images", "U8", (2, 192), bytes(384)), PRINTS, LABELS],
        {},
        r"images are U8 \[2, 192\], not U8",
    ),
    "no fingerprints": ([IMAGES, LABELS], {}, "no tensor 'fingerprints'"),
    "fingerprints short": (
        [IMAGES, ("fingerprints", "U8", (2, 4), bytes(8)), LABELS],
        {},
        r"fingerprints are U8 \[2, 4\], not U8 \[2, 8\]",
    ),
    "labels wide": ([IMAGES, PRINTS, ("labels", "I64", (2,), bytes(16))], {}, r"labels are I64 \[2\], not I32 \[2\]"),
    "labels too few": ([IMAGES, PRINTS, labels(0)], {}, r"labels are I32 \[1\], not I32 \[2\]"),
    "label too high": ([IMAGES, PRINTS, labels(0, 2)], {}, "label 2 of sample 1 is none of its 2 classes"),
    "label negative": ([IMAGES, PRINTS, labels(-1, 0)], {}, "label -1 of sample 0"),
    "label without classes": ([IMAGES, PRINTS, labels(-1, 0)], {"classes": "[]"}, "label 0 of sample 1"),
    "no samples": (
        [("images", "U8", (0, 8, 8, 3), b""), ("fingerprints", "U8", (0, 8), b""), labels()],
        {},
        "no samples",
    ),
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
    write_tensors(tmp_path / "f", [IMAGES, PRINTS, LABELS], GOOD)
    assert open_dataset(tmp_path / "f").labels == [0, 1]


def test_a_file_that_shrinks_while_open_is_named(tmp_path: Path) -> None:
    write_tensors(tmp_path / "f", [LABELS, PRINTS, IMAGES], GOOD)
    dataset = open_dataset(tmp_path / "f")
    os.truncate(tmp_path / "f", (tmp_path / "f").stat().st_size - 1)
    assert len(dataset.image(0)) == 192
    with pytest.raises(DamagedFileError, match="ends inside image 1"):
        dataset.image(1)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed-dataset.safetensors"
    write_tensors(path, [IMAGES, PRINTS, LABELS], GOOD)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) - 20, len(content)))])
    try:
        dataset = open_dataset(path)
    except DamagedFileError:
        return
    assert all(len(dataset.image(i)) == 192 for i in range(dataset.count))


# Packing ------------------------------------------------------------------------------------------------


def test_the_models_classes_give_the_labels(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image(tmp_path / "photos" / name / "1.png")
    warnings: list[str] = []
    out = tmp_path / "out"
    report = pack(tmp_path / "photos", out, R, classes=["b", "c", "a"], on_warning=warnings.append)
    assert report.counts == {"b": 1, "c": 0, "a": 1}
    assert warnings == [f"{tmp_path / 'photos'} has no usable images of 'c'."]
    with open_dataset(out) as dataset:
        assert (dataset.classes, dataset.labels) == (["b", "c", "a"], [2, 0])


def test_a_class_that_the_model_does_not_know_is_named(tmp_path: Path) -> None:
    image(tmp_path / "photos" / "weed" / "1.png")
    known = [f"c{i}" for i in range(1000)]
    with pytest.raises(DataError, match=r"photos/weed is not a class .* 'c0', .*'c9' and 990 more: rename"):
        pack(tmp_path / "photos", tmp_path / "out", R, classes=known)
    assert not (tmp_path / "out").exists()


def test_many_missing_classes_are_one_warning(tmp_path: Path) -> None:
    image(tmp_path / "photos" / "c5" / "1.png")
    warnings: list[str] = []
    known = [f"c{i}" for i in range(20_000)]
    pack(tmp_path / "photos", tmp_path / "out", R, classes=known, on_warning=warnings.append)
    assert len(warnings) == 1
    assert warnings[0].endswith("'c10' and 19989 more.")
    with open_dataset(tmp_path / "out") as dataset:
        assert (dataset.classes, dataset.labels) == (known, [5])


def test_a_class_is_found_however_its_name_is_spelled(tmp_path: Path) -> None:
    image(tmp_path / "photos" / "Blu\u0308te" / "1.png")
    for name in ("Bl\u00fcte", "Blu\u0308te"):
        assert pack(tmp_path / "photos", tmp_path / "out", R, classes=[name]).counts == {name: 1}


def test_what_is_no_picture_is_skipped_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "a"
    image(folder / "good.png")
    gone, empty = folder / "gone.jpg", folder / "line\nbreak.jpg"
    gone.symlink_to("nowhere")
    empty.write_bytes(b"")
    warnings: list[str] = []
    progress: list[tuple[int, int]] = []
    out = tmp_path / "out"
    report = pack(
        tmp_path / "photos",
        out,
        R,
        on_warning=warnings.append,
        on_progress=lambda *step: progress.append(step),
    )
    assert report.counts == {"a": 1}
    assert report.skipped == [(gone, "No such file or directory"), (empty, "it is empty")]
    assert warnings == [
        f"{gone} was skipped: No such file or directory.",
        f"{str(empty)!r} was skipped: it is empty.",
    ]
    assert progress == [(1, 3), (2, 3), (3, 3)]


def test_a_class_of_broken_pictures_is_a_warning_and_all_broken_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "photos" / "a" / "1.jpg")
    (tmp_path / "photos" / "b").mkdir()
    out = tmp_path / "out"
    out.write_bytes(b"the earlier one")
    with pytest.raises(DataError, match="has no images that can be used"):
        pack(tmp_path / "photos", out, R)
    assert out.read_bytes() == b"the earlier one"
    (tmp_path / "photos" / "a" / "1.jpg").unlink()
    with pytest.raises(DataError, match="has no images in its class folders"):
        pack(tmp_path / "photos", out, R)
    touch(tmp_path / "photos" / "a" / "1.jpg")
    image(tmp_path / "photos" / "b" / "1.png")
    warnings: list[str] = []
    pack(tmp_path / "photos", out, R, on_warning=warnings.append)
    assert len(warnings) == 2
    assert warnings[1].endswith("has no usable images of 'a'.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_a_full_disk_leaves_the_earlier_dataset(tmp_path: Path) -> None:
    image(tmp_path / "photos" / "a" / "1.png")
    out = tmp_path / "out"
    out.write_bytes(b"the earlier one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match="out could not be written"):
            pack(tmp_path / "photos", out, Framing(224, 224))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_bytes() == b"the earlier one"
    with pytest.raises(StorageError):
        pack(tmp_path / "photos", out / "below", R)


def test_unlabelled_pictures_keep_their_order(tmp_path: Path) -> None:
    paths = [image(tmp_path / f"{i}.png", colour) for i, colour in enumerate((RED, GREEN, BLUE))]
    pack_files(reversed(paths), tmp_path / "out", R)
    with open_dataset(tmp_path / "out") as dataset:
        assert (dataset.classes, dataset.labels) == ([], [-1, -1, -1])
        assert [dataset.image(i)[:3] for i in range(3)] == [bytes(c) for c in (BLUE, GREEN, RED)]


def test_an_unreadable_picture_to_predict_is_an_error(tmp_path: Path) -> None:
    good = image(tmp_path / "good.png")
    bad = {"missing.png": "No such file", "folder": "not a file", "empty.png": "it is empty"}
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    for name, reason in bad.items():
        with pytest.raises(DataError, match=f"{name} cannot be used: .*{reason}"):
            pack_files([good, tmp_path / name], tmp_path / "out", R)
    with pytest.raises(DataError, match="No image was named"):
        pack_files([], tmp_path / "out", R)
    assert not (tmp_path / "out").exists()


def test_other_programs_can_read_the_file(tmp_path: Path) -> None:
    image(tmp_path / "photos" / 'a "quoted" naïve' / "1.png")
    image(tmp_path / "photos" / "b" / "1.png")
    touch(*(tmp_path / "photos" / "b" / f"{i}.png" for i in range(2, 12)))  # the header's room is for 12
    pack(tmp_path / "photos", tmp_path / "out", R)
    file = open_tensors(tmp_path / "out")
    assert [(name, e.dtype, e.shape) for name, e in file.entries.items()] == [
        ("images", "U8", (2, 8, 8, 3)),
        ("fingerprints", "U8", (2, 8)),
        ("labels", "I32", (2,)),
    ]
    assert file.metadata["format"] == "tinytl-edge-dataset"
    assert json.loads(file.metadata["classes"]) == ['a "quoted" naïve', "b"]
    assert struct.unpack("<2i", file.read("labels")) == (0, 1)


def test_datasets_of_one_process_are_independent(tmp_path: Path) -> None:
    pack_files([image(tmp_path / "1.png", RED)], tmp_path / "a", R)
    pack_files([image(tmp_path / "2.png", BLUE)], tmp_path / "b", R)
    first, second = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
    assert isinstance(first, Dataset)
    first.close()
    assert second.image(0) == bytes(BLUE) * 64
