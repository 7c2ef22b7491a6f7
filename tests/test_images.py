"""Images are found by class, every kind of image becomes a square, and whatever cannot is named."""

from __future__ import annotations

import io
import math
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tinytl_edge.runtime.errors import DataError
from tinytl_edge.runtime.images.decoding import UnusableImageError, read_image
from tinytl_edge.runtime.images.folders import find_images
from tinytl_edge.runtime.images.framing import FITS, Framing

RED, GREEN, BLUE, WHITE = (200, 30, 40), (20, 180, 60), (30, 50, 190), (255, 255, 255)
SIZE = 8
FRAMING = Framing(SIZE, SIZE, margin=False)
Rows = list[list[tuple[int, ...]]]


def image(path: Path, colour: Any = RED, size: tuple[int, int] = (20, 16), mode: str = "RGB", **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **how)
    return path


def read(path: Path) -> Rows:
    """The image's square: rows of (r, g, b)."""
    pixels = read_image(path, FRAMING)
    triples: list[tuple[int, ...]] = list(zip(pixels[0::3], pixels[1::3], pixels[2::3]))
    return [triples[row * SIZE : (row + 1) * SIZE] for row in range(SIZE)]


def assert_plain(rows: Rows, colour: tuple[int, int, int], tolerance: int = 0) -> None:
    worst = max(abs(a - b) for row in rows for pixel in row for a, b in zip(pixel, colour))
    assert worst <= tolerance, f"{rows[0][0]} is not {colour}"


# Finding ------------------------------------------------------------------------------------------------


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")


def test_images_are_found_by_class_and_sorted(tmp_path: Path) -> None:
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
    found = find_images(tmp_path)
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
    touch(tmp_path / "photos" / "Blu\u0308te" / "1.png")
    assert list(find_images(tmp_path / "photos")) == ["Bl\u00fcte"]


def test_a_class_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).mkdir()
    with pytest.raises(DataError, match=r"caf\\udce9' has a name that is not Unicode text"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], "has no class folders: it needs one for each class"),
        (["notes.txt"], "has no class folders: it needs one for each class"),
        (["1.jpg", "2.jpg"], r"holds images but no class folders: put each into .*daisy/1\.jpg"),
        (["test/a/1.jpg", "train/a/1.jpg"], r"in 'test', 'train': .* for example .*/train\."),
        (["flowers/a/1.jpg"], r"in 'flowers': .* for example .*/flowers\."),
    ],
)
def test_a_folder_arranged_otherwise_is_explained(tmp_path: Path, files: list[str], sentence: str) -> None:
    touch(*(tmp_path / name for name in files))
    with pytest.raises(DataError, match=sentence) as caught:
        find_images(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    touch(tmp_path / "file")
    with pytest.raises(DataError, match=r"nothing does not exist"):
        find_images(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"file cannot be read as a folder"):
        find_images(tmp_path / "file")


# One image --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (5000, 10), (10, 5000), (8, 8), (9, 8), (3, 500)])
def test_any_size_becomes_the_square(tmp_path: Path, size: tuple[int, int]) -> None:
    assert_plain(read(image(tmp_path / "1.png", RED, size)), RED)


def test_a_square_of_that_size_is_kept_exactly(tmp_path: Path) -> None:
    pixels = bytes(i * 7 % 256 for i in range(192))
    Image.frombytes("RGB", (8, 8), pixels).save(tmp_path / "1.png")
    assert read_image(tmp_path / "1.png", FRAMING) == pixels


def test_the_middle_is_kept_and_scaled_smoothly(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 100), RED)
    image.paste(GREEN, (100, 0, 200, 100))
    image.save(tmp_path / "wide.png")
    inside = [row[1:-1] for row in read(tmp_path / "wide.png")]
    assert_plain(inside, GREEN, 12)
    stripes = Image.new("RGB", (200, 200))
    for column in range(0, 200, 2):
        stripes.paste(WHITE, (column, 0, column + 1, 200))
    stripes.save(tmp_path / "stripes.png")
    assert_plain(read(tmp_path / "stripes.png"), (128, 128, 128), 8)


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
    path = image(tmp_path / f"1.{suffix}", mode=mode, **how)
    assert_plain(read(path), colour, tolerance)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    how: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"1.{suffix}", save_all=True, append_images=frames[1:], **how)
    assert_plain(read(tmp_path / f"1.{suffix}"), RED)


def quarters(size: int) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right."""
    half = size // 2
    image = Image.new("RGB", (size, size), WHITE)
    image.paste(RED, (0, 0, half, half))
    image.paste(GREEN, (half, 0, size, half))
    image.paste(BLUE, (0, half, half, size))
    return image


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
    image = quarters(64)
    if suffix == "mpo":
        image.save(path, exif=exif, save_all=True, append_images=[Image.new("RGB", (64, 64))], quality=95)
    else:
        image.save(path, exif=exif, quality=95)
    rows = read(path)
    corners = (rows[1][1], rows[1][6], rows[6][1], rows[6][6])
    for seen, meant in zip(corners, ORIENTED[orientation]):
        assert max(abs(a - b) for a, b in zip(seen, meant)) < 20


def test_broken_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    image(tmp_path / "1.jpg", RED, exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03")
    assert_plain(read(tmp_path / "1.jpg"), RED, 3)


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def corrupt_png() -> bytes:
    content = bytearray(encoded(Image.new("RGB", (20, 16), RED), "PNG"))
    content[content.index(b"IDAT") + 8] ^= 0xFF
    return bytes(content)


UNUSABLE = {
    "empty.jpg": (b"", "^it is empty$"),
    "text.png": (b"hello", "^it is not an image in a format that can be read here$"),
    "truncated.jpg": (
        encoded(Image.effect_noise((64, 64), 50), "JPEG")[:1500],
        r"^it is damaged \(image file is truncated",
    ),
    "script.gif": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a format"),
    "phone.heic": (b"\0\0\0\x18ftypheic", "not an image in a format"),
    "float.tiff": (
        encoded(Image.new("F", (9, 9), 0.5), "TIFF"),
        "pixels are floating-point numbers of unknown range",
    ),
    "corrupt.png": (corrupt_png(), "^it is damaged"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_used_says_why(tmp_path: Path, name: str) -> None:
    content, reason = UNUSABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnusableImageError, match=reason):
        read_image(tmp_path / name, FRAMING)


def test_what_is_no_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    with pytest.raises(UnusableImageError, match="No such file"):
        read_image(tmp_path / "gone.jpg", FRAMING)
    with pytest.raises(UnusableImageError, match="it is not a file"):
        read_image(tmp_path, FRAMING)


@pytest.mark.parametrize("limit", [200, 399])  # an error from twice the limit on, a warning before
def test_a_decompression_bomb_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert_plain(read(image(tmp_path / "good.png", size=(10, 10))), RED)
    with pytest.raises(UnusableImageError, match="more pixels than are safe to decode"):
        read(image(tmp_path / "bomb.png", size=(20, 21)))


MEASURE = """
from pathlib import Path
from tinytl_edge.runtime.images import decoding
from tinytl_edge.runtime.images.framing import Framing

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

decoding.read_image(Path("small.jpg"), Framing(224, 224))
before = peak()
decoding.read_image(Path("large.jpg"), Framing(224, 224))
print(peak() - before)
print(decoding.__file__)
"""


def test_a_large_image_takes_little_memory(tmp_path: Path) -> None:
    """12 megapixels are 36 MB when decoded whole."""
    image(tmp_path / "small.jpg", size=(600, 400))
    image(tmp_path / "large.jpg", size=(4000, 3000))
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kilobytes, module = done.stdout.splitlines()
    # The child loads whatever is installed: be sure that it is not an older copy or another checkout.
    tested = Path(__file__).parents[1] / "runtime" / "images" / "decoding.py"
    assert Path(module).read_bytes() == tested.read_bytes(), f"{module} is installed, not {tested}"
    assert int(kilobytes) < 12_000


# Framing ------------------------------------------------------------------------------------------------


def noise(size: tuple[int, int], seed: int, mode: str = "RGB") -> Image.Image:
    """The same on every machine."""
    depth = len(mode)
    small = Image.frombytes(mode, (17, 13), random.Random(seed).randbytes(17 * 13 * depth))
    return small.resize(size, Image.Resampling.BICUBIC)


# CRC-32 of what the first version of this package stored of them for an input of 96 x 96.
ONCE = [
    ((400, 300), 1, "RGB", 1, 0x38FA61EF),
    ((211, 97), 4, "RGBA", 1, 0x212153B0),
    ((64, 90), 6, "LA", 1, 0x61F7127F),
    ((91, 60), 25, "RGB", 5, 0xAB176723),
    ((91, 60), 26, "RGB", 6, 0x597D5E9B),
    ((5, 700), 30, "RGB", 1, 0x6E91FE5D),
    ((3, 3), 31, "RGB", 1, 0x91241F10),
]


@pytest.mark.parametrize(("size", "seed", "mode", "orientation", "crc"), ONCE)
def test_squares_are_as_they_were_once(
    tmp_path: Path, size: tuple[int, int], seed: int, mode: str, orientation: int, crc: int
) -> None:
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    noise(size, seed, mode).save(tmp_path / "1.png", exif=exif)
    assert zlib.crc32(read_image(tmp_path / "1.png", Framing(96, 96))) == crc


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from((1, 3)),
    fit=st.sampled_from(FITS),
    margin=st.booleans(),
)
def test_any_image_becomes_any_input(
    tmp_path_factory: pytest.TempPathFactory,
    size: tuple[int, int], height: int, width: int, channels: int, fit: str, margin: bool,
) -> None:  # fmt: skip
    path = image(tmp_path_factory.getbasetemp() / "any.png", WHITE, size)
    framing = Framing(height, width, channels, fit, margin)
    pixels = read_image(path, framing)
    assert len(pixels) == math.prod(framing.stored)
    black = pixels.count(0)
    assert pixels.count(255) + black == len(pixels)
    assert black == 0 or fit == "pad"
    stored_height, stored_width, _ = framing.stored
    if size[0] * stored_height == size[1] * stored_width:
        assert black == 0  # of its own aspect ratio, nothing is padded


def opened(path: Path, framing: Framing) -> Image.Image:
    height, width, channels = framing.stored
    return Image.frombytes("RGB" if channels == 3 else "L", (width, height), read_image(path, framing))


def test_each_fit_takes_what_it_says(tmp_path: Path) -> None:
    """Three thirds, red, green and blue, side by side: 300 x 100."""
    image = Image.new("RGB", (300, 100), RED)
    image.paste(GREEN, (100, 0, 200, 100))
    image.paste(BLUE, (200, 0, 300, 100))
    image.save(tmp_path / "1.png")

    def colours(framing: Framing, *places: tuple[int, int]) -> list[Any]:
        image = opened(tmp_path / "1.png", framing)
        return [image.getpixel(place) for place in places]

    middle = ((5, 20), (30, 20), (54, 20))  # of 60 x 40
    assert colours(Framing(40, 40, 3, "crop", False), (3, 20), (20, 3), (36, 36)) == [GREEN] * 3
    assert colours(Framing(40, 60, 3, "squash", False), *middle) == [RED, GREEN, BLUE]
    assert colours(Framing(40, 60, 3, "pad", False), *middle) == [RED, GREEN, BLUE]
    black = (0, 0, 0)
    assert colours(Framing(40, 60, 3, "pad", False), (5, 9), (5, 10), (54, 29), (54, 30)) == [black, RED, BLUE, black]
    assert colours(Framing(60, 30, 3, "pad", False), (15, 24), (15, 30), (15, 35)) == [black, GREEN, black]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_picture_is_framed_as_it_is_seen(tmp_path: Path, fit: str, orientation: int) -> None:
    """The same as of the pixels turned beforehand, bit for bit where the filter works on equal rows and columns."""
    image = noise((120, 80), 3)
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    upright = image.transpose(turn[orientation]) if orientation in turn else image
    upright.save(tmp_path / "upright.png")
    framing = Framing(30, 50, 3, fit, margin=True)
    pairs = zip(read_image(tmp_path / "turned.png", framing), read_image(tmp_path / "upright.png", framing))
    assert max(abs(a - b) for a, b in pairs) <= 2  # Pillow rounds between its two passes


def test_grey_is_the_luma_of_rgb(tmp_path: Path) -> None:
    noise((50, 50), 5).save(tmp_path / "1.png")
    rgb = opened(tmp_path / "1.png", Framing(20, 30, 3, "squash", False))
    grey = opened(tmp_path / "1.png", Framing(20, 30, 1, "squash", False))
    assert grey.tobytes() == rgb.convert("L").tobytes()
    red, green, blue = rgb.getpixel((3, 4))
    assert abs(grey.getpixel((3, 4)) - (0.299 * red + 0.587 * green + 0.114 * blue)) <= 1


@pytest.mark.parametrize("fit", FITS)
def test_a_large_jpeg_is_decoded_small_whatever_the_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: str
) -> None:
    image(tmp_path / "large.jpg", size=(4000, 3000))
    sizes = []
    original = Image.Image.resize

    def resize(image: Image.Image, *arguments: Any, **how: Any) -> Image.Image:
        sizes.append(image.size)
        return original(image, *arguments, **how)

    monkeypatch.setattr(Image.Image, "resize", resize)
    middle = opened(tmp_path / "large.jpg", Framing(96, 160, 3, fit)).getpixel((91, 55))
    assert_plain([[middle]], RED, 3)
    assert sizes == [(500, 375)]  # at least twice as large as the stored 183 x 110
