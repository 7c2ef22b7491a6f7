"""A run's report as a page for people: one file of HTML, with its pictures in it, that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tinytl_edge.runtime.files.tensors import atomic_write
from tinytl_edge.runtime.images.dataset import Dataset
from tinytl_edge.runtime.memory import megabytes
from tinytl_edge.runtime.unknown import unknown_said
from tinytl_edge.runtime.wording import counted

from .charts import calibration, lines

_STYLE = Path(__file__).with_name("report_page.css")
_PICTURE = 160  # pixels of a side, at most
_SQUARE, _PAIRS = 30, 40  # classes of a square confusion matrix; lines in its place
_NAMED = 12  # classes whose names stand above the columns of a confusion matrix


def write_page(out: Path, content: Mapping[str, Any], dataset: Dataset | None) -> None:
    """Write what `report` found; `dataset`: the images that were judged.

    Raises:
        StorageError: it cannot be written; what was there before stays.
    """
    with atomic_write(out) as file:
        file.write(_page(content, dataset).encode())


def _page(content: Mapping[str, Any], dataset: Dataset | None) -> str:
    judged = content["judged"]
    sections = [_verdict(content)]
    if judged is not None:
        sections.append(_by_class(content))
        if judged["after"]["confusion"] is not None:
            sections += [_confusion(content), _mistakes(judged["mistakes"], dataset), _sureness(content)]
    sections += [_curve(content["curve"]), _training(content)]
    name = escape(Path(content["run"]).name)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: what it has learnt</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main><h1>{name}</h1>{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _verdict(content: Mapping[str, Any]) -> str:
    verdict, judged = content["verdict"], content["judged"]
    kind = {True: "good", False: "wanting", None: "open"}[verdict["enough"]]
    measured = []
    if judged is not None:
        measured += [(judged["before_is"], judged["before"]), (judged["after_is"], judged["after"])]
    if (old := content["old_place"]) is not None:
        measured += [("where it comes from, as deployed", old["before"]), ("there, now", old["after"])]
    figures = "".join(
        f'<div class="figure"><span>{words}</span><strong>{measures["accuracy"]:.1%}</strong>'
        f"{_bar(measures['accuracy'], measures['interval'])}</div>"
        for words, measures in measured
        if measures is not None
    )
    text = "".join(f"<p>{escape(sentence)}</p>" for sentence in verdict["sentences"])
    head = f'<h2>{escape(verdict["headline"])}</h2><div class="figures">{figures}</div>'
    return f'<section class="verdict {kind}">{head}{text}</section>'


def _bar(share: float, interval: Sequence[float] | None = None, kind: str = "ours") -> str:
    likely = ""
    if interval:
        low, high = interval
        likely = f'<i class="likely" style="left:{low:.1%};width:{high - low:.1%}"></i>'
    return f'<div class="bar"><i class="{kind}" style="width:{share:.1%}"></i>{likely}</div>'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """Cells of which the head's are text and the others HTML."""
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _by_class(content: Mapping[str, Any]) -> str:
    judged = content["judged"]
    rows = []
    for index, entry in enumerate(content["classes"]):
        after = judged["after"]["per_class"][index]
        before = judged["before"]["per_class"][index] if judged["before"] else None
        learnt = "" if entry["images"] is None else str(entry["images"])
        cells = [escape(entry["name"]), learnt, str(after["images"])]
        for measures, kind in ((before, "theirs"), (after, "ours")):
            if measures is None:
                cells.append("")
            elif not measures["images"]:
                cells.append("no images")
            else:
                share = measures["right"] / measures["images"]
                cells.append(f"{_bar(share, kind=kind)}<small>{measures['right']} · {share:.0%}</small>")
        rows.append(cells)
    return _section("By class", _table(("class", "learnt from", "judged on", "right before", "right after"), rows))


def _confusion(content: Mapping[str, Any]) -> str:
    confusion = content["judged"]["after"]["confusion"]
    names = [entry["name"] for entry in content["classes"]]
    if len(names) > _SQUARE:
        return _section("What is taken for what", _pairs(confusion, names))
    shown = names if len(names) <= _NAMED else [str(index) for index in range(len(names))]
    rows = []
    for index, row in enumerate(confusion):
        total = sum(row)
        name = escape(names[index])
        cells = [f'<span title="{name}">{name if shown is names else f"{index} {name}"}</span>']
        for guess, count in enumerate(row):
            kind = "right" if guess == index else "wrong"
            depth = count / total if total else 0
            words = f"{count} of {total} {names[index]}: {names[guess]}"
            cells.append(
                f'<span class="cell {kind}" style="--depth:{depth:.2f}" title="{escape(words)}">{count or ""}</span>'
            )
        rows.append(cells)
    return _section(
        "What is taken for what",
        "<p>Rows: what images show. Columns: what they are taken for.</p>",
        _table(("", *shown), rows, "confusion"),
    )


def _pairs(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """The most frequent confusions, where there are too many classes for a square of all."""
    pairs = [
        (count, sum(row), names[index], names[guess])
        for index, row in enumerate(confusion)
        for guess, count in enumerate(row)
        if count and guess != index
    ]
    most = sorted(pairs, key=lambda pair: -pair[0])[:_PAIRS]
    rows = [(escape(shows), escape(taken), f"{count} of {total}") for count, total, shows, taken in most]
    return _table(("shows", "taken for", "how often"), rows)


def _mistakes(mistakes: Sequence[Mapping[str, Any]], dataset: Dataset | None) -> str:
    if not mistakes or dataset is None:
        return _section("Mistakes", "<p>None.</p>")
    figures = []
    for mistake in mistakes:
        words = f"<strong>{escape(mistake['label'])}</strong>, taken for {escape(mistake['guess'])}"
        words += f" ({mistake['probability']:.0%})"
        if mistake["guess_before"] == mistake["label"]:
            words += ", right before"
        picture = _picture(dataset, mistake["image"])
        figures.append(
            f'<figure><img src="{picture}" alt="{escape(mistake["label"])}"><figcaption>{words}</figcaption></figure>'
        )
    return _section("The worst mistakes", f'<div class="mistakes">{"".join(figures)}</div>')


def _picture(dataset: Dataset, index: int) -> str:
    """One image as an address that holds all of it."""
    from PIL import Image

    height, width, channels = dataset.shape
    image = Image.frombytes("RGB" if channels == 3 else "L", (width, height), dataset.image(index))
    image.thumbnail((_PICTURE, _PICTURE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _sureness(content: Mapping[str, Any]) -> str:
    found = content["judged"]["after"]["calibration"]
    bins = [(entry["probability"], entry["accuracy"], entry["images"]) for entry in found["bins"]]
    words = f"<p>Of images of which it is so sure, so many are right; on the average {found['error']:.1%} apart.</p>"
    parts = [words, calibration(bins, "How often it is right, by how sure it is")]
    if unknown := content["training"]["result"]["unknown"]:
        parts.append(f"<p>Less sure than {unknown['below']:.1%} it says unknown: {escape(unknown_said(unknown))}.</p>")
    return _section("How sure it is", *parts)


def _curve(curve: Mapping[str, Any]) -> str:
    steps = [(step["step"], step["loss"]) for step in curve["steps"] if step["loss"] is not None]
    epochs = curve["epochs"]
    own = [(epoch["step"], epoch["train_accuracy"]) for epoch in epochs]
    judged = [(epoch["step"], epoch["val_accuracy"]) for epoch in epochs if epoch["val_accuracy"] is not None]
    if not steps:
        return _section("Learning", "<p>One pass, no steps.</p>")
    parts = [lines([("quiet", "loss of a step", steps)], "steps", "loss", title="Loss by steps")]
    series = [("theirs", "of images learnt from", own), ("ours", "of images judged on", judged)]
    parts.append(lines(series, "steps", "accuracy", percent=True, title="Accuracy by steps"))
    if judged and len(judged) < len(own):
        parts.append("<p>A trial on a part of the images is judged; then all are learnt from, from the beginning.</p>")
    return _section("Learning", *parts)


def _training(content: Mapping[str, Any]) -> str:
    training = content["training"]
    result, options = training["result"], training["options"]
    rows: list[tuple[str, str]] = [
        ("network", f"{training['backbone']}, {training['input']}"),
        ("trained", f"{training['method']}: {training['trained']:,} of {training['parameters']:,} parameters"),
        ("began with", str(options["start"])),
    ]
    if result["share"] is not None:
        rows.append(("kept", f"{result['share']:.0%} of what was trained"))
    rows.append(("steps", f"{result['steps']} in {counted(options['epochs'] or 0, 'epoch')}"))
    if result["step_ms_median"] is not None:
        rows.append(("a step", f"{result['step_ms_median']:.1f} ms"))
    if training["seconds"]:
        rows.append(("in all", f"{training['seconds']:.0f} s"))
    rows.append(("computed by", f"{training['runtime']}, {counted(options['threads'] or 1, 'thread')}"))
    for phase in ("start", "packing", "training"):
        if result["memory"] is not None:
            rows.append((f"peak memory, {phase}", megabytes(result["memory"][phase])))
    if training["planned_bytes"]:
        rows.append(("planned", megabytes(training["planned_bytes"])))
    cells = [(escape(name), escape(value)) for name, value in rows]
    memory = [(float(seconds), size / 1e6) for seconds, size in training["memory_over_time"]]
    chart = lines([("ours", "memory of the process that trains", memory)], "seconds", "MB", title="Memory over time")
    return _section("What it took", _table(("", ""), cells, "facts"), chart)
