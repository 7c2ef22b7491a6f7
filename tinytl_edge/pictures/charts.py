"""Charts as SVG, which stand in a page by themselves: lines over steps, and dots around a diagonal.

Colours are those of the page's style sheet, by class: `ours`, `theirs`, `quiet`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 12, 34
_TICKS = 5


def lines(
    series: Sequence[tuple[str, str, Points]], x_name: str, y_name: str, percent: bool = False, title: str = ""
) -> str:
    """Series of (class, name, points) over the same axes, with a legend."""
    drawn = [entry for entry in series if entry[2]]
    if not drawn:
        return ""
    xs = [x for _, _, points in drawn for x, _ in points]
    ys = [y for _, _, points in drawn for _, y in points]
    axes = _Axes((min(xs), max(xs)), (math.floor(10 * min(ys)) / 10, 1) if percent else (min(0, *ys), max(ys)))
    marks = []
    for kind, name, points in drawn:
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
        marks.append(f'<polyline class="line {kind}" points="{path}"><title>{escape(name)}</title></polyline>')
        if len(points) <= 60:
            marks += [
                f'<circle class="dot {kind}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2.5"/>' for x, y in points
            ]
    legend = "".join(
        f'<span class="key"><svg class="{kind}" viewBox="0 0 18 8" width="18" height="8">'
        f'<line class="line {kind}" x1="0" y1="4" x2="18" y2="4"/></svg>{escape(name)}</span>'
        for kind, name, _ in drawn
    )
    return f'{axes.svg(marks, x_name, y_name, percent, title)}<p class="legend">{legend}</p>'


def calibration(bins: Sequence[tuple[float, float, int]], title: str) -> str:
    """Bins of (probability, accuracy, images): on the diagonal it is as sure as it may be; large dots: many images."""
    axes = _Axes((0, 1), (0, 1))
    most = max(images for _, _, images in bins)
    left, bottom, right, top = (f"{place:.1f}" for place in (axes.x(0), axes.y(0), axes.x(1), axes.y(1)))
    marks = [f'<line class="quiet line" x1="{left}" y1="{bottom}" x2="{right}" y2="{top}"/>']
    for probability, accuracy, images in bins:
        words = f"{images}: {probability:.0%} sure, {accuracy:.0%} right"
        radius = 3 + 9 * math.sqrt(images / most)
        marks.append(_dot("ours", axes.x(probability), axes.y(accuracy), radius, words))
    return axes.svg(marks, "how sure", "how often right", True, title, x_percent=True)


def _dot(kind: str, x: float, y: float, radius: float, words: str = "") -> str:
    title = f"<title>{escape(words)}</title>" if words else ""
    return f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{title}</circle>'


class _Axes:
    """The rectangle of a chart: where values lie in it."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self._x, self._y = _wide(*x_range), _wide(*y_range)

    def x(self, value: float) -> float:
        low, high = self._x
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def svg(
        self, marks: Sequence[str], x_name: str, y_name: str, percent: bool, title: str, x_percent: bool = False
    ) -> str:
        grid = []
        for value in _ticks(*self._y):
            y = self.y(value)
            grid.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
            grid.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value, percent)}</text>')
        bottom = _HEIGHT - _BOTTOM
        for value in _ticks(*self._x):
            x = self.x(value)
            grid.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{_number(value, x_percent)}</text>')
        grid.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(x_name)}</text>')
        grid.append(f'<text x="{_LEFT}" y="{_HEIGHT - 4}" text-anchor="start">{escape(y_name)} (upwards)</text>')
        return (
            f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
            f"{''.join(grid)}{''.join(marks)}</svg>"
        )


def _wide(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty, and not so narrow that rounding would take it."""
    largest = max(1.0, abs(low), abs(high))
    return (low, high) if high - low > 1e-9 * largest else (low, low + largest)


def _ticks(low: float, high: float) -> list[float]:
    """A few round numbers in a range."""
    rough = (high - low) / _TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [step * number for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float, percent: bool) -> str:
    return f"{value:.0%}" if percent else f"{value:g}" if abs(value) < 1e5 else f"{value / 1e6:g}M"
