"""Multi-label images: the table, and the packed file."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import COLOURS, make_image

from tinytl_edge.runtime.errors import DamagedFileError, DataError
from tinytl_edge.runtime.files.tensors import write_tensors
from tinytl_edge.runtime.images.dataset import FORMAT, open_dataset
from tinytl_edge.runtime.images.framing import Framing
from tinytl_edge.runtime.images.label_table import read_table
from tinytl_edge.runtime.images.packing import pack

NAMES = tuple(COLOURS)
R = Framing(7, 7)  # packs to 8 x 8


def labelled(folder: Path, count: int, seed: int = 0) -> Path:
    """`count` images, some of no class and some of more, and their table."""
    rows = ["file," + ",".join(NAMES)]
    for number in range(count):
        marks = [number >> bit & 1 for bit in range(len(NAMES))]
        colour = [sum(c[i] for c, mark in zip(COLOURS.values(), marks) if mark) // 3 + 30 for i in range(3)]
        make_image(folder / "images" / f"{number}.png", (colour[0], colour[1], colour[2]), seed=100 * seed + number)
        rows.append(f"images/{number}.png," + ",".join(map(str, marks)))
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


# The table ----------------------------------------------------------------------------------------------


def test_a_table_is_read(tmp_path: Path) -> None:
    for name in ("a.png", "b, c.png"):
        make_image(tmp_path / name, (1, 2, 3))
    table = '\ufefffile, hat ,"long, hair"\r\na.png,0,1\r\n\r\n"b, c.png",1, 0\r\n'
    (tmp_path / "labels.csv").write_bytes(table.encode())
    read = read_table(tmp_path)
    assert read.classes == ("hat", "long, hair")
    assert read.rows == ((tmp_path / "a.png", b"\0\1"), (tmp_path / "b, c.png", b"\1\0"))
    assert read.in_order(("long, hair", "hat")).rows[0] == (tmp_path / "a.png", b"\1\0")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("", "has to begin with the row file,NAME,NAME"),
        ("file\na.png\n", "has to begin with the row file,NAME,NAME"),
        ("file;hat\na.png;1\n", "has to begin with the row file,NAME,NAME"),
        ("a.png,1\n", "has to begin with the row file,NAME,NAME"),
        ("file,hat,\na.png,1,0\n", "has a column without a name"),
        ("file,hat,hat\na.png,1,0\n", "has two columns 'hat'"),
        ("file,hat\n", "names no images"),
        ("file,hat\na.png,1\nb.png,1\n", "row 3 names 'b.png', which is no file in"),
        ("file,hat\na.png,1\n,1\n", "row 3 names '', which is no file in"),
        ("file,hat,wig\na.png,1,-1\n", "row 2 says '-1' of 'wig': it has to be 0 or 1"),
        ("file,hat,wig\na.png,1\n", "row 2 has 1 labels, not 2"),
        ("file,hat\na.png,1\n\n./a.png,1\n", "row 4 names './a.png' again, after row 2"),
        ('file,hat\n"a.png,1\n', "cannot be read as a table"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, table: str, sentence: str) -> None:
    make_image(tmp_path / "a.png", (1, 2, 3))
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(DataError) as refused:
        read_table(tmp_path)
    assert sentence in str(refused.value) and str(tmp_path / "labels.csv") in str(refused.value)


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("file,Hüte\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_table(tmp_path)


# The file -----------------------------------------------------------------------------------------------


def test_packing(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "images", 8)
    (folder / "images" / "7.png").write_bytes(b"?")
    warnings: list[str] = []
    report = pack(folder, tmp_path / "data", R, on_warning=warnings.append)
    assert (report.count, report.counts, len(report.skipped), len(warnings)) == (7, dict.fromkeys(NAMES, 3), 1, 1)
    with open_dataset(tmp_path / "data") as dataset:
        assert (dataset.kind, dataset.count, dataset.classes) == ("multi", 7, list(NAMES))
        assert dataset.labels == [] and dataset.counts() == [3, 3, 3]
        assert dataset.marks == [bytes(number >> bit & 1 for bit in range(3)) for number in range(7)]
    pack(folder, tmp_path / "turned", R, ("fox", "cat", "dog"))
    with open_dataset(tmp_path / "turned") as dataset:
        assert dataset.marks[1] == b"\0\1\0"


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [(("cat", "dog"), "has the column 'fox'"), ((*NAMES, "owl"), "lacks the column 'owl'")],
)
def test_other_columns_than_the_models_are_refused(tmp_path: Path, classes: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        pack(labelled(tmp_path / "images", 2), tmp_path / "data", R, classes)


DAMAGED: dict[str, tuple[dict[str, str], str, tuple[int, ...], bytes, str]] = {
    "kind": ({"labels": "x"}, "U8", (2, 2), bytes(4), "its labels are of an unknown kind"),
    "no classes": ({"classes": "[]"}, "U8", (2, 0), b"", "multi-label, but has no classes"),
    "numbers": ({}, "I32", (2,), bytes(8), r"its labels are I32 \[2\], not U8 \[2, 2\]"),
    "too few": ({}, "U8", (1, 2), bytes(2), r"its labels are U8 \[1, 2\], not U8 \[2, 2\]"),
    "too many classes": ({}, "U8", (2, 3), bytes(6), r"its labels are U8 \[2, 3\], not U8 \[2, 2\]"),
    "no bit": ({}, "U8", (2, 2), b"\0\1\2\0", "the label 2 of sample 1 is neither 0 nor 1"),
    "marks of one": ({"labels": "single"}, "U8", (2, 2), bytes(4), r"its labels are U8 \[2, 2\], not I32 \[2\]"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_each_kind_of_damage_is_named(tmp_path: Path, case: str) -> None:
    """The trainer is held to the same sentences in tests/test_native_sampling.py."""
    changes, dtype, shape, content, sentence = DAMAGED[case]
    metadata = {
        "format": FORMAT, "version": "3", "classes": '["a", "b"]', "labels": "multi",
        "height": "7", "width": "7", "channels": "3", "fit": "crop", "margin": "true",
    }  # fmt: skip
    pixels = ("images", "U8", (2, 8, 8, 3), bytes(384))
    prints = ("fingerprints", "U8", (2, 8), bytes(16))
    write_tensors(tmp_path / "data", [pixels, prints, ("labels", dtype, shape, content)], {**metadata, **changes})
    with pytest.raises(DamagedFileError, match=sentence):
        open_dataset(tmp_path / "data")
