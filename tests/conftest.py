"""Tiny images, a tiny bundle and a run of it, made once; and the command line, in this process or its own."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from boards import EMULATORS
from click.testing import CliRunner
from PIL import Image
from runtimes import RUNTIMES

from tinytl_edge.runtime.files.bundle import Bundle

# Of torch, also in processes that tests start: its threads wait for each other by spinning, which takes ten times as
# long where another program has one of the cores.
os.environ["OMP_NUM_THREADS"] = "1"

# Where the tests run in the background, or by nohup, these are ignored, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

TESTS = Path(__file__).parent
COLOURS = {"cat": (200, 40, 40), "dog": (40, 180, 60), "fox": (50, 60, 200)}
CLASSES = tuple(COLOURS)
ELSEWHERE = {"cat": (40, 40, 120), "dog": (230, 130, 130), "fox": (150, 230, 150)}
RESOLUTION = 32
# What `prepare` takes to make the bundle of the tests.
TINY = ("tiny_models:Tiny", "--resolution", str(RESOLUTION))
# Long enough to be interrupted. Of 18 images and batches of 4 come 5 steps an epoch.
EPOCHS, STEPS_AN_EPOCH = 40, 5
TRAINING = ("--epochs", str(EPOCHS), "--lr", "0.03", "--log-every", "1")


# What `make check` leaves out: half of the tests' time, or an emulator.
SLOW_FILES = {
    "test_bench", "test_board_choice", "test_demo", "test_emulated_boards", "test_import_network", "test_lite_residual",
    "test_native_kernels", "test_oldest_python", "test_paper_memory", "test_real_gradients", "test_torch_source",
    "test_wheels",
}  # fmt: skip
SLOW_TESTS = {"test_networks_as_they_come_learn_as_in_pytorch"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow."""
    for item in items:
        name, is_emulated = getattr(item, "originalname", item.name), any(arch in item.name for arch in EMULATORS)
        if item.path.stem in SLOW_FILES or name in SLOW_TESTS or is_emulated:
            item.add_marker("slow")


def make_image(path: Path, colour: tuple[int, int, int], seed: int = 0, size: tuple[int, int] = (40, 36)) -> Path:
    """A coloured image with some noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = random.Random(seed)
    image = Image.new("RGB", (5, 4))
    image.putdata([tuple(channel + noise.randrange(-30, 30) for channel in colour) for _ in range(20)])
    image.resize(size).save(path)
    return path


def make_images(folder: Path, counts: Mapping[str, int], seed: int = 0) -> Path:
    """`counts[name]` images of each class, in class folders; a class of 0 is an empty folder."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            colour = COLOURS.get(name, (128, 128, 128))
            make_image(folder / name / f"{number}.png", colour, seed=1000 * seed + number)
    return folder


@dataclass(frozen=True)
class Answer:
    """What a command said, and the code with which it ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one sentence of a command that failed."""
        assert "Traceback" not in self.err, self.err
        *before, last = self.err.strip().splitlines()
        ours = "tinytl-edge: "
        assert last.startswith(ours) and not any(line.startswith(ours) for line in before), self.err
        return last.removeprefix(ours)


def tinytl(*arguments: object) -> Answer:
    """`tinytl-edge` in this process; an exception that is not ours fails the test."""
    from tinytl_edge.cli import cli

    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


def ok(*arguments: object) -> str:
    """What a command that must succeed prints."""
    answer = tinytl(*arguments)
    assert answer.code == 0, answer
    return answer.out


def fails(code: int, *arguments: object) -> str:
    """The sentence with which a command that must fail ends."""
    answer = tinytl(*arguments)
    assert answer.code == code, answer
    return answer.sentence


def start(
    *arguments: object, environment: Mapping[str, str] | None = None, stderr: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """`tinytl-edge` in a process of its own."""
    command = [sys.executable, "-m", "tinytl_edge", *map(str, arguments)]
    environment = {**os.environ, **(environment or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)


def prepare(out: Path, *arguments: object) -> Path:
    """The tests' bundle."""
    ok("prepare", *TINY, "--batch-size", 4, *arguments, "--out", out)
    return out


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """Each that is installed, one after the other."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle for both runtimes of a network that trains in milliseconds, its biases and the classifier."""
    import torch
    from bundles import make_bundle
    from small_net import prepared
    from tiny_models import Tiny

    torch.manual_seed(3)
    return make_bundle(tmp_path_factory.mktemp("tiny") / "bundle", prepared(Tiny(len(CLASSES)), "bias"))


@pytest.fixture
def reproducible() -> None:
    """The same random numbers from PyTorch, whichever tests ran before."""
    import torch

    torch.manual_seed(0)


def answer_of_the_docs(number: int, place: Path, image: Path) -> str:
    """What the `number`-th example of docs/model-file.md prints of an image, for the model file in `place`."""
    page = (Path(__file__).parent.parent / "docs" / "model-file.md").read_text()
    example = page.split("```python\n")[number].split("```")[0]
    new = place / "new.jpg"
    new.write_bytes(image.read_bytes())
    command = [sys.executable, "-W", "ignore", "-c", example]
    out = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout
    new.unlink()
    return out.splitlines()[-1]


def content_of(folder: Path) -> dict[str, bytes]:
    """Of all files in a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images in `train` and `val`."""
    folder = tmp_path_factory.mktemp("workplace")
    make_images(folder / "train", dict.fromkeys(CLASSES, 6))
    make_images(folder / "val", dict.fromkeys(CLASSES, 3), seed=1)
    return folder


@pytest.fixture(scope="session")
def bundle(workplace: Path) -> Path:
    """A bundle that knows its classes by name: it is not to be written to."""
    return prepare(workplace / "bundle", "--data", workplace / "train")


@pytest.fixture(scope="session")
def run(workplace: Path, bundle: Path) -> Path:
    """A run that was never interrupted: it is not to be written to."""
    out = workplace / "run"
    ok("train", bundle, "--data", workplace / "train", "--val", workplace / "val", *TRAINING, "--out", out)
    return out


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels that `make wheels` builds, by processor. Zig's first build of its libraries takes minutes."""
    pytest.importorskip("ziglang", reason="there is no ziglang to compile for boards with (pip install ziglang)")
    folder = tmp_path_factory.mktemp("wheels")
    build = [sys.executable, TESTS.parent / "wheels" / "build.py", "--out", folder]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return {wheel.stem.partition("musllinux_1_1_")[2]: wheel for wheel in folder.glob("*.whl")}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the place where a classifier comes from, and of another; its file, and a bundle of it."""
    import torch

    folder = tmp_path_factory.mktemp("places")
    make_images(folder / "old", dict.fromkeys(CLASSES, 12), seed=1)
    make_images(folder / "old-test", dict.fromkeys(CLASSES, 8), seed=2)
    for part, count, seed in (("new", 6, 3), ("new-test", 8, 4)):
        for name, colour in ELSEWHERE.items():
            for number in range(count):
                make_image(folder / part / name / f"{number}.png", colour, seed=1000 * seed + number)
    torch.manual_seed(0)  # of the network's weights
    first = prepare(folder / "first", "--data", folder / "old")
    ok("train", first, "--data", folder / "old", "--epochs", 0, "--out", folder / "source")
    ok("export", folder / "source", "--out", folder / "model.onnx")
    ok("prepare", folder / "model.onnx", "--data", folder / "old", "--out", folder / "bundle")
    return folder
