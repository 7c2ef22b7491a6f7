"""The command line: parses and prints; the work is in modules with the same verbs. A file a group of commands."""

from __future__ import annotations

from . import looking, preparing, training, using  # noqa: F401  they register their commands
from .command import cli as cli


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="tinytl-edge")
