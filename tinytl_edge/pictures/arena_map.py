"""The arena of a training step as text: a row for a run of operators, a column for a stretch of addresses."""

from __future__ import annotations

import os

from .memory_timeline import Place, Timeline, compile_bundle, occupied, open_step, timeline

_LETTERS = {"gradients": "g", "saved": "S", "masks": "M", "loaded": "w", "transient": "t"}
_LEGEND = (
    "S saved for the backward pass   M masks   g gradients of parameters   w weights, loaded   t transient   . free"
)
_COLUMNS, _ROWS, _NAME = 64, 40, 30


def arena_map(path: str | os.PathLike[str], *, bundle: str | os.PathLike[str] | None = None) -> str:
    """Draw the arena of a bundle's step, or of a run's.

    Of each run of operators, the row shows the one at which most of the arena is in use.

    Args:
        bundle: the run's bundle, if it has moved.

    Raises:
        UsageError: there is no native step.
        DamagedFileError: the bundle or run is damaged, or compiled by another version.
    """
    opened, _ = open_step(path, bundle)
    step = compile_bundle(opened)
    line, places = timeline(step, opened.manifest.optimizer), occupied(step)
    size = step.plan.arena_bytes
    lines = [f"arena of {size / 1e6:.2f} MB: its addresses from left to right, the step's operators from top to bottom"]
    heading = ""
    for index in _rows(line):
        half = "forward" if index < line.forward_operators else "backward"
        if half != heading:
            heading = half
            lines.append(f"{half:<{_NAME + 5}} {_ruler(size)}  MB in use")
        cells = _cells(places[index], size)
        in_use = sum(place.end - place.first for place in places[index])
        mark = " <- peak" if index == line.peak else ""
        lines.append(f"{index:>4} {_name(line, index)} {cells}  {in_use / 1e6:.2f}{mark}")
    return "\n".join([*lines, _LEGEND])


def _rows(line: Timeline) -> list[int]:
    """The fullest operator of each run, in runs that end with the forward pass."""
    count, forward = len(line.operators), line.forward_operators
    run = -(-count // _ROWS)
    begins = [*range(0, forward, run), *range(forward, count, run)]
    return [max(range(begin, end), key=line.totals.__getitem__) for begin, end in zip(begins, [*begins[1:], count])]


def _name(line: Timeline, index: int) -> str:
    name = line.layers[index] or line.operators[index]
    return f"{name:<{_NAME}}" if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _ruler(size: int) -> str:
    """Addresses in MB over the cells, each where it begins."""
    quarter = _COLUMNS // 4
    return "".join(f"{f'{size * part / 4e6:.2f}':<{quarter}}" for part in range(4))


def _cells(places: list[Place], size: int) -> str:
    """A letter for each stretch of the arena: of the kind that takes most of it, or a dot."""
    share: list[dict[str, int]] = [{} for _ in range(_COLUMNS)]
    for place in places:
        first, last = place.first * _COLUMNS // size, (place.end - 1) * _COLUMNS // size
        for cell in range(first, last + 1):
            begin, end = cell * size // _COLUMNS, (cell + 1) * size // _COLUMNS
            inside = min(place.end, end) - max(place.first, begin)
            share[cell][place.kind] = share[cell].get(place.kind, 0) + inside
    width = size // _COLUMNS
    return "".join(
        _LETTERS[max(kinds, key=kinds.__getitem__)] if 2 * sum(kinds.values()) > width else "." for kinds in share
    )
