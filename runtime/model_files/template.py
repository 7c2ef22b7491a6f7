"""A template: a whole model file with a table of where each trained parameter's numbers go, and how they are stored.

`prepare` makes it, in the bundle's folder `template`; filling it is all that is left to do on a board.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinytl_edge.runtime.errors import DamagedFileError, UsageError
from tinytl_edge.runtime.files.bundle import Bundle, read_json
from tinytl_edge.runtime.files.records import read_record

from .class_text import ClassText
from .deployed import KINDS, kind_of
from .label_file import LabelFile
from .patch import Patch, content
from .stored_numbers import DTYPES, Read, Step, as_stored

FOLDER = "template"


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
    does. `patch`: what makes the model of that of another template, which `files` names. `archive`: a zip of the files
    that it brings along behind it (TFLite); `labels_inside`: the one of them that names the classes.
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
    archive: str = ""
    labels_inside: LabelFile | None = None
    patch: Patch | None = None

    @property
    def outputs(self) -> int:
        """How many numbers it gives."""
        return self.output.shape[-1] if self.output.shape else 0

    def __post_init__(self) -> None:
        if not self.files or any(hole.file >= len(self.files) for hole in self.holes):
            raise ValueError("a hole in a file that is not there")
        if any(Path(name).name != name for name in (*self.files, self.archive)):
            raise ValueError(f"a file outside of its folder: {list(self.files)}")


def layout_of(shape: Sequence[int], channels: int) -> str:
    """The order of an input's axes: "NCHW", "NHWC", or "NHW" where it has no channels."""
    if len(shape) == 3:
        return "NHW"
    return "NHWC" if shape[1] != channels and shape[3] == channels else "NCHW"


def table_of(kind: str, further: int = 0) -> str:
    """The name of the table for model files of this kind, with so many further classes."""
    return f"{kind}+{further}.json" if further else f"{kind}.json"


def read_template(bundle: Bundle, model: Path) -> Template:
    """A bundle's template for a model file of this name.

    Raises:
        UsageError: there is none for its ending; says for which there is.
        DamagedFileError: its table is damaged.
    """
    folder, further = bundle.file(FOLDER), bundle.further
    path = folder / table_of(kind_of(model) or "none", further)
    if not path.is_file():
        others = " or ".join(f".{kind}" for kind in KINDS if (folder / table_of(kind, further)).is_file())
        what = f"{bundle.path} with {bundle.manifest.class_count} classes" if further else str(bundle.path)
        raise UsageError(f"{model} is not what {what} can be written as: a name that ends in {others} is.")
    return read_record(Template, read_json(path, "a template's table"), path)


def filled(folder: Path, template: Template, file: int, read: Read | None) -> Iterator[bytes]:
    """The content of a template's file, piece by piece.

    Args:
        folder: where the template's files are.
        read: gives a parameter's float32 numbers by its name; None: the model as it was prepared.

    Raises:
        DamagedFileError: a parameter is missing, or has another size.
        UsageError: one grew beyond what the file's 16 bits hold.
    """
    source = _Bytes(content(folder / template.files[file], template.patch if file == 0 else None))
    at = 0
    for hole in sorted(template.holes, key=lambda hole: hole.offset):
        if read is None or hole.file != file:
            continue
        yield from source.take(hole.offset - at)
        try:
            numbers = as_stored(hole.parameter, read, hole.steps, hole.dtype)
        except OverflowError:  # of float16: codes end at their limits
            raise UsageError(
                f"'{hole.parameter}' grew beyond what {template.files[file]} can hold, which has it in 16 bits "
                "(65,504 at most): train with a lower --lr, or prepare the same network with 32 bits."
            ) from None
        if len(numbers) != hole.count * DTYPES[hole.dtype]:
            raise DamagedFileError(f"'{hole.parameter}' does not fit its place in {template.files[file]}.")
        yield numbers
        for _ in source.take(len(numbers)):  # which they stand for
            pass
        at = hole.offset + len(numbers)
    yield from source.take(None)


class _Bytes:
    """Bytes that come in parts of any length."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts, self._left = parts, b""

    def take(self, count: int | None) -> Iterator[bytes]:
        """The next `count`, or all that are left."""
        while count is None or count > 0:
            part = self._left or next(self._parts, b"")
            if not part:
                return
            taken, self._left = (part, b"") if count is None else (part[:count], part[count:])
            count = None if count is None else count - len(taken)
            yield taken
