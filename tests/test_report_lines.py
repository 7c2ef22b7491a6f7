"""What a person reads of a training is the same to the byte, whether the trainer writes it or Python."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinytl_edge.runtime import report
from tinytl_edge.runtime.report import ProgressReport, summary

ROOT = Path(__file__).parent.parent
NATIVE = ROOT / "runtime" / "native"
Timed = list[tuple[float, dict[str, Any]]]

shares = st.one_of(st.none(), st.floats(0, 1))
losses = st.floats(0, 1e4)
sizes = st.integers(0, 3_000_000_000)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/native/io, of which one part prints a report."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to build the native trainer's tests with")
    out = tmp_path_factory.mktemp("native") / "io_test"
    names = ("json", "events", "safetensors", "dataset", "sampling", "report")
    sources = [*(NATIVE / f"{name}.cc" for name in names), *sorted((ROOT / "tests/native/io").glob("*.cc"))]
    subprocess.run(["g++", "-std=gnu++20", "-O1", f"-I{NATIVE}", *sources, "-o", out], check=True)
    return out


@st.composite
def judged(draw: st.DrawFn) -> dict[str, Any]:
    """What the `choice` and `done` events say of a result."""
    share = draw(st.sampled_from([0, 0.35, 0.5, 0.65, 1.0]))
    judge = draw(st.sampled_from(["val", "held-out", None]))
    if judge is None:
        none = dict.fromkeys(("val_accuracy", "val_class_accuracy", "start_accuracy", "val_interval"))
        return {"share": share, "judge": None, "val_images": 0, "kept_accuracy": None, **none}
    accuracy, of_classes = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    return {
        "share": share, "epoch": draw(st.integers(1, 30)), "judge": judge, "val_images": draw(st.integers(1, 3000)),
        "val_loss": draw(losses), "start_loss": draw(losses), "val_accuracy": accuracy, "kept_accuracy": draw(shares),
        "val_class_accuracy": draw(st.sampled_from([accuracy, of_classes])), "start_accuracy": draw(shares),
        "val_interval": draw(st.none() | st.lists(st.floats(0, 1), min_size=2, max_size=2)),
    }  # fmt: skip


@st.composite
def in_old_place(draw: st.DrawFn) -> dict[str, Any]:
    images = draw(st.integers(0, 500))
    before, now = (draw(st.floats(0, 1)) if images else None for _ in range(2))
    return {"kept_images": images, "kept_accuracy_before": before, "kept_accuracy": now}


def aligned() -> st.SearchStrategy[dict[str, Any]]:
    names = ("share", "sure_before", "sure", "agreed_before", "agreed", "kept_accuracy_before", "kept_accuracy")
    some = {name: st.floats(0, 1) for name in (*names, "accuracy_before")}
    return st.fixed_dictionaries({"taken": st.booleans(), "val_accuracy": shares, **some})


def unknown() -> st.SearchStrategy[dict[str, Any]]:
    counts = ("right", "right_rejected", "wrong", "wrong_rejected", "junk", "junk_rejected")
    return st.fixed_dictionaries({"below": st.floats(0, 1), **{name: st.integers(0, 50) for name in counts}})


@st.composite
def trainings(draw: st.DrawFn) -> Timed:
    """The events of a training of a few epochs, each at its time."""
    images, batch, epochs = draw(st.integers(1, 4000)), draw(st.integers(1, 64)), draw(st.integers(0, 3))
    steps = -(-images // batch)
    begun = draw(st.integers(0, steps * epochs))
    events: list[dict[str, Any]] = [
        {"event": "start", "runtime": "native", "step": begun, "total_steps": steps * epochs, "epochs": epochs,
         "images": images, "held_out": draw(st.integers(0, 1) | st.integers(0, images)), "batch_size": batch,
         "rss_bytes": draw(sizes)},
    ]  # fmt: skip
    if draw(st.booleans()):
        done = draw(st.integers(0, images))
        events.append({"event": "fitting", "done": done, "total": images, "rss_bytes": draw(sizes)})
        events.append(
            {"event": "one_pass", "anew": draw(st.booleans()), "left_out_accuracy": draw(shares),
             "accuracy_before": draw(shares),
             "kept_accuracy": (kept := draw(shares)), "kept_accuracy_before": None if kept is None else 1 - kept,
             "known_accuracy": (known := draw(shares)), "known_accuracy_before": None if known is None else known / 2,
             "val_accuracy": draw(shares), "peak_rss_bytes": draw(sizes), "rss_bytes": draw(sizes)}
        )  # fmt: skip
    elif draw(st.booleans()):
        events.append({"event": "aligned", **draw(aligned()), "rss_bytes": draw(sizes)})
    for epoch in range(1, epochs + 1):
        for _ in range(draw(st.integers(0, 3))):
            step = draw(st.integers(begun, steps * epochs))
            loss = draw(st.one_of(st.none(), losses)) if epoch > 1 else draw(losses)
            events.append({"event": "step", "step": step, "epoch": epoch, "loss": loss, "rss_bytes": draw(sizes)})
        if draw(st.booleans()):
            events.append({"event": "warning", "message": draw(st.sampled_from(["Hot.", "Sehr heiß: 90 °C."]))})
        events.append({"event": "checkpoint", "step": steps * epoch, "rss_bytes": draw(sizes)})
        events.append(
            {"event": "epoch", "epoch": epoch, "step": steps * epoch, "train_loss": draw(losses),
             "train_accuracy": draw(st.floats(0, 1)), "val_accuracy": draw(shares), "peak_rss_bytes": draw(sizes),
             "rss_bytes": draw(sizes)}
        )  # fmt: skip
    if draw(st.booleans()):
        events.append({"event": "choice", **draw(judged()), "rss_bytes": draw(sizes)})
    phases = draw(st.lists(st.sampled_from(["start", "packing", "training"]), unique=True, min_size=1))
    events.append(
        {"event": "done", "steps": steps * epochs, "step_ms_median": draw(st.one_of(st.none(), st.floats(0, 1e6))),
         "left_out_accuracy": draw(shares), **draw(judged()), **draw(in_old_place()),
         "unknown": draw(st.none() | unknown()), "adapter": "some where/adapter.safetensors",
         "memory": {"measure": draw(st.sampled_from(["PSS", "RSS"])), **{phase: draw(sizes) for phase in phases}}}
    )  # fmt: skip
    gaps = draw(st.lists(st.floats(0, 50), min_size=len(events), max_size=len(events)))
    at, timed = 0.0, []
    for event, gap in zip(events, gaps):
        at += gap
        timed.append((at, event))
    return timed


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def by_python(events: Timed, live: bool, columns: int) -> str:
    clock = [0.0]
    stream = _Terminal() if live else io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: clock[0])
        patch.setattr(report, "_columns", lambda: columns)
        shown = ProgressReport(stream)
        for at, event in events:
            clock[0] = at
            if event["event"] == "done":
                shown.__exit__(None, None, None)
                stream.write(summary(event))
            else:
                shown(event)
    return stream.getvalue()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trainings(), st.booleans(), st.integers(1, 130))
def test_the_trainer_writes_what_python_writes(program: Path, events: Timed, live: bool, columns: int) -> None:
    lines = "".join(f"{at!r} {json.dumps(event)}\n" for at, event in events)
    said = subprocess.run(
        [program, "report", str(int(live)), str(columns)], input=lines.encode(), capture_output=True, check=True
    )
    assert said.stdout.decode() == by_python(events, live, columns)
