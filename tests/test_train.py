"""Training on the board: what it records, that it learns, and that it goes on as if nothing had happened."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import EPOCHS, STEPS_AN_EPOCH, TRAINING, ok, start, tinytl
from runtimes import needs_ort

import tinytl_edge
from tinytl_edge.runtime.errors import WorkerError
from tinytl_edge.runtime.files.run import CHECKPOINTS
from tinytl_edge.runtime.options import schedule
from tinytl_edge.runtime.report import ProgressReport
from tinytl_edge.runtime.train import above_plan
from tinytl_edge.runtime.workers.native_worker import find_trainer

ADAPTER = "adapter.safetensors"
RUNTIME = "native" if find_trainer() else "onnxruntime-training"  # what `auto` is
CHECKPOINT = CHECKPOINTS[RUNTIME]
STEPS = EPOCHS * STEPS_AN_EPOCH
SLOW = ("--runtime", "onnxruntime-training")  # the native trainer ends before one can look


def events_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def record_of(run: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    return record


def options() -> tinytl_edge.TrainOptions:
    """What TRAINING says."""
    return tinytl_edge.TrainOptions(epochs=EPOCHS, lr=0.03, log_every=1)


# What a run leaves behind -------------------------------------------------------------------------------


def test_the_events_tell_the_whole_story(run: Path) -> None:
    events = events_of(run)
    kinds = [event["event"] for event in events]
    epoch = ["step"] * STEPS_AN_EPOCH + ["checkpoint", "epoch"]
    assert kinds == ["start", "checkpoint", "one_pass", *epoch * EPOCHS, "checkpoint", "choice", "done"]
    head, *middle, done = events
    assert (head["step"], head["total_steps"], head["epochs"], head["images"]) == (0, STEPS, EPOCHS, 18)
    assert head["learning_rates"]["classifier"] == 0.03
    steps = [event for event in middle if event["event"] == "step"]
    assert [event["step"] for event in steps] == list(range(1, STEPS + 1))
    assert all(event["ms"] > 0 and event["loss"] > 0 for event in steps)
    rates = [event["lr"] for event in steps]
    assert rates == pytest.approx([0.03 * schedule(step, STEPS) for step in range(STEPS)])
    epochs = [event for event in middle if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == list(range(1, EPOCHS + 1))
    assert set(epochs[0]) >= {"train_loss", "train_accuracy", "val_loss", "val_accuracy", "rss_bytes"}
    assert done["train_loss"] == epochs[-1]["train_loss"]
    assert (done["val_loss"], done["val_accuracy"]) == (middle[-1]["val_loss"], middle[-1]["val_accuracy"])
    assert done["steps"] == STEPS
    assert done["adapter"] == str(run / ADAPTER)


@pytest.mark.parametrize("total", [1, 9, 10, 55, 1800])
def test_the_rate_rises_for_a_tenth_and_falls_to_zero(total: int) -> None:
    shares = [schedule(step, total) for step in range(total)]
    warm_up = -(-total // 10)
    cosine = [0.5 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
    assert shares[warm_up - 1 :] == pytest.approx(cosine[warm_up - 1 :])
    steps = [share / full for share, full in zip(shares[:warm_up], cosine)]
    assert steps == pytest.approx([(step + 1) / warm_up for step in range(warm_up)])


def test_it_learns(run: Path, bundle: Path, workplace: Path) -> None:
    epochs = [event for event in events_of(run) if event["event"] == "epoch"]
    assert epochs[-1]["val_accuracy"] == 1
    assert epochs[-1]["val_loss"] < 0.6
    before = tinytl_edge.evaluate(bundle, workplace / "val")
    assert before["accuracy"] < 1
    after = tinytl_edge.evaluate(run, workplace / "val")
    assert (after["accuracy"], after["per_class"]) == (1, [1, 1, 1])


def test_the_peak_is_above_every_sample(run: Path) -> None:
    record = record_of(run)
    peak = record["result"]["peak_rss_bytes"]
    samples = [size for _, size in record["rss_curve"]]
    seen = [event["rss_bytes"] for event in events_of(run) if "rss_bytes" in event]
    assert samples
    assert max(samples + seen) <= peak < 200e6
    assert max(event.get("peak_rss_bytes", 0) for event in events_of(run)) <= peak
    seconds = [second for second, _ in record["rss_curve"]]
    assert seconds == sorted(seconds)


def test_the_record_holds_what_is_needed_to_go_on_and_to_compare(run: Path, bundle: Path) -> None:
    record = record_of(run)
    assert (record["format"], record["status"], record["runtime"]) == (
        "tinytl-edge-run", "done", RUNTIME,
    )  # fmt: skip
    assert (run / record["bundle"]).resolve() == bundle.resolve()
    assert (run / record["data"]).is_file()
    assert (run / record["val"]).is_file()
    assert record["options"]["epochs"] == EPOCHS
    assert record["options"]["seed"] == 0
    assert record["result"] == events_of(run)[-1]


def test_a_packed_dataset_is_used_where_it_lies(run: Path, bundle: Path, tmp_path: Path) -> None:
    ok("train", bundle, "--data", run / "train.safetensors", "--epochs", 1, "--out", tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ADAPTER, CHECKPOINT, "events.jsonl", "features.safetensors", "run.json", "start.safetensors",
    ]  # fmt: skip
    assert "val_accuracy" in events_of(tmp_path / "run")[-1]


# Interrupted and resumed --------------------------------------------------------------------------------


def comparable(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Events without what differs from one run to the next: times and memory."""
    differs = {"ms", "rss_bytes", "peak_rss_bytes"}
    return [{k: v for k, v in event.items() if k not in differs} for event in events if event["event"] == kind]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    number: signal.Signals, run: Path, bundle: Path, workplace: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    data = ("--data", workplace / "train", "--val", workplace / "val")
    process = start("train", bundle, *data, *TRAINING, "--out", out, "--json")
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("step") == 2 * STEPS_AN_EPOCH + 2:
            process.send_signal(number)
            break
    rest, complaint = process.communicate()
    assert process.returncode == 130, complaint
    assert complaint.startswith("tinytl-edge: Interrupted at step ")
    assert "--resume" in complaint
    assert json.loads(rest.splitlines()[-1])["exit_code"] == 130
    assert record_of(out)["status"] == "interrupted"
    ended = events_of(out)[-2]
    assert ended["event"] == "checkpoint"
    assert ended["step"] < STEPS
    assert ok("predict", out, workplace / "val/cat/0.png")  # the adapter can be used as it is

    ok("train", bundle, "--resume", "--out", out)
    assert (out / ADAPTER).read_bytes() == (run / ADAPTER).read_bytes()
    assert record_of(out)["status"] == "done"
    events = events_of(out)
    for kind in ("step", "epoch"):
        told = {event["step"]: event for event in comparable(events, kind)}
        assert set(told) <= set(range(1, STEPS + 1))
        for expected in comparable(events_of(run), kind):
            assert told.get(expected["step"], expected) == expected
    assert comparable(events, "epoch")[-1] == comparable(events_of(run), "epoch")[-1]


def test_a_killed_worker_is_explained_and_its_run_goes_on_from_the_last_epoch(
    run: Path, bundle: Path, workplace: Path, tmp_path: Path
) -> None:
    others = psutil.Process().children()  # of other tests, as multiprocessing keeps them

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 3:
            (worker,) = (child for child in psutil.Process().children() if child not in others)
            worker.kill()

    data, val, out = workplace / "train", workplace / "val", tmp_path / "run"
    with pytest.raises(WorkerError, match="was killed, most likely because memory ran out"):
        tinytl_edge.train(bundle, data, val, out, options=options(), on_event=kill)
    assert record_of(out)["status"] == "failed"
    assert events_of(out)[-1]["exit_code"] == 1
    tinytl_edge.train(bundle, out=out, resume=True)
    assert (out / ADAPTER).read_bytes() == (run / ADAPTER).read_bytes()
    starts = [event["step"] for event in events_of(out) if event["event"] == "start"]
    assert starts[0] == 0
    assert starts[1] % STEPS_AN_EPOCH == 0
    assert starts[1] >= 3 * STEPS_AN_EPOCH


def test_resuming_a_finished_run_changes_nothing_and_makes_a_lost_adapter_again(
    run: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / ADAPTER).unlink()
    ok("train", bundle, "--resume", "--out", out)
    assert (out / ADAPTER).read_bytes() == (run / ADAPTER).read_bytes()
    before, after = record_of(run)["result"], record_of(out)["result"]
    for key in ("steps", "train_loss", "val_loss", "val_accuracy"):
        assert after[key] == before[key]


def test_options_that_a_resumed_run_does_not_take_are_named(run: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    answer = tinytl("train", bundle, "--resume", "--epochs", 99, "--data", "elsewhere", "--threads", 2, "--out", out)
    assert answer.code == 0
    (warning,) = [line for line in answer.err.splitlines() if line.startswith("warning: ")]
    assert "--data, --epochs not used" in warning
    assert record_of(out)["options"]["epochs"] == EPOCHS
    assert record_of(out)["options"]["threads"] == 2


def test_a_resumed_run_keeps_its_threads_and_its_pace_of_reports(run: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    before = record_of(out)["options"]
    ok("train", bundle, "--resume", "--out", out)
    after = record_of(out)["options"]
    assert (after["threads"], after["log_every"]) == (before["threads"], before["log_every"])
    assert after["log_every"] == 1


def test_which_executable_ran_is_recorded(run: Path) -> None:
    executable = record_of(run)["executable"]
    assert executable.startswith("tinytl-edge-trainer" if RUNTIME == "native" else "python")
    (start,) = [event for event in events_of(run) if event["event"] == "start"]
    assert start["executable"] == executable


def test_a_peak_above_the_plan_is_said() -> None:
    def said(peak: int, planned: int | None, limit: int | None = None) -> str | None:
        return above_plan({"peak_rss_bytes": peak, "planned_peak_bytes": planned}, limit)

    assert said(9_000_000, 8_900_000) is None and said(9_000_000, None) is None
    assert said(9_500_000, 8_900_000) == "The trainer took 9.5 MB at its peak, where 8.9 MB were planned."
    assert "above the bundle's limit of 10.0 MB" in str(said(10_100_000, 10_000_000, 10_000_000))


def test_without_a_terminal_a_long_silence_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProgressReport, "silence", 0.2)
    stream = io.StringIO()
    with ProgressReport(stream) as report:
        report({"event": "start", "runtime": "native", "images": 8, "held_out": 0, "epochs": 1, "batch_size": 8,
                "step": 0, "total_steps": 1})  # fmt: skip
        time.sleep(0.7)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("native: 8 images") and "at work" in lines[1]


@needs_ort
@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_ctrl_c_while_a_worker_starts_is_an_interruption(
    command: str, bundle: Path, run: Path, workplace: Path, tmp_path: Path
) -> None:
    arguments = {
        "train": (bundle, "--data", run / "train.safetensors", "--epochs", 99, "--out", tmp_path / "run"),
        "evaluate": (run, "--data", run / "train.safetensors"),
        "predict": (run, workplace / "val/cat/0.png"),
    }
    process = start(command, *arguments[command], *SLOW)
    while not psutil.Process(process.pid).children():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate()
    assert process.returncode == 130
    assert complaint.splitlines()[-1].startswith("tinytl-edge: Interrupted")
    assert "Traceback" not in complaint


# On a terminal ------------------------------------------------------------------------------------------


@needs_ort
def test_a_terminal_sees_a_live_line_and_a_file_sees_plain_ones(
    run: Path, bundle: Path, workplace: Path, tmp_path: Path
) -> None:
    arguments = ("--data", workplace / "train", "--epochs", "2", "--log-every", "1", *SLOW, "--out")
    plain = tinytl("train", bundle, *arguments, tmp_path / "plain").err
    assert "\r" not in plain
    lines = plain.splitlines()
    assert lines[0] == "onnxruntime-training: 18 images, 2 epochs, 10 steps"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["classifier", "in"], ["epoch", "1/2"], ["epoch", "2/2"], ["blended", "with"],
    ]  # fmt: skip

    ours, theirs = pty.openpty()
    columns = {"COLUMNS": "100"}
    val = ("--val", workplace / "val")
    process = start("train", bundle, *arguments, tmp_path / "live", *val, environment=columns, stderr=theirs)
    os.close(theirs)
    screen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the terminal of a process that has ended
            break
        if not piece:
            break
        screen += piece
    os.close(ours)
    process.communicate()
    assert process.returncode == 0
    shown = screen.decode().replace("\r\n", "\n")
    assert "packing images [" in shown
    live = [line for line in shown.split("\r") if line.startswith("epoch 2/2 [")]
    assert any("10/10" in line and "RSS" in line and "left" in line for line in live)
    assert any(line.rstrip().endswith("9/9 validated") for line in live)
