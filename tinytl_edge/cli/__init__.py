"""The command line: parses and prints; the work is in modules with the same verbs. A file a group of commands."""

from __future__ import annotations

from .command import cli as cli


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="tinytl-edge", obj=True)  # this process is the command's own: see `command.owns_process`
