"""The names of a classifier's outputs as other tools write them into a file beside it: read, and written again.

Text, a name a line, in the outputs' order or with their numbers; JSON; YAML (data.yaml of ultralytics); pbtxt (label
maps of TensorFlow's object detection).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinytl_edge.runtime.errors import DataError

_WAYS = 'one name a line, "0 name" a line, or a JSON list'
_NUMBER_FIRST = re.compile(r"(\d+)([\s:,;=]+)(\S.*)")
_NUMBER_LAST = re.compile(r"(\S.*?)(\s*[:,;=\t]\s*)(\d+)")


@dataclass(frozen=True)
class LabelFile:
    """A file's names in the outputs' order, and how it spells them.

    `kind`: "lines", "numbered" (the number first), "number last", "json list", "json numbers", "json names", "pbtxt" or
    "yaml"; `first` is the number of the first output, `between` what stands between number and name, `inside` the key
    that holds the names in a JSON object; `unnamed` outputs in front have no name in it (a background class).
    """

    name: str
    names: tuple[str, ...]
    kind: str = "lines"
    first: int = 0
    between: str = " "
    inside: str = ""
    unnamed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _WRITERS or Path(self.name).name != self.name:
            raise ValueError(f"a label file {self.name!r} of the kind {self.kind!r}")

    def text(self, names: Sequence[str]) -> str:
        """The content of such a file with other names, one for each output."""
        return _WRITERS[self.kind](self, in_own_spelling(names[self.unnamed :], self.names))


def plain(name: str) -> str:
    """What of a class's name counts when names are compared."""
    return re.sub(r"[\s_\-]+", " ", name).strip().casefold()


def in_own_spelling(names: Sequence[str], before: Sequence[str]) -> list[str]:
    """Names, those that were there before as they were: an app may look for them."""
    own = {plain(name): name for name in before}
    return [own.get(plain(name), name) for name in names]


def read_label_file(path: Path) -> LabelFile:
    """Read it, whatever its spelling.

    Raises:
        DataError: it cannot be read, is no text, or its numbers are not those of outputs; says how to write it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    return parse_label_file(path, content)


def parse_label_file(path: str | Path, content: bytes) -> LabelFile:
    """The same of its content.

    Raises:
        DataError: it is no text, or its numbers are not those of outputs.
        ValueError: it has no name of its own folder.
    """
    path = Path(path)
    try:
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8: write {_WAYS}.") from None
    if "\0" in text:
        raise DataError(f"{path} is no text in UTF-8: write {_WAYS}.")
    found = _json(path, text) or _pbtxt(path, text) or _yaml(path, text) or _lines(path, text)
    if not found.names:
        raise DataError(f"{path} has no names: write {_WAYS}.")
    return found


def _json(path: Path, text: str) -> LabelFile | None:
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        content = json.loads(text)
    except ValueError:
        raise DataError(f"{path} looks like JSON but is damaged: write {_WAYS}.") from None
    inside = ""
    if isinstance(content, dict):
        for key in ("id2label", "names", "labels", "classes"):
            if isinstance(content.get(key), (dict, list)):
                content, inside = content[key], key
                break
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return LabelFile(path.name, tuple(content), "json list", inside=inside)
    if isinstance(content, dict) and content:
        if all(type(value) is int for value in content.values()):
            names, first = _in_order(path, {value: name for name, value in content.items()}, len(content))
            return LabelFile(path.name, names, "json names", first, inside=inside)
        if all(re.fullmatch(r"\d+", key) and isinstance(value, str) for key, value in content.items()):
            names, first = _in_order(path, {int(key): name for key, name in content.items()}, len(content))
            return LabelFile(path.name, names, "json numbers", first, inside=inside)
    raise DataError(f"{path} is JSON of another form than a list of names or names by number: write {_WAYS}.")


def _pbtxt(path: Path, text: str) -> LabelFile | None:
    items = re.findall(r"item\s*\{(.*?)\}", text, re.DOTALL)
    if not items:
        return None
    found = {}
    for item in items:
        number = re.search(r"\bid\s*:\s*(\d+)", item)
        name = re.search(r"\bdisplay_name\s*:\s*[\"'](.*?)[\"']", item) or re.search(
            r"\bname\s*:\s*[\"'](.*?)[\"']", item
        )
        if number is None or name is None:
            raise DataError(f"{path} has an item without an id or a name: write {_WAYS}.")
        found[int(number[1])] = name[1]
    names, first = _in_order(path, found, len(items))
    return LabelFile(path.name, names, "pbtxt", first)


def _yaml(path: Path, text: str) -> LabelFile | None:
    """`names:` with a list or numbers below it, or a list behind it; of all else in the file nothing is read."""
    start = re.search(r"^names\s*:[ \t]*(.*)$", text, re.MULTILINE)
    if start is None:
        return None
    if start[1].strip().startswith("["):
        names = [part.strip().strip("\"'") for part in start[1].strip().strip("[]").split(",")]
        return LabelFile(path.name, tuple(names), "yaml")
    found: dict[int, str] = {}
    for line in re.split(r"\r\n|\n|\r", text[start.end() :])[1:]:
        entry = re.fullmatch(r"\s*(?:(\d+)\s*:|-)\s*(.+?)\s*", line)
        if entry is None:
            if line.strip() and not line.startswith((" ", "\t")):
                break
            continue
        found[int(entry[1]) if entry[1] else len(found)] = entry[2].strip("\"'")
    names_in_order, first = _in_order(path, found, len(found))
    return LabelFile(path.name, names_in_order, "yaml", first)


def _lines(path: Path, text: str) -> LabelFile:
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text)]
    lines = [line for line in lines if line and not line.startswith("# ")]
    if len(lines) == 1 and ";" in lines[0]:
        raise DataError(f"{path} has its names on one line: write {_WAYS}.")
    if lines and all(len(line) > 1 and line[0] == line[-1] and line[0] in "\"'" for line in lines):
        return LabelFile(path.name, tuple(line[1:-1] for line in lines))
    for pattern, kind, number, name in ((_NUMBER_FIRST, "numbered", 1, 3), (_NUMBER_LAST, "number last", 3, 1)):
        found = [pattern.fullmatch(line) for line in lines]
        if not lines or not all(found):
            continue
        numbers = [int(match[number]) for match in found if match]
        names = [match[name].strip() for match in found if match]
        first, between = min(numbers), found[0][2]  # type: ignore[index]
        if len(set(names)) == len(names) and sorted(numbers) == list(range(first, first + len(lines))) and first < 2:
            in_order = tuple(name for _, name in sorted(zip(numbers, names)))
            return LabelFile(path.name, in_order, kind, first, between)
        if kind == "numbered" and first == 0 and numbers == sorted(set(numbers)):
            missing = next(n for n in range(numbers[-1] + 1) if n not in numbers)
            raise DataError(f"{path} numbers its names, but none has the number {missing}: write {_WAYS}.")
    return LabelFile(path.name, tuple(lines))


def _in_order(path: Path, found: Mapping[int, str], count: int) -> tuple[tuple[str, ...], int]:
    """Names by their numbers, which go up by one from 0 or 1; and the first number."""
    first = min(found, default=0)
    if len(found) != count or sorted(found) != list(range(first, first + count)) or first > 1:
        raise DataError(f"{path} has the numbers {_few(sorted(found))}, which do not go up by one from 0 or 1.")
    return tuple(found[number] for number in sorted(found)), first


def _few(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:8]))
    return shown if len(numbers) <= 8 else f"{shown}, ..."


# Written again ----------------------------------------------------------------------------------------------


def _json_text(file: LabelFile, content: Any) -> str:
    return json.dumps({file.inside: content} if file.inside else content, ensure_ascii=False, indent=1) + "\n"


_WRITERS: dict[str, Callable[[LabelFile, Sequence[str]], str]] = {
    "lines": lambda file, names: "".join(f"{name}\n" for name in names),
    "numbered": lambda file, names: "".join(f"{i}{file.between}{name}\n" for i, name in enumerate(names, file.first)),
    "number last": lambda file, names: "".join(
        f"{name}{file.between}{i}\n" for i, name in enumerate(names, file.first)
    ),
    "json list": lambda file, names: _json_text(file, list(names)),
    "json numbers": lambda file, names: _json_text(file, {str(i): name for i, name in enumerate(names, file.first)}),
    "json names": lambda file, names: _json_text(file, {name: i for i, name in enumerate(names, file.first)}),
    "pbtxt": lambda file, names: "".join(
        f"item {{\n  id: {i}\n  name: {json.dumps(name, ensure_ascii=False)}\n}}\n"
        for i, name in enumerate(names, file.first)
    ),
    "yaml": lambda file, names: "names:\n" + "".join(f"  {i}: {name}\n" for i, name in enumerate(names, file.first)),
}
