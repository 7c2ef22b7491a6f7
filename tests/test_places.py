"""Places that cannot be written to: one sentence, nothing of it left behind, and nothing that was there before lost."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, content_of, fails, ok, prepare, tinytl

import tinytl_edge
from tinytl_edge.runtime.errors import StorageError
from tinytl_edge.runtime.files.run import CHECKPOINTS
from tinytl_edge.runtime.workers.native_worker import find_trainer

ADAPTER = "adapter.safetensors"
CHECKPOINT = CHECKPOINTS["native" if find_trainer() else "onnxruntime-training"]  # what `auto` writes


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nothing/here"])
def test_a_place_that_cannot_be_written(place: str, bundle: Path, workplace: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    out, data = tmp_path / place, workplace / "train"
    commands: list[tuple[object, ...]] = [("train", bundle, "--data", data)]
    if place != "file":  # a file can be written over by a file, and is not taken for a folder
        commands += [("pack", data, "--resolution", 32)]
    for command in commands:
        assert str(out) in fails(6, *command, "--out", out)
    if place != "file":
        assert f"{out}.onnx" in fails(6, "export", bundle, "--out", f"{out}.onnx")
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def test_a_bundle_needs_a_place_of_its_own(bundle: Path, workplace: Path, tmp_path: Path) -> None:
    before = content_of(bundle)
    (tmp_path / "file").write_text("mine")
    for code, place, words in (
        (2, bundle, "add --overwrite"),
        (2, workplace / "val", "is no bundle"),
        (2, tmp_path / "file", "is no bundle"),
        (6, tmp_path / "file/below", "is a file, not a folder"),
        (6, Path("/proc/nothing"), "could not be written"),
    ):
        answer = tinytl("prepare", *TINY, "--classes", 3, "--out", place)
        assert answer.code == code
        assert words in answer.sentence
        assert "..." not in answer.err  # found out before the work began
    fails(2, "prepare", *TINY, "--classes", 3, "--overwrite", "--out", workplace / "val")
    assert content_of(bundle) == before


def test_a_bundle_is_replaced_when_asked(tmp_path: Path) -> None:
    bundle = prepare(tmp_path / "bundle", "--classes", 3)
    before = content_of(bundle)
    fails(2, "prepare", "tiny_models:Fourier", "--classes", 3, "--train", "bias", "--overwrite",
          "--resolution", 32, "--out", bundle)  # fmt: skip
    assert content_of(bundle) == before
    prepare(bundle, "--classes", 4, "--overwrite")
    assert json.loads(ok("inspect", bundle, "--json"))["classes"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_full_device_behind_standard_output_is_one_sentence(run: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "tinytl_edge", "devices"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert process.returncode == 6
    assert process.stderr == "tinytl-edge: The output could not be written: No space left on device.\n"


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A filesystem of `size` bytes; the test is skipped where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no filesystem may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_the_last_adapter(bundle: Path, run: Path, workplace: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4M") as disk:

        def fill(event: dict[str, Any]) -> None:
            if event["event"] == "epoch" and event["epoch"] == 2:
                with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
                    while True:
                        file.write(b"x" * 4096)
                        file.flush()

        options = tinytl_edge.TrainOptions(epochs=1000)
        with pytest.raises(StorageError, match="could not be written: No space left on device"):
            tinytl_edge.train(bundle, run / "train.safetensors", out=disk / "run", options=options, on_event=fill)
        # Where the log is what fails first, the trainer is ended while it may be writing, under a name with a dot.
        assert sorted(path.name for path in (disk / "run").iterdir() if not path.name.startswith(".")) == [
            ADAPTER, CHECKPOINT, "events.jsonl", "run.json", "start.safetensors",
        ]  # fmt: skip
        (disk / "filler").unlink()
        ok("predict", disk / "run", workplace / "val/cat/0.png", "--bundle", bundle)
    with small_disk(tmp_path / "full", "8k") as disk:
        sentence = fails(6, "train", bundle, "--data", workplace / "train", "--out", disk / "run")
        assert "No space left on device" in sentence


def test_files_that_may_not_grow_leave_the_last_adapter(bundle: Path, run: Path, tmp_path: Path) -> None:
    """What a full disk does, without one: the limit is below the adapter's size."""
    copy = shutil.copytree(run, tmp_path / "run")
    before = (copy / ADAPTER).read_bytes()
    limit = len(before) // 1024 - 1
    (copy / "events.jsonl").unlink()
    command = f'ulimit -f {limit}; exec "$0" -m tinytl_edge train "$1" --resume --out "$2"'
    process = subprocess.run(["bash", "-c", command, sys.executable, bundle, copy], capture_output=True, text=True)
    assert process.returncode == 6
    assert "could not be written: File too large" in process.stderr.splitlines()[-1]
    assert (copy / ADAPTER).read_bytes() == before
