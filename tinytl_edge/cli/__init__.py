"""The command line: parses and prints; the work is in modules with the same verbs. A file a group of commands."""

from __future__ import annotations

import os
import sys

from .command import cli as cli


def main() -> None:
    """Entry point of the console script."""
    _open_standard_streams()
    cli(prog_name="tinytl-edge", obj=True)  # this process is the command's own: see `command.owns_process`


def _open_standard_streams() -> None:
    """Where one is closed (`2>&-`), the next file that is opened would take its place, and what is said to it."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115
