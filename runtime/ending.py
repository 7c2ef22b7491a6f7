"""How a command ends where it cannot go on: our own errors become one sentence and their exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from .errors import InterruptedTrainingError, StorageError, TinyTLError


def end_well(command: Callable[[], None]) -> None:
    """Run a command; where it fails, say it on standard error and end the process."""
    try:
        command()
    except TinyTLError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("Interrupted.", InterruptedTrainingError.exit_code)
    except BrokenPipeError:
        _fail("", 128 + signal.SIGPIPE)  # whoever read us has had enough
    except OSError as error:  # of files it would be a StorageError: this is standard output
        _fail(f"The output could not be written: {error.strerror or error}.", StorageError.exit_code)


def _fail(message: str, exit_code: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):
        if message:
            sys.stderr.write(f"tinytl-edge: {' '.join(message.split())}\n")
            sys.stderr.flush()
        # What cannot be written is not tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(exit_code)
