"""Class names in a model file's own metadata, in its spelling: a list or numbers, as JSON or Python writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .label_file import in_own_spelling


@dataclass(frozen=True)
class ClassText:
    """An entry of the metadata: its key, how it spells the names, its text as it was, and the names in it.

    `kind`: "json list", "json numbers", "json names", "python list", "python numbers", "lines", "commas" or
    "semicolons".
    """

    key: str
    kind: str
    text: str
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in _WRITERS:
            raise ValueError(f"class names of the kind {self.kind!r}")

    def of(self, names: Sequence[str]) -> str:
        """The text with these names; as it was where there are none."""
        return _WRITERS[self.kind](in_own_spelling(names, self.names)) if names else self.text


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False)


_WRITERS: dict[str, Callable[[Sequence[str]], str]] = {
    "json list": lambda names: _json(list(names)),
    "json numbers": lambda names: _json({str(i): name for i, name in enumerate(names)}),
    "json names": lambda names: _json({name: i for i, name in enumerate(names)}),
    "python list": lambda names: repr(list(names)),
    "python numbers": lambda names: repr(dict(enumerate(names))),
    "lines": "\n".join,
    "commas": ",".join,
    "semicolons": ";".join,
}
