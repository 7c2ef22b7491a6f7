"""The commands as a user gives them, the Python API beside them, and what they leave unimported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import CLASSES, RESOLUTION, TINY, TRAINING, make_images, ok, start, tinytl
from runtimes import needs_ort

import tinytl_edge
from tinytl_edge.cli import cli
from tinytl_edge.runtime.images.framing import Framing
from tinytl_edge.runtime.workers.native_worker import find_trainer

CONTEXT = click.Context(cli)
COMMANDS = sorted((name, cli.get_command(CONTEXT, name)) for name in cli.list_commands(CONTEXT))


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_and_option_has_help_and_every_command_an_example(name: str, command: click.Command) -> None:
    out = ok(name, "--help")
    assert f"Example:\n  tinytl-edge {name} " in out
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.opts
    _, example = out.split("Example:\n  tinytl-edge ")
    words = example.split()
    command.make_context(words[0], words[1:])  # its options exist and have such values


def test_what_a_limit_made_prepare_choose_is_shown_with_its_price(tmp_path: Path) -> None:
    how = ("--classes", 3, "--train", "full", "--batch-size", 1, "--resolution", 96, "mobilenet-v2-0.5")
    out = ok("prepare", *how, "--weights", "random", "--memory-limit", "6MB", "--out", tmp_path / "bundle")
    step = json.loads(ok("inspect", tmp_path / "bundle", "--json"))["native_step"]
    weighed = {choice["knob"]: choice for choice in step["choices"]}
    assert {"moments", "trained_weights"} <= set(weighed) <= set(step["knobs"])
    assert weighed["moments"]["bytes_saved"] > weighed["trained_weights"]["bytes_saved"] > 1_000_000
    for knob, words in (("moments", "optimizer state in 8 bits"), ("trained_weights", "trained weights in 16 bits")):
        (line,) = [line for line in out.splitlines() if words in line]
        assert f"{weighed[knob]['bytes_saved'] / 1e6:.1f} MB" in line
        assert f"{weighed[knob]['time_fraction']:+.1%}" in line


def test_the_list_of_commands_fits_a_terminal() -> None:
    out = ok("--help")
    for name, _ in COMMANDS:
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {name} ")]
        assert line.endswith("."), line
        assert not line.endswith("..."), line


def test_a_mistyped_command_is_explained() -> None:
    answer = tinytl("trian")
    assert answer.code == 2
    assert "train" in answer.err


# What is imported ---------------------------------------------------------------------------------------

HEAVY = {"torch", "numpy", "onnx", "onnxruntime", "psutil", "PIL", "sklearn", "matplotlib"}
REPORT = """
import atexit, json, os, sys

def report():
    name = sys.modules["__main__"].__spec__.name
    with open(os.path.join(os.environ["IMPORTS"], name), "w") as file:
        json.dump(sorted(sys.modules), file)

atexit.register(report)
"""


def imported(folder: Path, *arguments: object) -> dict[str, set[str]]:
    """Which of the heavy packages each Python process of a command has imported by its end."""
    (folder / "site").mkdir(parents=True)
    (folder / "imports").mkdir()
    (folder / "site/sitecustomize.py").write_text(REPORT)
    process = start(*arguments, environment={"PYTHONPATH": str(folder / "site"), "IMPORTS": str(folder / "imports")})
    _, complaints = process.communicate()
    assert process.returncode == 0, complaints
    return {path.name: HEAVY & set(json.loads(path.read_text())) for path in (folder / "imports").iterdir()}


def test_help_starts_without_anything_heavy(tmp_path: Path) -> None:
    assert imported(tmp_path, "--help") == {"tinytl_edge.__main__": set()}


@needs_ort
def test_training_imports_neither_torch_nor_onnx_and_numpy_in_the_worker_alone(
    tmp_path: Path, workplace: Path, bundle: Path
) -> None:
    out = ("--runtime", "onnxruntime-training", "--epochs", 1, "--out")
    folder = imported(tmp_path / "a", "train", bundle, "--data", workplace / "train", *out, tmp_path / "run")
    worker = "tinytl_edge.runtime.workers.ort_worker"
    assert folder == {worker: {"numpy"}}  # the command line became another before it ended


def test_what_waits_for_training_imports_little() -> None:
    """Each of these is half a megabyte to three of a board's memory."""
    code = "import sys, tinytl_edge.runtime.train_alone; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-S", "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    large = {"_hashlib", "click", "psutil", "PIL", "subprocess", "tempfile", "shutil", "csv", "random", "sysconfig"}
    assert not (HEAVY | large) & set(out.split())


def test_inspecting_needs_nothing_that_a_board_lacks(tmp_path: Path, bundle: Path) -> None:
    assert imported(tmp_path, "inspect", bundle) == {"tinytl_edge.__main__": set()}


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, tinytl_edge; dir(tinytl_edge); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(out.split())


# The whole way ------------------------------------------------------------------------------------------


def test_the_whole_way_by_commands(tmp_path: Path, workplace: Path) -> None:
    bundle, run, packed = tmp_path / "bundle", tmp_path / "run", tmp_path / "train.safetensors"
    backbone = ("mobilenet-v2-0.1", "--weights", "random", "--resolution", 40, "--train", "bias")
    prepared = json.loads(
        ok("prepare", *backbone, "--classes", ",".join(CLASSES), "--batch-size", 6, "--out", bundle, "--json")
    )
    assert (prepared["kind"], prepared["input"]["height"], prepared["classes"]) == ("bundle", 40, list(CLASSES))
    assert any("RANDOM" in note for note in prepared["notes"])

    content = json.loads(ok("pack", workplace / "train", "--bundle", bundle, "--out", packed, "--json"))
    assert (content["images"], content["classes"]) == (18, dict.fromkeys(CLASSES, 6))

    val = workplace / "val"
    how = ("--epochs", 2, "--start", "prepared")  # random features of all images are alike
    process = start("train", bundle, "--data", packed, "--val", val, *how, "--out", run, "--json")
    out, complaints = process.communicate()
    assert (process.returncode, complaints) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == [
        "start", "step", "checkpoint", "epoch", "step", "checkpoint", "epoch", "checkpoint", "choice", "done",
    ]  # fmt: skip
    done = events[-1]
    assert (done["runtime"], done["steps"]) == ("native" if find_trainer() else "onnxruntime-training", 6)
    for key in ("peak_rss_bytes", "step_ms_median", "train_loss"):
        assert done[key] > 0
    assert min(done["memory"][phase] for phase in ("start", "packing", "training")) > 1_000_000
    assert (done["planned_peak_bytes"] is None) == (find_trainer() is None)
    assert 0 <= done["val_accuracy"] <= 1

    result = json.loads(ok("evaluate", run, "--data", val, "--json"))
    assert (result["images"], result["classes"]) == (9, list(CLASSES))
    assert result["accuracy"] == pytest.approx(done["val_accuracy"])
    assert result["loss"] == pytest.approx(done["val_loss"])
    assert sum(map(sum, result["confusion"])) == 9

    images = sorted(val.rglob("*.png"))[:3]
    answers = [json.loads(line) for line in ok("predict", run, *images, "--json").splitlines()]
    assert [answer["image"] for answer in answers] == [str(image) for image in images]
    for answer in answers:
        assert set(answer["probabilities"]) == set(CLASSES)
        assert sum(answer["probabilities"].values()) == pytest.approx(1)

    model = tmp_path / "model.onnx"
    exported = json.loads(ok("export", run, "--out", model, "--json"))
    assert exported["bytes"] == model.stat().st_size
    assert exported["classes"] == list(CLASSES)

    kinds = {
        run: "run", bundle: "bundle", packed: "dataset", run / "adapter.safetensors": "adapter"
    }  # fmt: skip
    for path, kind in kinds.items():
        assert json.loads(ok("inspect", path, "--json"))["kind"] == kind


def test_what_a_person_is_told(workplace: Path, bundle: Path, run: Path, tmp_path: Path) -> None:
    assert f"bundle {bundle}" in ok("inspect", bundle)
    said = ok("inspect", run)
    assert said.startswith(f"run {run}, done\n")
    assert all(f"peak memory, {phase} " in said for phase in ("start", "packing", "training"))
    assert "CRC" not in said
    assert "steps                      200" in ok("inspect", run / "adapter.safetensors")
    assert "dataset of 18 images, stored as 37 x 37 px" in ok("inspect", run / "train.safetensors")
    assert ok("evaluate", run, "--data", workplace / "val").startswith("accuracy 100.0%, loss 0.")
    image = workplace / "val/dog/0.png"
    assert ok("predict", run, image, "--top", 1).startswith(f"{image}: dog ")
    out = tmp_path / "model.onnx"
    assert ok("export", bundle, "--out", out).startswith(f"{out}: ")
    packed = tmp_path / "train.safetensors"
    packing = ok("pack", workplace / "train", "--resolution", 16, "--out", packed)
    assert packing == f"{packed}: 18 images of 3 classes, for 16 x 16 px, RGB, cropped, with a margin\n"


def test_boards_are_listed_and_described() -> None:
    assert "raspberry-pi-4" in ok("devices")
    names = [board["name"] for board in json.loads(ok("devices", "--json"))]
    assert "this-machine" in names
    for name in names:
        assert json.loads(ok("devices", name, "--json"))["name"] == name
        assert ok("devices", name)


def test_a_bundle_without_class_names_takes_them_from_the_images(tmp_path: Path, workplace: Path) -> None:
    bundle, run = tmp_path / "bundle", tmp_path / "run"
    ok("prepare", *TINY, "--classes", 3, "--train", "bias", "--out", bundle)
    image = workplace / "val/dog/0.png"
    (nameless,) = tinytl_edge.predict(bundle, [image])
    assert set(nameless["probabilities"]) == {"0", "1", "2"}
    ok("train", bundle, "--data", workplace / "train", *TRAINING, "--out", run)
    assert tinytl_edge.predict(run, [image])[0]["prediction"] == "dog"


def test_the_whole_way_in_python(tmp_path: Path, workplace: Path) -> None:
    notes: list[str] = []
    prepared = tinytl_edge.prepare(
        "tiny_models:Tiny", tmp_path / "bundle", workplace / "train",
        tinytl_edge.PrepareOptions(train="bias", resolution=RESOLUTION), on_progress=notes.append,
    )  # fmt: skip
    assert prepared.bundle.manifest.classes == CLASSES
    assert notes
    report = tinytl_edge.pack(workplace / "train", tmp_path / "train.safetensors", Framing(RESOLUTION, RESOLUTION))
    assert report.count == 18
    events: list[dict[str, Any]] = []
    options = tinytl_edge.TrainOptions(epochs=20, lr=0.03)
    done: dict[str, Any] = {}

    def train() -> None:  # not the main thread: signals are somebody else's
        done.update(
            tinytl_edge.train(
                tmp_path / "bundle", report.path, workplace / "val", tmp_path / "run", options=options,
                on_event=events.append,
            )
        )  # fmt: skip

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert done == events[-1]
    assert done["val_accuracy"] == 1
    assert tinytl_edge.evaluate(tmp_path / "run", workplace / "val")["accuracy"] == 1
    (answer,) = tinytl_edge.predict(tmp_path / "run", [workplace / "val/fox/0.png"])
    assert answer["prediction"] == next(iter(answer["probabilities"])) == "fox"
    assert callable(tinytl_edge.export)
    exported = tinytl_edge.export(tmp_path / "run", tmp_path / "model.onnx")
    assert Path(exported["out"]).is_file()
    assert tinytl_edge.inspect(tmp_path / "run")["result"]["val_accuracy"] == 1
    with pytest.raises(tinytl_edge.TinyTLError):
        tinytl_edge.inspect(tmp_path / "nothing")


# The demo -----------------------------------------------------------------------------------------------


def test_the_demo_goes_the_whole_way_twice(tmp_path: Path) -> None:
    data = make_images(tmp_path / "mine", dict.fromkeys(CLASSES, 8))
    out = tmp_path / "demo"
    options = ("--model", "tiny_models:Tiny", "--data", data, "--epochs", 2, "--resolution", 32, "--threads", 1)
    results = json.loads(ok("demo", "--out", out, *options, "--json"))
    assert [result["method"] for result in results] == ["last", "auto"]
    for result in results:
        assert Path(result["onnx"]).is_file()
        assert Path(result["adapter"]).stat().st_size == result["adapter_bytes"]
    assert tinytl("demo", "--out", out, *options).code == 2  # nothing is overwritten
