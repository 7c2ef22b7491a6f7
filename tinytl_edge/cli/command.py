"""The group of all commands, how one is registered, and the options that they share."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tinytl_edge import __version__

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
# Commands in the order in which one uses them, and the module that each is in.
_COMMANDS = {
    "prepare": "preparing", "doctor": "looking", "pack": "training", "train": "training", "evaluate": "using",
    "predict": "using", "export": "using", "inspect": "looking", "report": "looking", "bench": "looking",
    "devices": "looking", "demo": "looking",
}  # fmt: skip


class _Group(click.Group):
    """Loads the module of the command that is called, and no other: on a board memory counts."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            importlib.import_module(f".{_COMMANDS[cmd_name]}", __package__)
        return super().get_command(ctx, cmd_name)


class _Command(click.Command):
    """A command whose help ends with an example."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Example"):
            formatter.write(f"{' ' * formatter.current_indent}{self.example}\n")  # unwrapped, to be copied


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tinytl-edge")
def cli() -> None:
    """Adapt an image classifier on the board it runs on, from a few dozen images, in little memory.

    On a workstation `prepare` turns a classifier (.tflite, .onnx, PyTorch) into a bundle; on the board `train` adapts
    it.
    """


def command(example: str) -> Callable[[F], click.Command]:
    """Register a command; our own errors become one sentence and their exit code."""

    def register(function: F) -> click.Command:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            from tinytl_edge.runtime.ending import end_well

            end_well(lambda: function(*args, **kwargs))

        return cli.command(cls=_Command, example=example)(guarded)

    return register


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
runtime_option = click.option(
    "--runtime", type=click.Choice(["auto", "native", "onnxruntime-training"]), default="auto", show_default=True,
    help="What computes.",
)  # fmt: skip
threads_option = click.option("--threads", type=int, help="How many compute.  [default: the fastest cores]")
bundle_option = click.option("--bundle", type=PATH, help="The run's bundle, if it has moved; or that of a file.")


def need(module: str, extra: str) -> None:
    """Refuse a command whose module is not installed, by the extra that brings it."""
    import importlib.util

    if importlib.util.find_spec(module) is None:
        from tinytl_edge.runtime.errors import UsageError

        raise UsageError(
            f"This command needs {module}, which a board does without: pip install 'tinytl-edge[{extra}]'."
        )


def owns_process() -> bool:
    """Is this process there for the command alone, so that it may become another?"""
    return bool(click.get_current_context().obj and sys.executable and not getattr(sys, "frozen", False))


def given(*names: str) -> list[str]:
    """Which of these options stand on the command line."""
    context = click.get_current_context()
    written = {o.name: o.opts[0] for o in context.command.params if o.name in names}
    by_user = click.core.ParameterSource.COMMANDLINE
    return [opt for name, opt in written.items() if context.get_parameter_source(name) is by_user]
