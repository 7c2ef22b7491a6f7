"""How training looks to a person: a live line on a terminal, plain lines elsewhere; or JSON lines."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from types import TracebackType
from typing import IO

from tinytl_edge.runtime.workers.events import PASSING, Event, encode

from .memory import megabytes
from .unknown import unknown_said
from .wording import counted

_KINDS = {"val": "validation image", "held-out": "held-out image"}
APART = 0.005  # accuracies that are worth being told apart


class JsonReport:
    """Every event that is worth logging, one JSON object a line."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __call__(self, event: Event) -> None:
        if event["event"] not in PASSING:
            self._stream.write(encode(event) + "\n")
            self._stream.flush()

    def __enter__(self) -> JsonReport:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _LiveLine:
    """A line that is written over and over on a terminal; nothing elsewhere."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.live = stream.isatty()
        self._length = 0

    def show(self, text: str) -> None:
        if self.live:
            text = text[: max(_columns() - 1, 0)]
            self._stream.write("\r" + text.ljust(self._length))
            self._stream.flush()
            self._length = len(text)

    def say(self, text: str) -> None:
        """A line of its own, above the live one."""
        self.clear()
        self._stream.write(text + "\n")
        self._stream.flush()

    def clear(self) -> None:
        if self._length:
            self._stream.write("\r" + " " * self._length + "\r")
            self._stream.flush()
            self._length = 0


def _columns() -> int:
    """Of the terminal. (shutil's would bring the libraries of three archive formats.)"""
    with contextlib.suppress(ValueError):
        if (told := int(os.environ.get("COLUMNS", "0"))) > 0:
            return told
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    return 80


class CountProgress:
    """Shows images being packed or evaluated, and warnings."""

    def __init__(self, stream: IO[str], line: _LiveLine | None = None) -> None:
        self._line = line or _LiveLine(stream)

    def __call__(self, event: Event) -> None:
        if event["event"] == "pack":
            self.show(event["done"], event["total"])
        elif event["event"] == "evaluating":
            self.show(event["done"], event["total"], "evaluating")
        elif event["event"] == "examining":
            self.show(event["done"], event["total"], "examining")
        elif event["event"] == "warning":
            self.warn(event["message"])

    def show(self, done: int, total: int, what: str = "packing images") -> None:
        """Show the count."""
        self._line.show(f"{what} {bar(done / max(total, 1))} {done}/{total}")
        if done >= total:
            self._line.clear()

    def warn(self, message: str) -> None:
        """Print a warning above the count."""
        self._line.say(f"warning: {message}")

    def __enter__(self) -> CountProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.clear()


class ProgressReport:
    """A training's live line (epoch, loss, accuracy, RSS, time left), and a line for every epoch.

    Where there is no terminal, a line says how far it is whenever nothing was said for a minute.
    """

    silence = 60.0  # seconds

    def __init__(self, stream: IO[str]) -> None:
        self._line = _LiveLine(stream)
        self._packing = CountProgress(stream, self._line)
        self._begin = 0.0
        self._first = self._total = self._epochs = self._epoch = 0
        self._loss: float | None = None
        self._accuracy: float | None = None
        self._rss = 0
        self._status = ""
        self._said = time.monotonic()
        self._over = threading.Event()

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind in ("start", "one_pass", "aligned", "epoch", "choice", "warning"):
            self._said = time.monotonic()
        if kind == "images":
            self._line.say(event["message"])
            return
        if kind in ("pack", "warning"):
            self._packing(event)
            return
        self._rss = event.get("rss_bytes") or self._rss
        if kind == "start":
            self._begin = time.monotonic()
            self._first, self._total, self._epochs = event["step"], event["total_steps"], event["epochs"]
            self._line.say(
                f"{event['runtime']}: {counted(event['images'], 'image')}"
                + (f", {event['held_out']} of them held out" if event["held_out"] else "")
                + (
                    f", {counted(event['epochs'], 'epoch')}, {counted(event['total_steps'], 'step')}"
                    if event["epochs"]
                    else ""
                )
                + (f", going on at step {event['step']}" if event["step"] else "")
            )
        elif kind == "fitting":
            done, total = event["done"], max(event["total"], 1)
            self._status = f"classifier in one pass {bar(done / total)} {done}/{total}"
            self._line.show(self._status)
        elif kind == "one_pass":
            self._say_one_pass(event)
        elif kind == "aligned":
            self._line.say(_aligned(event))
            self._status = ""
        elif kind == "choice":
            self._line.say(_choice(event))
        elif kind == "step":
            self._epoch, self._loss = event["epoch"], event["loss"]
            self._show(event["step"])
        elif kind == "evaluating":
            done, total = event["done"], event["total"]
            self._status = f"epoch {self._epoch}/{self._epochs} {bar(done / total)} {done}/{total} validated"
            self._line.show(self._status)
        elif kind == "epoch":
            validated = event["val_accuracy"] is not None
            self._accuracy = event["val_accuracy"] if validated else event["train_accuracy"]
            parts = [
                f"epoch {event['epoch']}/{self._epochs}",
                f"loss {event['train_loss']:.3f}",
                f"{'accuracy' if validated else 'training accuracy'} {self._accuracy:.1%}",
                f"peak {megabytes(event['peak_rss_bytes'] or self._rss)}",
                _clock(time.monotonic() - self._begin),
            ]
            self._line.say("  ".join(parts))
            self._show(event["step"])

    def _say_one_pass(self, event: Event) -> None:
        parts = [("with all images: " if event["anew"] else "") + "classifier in one pass"]
        validated = event["val_accuracy"] is not None
        accuracy = event["val_accuracy"] if validated else event["left_out_accuracy"]
        if accuracy is not None:
            self._accuracy = accuracy
            parts.append(f"{'accuracy' if validated else 'left-out accuracy'} {accuracy:.1%}")
        if event["accuracy_before"] is not None:
            parts.append(f"before {event['accuracy_before']:.1%}")
        if event["kept_accuracy"] is not None:
            parts.append(f"kept images {event['kept_accuracy']:.1%} (before: {event['kept_accuracy_before']:.1%})")
        if event["known_accuracy"] is not None:
            parts.append(f"known classes {event['known_accuracy']:.1%} (before: {event['known_accuracy_before']:.1%})")
        parts += [f"peak {megabytes(event['peak_rss_bytes'] or self._rss)}", _clock(time.monotonic() - self._begin)]
        self._line.say("  ".join(parts))
        self._status = ""

    def _show(self, step: int) -> None:
        elapsed = time.monotonic() - self._begin
        left = elapsed / max(step - self._first, 1) * (self._total - step)
        parts = [f"epoch {self._epoch}/{self._epochs} {bar(step / self._total)} {step}/{self._total}"]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.3f}")
        if self._accuracy is not None:
            parts.append(f"acc {self._accuracy:.1%}")
        self._status = "  ".join([*parts, f"RSS {megabytes(self._rss)}", f"{_clock(left)} left"])
        self._line.show(self._status)

    def _break_silence(self) -> None:
        while not self._over.wait(self.silence / 20):
            if time.monotonic() - self._said >= self.silence:
                self._said = time.monotonic()
                self._line.say(self._status or "at work, before the first step has been reported")

    def __enter__(self) -> ProgressReport:
        if not self._line.live:
            threading.Thread(target=self._break_silence, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._line.clear()


def summary(done: Event) -> str:
    """The `done` event of a training as lines for a person."""
    median, memory = done.get("step_ms_median"), done["memory"]
    pace = f", {median:.0f} ms a step" if median is not None else ""
    phases = ("training", "packing", "start")
    peaks = ", ".join(f"{megabytes(memory[phase])} ({phase})" for phase in phases if phase in memory)
    kind = "" if memory["measure"] == "PSS" else " (RSS)"
    result = judgement(done)
    result = result[0].upper() + result[1:]
    unknown = done.get("unknown")
    kept = f"{_in_old_place(done)}\n" if done.get("kept_images") else ""
    sure = f"Less sure than {unknown['below']:.1%} it says unknown: {unknown_said(unknown)}.\n" if unknown else ""
    return (
        f"{result}. {done['steps']} steps{pace}, peak memory{kind} {peaks}.\n{kept}{sure}Adapter: {done['adapter']}\n"
    )


def _in_old_place(done: Event) -> str:
    """What the classifier gives up where it comes from."""
    count, before, now = done["kept_images"], done["kept_accuracy_before"], done["kept_accuracy"]
    right = f"{round(now * count)} of {counted(count, 'kept image')} right"
    return f"Where it comes from: {right}, {now:.1%} (before: {before:.1%})."


def judgement(done: Event) -> str:
    """'accuracy 91.7% on 24 held-out images (22 right, likely 74.2% to 97.7%), at the start 87.5%'"""
    if done.get("judge") not in _KINDS or done["val_accuracy"] is None:
        left_out = done.get("left_out_accuracy")
        pass_alone = "" if left_out is None else f"; the one pass, on images left out of it, {left_out:.1%}"
        return f"no images to be judged on (--val){pass_alone}"
    accuracy, images = done["val_accuracy"], done["val_images"]
    text = f"accuracy {accuracy:.1%} on {counted(images, _KINDS[done['judge']])}"
    if likely := done["val_interval"]:
        text += f" ({round(accuracy * images)} right, likely {likely[0]:.1%} to {likely[1]:.1%})"
    of_classes = done["val_class_accuracy"]
    if of_classes is not None and abs(of_classes - accuracy) >= APART:
        text += f", mean of the classes {of_classes:.1%}"
    if done["start_accuracy"] is not None:
        text += f", at the start {done['start_accuracy']:.1%}"
    return text


def _aligned(event: Event) -> str:
    """What came of images without labels, and on what grounds."""
    sure = f"answers {event['sure']:.1%} sure (before: {event['sure_before']:.1%})"
    agreed = f"a second classifier agrees with {event['agreed']:.1%} (before: {event['agreed_before']:.1%})"
    parts = [sure, agreed]
    if event["val_accuracy"] is not None:
        parts = [f"accuracy {event['val_accuracy']:.1%} (before: {event['accuracy_before']:.1%})"]
    if event["taken"]:
        kept = f"kept images {event['kept_accuracy']:.1%} (before: {event['kept_accuracy_before']:.1%})"
        return "  ".join([f"aligned by {event['share']:.0%}:", *parts, kept])
    return "  ".join(["not aligned, as it would not help:", *parts])


def _choice(event: Event) -> str:
    """What the training ends with."""
    if not event["judge"]:
        return "blended with the start"
    where = f"on {counted(event['val_images'], _KINDS[event['judge']])}"
    reached = f"loss {event['val_loss']:.3f}  accuracy {event['val_accuracy']:.1%}"
    if event["kept_accuracy"] is not None:
        reached += f"  kept images {event['kept_accuracy']:.1%}"
    if not event["share"]:
        return f"best {where}: the start  {reached}"
    how = f"{event['share']:.0%} trained, the rest as at the start"
    if event["share"] == 1:
        how = f"as trained in epoch {event['epoch']}"
    if event["start_accuracy"] is not None:
        reached += f"  (start: {event['start_loss']:.3f}, {event['start_accuracy']:.1%})"
    return f"best {where}: {how}  {reached}"


def bar(share: float, width: int = 20) -> str:
    """'[#####...............]'"""
    filled = round(min(max(share, 0.0), 1.0) * width)
    return "[" + "#" * filled + "." * (width - filled) + "]"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
