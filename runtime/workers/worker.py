"""Starts a worker process, passes its events on, and measures it from outside."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from tinytl_edge.runtime.errors import InterruptedTrainingError, UsageError, WorkerError, error_for_exit_code

from .become import own_environment
from .events import Event, OnEvent, read_events
from .memory_watch import MemoryWatch


@dataclass(frozen=True)
class Measured:
    """How a worker ended: its last event, and its memory in bytes as seen from outside.

    `curve` holds (seconds since the start, RSS); the peak is the kernel's VmHWM, `peak_of_all` that of this process and
    the worker together.
    """

    last: Event
    peak_rss_bytes: int
    peak_of_all: int
    curve: list[tuple[float, int]]


def run_worker(command: Sequence[str], job: Mapping[str, Any], on_event: OnEvent) -> Measured:
    """Run a worker on a job until it ends.

    Every event but the last goes to `on_event`, with `rss_bytes` as seen from outside. SIGINT and SIGTERM to
    this process ask the worker to end between two steps.

    Raises:
        TinyTLError: the error with which the worker ended, of its exit code's kind.
    """
    with tempfile.TemporaryFile() as complaints, _started(command, complaints) as process:
        watch = MemoryWatch(process.pid)
        last: Event = {}
        said = 0  # the worker's own reading; the kernel's counters are rounded, so a later one may be a page lower
        try:
            with _pass_signals_on(process) as passed:
                _send(process, job)
                assert process.stdout is not None
                for event in read_events(process.stdout):
                    last = event
                    said = max(said, int(event.get("peak_rss_bytes") or 0))
                    if event["event"] not in ("done", "error"):
                        on_event({**event, "rss_bytes": watch.rss})
                process.wait()
        finally:
            process.kill()  # it has ended, unless `on_event` failed
            watch.stop()
        if last.get("event") == "error":
            raise error_for_exit_code(int(last["exit_code"]), str(last["message"]))
        if last.get("event") != "done" or process.returncode != 0:
            if passed:
                raise InterruptedTrainingError("Interrupted before there was anything to keep.")
            raise WorkerError(_sudden_end(process.returncode, complaints))
    return Measured(last, max(watch.peak, said), watch.peak_of_all, watch.curve)


def _started(command: Sequence[str], complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env={**own_environment(), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # the terminal's Ctrl-C reaches it through us, once
        )
    except OSError as error:
        raise UsageError(f"{command[0]} cannot be started: {error.strerror}.") from None


def _send(process: subprocess.Popen[bytes], job: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code tells more
        process.stdin.write(json.dumps(dict(job)).encode())
        process.stdin.close()


@contextlib.contextmanager
def _pass_signals_on(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Yields the list of those passed on so far."""
    passed: list[int] = []

    def forward(number: int, _: object) -> None:
        passed.append(number)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not in the main thread: whoever runs us handles signals
            previous[number] = signal.signal(number, forward)
    try:
        yield passed
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _sudden_end(code: int, complaints: IO[bytes]) -> str:
    """What became of a worker that could not say it itself."""
    complaints.seek(0)
    lines = complaints.read().decode(errors="replace").strip().splitlines()
    said = f" Its last words: {lines[-1]}" if lines else ""
    if code == -signal.SIGKILL:
        return "The worker was killed, most likely because memory ran out: use a smaller batch or resolution." + said
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"The worker ended {how} without saying why.{said}"
