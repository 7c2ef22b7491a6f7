"""How a worker is told to stop."""

from __future__ import annotations

import signal


class StopRequest:
    """Remembers SIGINT and SIGTERM, so that training ends between two steps."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True
