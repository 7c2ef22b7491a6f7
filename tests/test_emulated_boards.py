"""The trainers of the ARM wheels, on emulated cores: they learn what this machine's trainer learns."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from boards import EMULATORS, NATIVE, cross_compile, emulated
from bundles import FRAMING, make_bundle
from conftest import CLASSES, make_images
from test_native import adapter, losses, smooth_network
from test_wheels import unpacked

from tinytl_edge import TrainOptions, train
from tinytl_edge.export.step.compile import Knobs
from tinytl_edge.runtime.images.packing import pack

# 14 images in batches of 4, five times: 20 steps.
OPTIONS = TrainOptions(epochs=5, batch_size=4, log_every=1, seed=3)
TRAINER = "TINYTL_EDGE_TRAINER"


@pytest.fixture(scope="module", params=EMULATORS)
def board(request: pytest.FixtureRequest, wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The trainer of a board's wheel, to be started as this machine's."""
    folder = tmp_path_factory.mktemp(request.param)
    return str(emulated(unpacked(wheels[request.param], folder), request.param))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_images(folder / "train", dict(zip(CLASSES, (5, 5, 4))))
    pack(folder / "train", folder / "train.safetensors", FRAMING, CLASSES)
    return folder / "train.safetensors"


@pytest.mark.parametrize("arch", EMULATORS)
def test_every_kernel_against_its_reference(tmp_path: Path, arch: str) -> None:
    tests = Path(__file__).parent / "native" / "kernels"
    sources = [*tests.glob("*.cc"), *(NATIVE / "kernels").glob("*.cc")]
    program = emulated(cross_compile(arch, tmp_path / "kernels_test", sources, "-ffp-contract=fast"), arch)
    ran = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]


@pytest.mark.parametrize(
    ("method", "frozen_weights"), [("bias", "int8"), ("lite-residual+bias", "float32"), ("full", "float32")]
)
def test_losses_are_this_machines(
    tmp_path: Path, source: Path, board: str, monkeypatch: pytest.MonkeyPatch, method: str, frozen_weights: str
) -> None:
    bundle = make_bundle(
        tmp_path / "bundle", smooth_network(method), "adam", Knobs(frozen_weights, scratch_bytes=8_192)
    )
    done_here = train(bundle.path, source, source, tmp_path / "here", runtime="native", options=OPTIONS)
    monkeypatch.setenv(TRAINER, board)
    done_there = train(bundle.path, source, source, tmp_path / "there", runtime="native", options=OPTIONS)
    ours, theirs = losses(tmp_path / "here"), losses(tmp_path / "there")
    assert len(ours) == 20
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)
    assert done_there["val_loss"] == pytest.approx(done_here["val_loss"], rel=1e-4)
    mine, others = adapter(tmp_path / "here"), adapter(tmp_path / "there")
    assert {n: v.shape for n, v in mine.items()} == {n: v.shape for n, v in others.items()}


@pytest.mark.parametrize("there_first", [False, True], ids=["from here to there", "from there to here"])
def test_a_checkpoint_continues_on_another_processor(
    tmp_path: Path, source: Path, board: str, monkeypatch: pytest.MonkeyPatch, there_first: bool
) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network("lite-residual+bias"))
    train(bundle.path, source, None, tmp_path / "whole", runtime="native", options=OPTIONS)

    def stop_early(event: dict[str, object]) -> None:
        if event["event"] == "checkpoint" and event["step"] == 8:
            raise KeyboardInterrupt

    def choose(there: bool) -> None:
        monkeypatch.setenv(TRAINER, board) if there else monkeypatch.delenv(TRAINER, raising=False)

    choose(there_first)
    with pytest.raises(KeyboardInterrupt):
        train(bundle.path, source, None, tmp_path / "run", runtime="native", options=OPTIONS, on_event=stop_early)
    choose(not there_first)
    train(bundle.path, source, None, tmp_path / "run", resume=True, options=OPTIONS)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "whole"), rtol=1e-4)
