"""Command line options that are more than a name or a number: how their text is read."""

from __future__ import annotations

import math

import click


def size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    from tinytl_edge.runtime.memory import parse_size

    try:
        return None if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def pixels(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Height and width: '96x160', or one number for both."""
    if value is None:
        return None
    sides = value.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and len(side) < 6 for side in sides):
        raise click.BadParameter(f"'{value}' is no size, as in 96x160 (height first).")
    return int(sides[0]), int(sides[-1])


def triple(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise click.BadParameter(f"'{value}' is neither one number nor three, as in 123.7,116.3,103.5.")
    return numbers


def pixel_range(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Two numbers: '50900:52000'."""
    if value is None:
        return None
    try:
        low, high = (float(end) for end in value.split(":"))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise click.BadParameter(f"'{value}' is no range, as in 50900:52000.")
    return low, high


def class_list(ctx: click.Context, param: click.Parameter, value: str | None) -> int | list[str] | None:
    if value is None:
        return None
    if value.strip().isdigit():
        return int(value)
    names = [name.strip() for name in value.split(",")]
    if not all(names):
        raise click.BadParameter(f"'{value}' holds an empty name.")
    return names
