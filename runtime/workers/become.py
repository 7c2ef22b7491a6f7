"""This process becomes another, instead of waiting beside it in memory of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import tinytl_edge
from tinytl_edge.runtime.errors import UsageError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LEAN = """
import sys
sys.path[:] = sys.argv[1].split("\\n")
from tinytl_edge.runtime.workers.lean import run
run(*sys.argv[2:])
"""
_LEAN_ENVIRONMENT = {
    # glibc's malloc: what is large goes back to the system when it is freed. Pictures come and go.
    "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "16384",
    "MALLOC_ARENA_MAX": "1",
    "PYTHONNODEBUGRANGES": "1",  # the columns of every instruction, which only tracebacks show
}  # fmt: skip


def become_lean(function: str, told: Mapping[str, Any]) -> NoReturn:
    """Replace this process by a Python that calls one function, without the command line's modules: 3 to 4 MB less.

    Args:
        function: "module:name".
        told: its argument, as JSON.
    """
    root = str(Path(str(tinytl_edge.__file__)).parent.parent)  # of an editable install, no path leads there
    path = [*sys.path, *([] if root in sys.path else [root])]
    _as_standard_input(told)
    # -S: without what `site` loads; the path is told.
    words = [sys.executable, "-S", "-c", _LEAN, "\n".join(path), *function.split(":")]
    os.execve(sys.executable, words, {**os.environ, **_LEAN_ENVIRONMENT})


def become_trainer(command: Sequence[str], job: Mapping[str, Any]) -> NoReturn:
    """Replace this process by the trainer; standard input becomes the job.

    Raises:
        UsageError: the trainer cannot be started.
    """
    _as_standard_input(job)
    # Until the trainer listens to them, or they would end it without a word in run.json.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        os.execve(command[0], list(command), own_environment())
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        raise UsageError(f"{command[0]} cannot be started: {error.strerror}.") from None


def _as_standard_input(told: Mapping[str, Any]) -> None:
    """As JSON, for the process that comes."""
    sys.stdout.flush()
    sys.stderr.flush()
    with _file_without_name() as file:
        file.write(json.dumps(dict(told)).encode())
        file.seek(0)
        os.dup2(file.fileno(), 0)


def _file_without_name() -> IO[bytes]:
    """In memory; on the disk where Python was built against a C library that cannot do that."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("told"), "w+b")
    import tempfile

    return tempfile.TemporaryFile()


def own_environment() -> dict[str, str]:
    """For processes that this one starts or becomes: without what `become_lean` has set."""
    return {name: value for name, value in os.environ.items() if _LEAN_ENVIRONMENT.get(name) != value}
