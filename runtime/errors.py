"""Every way a command can fail: one sentence for the person, one exit code for the script."""

from __future__ import annotations


class TinyTLError(Exception):
    """Base of all expected failures: its text is one sentence that says what is wrong and what to do."""

    exit_code = 1


class UsageError(TinyTLError):
    """The call itself is wrong: an unknown backbone, options that exclude each other."""

    exit_code = 2


class DamagedFileError(TinyTLError):
    """A bundle, program, adapter or dataset that is damaged or not ours."""

    exit_code = 3


class DataError(TinyTLError):
    """Images or labels that cannot be used."""

    exit_code = 4


class MemoryLimitError(TinyTLError):
    """The plan does not fit the memory limit."""

    exit_code = 5


class StorageError(TinyTLError):
    """Writing failed: no space, no permission, a vanished medium."""

    exit_code = 6


class DivergedError(TinyTLError):
    """The loss is no longer a number, or hopelessly high; the last good adapter stays."""

    exit_code = 7


class InterruptedTrainingError(TinyTLError):
    """Stopped by the user; a checkpoint was written."""

    exit_code = 130


class WorkerError(TinyTLError):
    """A worker ended without saying why."""

    exit_code = 1


_BY_EXIT_CODE: dict[int, type[TinyTLError]] = {
    kind.exit_code: kind
    for kind in (
        UsageError,
        DamagedFileError,
        DataError,
        MemoryLimitError,
        StorageError,
        DivergedError,
        InterruptedTrainingError,
    )
}


def error_for_exit_code(exit_code: int, message: str) -> TinyTLError:
    """The error that a worker meant when it ended with `exit_code` and said `message`."""
    return _BY_EXIT_CODE.get(exit_code, WorkerError)(message)
