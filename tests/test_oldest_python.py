"""A board may have no newer Python than 3.9: all that it does works there, with what it has installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import CLASSES, make_images
from runtimes import needs_trainer

from tinytl_edge.runtime.workers.native_worker import find_trainer

ROOT = Path(__file__).parent.parent
NEEDS = ("click>=8.1", "psutil>=5.9", "Pillow>=9.4")

pytestmark = needs_trainer


def pythons() -> Iterator[Path]:
    """Where a Python 3.9 may be."""
    if (found := shutil.which("python3.9")) is not None:
        yield Path(found)
    for folder in (os.environ.get("PYENV_ROOT"), Path.home() / ".pyenv"):
        if folder is not None:
            yield from sorted(Path(folder, "versions").glob("3.9*/bin/python3.9"))


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of it that has what a board has."""
    place = tmp_path_factory.mktemp("oldest") / "venv"
    for candidate in pythons():
        made = subprocess.run([candidate, "-m", "venv", place], capture_output=True, check=False)
        if made.returncode == 0:
            break
    else:
        pytest.skip("there is no Python 3.9")
    install = [place / "bin" / "python", "-m", "pip", "install", "--quiet", *NEEDS]
    if subprocess.run(install, capture_output=True, check=False).returncode != 0:
        pytest.skip("there is nothing to install for Python 3.9 from")
    return place / "bin" / "python"


def test_the_whole_way_of_a_board(python: Path, bundle: Path, tmp_path: Path) -> None:
    make_images(tmp_path / "photos", dict.fromkeys(CLASSES, 12), seed=4)
    make_images(tmp_path / "more", dict.fromkeys(CLASSES, 15), seed=4)
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT), "TINYTL_EDGE_TRAINER": os.fspath(find_trainer())}

    def said(*words: object) -> str:
        command = [python, "-m", "tinytl_edge", *map(str, words)]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert json.loads(said("doctor", "photos", "--val", "more", "--bundle", bundle, "--json"))["images"] == 36
    said("pack", "photos", "--bundle", bundle, "--out", "packed")
    said("train", bundle, "--data", "photos", "--epochs", 2, "--out", "run")
    said("train", "run", "--data", "more", "--epochs", 2, "--out", "on")
    assert "accuracy" in said("evaluate", "on", "--data", "packed")
    assert json.loads(said("predict", "on", "more/cat/0.png", "--json"))["probabilities"].keys() == set(CLASSES)
    assert "report.html" in said("report", "on")
    assert said("export", "on", "--out", "model.onnx").startswith("model.onnx: ")
    assert "run on, done" in said("inspect", "on")
    make_images(tmp_path / "owls", {"owl": 4}, seed=4)
    (tmp_path / "on" / "train.safetensors").unlink()
    said("train", "on", "--data", "owls", "--out", "owl")
    assert "It gives 4 numbers" in said("export", "owl", "--out", "owl.onnx")
    assert "this-machine" in said("devices")
