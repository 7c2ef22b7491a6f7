"""What `prepare --device` picks: by the board, by the predicted time, and never against what the user says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_backbones import description, written

import tinytl_edge
from tinytl_edge import board_choice
from tinytl_edge.board_choice import choose_memory_limit, choose_threads, seconds_text, smaller_resolution
from tinytl_edge.devices.board import GIB, MIB, Board, CoreCluster
from tinytl_edge.devices.detect import find_board
from tinytl_edge.options import PrepareOptions
from tinytl_edge.preparation import Prepared
from tinytl_edge.runtime.errors import UsageError


@pytest.mark.parametrize(
    ("ram", "limit"),
    [((512 * MIB,), 32 * MIB), ((1 * GIB, 8 * GIB), 64 * MIB), ((128 * MIB,), 16_000_000), ((), None)],
)
def test_memory_is_a_share_of_the_least_ram(ram: tuple[int, ...], limit: int | None) -> None:
    chosen, why = choose_memory_limit(Board("b", "Some Board", ram_bytes=ram))
    assert chosen == limit
    assert "Some Board" in why


def test_a_fast_board_keeps_the_resolution() -> None:
    assert smaller_resolution(224, 0.5) is None
    assert smaller_resolution(224, None) is None


@pytest.mark.parametrize(("seconds", "px"), [(0.51, 192), (0.7, 160), (2.0, 96), (10.0, 96)])
def test_a_slow_board_gets_the_largest_that_is_fast_enough(seconds: float, px: int) -> None:
    assert smaller_resolution(224, seconds) == px


def test_below_the_smallest_there_is_none() -> None:
    assert smaller_resolution(96, 10.0) is None


def test_threads_are_the_fast_cores() -> None:
    big_little = Board("b", "B", cores=(CoreCluster("s", 4, 1400), CoreCluster("f", 2, 1800)))
    assert choose_threads(big_little)[0] == 2
    assert choose_threads(find_board("raspberry-pi-4"))[0] == 4
    count, why = choose_threads(Board("b", "B"))
    assert count == 1
    assert "not known" in why


@pytest.mark.parametrize(("seconds", "text"), [(4.23, "4.2 s"), (0.0423, "42 ms"), (0.00512, "5.1 ms"), (12.3, "12 s")])
def test_predictions_have_two_digits(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Prepared]:
    """Prepare a network of three blocks whose own resolution is 224."""
    (tmp_path / "network").mkdir()
    backbone = written(tmp_path / "network", description(), "net-r224.json")

    def prepare(name: str, **options: Any) -> Prepared:
        what = {"weights": "random", "classes": 3, "train": "bias", "optimizer": "sgd", "batch_size": 2}
        return tinytl_edge.prepare(backbone, tmp_path / name, options=PrepareOptions(**what, **options))

    return prepare


def test_a_board_is_told_what_was_picked_for_it(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    result = prepared("bundle", device="Raspberry Pi 4")
    manifest = result.bundle.manifest
    assert (manifest.device, manifest.memory_limit, manifest.input.height) == ("raspberry-pi-4", 64 * MIB, 224)
    told = [note.split(":")[0] for note in result.notes if ":" in note and "onnxruntime" not in note]
    assert told[-4:] == ["Memory limit", "Threads", "Resolution", "Time"]
    assert all("prediction" in note for note in result.notes if note.startswith(("Resolution", "Time")))
    step = tinytl_edge.inspect(tmp_path / "bundle")["native_step"]
    assert step["predicted_step_seconds"]["raspberry-pi-zero-2-w"] > step["predicted_step_seconds"]["raspberry-pi-5"]


def test_a_smaller_resolution_where_the_networks_own_is_too_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: Callable[..., Prepared]
) -> None:
    own = prepared("own", resolution=224, device="raspberry-pi-zero-2-w")
    seconds = tinytl_edge.inspect(tmp_path / "own")["native_step"]["predicted_step_seconds"]["raspberry-pi-zero-2-w"]
    monkeypatch.setattr(board_choice, "SECONDS_AN_IMAGE", 0.35 * seconds / 2)
    picked = prepared("picked", device="raspberry-pi-zero-2-w")
    assert own.bundle.manifest.input.height == 224
    assert picked.bundle.manifest.input.height in (96, 128)
    assert any(note.startswith(f"Resolution: {picked.bundle.manifest.input.height} px") for note in picked.notes)


def test_what_is_given_wins(prepared: Callable[..., Prepared]) -> None:
    limit = 50_000_000
    result = prepared("b", device="raspberry-pi-4", memory_limit=limit, resolution=64)
    assert (result.bundle.manifest.memory_limit, result.bundle.manifest.input.height) == (limit, 64)
    assert not any(note.startswith(("Memory limit", "Resolution")) for note in result.notes)


def test_a_model_of_the_users_keeps_its_resolution(tmp_path: Path) -> None:
    options = PrepareOptions(classes=10, train="bias", device="raspberry-pi-zero-2-w")
    result = tinytl_edge.prepare("tiny_models:Tiny", tmp_path / "b", options=options)
    assert result.bundle.manifest.input.height == 224
    assert result.bundle.manifest.memory_limit == 32 * MIB
    assert not any(note.startswith("Resolution") for note in result.notes)


def test_a_model_that_the_native_trainer_cannot_train_is_for_no_board(tmp_path: Path) -> None:
    options = PrepareOptions(classes=10, train="bias", device="raspberry-pi-4")
    with pytest.raises(UsageError, match=r"^--device is for the native trainer\. "):
        tinytl_edge.prepare("tiny_models:RunningSum", tmp_path / "b", options=options)


def test_a_limit_that_was_given_is_not_the_boards(tmp_path: Path) -> None:
    options = PrepareOptions(classes=10, train="bias", device="raspberry-pi-4", memory_limit=50_000_000)
    with pytest.raises(UsageError, match=r"^--memory-limit is for the native trainer\. "):
        tinytl_edge.prepare("tiny_models:RunningSum", tmp_path / "b", options=options)


def test_an_unknown_board_leaves_nothing_behind(tmp_path: Path, prepared: Callable[..., Prepared]) -> None:
    with pytest.raises(UsageError, match="No board is called 'toaster'"):
        prepared("b", device="toaster")
    assert [path.name for path in tmp_path.iterdir()] == ["network"]
