"""The native trainer's input and output agree with Python's: samples bit for bit, files byte for byte."""

from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from boards import EMULATORS, cross_compile, emulated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tinytl_edge.runtime.errors import DamagedFileError
from tinytl_edge.runtime.files.tensors import open_tensors, write_tensors
from tinytl_edge.runtime.images.dataset import FORMAT, open_dataset
from tinytl_edge.runtime.images.framing import stored_size
from tinytl_edge.runtime.images.sampling import (
    Crop,
    centre_crop,
    draws,
    dropout_mask,
    epoch_order,
    random_crop,
    resample,
)

ROOT = Path(__file__).parent.parent
NATIVE = ROOT / "runtime" / "native"
SOURCES = [NATIVE / f"{name}.cc" for name in ("json", "events", "safetensors", "dataset", "sampling", "report")]
SOURCES += sorted((ROOT / "tests" / "native" / "io").glob("*.cc"))
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
DEVIATION = np.array([58.395, 57.12, 57.375], np.float32)
Size = tuple[int, int]


@pytest.fixture(scope="module", params=["here", *EMULATORS])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The executable of tests/native/io: for this very processor, with its fused operations, and for boards."""
    out = tmp_path_factory.mktemp("native") / "io_test"
    flags = ["-Werror", f"-I{NATIVE}"]
    if request.param in EMULATORS:
        # As CMakeLists.txt has it for sampling.cc.
        flags.append("-ffp-contract=off")
        return emulated(cross_compile(request.param, out, SOURCES, *flags), request.param)
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to build the native trainer's tests with")
    flags += ["-std=gnu++20", "-O2", "-march=native", "-fno-rtti", "-Wall", "-Wextra"]
    subprocess.run(["g++", *flags, *SOURCES, "-o", out], check=True)
    return out


def said(program: Path, *arguments: object, code: int = 0, stdin: bytes = b"") -> str:
    answer = subprocess.run([program, *map(str, arguments)], input=stdin, capture_output=True, check=False)
    assert answer.returncode == code, answer.stdout + answer.stderr
    return answer.stdout.decode()


def test_its_own_tests_pass(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert said(program) == "all is well\n"


# Sampling -----------------------------------------------------------------------------------------------


def floats(name: str, position: int, values: NDArray[np.float32]) -> str:
    content = values.tobytes()
    first = "".join(f" {word:08x}" for word in np.frombuffer(content, np.uint32)[:4])
    return f"{name} {position} {zlib.crc32(content):08x}{first}"


def crop_line(name: str, position: int, crop: Crop) -> str:
    return f"{name} {position} {crop.top} {crop.left} {crop.height} {crop.width} {int(crop.flip)}"


def expected_samples(seed: int, epoch: int, count: int, size: Size, to: Size, channels: int) -> Iterator[str]:
    """What `io_test sample` prints, line by line."""
    yield " ".join(["order", *map(str, epoch_order(seed, epoch, count))])
    draw = draws(seed % 2**64, channels * size[0] * size[1])
    image = (draw >> np.uint64(56)).astype(np.uint8).reshape(*size, channels)

    def pixels(position: int, crop: Crop) -> str:
        return floats("pixels", position, (resample(image, crop, to) - MEAN[:channels]) / DEVIATION[:channels])

    for position in range(min(count, 40)):
        crop = random_crop(seed, epoch, position, size)
        yield crop_line("crop", position, crop)
        if position < 6:
            yield pixels(position, crop)
        yield crop_line("narrow", position, random_crop(seed, epoch, position, size, 0.9, flip=False))
    if to[0] <= size[0] and to[1] <= size[1]:
        yield crop_line("centre", 0, centre_crop(size, to))
        yield pixels(count, centre_crop(size, to))
    for layer, rate in enumerate((0.2, 0.5, 0.0)):
        yield floats("mask", layer, dropout_mask(seed, epoch, count, layer, (100 + 7 * layer, 1 + 2 * layer), rate).T)


def assert_samples_agree(program: Path, seed: int, epoch: int, count: int, size: Size, to: Size, channels: int) -> None:
    lines = said(program, "sample", seed, epoch, count, *size, *to, channels).splitlines()
    assert lines == list(expected_samples(seed, epoch, count, size, to, channels))


@pytest.mark.parametrize(
    ("seed", "epoch", "count", "size", "to", "channels"),
    [
        (0, 0, 0, (2, 2), (1, 1), 3),
        (0, 0, 1, (2, 2), (3, 3), 3),
        (1, 1, 40, (37, 37), (32, 32), 3),
        (-1, 7, 40, (147, 110), (128, 96), 3),
        (2**63, 3, 17, (256, 256), (224, 224), 3),
        (2**64 - 1, 2**40, 100, (50, 120), (200, 48), 3),  # enlarged one way
        (7, 2, 30, (300, 300), (65, 65), 3),  # reduced, and one column more than a block of the resampler
        (123456789, 99, 3000, (183, 183), (160, 160), 3),
        (5, 1, 40, (56, 366), (49, 320), 1),
        (6, 1, 40, (96, 40), (96, 40), 1),  # without a margin
        (8, 1, 40, (400, 1), (350, 1), 3),
    ],
)
def test_samples_agree_bit_for_bit(
    program: Path, seed: int, epoch: int, count: int, size: Size, to: Size, channels: int
) -> None:
    assert_samples_agree(program, seed, epoch, count, size, to, channels)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    to=st.tuples(st.integers(1, 140), st.integers(1, 140)),
    channels=st.sampled_from((1, 3)),
)
def test_samples_of_any_size_agree_bit_for_bit(
    program: Path, seed: int, epoch: int, size: Size, to: Size, channels: int
) -> None:
    if program.name != "io_test":
        pytest.skip("emulated: the fixed sizes are enough")
    assert_samples_agree(program, seed, epoch, 8, size, to, channels)


# Files --------------------------------------------------------------------------------------------------


def test_it_writes_the_same_bytes(program: Path, tmp_path: Path) -> None:
    write_tensors(
        tmp_path / "python",
        [
            ("blocks.0.weight", "F32", (2, 3), struct.pack("<6f", *range(6))),
            ('Ünïcode " \\ / \b\f\n\r\t\x01\x7f 😀', "U8", (3,), b"abc"),
            ("none", "I64", (4, 0), b""),
            ("scalar", "F16", (), b"xy"),
        ],
        {"format": "x", "classes": json.dumps(["cat", "Öchslein"], ensure_ascii=False), "": ""},
    )
    said(program, "copy", tmp_path / "python", tmp_path / "native")
    assert (tmp_path / "native").read_bytes() == (tmp_path / "python").read_bytes()


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def fields(dtype: object = "U8", shape: object = (2,), offsets: object = (0, 2)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        (2**24 + 1).to_bytes(8, "little") + b"{}",
        b"\x09" + bytes(7) + b"{}",
        raw(b""),
        raw(b"{"),
        raw(b'{"\xff": 1}'),
        raw([]),
        raw({"__metadata__": {"a": 1}}),
        raw({"t": 1}),
        raw({"t": {"dtype": "U8"}}),
        raw({"it's": fields("U9")}, b"ab"),
        raw({"a\nb": fields(shape=(2.0,))}, b"ab"),
        raw({"t": fields(shape=(True, 2))}, b"ab"),
        raw({"t": fields(shape=(-2,))}, b"ab"),
        raw({"t": fields(shape=(2**63,))}, b"ab"),
        raw({"t": fields(offsets=(0, 1, 2))}, b"ab"),
        raw({"t": fields(shape=(2**32, 2**32), offsets=(0, 0))}),
        raw({"t": fields(offsets=(2, 0))}, b"ab"),
        raw({"t": fields(shape=(3,))}, b"ab"),
        raw({"t": fields(), "u": fields()}, b"abab"),
        raw({"t": fields(shape=(1,), offsets=(1, 2))}, b"ab"),
        raw({"t": fields(offsets=(2**63 - 3, 2**63 - 1))}, b"ab"),
        raw({"t": fields()}, b"a"),
        raw({"t": fields()}, b"abc"),
        raw(b'{"t": {}, "t": ' + json.dumps(fields()).encode() + b"}", b"ab") + b"c",
    ],
)
def test_it_refuses_damaged_files_with_the_same_sentence(program: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError) as refused:
        open_tensors(path)
    assert said(program, "tensors", path, code=3) == f"3 {refused.value}\n"


def test_of_equal_names_the_last_counts_in_both(program: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.safetensors"
    path.write_bytes(raw(b'{"t": 1, "t": ' + json.dumps(fields()).encode() + b"}", b"ab"))
    assert open_tensors(path).entries["t"].shape == (2,)
    assert said(program, "tensors", path).startswith("t U8 [2] ")


PRINTS = ("fingerprints", "U8", (2, 8), bytes(16))
METADATA = {
    "format": FORMAT, "version": "3", "classes": '["cat", "Öchslein"]',
    "height": "20", "width": "30", "channels": "3", "fit": "crop", "margin": "true",
}  # fmt: skip


def write_dataset(path: Path, labels: list[int], shape: tuple[int, int, int] | None = None, **changes: str) -> None:
    shape = shape or (*stored_size(20, 30, margin=True), 3)
    pixels = draws(5, len(labels) * math.prod(shape)).astype(np.uint8).tobytes()
    write_tensors(
        path,
        [
            ("images", "U8", (len(labels), *shape), pixels),
            ("fingerprints", "U8", (len(labels), 8), bytes(8 * len(labels))),
            ("labels", "I32", (len(labels),), struct.pack(f"<{len(labels)}i", *labels)),
        ],
        {**METADATA, **changes},
    )


@pytest.mark.parametrize(
    ("shape", "changes"),
    [
        (None, {}),
        ((20, 30, 1), {"channels": "1", "margin": "false", "fit": "squash"}),
        ((16384, 1, 3), {"height": "16384", "width": "1", "margin": "false", "fit": "pad"}),
    ],
)
def test_it_reads_the_same_dataset(
    program: Path, tmp_path: Path, shape: tuple[int, int, int] | None, changes: dict[str, str]
) -> None:
    write_dataset(tmp_path / "data", [1, 0, 1], shape, **changes)
    dataset = open_dataset(tmp_path / "data")
    framing = dataset.framing
    sizes = (framing.height, framing.width, *dataset.shape)
    expected = [f"{dataset.count} {' '.join(map(str, sizes))}", *dataset.classes]
    expected += [f"{label} {zlib.crc32(dataset.image(i)):08x}" for i, label in enumerate(dataset.labels)]
    assert said(program, "dataset", tmp_path / "data").splitlines() == expected


@pytest.mark.parametrize(
    ("labels", "changes"),
    [
        ([0], {"format": "x"}),
        ([0], {"version": "1"}),
        ([0], {"height": "020"}),
        ([0], {"height": "21"}),
        ([0], {"width": ""}),
        ([0], {"width": "16385"}),
        ([0], {"channels": "2"}),
        ([0], {"channels": "1"}),
        ([0], {"fit": "stretch"}),
        ([0], {"margin": "no"}),
        ([0], {"margin": "false"}),
        ([0], {"classes": "{}"}),
        ([0], {"classes": "[1]"}),
        ([0, 2], {}),
        ([-1], {}),
        ([0], {"classes": "[]"}),
        ([], {}),
    ],
)
def test_it_refuses_unusable_datasets_with_the_same_sentence(
    program: Path, tmp_path: Path, labels: list[int], changes: dict[str, str]
) -> None:
    path = tmp_path / "data"
    write_dataset(path, labels, **changes)
    with pytest.raises(DamagedFileError) as refused:
        open_dataset(path)
    assert said(program, "dataset", path, code=3) == f"3 {refused.value}\n"


@pytest.mark.parametrize(
    ("changes", "shape", "content"),
    [
        ({"labels": "x"}, (2, 2), bytes(4)),
        ({"classes": "[]"}, (2, 0), b""),
        ({}, (1, 2), bytes(2)),
        ({}, (2, 3), bytes(6)),
        ({}, (4,), bytes(4)),
        ({}, (2, 2), b"\0\1\2\0"),
        ({"labels": "single"}, (2, 2), bytes(4)),
    ],
)
def test_it_refuses_unusable_multi_label_with_the_same_sentence(
    program: Path, tmp_path: Path, changes: dict[str, str], shape: tuple[int, ...], content: bytes
) -> None:
    path = tmp_path / "data"
    metadata = {**METADATA, "classes": '["a", "b"]', "height": "7", "width": "7", "labels": "multi"}
    tensors = [("images", "U8", (2, 8, 8, 3), bytes(384)), PRINTS, ("labels", "U8", shape, content)]
    write_tensors(path, tensors, {**metadata, **changes})
    with pytest.raises(DamagedFileError) as refused:
        open_dataset(path)
    assert said(program, "dataset", path, code=3) == f"3 {refused.value}\n"


def test_it_reads_the_same_multi_label(program: Path, tmp_path: Path) -> None:
    metadata = {**METADATA, "classes": '["a", "b"]', "height": "7", "width": "7", "labels": "multi"}
    tensors = [("images", "U8", (2, 8, 8, 3), bytes(384)), PRINTS, ("labels", "U8", (2, 2), b"\0\1\1\1")]
    write_tensors(tmp_path / "data", tensors, metadata)
    with open_dataset(tmp_path / "data") as dataset:
        marks = ["".join(map(str, row)) for row in dataset.marks]
    black = f"{zlib.crc32(bytes(192)):08x}"
    expected = ["2 7 7 8 8 3", "a", "b", *(f"{mark} {black}" for mark in marks)]
    assert said(program, "dataset", tmp_path / "data").splitlines() == expected


@pytest.mark.parametrize(
    "value",
    [
        {"event": "step", "loss": 0.1, "list": [1, -2, 1e300, 5e-324, 1.5, True, None, {}, []], "": {"a": ["b"]}},
        ['Ünïcode " \\ / \b\f\n\r\t\x00\x1f\x7f 😀', 2**63 - 1, -(2**63), 0.0, -0.0, 123456789012345680.0],
    ],
)
def test_its_json_is_pythons(program: Path, value: object) -> None:
    for ascii_only in (False, True):
        text = json.dumps(value, ensure_ascii=ascii_only, indent=1).encode()
        back = json.loads(said(program, "json", stdin=text))
        assert back == value
        assert json.dumps(back) == json.dumps(value)  # == takes 1 for 1.0 and 0.0 for -0.0
