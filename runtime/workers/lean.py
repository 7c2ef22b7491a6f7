"""A Python process that holds little: what `become.become_lean` starts."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

# Standard modules that others import for cases which do not occur here: two megabytes.
_SELDOM = ("inspect", "ipaddress", "linecache", "subprocess", "textwrap")


class _Later(ModuleType):
    """A module that is loaded when something of it is used. (importlib's LazyLoader loads it at every import.)"""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        loaded = importlib.import_module(self.__name__)
        self.__dict__.update(loaded.__dict__)
        return getattr(loaded, name)


def run(module: str, function: str) -> None:
    """Call a function with all of standard input."""
    for name in _SELDOM:
        sys.modules.setdefault(name, _Later(name))
    getattr(importlib.import_module(module), function)(sys.stdin.read())
