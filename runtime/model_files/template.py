"""A template: a whole model file with a table of where each trained parameter's numbers go, and how they are stored.

`prepare` makes it, in the bundle's folder `template`; filling it is all that is left to do on a board.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tinytl_edge.runtime.errors import DamagedFileError, UsageError
from tinytl_edge.runtime.files.bundle import Bundle, read_json
from tinytl_edge.runtime.files.records import read_record
from tinytl_edge.runtime.files.tensors import TensorFile

from .class_text import ClassText
from .label_file import LabelFile
from .stored_numbers import DTYPES, Step, as_stored

FOLDER = "template"
_PIECE = 1 << 18


@dataclass(frozen=True)
class Hole:
    """Where a parameter's numbers go: `file` of the template, first byte, type of `count` numbers.

    `steps` lead from the parameter, float32 as it trains, to the numbers in the file.
    """

    parameter: str
    offset: int
    count: int
    dtype: str = "float32"
    steps: tuple[Step, ...] = ()
    file: int = 0

    def __post_init__(self) -> None:
        if self.offset < 0 or self.count < 1 or self.file < 0 or self.dtype not in DTYPES:
            raise ValueError(f"{self.count} numbers of {self.dtype} at {self.offset}")


@dataclass(frozen=True)
class Port:
    """An input or output of a model file: its name, shape (0: open) and type."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Template:
    """The table.

    `files`: the model, and what lies beside it under its own name (external data). `end`: what the output's numbers
    are: "logits", "softmax", "log_softmax" or "sigmoid". `layout` of the input: "NCHW", "NHWC" or "NHW"; `colours`:
    "RGB", "BGR" or "grey". `raw_pixels`: the input takes pixels of 0..255 as they are. `one_output`: a sigmoid, the
    share of the second of two classes. `source`: the name of the file that this is, where it came from one.
    `class_texts`: entries of its metadata that name the classes, beside our own; `labels`: the file beside it that
    does.
    """

    files: tuple[str, ...]
    holes: tuple[Hole, ...]
    input: Port
    output: Port
    end: str = "logits"
    layout: str = "NCHW"
    colours: str = "RGB"
    raw_pixels: bool = False
    one_output: bool = False
    source: str | None = None
    class_texts: tuple[ClassText, ...] = ()
    labels: LabelFile | None = None

    def __post_init__(self) -> None:
        if not self.files or any(hole.file >= len(self.files) for hole in self.holes):
            raise ValueError("a hole in a file that is not there")
        if any(Path(name).name != name for name in self.files):
            raise ValueError(f"a file outside of its folder: {list(self.files)}")


def table_of(ending: str) -> str:
    """The name of the table for model files of this ending."""
    return f"{ending.lower().lstrip('.')}.json"


def read_template(bundle: Bundle, ending: str) -> Template:
    """A bundle's template for model files of this ending, as `.onnx`.

    Raises:
        UsageError: it has none; says which it has.
        DamagedFileError: its table is damaged.
    """
    path = bundle.file(FOLDER) / table_of(ending)
    if not path.is_file():
        others = sorted(f".{each.stem}" for each in bundle.file(FOLDER).glob("*.json"))
        raise UsageError(f"{bundle.path} cannot be written as '{ending}': let --out end in {' or '.join(others)}.")
    return read_record(Template, read_json(path, "a template's table"), path)


def filled(bundle: Bundle, template: Template, file: int, parameters: TensorFile | None) -> Iterator[bytes]:
    """The content of a template's file, piece by piece; without parameters as the model was prepared.

    Raises:
        DamagedFileError: a parameter is missing, or has another size.
    """
    holes = sorted((h for h in template.holes if h.file == file), key=lambda hole: hole.offset) if parameters else []
    with (bundle.file(FOLDER) / template.files[file]).open("rb") as source:
        at = 0
        for hole in holes:
            yield from _pieces(source, hole.offset - at)
            content = as_stored(hole.parameter, _Parameters(parameters), hole.steps, hole.dtype)
            if len(content) != hole.count * DTYPES[hole.dtype]:
                raise DamagedFileError(f"'{hole.parameter}' does not fit its place in {template.files[file]}.")
            yield content
            source.seek(len(content), 1)
            at = hole.offset + len(content)
        yield from _pieces(source, None)


class _Parameters(Mapping[str, bytes]):
    """Float32 numbers by name, read when they are asked for."""

    def __init__(self, tensors: TensorFile | None) -> None:
        assert tensors is not None
        self._tensors = tensors

    def __getitem__(self, name: str) -> bytes:
        return self._tensors.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors.entries)

    def __len__(self) -> int:
        return len(self._tensors.entries)


def _pieces(source: IO[bytes], count: int | None) -> Iterator[bytes]:
    """The next `count` bytes of a file, or all that are left."""
    while count is None or count > 0:
        piece = source.read(_PIECE if count is None else min(count, _PIECE))
        if not piece:
            break
        yield piece
        count = None if count is None else count - len(piece)
