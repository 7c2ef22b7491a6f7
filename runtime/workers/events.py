"""What a worker says: JSON lines on standard output, one event a line, the last says how it ended.

Events of training: start, one_pass or aligned, step, checkpoint, epoch, choice, warning, and at the end done or error.
Beside them `pack`, `fitting` and `evaluating` {done, total}, for a live line.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
PASSING = frozenset(("pack", "fitting", "evaluating"))  # not worth logging


def emit(event: str, **fields: object) -> None:
    """Write one event to standard output (the worker's side).

    Raises:
        BrokenPipeError: whoever started the worker is gone.
    """
    sys.stdout.write(encode({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def encode(event: Event) -> str:
    """One line of strict JSON; numbers that JSON lacks become null."""
    return json.dumps(_finite(event), ensure_ascii=False)


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


def read_events(stream: IO[bytes]) -> Iterator[Event]:
    """The events on a worker's standard output; anything else that stands there is passed over."""
    for line in stream:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event
