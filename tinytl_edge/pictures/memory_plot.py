"""A picture of a training step's memory: by kind over its operators, beside the same step without the passes, and what
each pass saved."""

from __future__ import annotations

import os
import re
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.files.bundle import Bundle
from tinytl_edge.runtime.files.tensors import atomic_write

from .memory_timeline import Stage, Timeline, open_step, stages, timeline

_SUFFIXES = (".png", ".svg", ".pdf")
# Words and colours by kind, from the bottom up; colours that the colour-blind tell apart (Okabe and Ito).
_KINDS = {
    "process": ("process: code, stack", "#8C8C8C"),
    "frozen": ("frozen weights", "#0072B2"),
    "trainable": ("trained parameters", "#E69F00"),
    "optimizer": ("optimizer state", "#F0E442"),
    "gradients": ("gradients of parameters", "#D55E00"),
    "saved": ("saved for the backward pass", "#009E73"),
    "masks": ("masks: a bit an element", "#CC79A7"),
    "loaded": ("frozen weights, loaded", "#00466E"),
    "transient": ("transient: all else", "#9BD2F2"),
}
# The kind of memory that each knob is for.
_KIND_OF = {
    "scratch_bytes": "transient",
    "accumulation": "gradients",
    "recomputed": "saved",
    "saved": "saved",
    "frozen_weights": "frozen",
    "streamed": "frozen",
    "trained_weights": "trainable",
    "moments": "optimizer",
    "together": "transient",
}
_VISIBLE = 5000  # bytes that are not 0.00 MB
_STRETCHES = 68  # names that have room below the axis
_WITHOUT, _WITH, _INK = "#C9C9C9", "#333333", "#222222"
_MB = FuncFormatter(lambda size, _: f"{size / 1e6:g}")


def check_suffix(out: str | os.PathLike[str]) -> str:
    """The kind of picture that a file's name asks for: 'png', 'svg' or 'pdf'.

    Raises:
        UsageError: none of these.
    """
    suffix = Path(out).suffix.lower()
    if suffix not in _SUFFIXES:
        raise UsageError(f"{os.fspath(out)} is no name for a picture: let it end in .png, .svg or .pdf.")
    return suffix[1:]


def plot_memory(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, bundle: str | os.PathLike[str] | None = None
) -> None:
    """Draw the memory of a bundle's training step, or of a run's, into the file `out`, which it replaces.

    Args:
        bundle: the run's bundle, if it has moved.

    Raises:
        UsageError: the suffix is no picture's, or there is no native step.
        DamagedFileError: the bundle or run is damaged, or compiled by another version.
        StorageError: `out` cannot be written.
    """
    kind = check_suffix(out)
    opened, measured = open_step(path, bundle)
    with rc_context({"text.parse_math": False}):  # a dollar is a dollar
        figure = draw(opened, stages(opened), measured)
    with atomic_write(out) as file:
        figure.savefig(file, format=kind)


def draw(bundle: Bundle, found: list[Stage], measured: int | None = None) -> Figure:
    """The picture, 1200 x 900 px."""
    manifest = bundle.manifest
    totals = [sum(stage.step.memory(manifest.optimizer).values()) for stage in found]
    without, actual = (timeline(stage.step, manifest.optimizer) for stage in (found[0], found[-1]))
    figure = Figure(figsize=(12, 9), dpi=100)
    title = f"A training step in {_megabytes(totals[-1])}"
    figure.text(0.055, 0.962, title, fontsize=17, fontweight="bold", color=_INK)
    what = f"{manifest.backbone}, {manifest.method}, {manifest.optimizer}, batch {manifest.batch_size}"
    size = f"{manifest.input.height} x {manifest.input.width} px, {manifest.class_count} classes"
    figure.text(0.055, 0.936, f"{what}, {size}: the native trainer's process, as planned", fontsize=11, color=_INK)
    levels = {"limit": manifest.memory_limit, "measured": measured}
    known = {name: size for name, size in levels.items() if size is not None}
    _draw_timeline(figure.add_axes((0.055, 0.49, 0.71, 0.405)), actual, known)
    _draw_both(figure.add_axes((0.055, 0.07, 0.36, 0.29)), without, actual)
    _draw_savings(figure.add_axes((0.64, 0.07, 0.34, 0.29)), found, totals)
    return figure


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB"


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9)


def _draw_timeline(axes: Axes, line: Timeline, levels: dict[str, int]) -> None:
    """Stacked areas, an operator as wide as another; limits and the like as lines."""
    count, top = len(line.operators), max(line.totals)
    kinds = [kind for kind in _KINDS if any(line.bytes[kind])]
    stack = [[*line.bytes[kind], line.bytes[kind][-1]] for kind in kinds]
    axes.stackplot(range(count + 1), stack, colors=[_KINDS[kind][1] for kind in kinds], step="post", linewidth=0)
    near = {name: level for name, level in levels.items() if name == "measured" or level < 1.5 * top}
    height = max([top, *near.values()])
    axes.set(xlim=(0, count), ylim=(0, 1.21 * height), ylabel="MB")
    axes.yaxis.set_major_formatter(_MB)
    _plain(axes, "Memory by kind while each operator runs")
    axes.axvline(line.forward_operators, color=_INK, linewidth=0.8, linestyle=":")
    for align, text in (("right", "forward  "), ("left", "  backward")):
        axes.text(line.forward_operators, 1.2 * height, text, ha=align, va="top", fontsize=10, color=_INK)
    for name, level in near.items():
        axes.axhline(level, color=_INK, linewidth=1, linestyle="--" if name == "limit" else "-.")
        x = count if name == "limit" else 0.85 * count
        axes.text(x, level, f"{name} {_megabytes(level)}", ha="right", va="bottom", fontsize=9, color=_INK)
    early = line.peak < count / 2
    layer = f" of {line.layers[line.peak]}" if line.layers[line.peak] else ""
    axes.annotate(
        f"peak {_megabytes(line.planned)}: {line.operators[line.peak]}{layer}", (line.peak + 0.5, top),
        (line.peak + 0.5, 1.1 * height), ha="left" if early else "right", va="center", fontsize=10,
        fontweight="bold", color=_INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        arrowprops={"arrowstyle": "-|>", "color": _INK, "shrinkB": 0, "relpos": (0 if early else 1, 0)},
    )  # fmt: skip
    _name_blocks(axes, line)
    _name_kinds(axes, line, kinds)


def _name_blocks(axes: Axes, line: Timeline) -> None:
    """The network's parts below the axis: in each stretch that has room for a name, the one that it is most about."""
    # 'blocks.3' of 'blocks.3.expand.conv'
    blocks = [re.sub(r"^(\w+(\.\d+)?).*", r"\1", layer) for layer in line.layers]
    outer = {block.rpartition(".")[0] for block in blocks} | {""}  # the additions between blocks are no block
    ends = [round(len(blocks) * stretch / _STRETCHES) for stretch in range(_STRETCHES + 1)]
    names = []
    for begin, end in zip(ends, ends[1:]):
        about = Counter(block for block in blocks[begin:end] if block not in outer)
        names.append(about.most_common(1)[0][0] if about else "")
    ticks = {}
    for name, run in groupby(range(_STRETCHES), key=names.__getitem__):
        inside = list(run)
        ticks[(ends[inside[0]] + ends[inside[-1] + 1]) / 2] = name
    axes.set_xticks(list(ticks), list(ticks.values()), rotation=90, fontsize=8)
    axes.tick_params(axis="x", length=0)


def _name_kinds(axes: Axes, line: Timeline, kinds: list[str]) -> None:
    """The kinds beside the areas, in their order, with what each takes at the peak."""

    def write(x: float, text: str, **style: Any) -> None:
        axes.text(x, y, text, transform=axes.transAxes, va="center", **{"fontsize": 9.5, "color": _INK, **style})

    rows = [(*_KINDS[kind], line.bytes[kind][line.peak]) for kind in reversed(kinds)]
    if line.gaps >= _VISIBLE:
        rows.insert(0, ("gaps in the arena", "white", line.gaps))
    y = 0.96
    write(1.02, "MB at the peak", fontsize=9)
    for words, colour, size in rows:
        y -= 0.08
        write(1.02, "■", fontsize=15, color=colour)
        write(1.092, f"{size / 1e6:.2f}", ha="right")
        write(1.105, words)
    y -= 0.08
    write(1.092, f"{line.planned / 1e6:.2f}", ha="right", fontweight="bold")
    write(1.105, "in all", fontweight="bold")


def _draw_both(axes: Axes, without: Timeline, actual: Timeline) -> None:
    """Both steps at one scale; each pass, forward and backward, is as wide as the other step's."""
    axes.axvline(1, color=_INK, linewidth=0.8, linestyle=":", zorder=0)
    room = 0.02 * max(without.totals)
    for line, colour, name in ((without, _WITHOUT, "without the passes"), (actual, _WITH, "this step")):
        totals = line.totals
        axes.fill_between([*_positions(line), 2.0], [*totals, totals[-1]], step="post", color=colour, linewidth=0)
        text, top = f"{name}: {_megabytes(line.planned)}", max(totals) + room
        if line is without:
            axes.text(0.03, top, text, fontsize=9.5, color=_INK)
        else:
            axes.text(1.97, top, text, fontsize=9.5, color=_INK, ha="right", fontweight="bold")
    axes.set(xlim=(0, 2), ylim=(0, 1.15 * max(without.totals)), ylabel="MB")
    axes.set_xticks([0.5, 1.5], ["forward", "backward"])
    axes.yaxis.set_major_formatter(_MB)
    axes.tick_params(axis="x", length=0)
    _plain(axes, "The same step with and without the passes")


def _positions(line: Timeline) -> list[float]:
    forward, count = line.forward_operators, len(line.operators)
    return [i / forward if i < forward else 1 + (i - forward) / (count - forward) for i in range(count)]


def _draw_savings(axes: Axes, found: list[Stage], totals: list[int]) -> None:
    """From the step without passes down to this one: a bar for what each changed, in the colour of what it is for."""
    room = 0.015 * max(totals)
    axes.barh(0, totals[0], color=_WITHOUT)
    axes.text(totals[0] + room, 0, _megabytes(totals[0]), va="center", fontsize=9.5, color=_INK)
    for row, (stage, before, total) in enumerate(zip(found[1:], totals, totals[1:]), 1):
        change = total - before
        colour = _KINDS[_KIND_OF[stage.knob]][1]
        axes.barh(row, abs(change), left=min(before, total), color=colour, hatch="////" if change > 0 else None)
        words = f"{'+' if change > 0 else '−'}{abs(change) / 1e6:.2f}" if abs(change) >= _VISIBLE else "nothing"
        axes.text(max(before, total) + room, row, words, va="center", fontsize=9.5, color=_INK)
    axes.barh(len(found), totals[-1], color=_WITH)
    words = _megabytes(totals[-1])
    axes.text(totals[-1] + room, len(found), words, va="center", fontsize=9.5, fontweight="bold", color=_INK)
    axes.set_yticks(range(len(found) + 1), [*(stage.name for stage in found), "this step"])
    axes.set(xlim=(0, 1.2 * max(totals)), ylim=(len(found) + 0.6, -0.6), xlabel="MB")
    axes.xaxis.set_major_formatter(_MB)
    axes.tick_params(axis="y", length=0)
    _plain(axes, "What each pass saves, one after the other")
