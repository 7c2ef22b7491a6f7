"""The command line becomes the native trainer: it says, records and leaves what the two of them did."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import TRAINING, Answer, ok, start, tinytl
from runtimes import needs_trainer
from test_label_table import labelled
from test_train import ADAPTER, CHECKPOINT, events_of, record_of

import tinytl_edge
from tinytl_edge.runtime.workers.native_worker import TRAINER

pytestmark = needs_trainer
LONG = ("--epochs", 10000, "--lr", 0.01)
MEASURED = {"ms", "step_ms_median", "rss_bytes", "peak_rss_bytes", "memory", "adapter"}


def alone(*arguments: object, **environment: str) -> Answer:
    """`tinytl-edge` in a process of its own, to its end."""
    process = start(*arguments, environment=environment)
    out, complaints = process.communicate(timeout=120)
    return Answer(process.returncode, out, complaints)


def without_measures(text: str) -> str:
    """Times and sizes differ from run to run."""
    text = re.sub(r"peak memory.*", "peak memory", text)
    text = re.sub(r"\d+ ms a step|peak [\d.]+ [kM]B  [\d:]+|[\d.]+ [kM]B", "...", text)
    return re.sub(r"Adapter: .*", "Adapter", text)


def plain(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in event.items() if key not in MEASURED} for event in events]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, bundle: Path, workplace: Path) -> tuple[Path, Answer, Path, Answer]:
    """The same training in a process that becomes the trainer, and in this one, which waits for it."""
    folder = tmp_path_factory.mktemp("both")
    (workplace / "train" / "cat" / "broken.png").write_bytes(b"no image")
    command = ("train", bundle, "--data", workplace / "train", "--val", workplace / "val", *TRAINING, "--out")
    try:
        return folder / "a", alone(*command, folder / "a"), folder / "b", tinytl(*command, folder / "b")
    finally:
        (workplace / "train" / "cat" / "broken.png").unlink()


def test_a_person_reads_the_same(both: tuple[Path, Answer, Path, Answer]) -> None:
    _, here, _, there = both
    assert (here.code, there.code) == (0, 0)
    assert without_measures(here.err) == without_measures(there.err)
    assert "broken.png was skipped" in here.err and "epoch 2/" in here.err
    assert without_measures(here.out) == without_measures(there.out)
    assert re.search(r"peak memory [\d.]+ MB \(training\), [\d.]+ MB \(packing\), [\d.]+ MB \(start\)\.\n", here.out)


def test_what_is_left_is_the_same(both: tuple[Path, Answer, Path, Answer]) -> None:
    here, _, there, _ = both
    for file in (ADAPTER, CHECKPOINT, "train.safetensors"):
        assert (here / file).read_bytes() == (there / file).read_bytes()
    assert plain(events_of(here)) == plain(events_of(there))
    assert [event.keys() for event in events_of(here)] == [event.keys() for event in events_of(there)]
    ours, theirs = record_of(here), record_of(there)
    assert ours.keys() == theirs.keys() and ours["result"].keys() == theirs["result"].keys()
    for key in ours.keys() - {"result", "rss_curve"}:
        assert ours[key] == theirs[key], key
    assert ours["result"] == events_of(here)[-1]
    assert ours["rss_curve"] and all(rss > 500_000 for _, rss in ours["rss_curve"])


def test_json_is_what_is_logged(bundle: Path, workplace: Path, tmp_path: Path) -> None:
    answer = alone("train", bundle, "--data", workplace / "train", *TRAINING, "--out", tmp_path / "run", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert [json.loads(line) for line in answer.out.splitlines()] == events_of(tmp_path / "run")


def started(bundle: Path, run: Path, *options: object, images: Path) -> subprocess.Popen[str]:
    """A long training that has finished an epoch."""
    process = start("train", bundle, "--data", images, *LONG, *options, "--out", run)
    until = time.monotonic() + 60
    while not (run / CHECKPOINT).exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    return process


def test_there_is_one_process_and_what_it_says_of_its_memory_is_what_is_seen(workplace: Path, tmp_path: Path) -> None:
    # Of the tests' own network, the code pages that come and go would be more than three in a hundred.
    network = ("mobilenet-v2", "--weights", "random", "--resolution", 96, "--train", "bias", "--batch-size", 1)
    bundle, images = tmp_path / "bundle", workplace / "train"
    ok("prepare", *network, "--data", images, "--out", bundle)
    process = started(bundle, tmp_path / "run", images=images)
    seen = psutil.Process(process.pid)
    assert not seen.children() and Path(seen.exe()).name.startswith(TRAINER)
    highest = 0
    for _ in range(50):
        highest = max(highest, seen.memory_info().rss)
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    said = max(event["peak_rss_bytes"] for event in events_of(tmp_path / "run") if "peak_rss_bytes" in event)
    assert said > 4_000_000
    assert highest == pytest.approx(said, rel=0.03)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_checkpoint_and_a_sentence(
    number: signal.Signals, bundle: Path, run: Path, tmp_path: Path
) -> None:
    process = started(bundle, tmp_path / "run", images=run / "train.safetensors")
    process.send_signal(number)
    out, complaints = process.communicate(timeout=60)
    answer = Answer(process.returncode, out, complaints)
    assert answer.code == 130 and "go on with --resume" in answer.sentence
    record = record_of(tmp_path / "run")
    assert (record["status"], record["error"]) == ("interrupted", answer.sentence)
    assert events_of(tmp_path / "run")[-1] == {"event": "error", "message": answer.sentence, "exit_code": 130}


def test_nohup_outlives_its_terminal(bundle: Path, run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinytl_edge", "train", bundle, "--data", run / "train.safetensors", *LONG]
    words = ["nohup", *map(str, command), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "run" / CHECKPOINT).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    assert process.wait(60) == 130


def test_where_nobody_reads_it_ends_and_can_go_on(bundle: Path, run: Path, tmp_path: Path) -> None:
    process = started(bundle, tmp_path / "run", "--json", images=run / "train.safetensors")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""
    process.stderr.close()
    assert record_of(tmp_path / "run")["status"] == "interrupted"


def test_a_terminal_that_is_gone_does_not_end_it(bundle: Path, run: Path, tmp_path: Path) -> None:
    process = start("train", bundle, "--data", run / "train.safetensors", *TRAINING, "--out", tmp_path / "run")
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(60) == 0 and process.stdout is not None
    assert "Adapter: " in process.stdout.read()
    process.stdout.close()


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-"])
def test_without_standard_streams_nothing_else_takes_their_place(
    closed: str, bundle: Path, run: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "tinytl_edge", "train", bundle, "--data", run / "train.safetensors", *TRAINING]
    command = f"{' '.join(map(str, words))} --out {tmp_path / 'run'} {closed}"
    assert subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode == 0
    assert events_of(tmp_path / "run")[-1]["event"] == "done"


@pytest.mark.parametrize("command", [("train", *TRAINING, "--json"), ("evaluate",), ("predict",)])
def test_a_full_disk_behind_standard_output_is_said(
    command: tuple[object, ...], bundle: Path, run: Path, workplace: Path, tmp_path: Path
) -> None:
    name, *options = command
    more: dict[object, tuple[object, ...]] = {
        "train": (bundle, "--data", run / "train.safetensors", "--out", tmp_path / "run"),
        "evaluate": (run, "--data", run / "train.safetensors"),
        "predict": (run, workplace / "val/cat/0.png"),
    }
    words = [sys.executable, "-m", "tinytl_edge", name, *more[name], *options]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([*map(str, words)], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 6
    assert ended.stderr.endswith("tinytl-edge: The output could not be written: No space left on device.\n")


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize("multi_label", [False, True])
def test_answers_are_the_same(
    form: tuple[str, ...], multi_label: bool, bundle: Path, run: Path, workplace: Path, tmp_path: Path
) -> None:
    model, data = run, workplace / "val"
    images = [*sorted(data.rglob("*.png"))[:4], workplace / "val/cat/../cat/0.png"]
    if multi_label:
        data = labelled(tmp_path / "data", 9, 0)
        images = sorted(data.rglob("*.png"))[:4]
        model = tmp_path / "bundle"
        ok("prepare", "tiny_models:Tiny", "--data", data, "--multi-label", "--out", model)
    for command in (("evaluate", model, "--data", data), ("predict", model, *images, "--top", 2)):
        here, there = alone(*command, *form), tinytl(*command, *form)
        assert (here.code, here.err) == (0, "") and there.code == 0
        if form:
            ours, theirs = ([json.loads(line) for line in answer.out.splitlines()] for answer in (here, there))
            assert plain(ours) == plain(theirs)
            assert [list(answer) for answer in ours] == [list(answer) for answer in theirs]
        else:
            assert without_measures(here.out) == without_measures(there.out)


def test_names_that_are_no_text_are_shown(run: Path, workplace: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    odd.write_bytes((workplace / "val/cat/0.png").read_bytes())
    command = [sys.executable, "-m", "tinytl_edge", "predict", os.fspath(run), os.fsencode(odd)]
    out = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert out.startswith(f"{tmp_path}/\N{REPLACEMENT CHARACTER}.png: ")


def test_a_trainer_that_cannot_be_started_is_said(bundle: Path, run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "trainer"
    broken.write_text("no program")
    broken.chmod(0o755)
    out = tmp_path / "run"
    command = ("train", bundle, "--data", run / "train.safetensors", *TRAINING, "--out", out)
    answer = alone(*command, TINYTL_EDGE_TRAINER=str(broken))
    assert answer.code == 2 and answer.sentence == f"{broken} cannot be started: Exec format error."
    assert (record_of(out)["status"], events_of(out)[-1]["message"]) == ("failed", answer.sentence)
    assert alone(*command).code == 0


def test_modules_that_wait_load_when_they_are_used() -> None:
    code = """
import sys
from tinytl_edge.runtime.workers import lean
for name in lean._SELDOM:
    sys.modules.setdefault(name, lean._Later(name))
import inspect, subprocess, dataclasses, logging
assert "ast" not in sys.modules and "selectors" not in sys.modules
from subprocess import PIPE
assert subprocess.run([sys.executable, "-c", ""], stdout=PIPE).returncode == 0
assert inspect.signature(lean.run).parameters.keys() == {"module", "function"}
assert sys.modules["subprocess"].Popen is subprocess.Popen and not hasattr(inspect, "nothing")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-S", "-c", code], check=True, env=environment)


def test_a_python_without_files_in_memory_hands_on_by_the_disk() -> None:
    code = """
import os, sys
if hasattr(os, "memfd_create"):
    del os.memfd_create
from tinytl_edge.runtime.workers import become
become._as_standard_input({"name": "\\N{SNOWMAN}"})
print(open(0).read())
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, input="").stdout
    assert json.loads(told) == {"name": "\N{SNOWMAN}"}


def test_nothing_is_left_beside_the_answers(run: Path, workplace: Path, tmp_path: Path) -> None:
    answer = alone("evaluate", run, "--data", workplace / "val", TMPDIR=str(tmp_path))
    assert answer.code == 0 and not [*tmp_path.iterdir()]


def test_from_python_the_result_says_what_both_take(bundle: Path, run: Path, tmp_path: Path) -> None:
    done = tinytl_edge.train(bundle, run / "train.safetensors", out=tmp_path / "run")
    memory = done["memory"]
    assert memory["measure"] in ("PSS", "RSS")
    assert memory["training"] > done["peak_rss_bytes"] and memory["training"] > 20_000_000
