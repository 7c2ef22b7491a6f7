"""Records in JSON files: a dataclass from a JSON object, its fields checked against their types.

A reader ignores keys that it does not know, and takes a field's default where the key is missing: what a later version
of the same format adds does no harm. Anything else that is not as the dataclass says is damage.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin

from tinytl_edge.runtime.errors import DamagedFileError

T = TypeVar("T")
_LOWEST = -sys.float_info.max
_LARGEST = 2**63 - 1
_NAMES = {
    dict: "an object",
    tuple: "a list",
    str: "a text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
}


def read_record(kind: type[T], content: object, where: object) -> T:
    """An instance of the dataclass `kind` from parsed JSON: numbers, texts, tuples, dicts, records in records, unions.

    Args:
        where: the file, for the message.

    Raises:
        DamagedFileError: a field is missing, of another type, or one that the dataclass itself refuses (ValueError).
    """
    try:
        value: T = _record(kind, content)
    except _GarbledError as garbled:
        raise DamagedFileError(f"{where} is damaged: it lacks or garbles {garbled}.") from None
    return value


class _GarbledError(Exception):
    """The path of a field, and what is wrong with it."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"'{path}' ({what})" if path else f"a field ({what})")
        self.path, self.what = path, what

    def within(self, name: str) -> _GarbledError:
        return _GarbledError(f"{name}.{self.path}" if self.path else name, self.what)


def _record(kind: Any, content: object) -> Any:
    if not isinstance(content, Mapping):
        raise _GarbledError("", "it is no object")
    values = {}
    for field in fields(kind):
        if field.name not in content:
            if field.default is MISSING and field.default_factory is MISSING:
                raise _GarbledError(field.name, "it is missing")
            continue
        try:
            values[field.name] = _value(_alternatives(field.type, kind), content[field.name])
        except _GarbledError as garbled:
            raise garbled.within(field.name) from None
    try:
        return kind(**values)
    except ValueError as error:
        raise _GarbledError("", str(error)) from None


def _alternatives(annotation: Any, kind: type) -> tuple[Any, ...]:
    """The types that a field's annotation names. Python 3.9 cannot evaluate `int | None` whole, so each by itself."""
    if isinstance(annotation, str):
        names = vars(sys.modules[kind.__module__])
        return tuple(eval(part, dict(names)) for part in annotation.split(" | "))
    return (annotation,)


def _value(alternatives: tuple[Any, ...], content: object) -> Any:
    if content is None and None in alternatives:
        return None
    return _typed(next(kind for kind in alternatives if kind is not None), content)


def _typed(kind: Any, content: object) -> Any:
    if kind is Any:
        return content
    if is_dataclass(kind):
        return _record(kind, content)
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is tuple and isinstance(content, (list, tuple)):
        return tuple(_item(arguments[0], f"[{index}]", item) for index, item in enumerate(content))
    if origin is dict and isinstance(content, dict):
        return {name: _item(arguments[1], name, item) for name, item in content.items()}
    if origin is float and type(content) in (int, float) and _LOWEST <= content <= -_LOWEST:  # type: ignore[operator]
        return float(content)  # type: ignore[arg-type]
    if origin is int and type(content) is int and -_LARGEST <= content <= _LARGEST:  # True is no number
        return content
    if origin in (bool, str) and type(content) is origin:
        return content
    raise _GarbledError("", f"it is not {_NAMES[origin]}")


def _item(kind: Any, name: str, content: object) -> Any:
    try:
        return _typed(kind, content)
    except _GarbledError as garbled:
        raise garbled.within(name) from None
