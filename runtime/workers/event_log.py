"""Where the events of a training go: to whoever watches, and into the run's events.jsonl."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO

from tinytl_edge.runtime.errors import StorageError

from .events import PASSING, Event, OnEvent, encode


class EventLog:
    """Hands events to whoever watches, and once opened appends them to a file."""

    def __init__(self, watcher: OnEvent | None) -> None:
        self._watcher = watcher
        self._file: IO[str] | None = None

    def open(self, path: Path) -> None:
        """Log from now on.

        Raises:
            StorageError: the file cannot be written.
        """
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path} could not be written: {error.strerror}.") from error

    def write(self, event: Event) -> None:
        """Show an event, and log it if it is worth it.

        Raises:
            StorageError: it could not be written.
        """
        if self._watcher is not None:
            self._watcher(event)
        if self._file is None or event["event"] in PASSING:
            return
        try:
            self._file.write(encode(event) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"{self._file.name} could not be written: {error.strerror}.") from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written has been reported
                self._file.close()
            self._file = None
