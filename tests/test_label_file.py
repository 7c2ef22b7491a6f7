"""Label files in the spellings of other tools: the same names in the outputs' order, or a refusal; never shifted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinytl_edge.runtime.errors import DataError
from tinytl_edge.runtime.model_files.label_file import read_label_file

NAMES = ("cat", "guinea pig", "dog")
SPELLINGS = {
    "plain": "cat\nguinea pig\ndog\n",
    "without a newline at its end": "cat\nguinea pig\ndog",
    "CRLF": "cat\r\nguinea pig\r\ndog\r\n",
    "CR": "cat\rguinea pig\rdog\r",
    "a byte order mark": "\ufeffcat\nguinea pig\ndog\n",
    "blank lines": "cat\n\nguinea pig\ndog\n\n\n",
    "blanks behind names": "cat  \nguinea pig\t\ndog \n",
    "numbers": "0 cat\n1 guinea pig\n2 dog\n",
    "numbers, two blanks": "0  cat\n1  guinea pig\n2  dog\n",
    "numbers, colon": "0: cat\n1: guinea pig\n2: dog\n",
    "numbers, tab": "0\tcat\n1\tguinea pig\n2\tdog\n",
    "numbers, comma": "0,cat\n1,guinea pig\n2,dog\n",
    "numbers last": "cat:0\nguinea pig:1\ndog:2\n",
    "numbers in another order": "2 dog\n0 cat\n1 guinea pig\n",
    "numbers from 1": "1 cat\n2 guinea pig\n3 dog\n",
    "quoted": '"cat"\n"guinea pig"\n"dog"\n',
    "a comment": "# labels of the pet camera\ncat\nguinea pig\ndog\n",
    "pbtxt": "".join(f'item {{\n  id: {i + 1}\n  name: "{name}"\n}}\n' for i, name in enumerate(NAMES)),
    "pbtxt with display names": "".join(
        f"item {{\n  name: '/m/{i}'\n  id: {i}\n  display_name: '{name}'\n}}\n" for i, name in enumerate(NAMES)
    ),
    "JSON list": json.dumps(NAMES),
    "JSON numbers": json.dumps({str(i): name for i, name in enumerate(NAMES)}),
    "JSON names": json.dumps({name: i for i, name in enumerate(NAMES)}),
    "JSON of transformers": json.dumps({"id2label": {str(i): name for i, name in enumerate(NAMES)}}),
    "YAML numbers": "nc: 3\nnames:\n  0: cat\n  1: guinea pig\n  2: dog\npath: here\n",
    "YAML list": "names:\n- cat\n- 'guinea pig'\n- dog\n",
    "YAML in a line": "names: [cat, 'guinea pig', dog]\nnc: 3\n",
}


def written(folder: Path, text: str, name: str = "labels.txt") -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str, tmp_path: Path) -> None:
    file = read_label_file(written(tmp_path, SPELLINGS[spelling]))
    assert file.names == NAMES
    again = read_label_file(written(tmp_path, file.text(("a b", "é", "3 c")), "again.txt"))
    assert again.names == ("a b", "é", "3 c")
    assert (again.kind, again.first) == (file.kind, file.first)


def test_utf_16(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("cat\nguinea pig\ndog\n".encode("utf-16"))
    assert read_label_file(tmp_path / "labels.txt").names == NAMES


@pytest.mark.parametrize(
    "names", [("7", "11", "13"), ("0", "1", "2"), ("2 euro coin", "1 euro coin", "5 cent coin"), ("1 euro", "2 euro")]
)
def test_names_that_are_or_begin_with_numbers_stay_whole(names: tuple[str, ...], tmp_path: Path) -> None:
    assert read_label_file(written(tmp_path, "\n".join(names))).names == names


def test_ten_is_behind_nine_and_not_behind_one(tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(12))
    text = json.dumps(dict(sorted({str(i): name for i, name in enumerate(names)}.items())))
    assert read_label_file(written(tmp_path, text)).names == names


REFUSED = {
    "a gap": ("0 cat\n2 dog\n", "none has the number 1"),
    "on one line": ("cat;guinea pig;dog", "on one line"),
    "nothing": ("\n\n", "has no names"),
    "damaged JSON": ('["cat", ', "is damaged"),
    "other JSON": ('{"a": [1]}', "of another form"),
    "JSON with a gap": ('{"0": "cat", "2": "dog"}', "numbers 0, 2"),
    "pbtxt without a name": ("item {\n id: 1\n}\n", "without an id or a name"),
    "no text": ("cat\0dog", "no text"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_ambiguous_is_refused(kind: str, tmp_path: Path) -> None:
    text, words = REFUSED[kind]
    with pytest.raises(DataError, match=words) as refused:
        read_label_file(written(tmp_path, text))
    assert "labels.txt" in str(refused.value)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_label_file(tmp_path / "nothing.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="no text in UTF-8"):
        read_label_file(tmp_path / "latin.txt")
