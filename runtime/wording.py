"""Names and messages as they stand in a sentence."""

from __future__ import annotations

from collections.abc import Sequence


def shown(thing: object) -> str:
    """A name or message as it can stand in a one-line sentence: escaped if it holds control characters."""
    text = str(thing)
    return text if text.isprintable() else repr(text)


def list_names(names: Sequence[str]) -> str:
    """The first ten names in quotes, and how many there are beyond."""
    first = ", ".join(map(repr, names[:10]))
    return first if len(names) <= 10 else f"{first} and {len(names) - 10} more"


def counted(number: int, what: str) -> str:
    """'1 image', '24 images'."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def are(number: int, what: str) -> str:
    """'1 image is', '24 images are'."""
    return f"{counted(number, what)} {'is' if number == 1 else 'are'}"
