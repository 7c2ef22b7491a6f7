"""`bench`: every runtime takes the same steps; what is missing is said; what is counted is what is computed."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from conftest import RESOLUTION, TESTS, fails, ok, prepare
from runtimes import HAS_ORT
from small_net import prepared
from tiny_models import Tiny
from torch import nn

from tinytl_edge import benchmark
from tinytl_edge.benchmark import ORT, PLAIN, PYTORCH, RUNTIMES, tenth_percentile
from tinytl_edge.export.step.compile import count_multiply_adds
from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.files.bundle import MANIFEST, STEP, open_bundle
from tinytl_edge.runtime.workers.runtimes import worker_command
from tinytl_edge.runtime.workers.worker import run_worker

HERE = RUNTIMES if HAS_ORT else ("native", PYTORCH)


@pytest.fixture(autouse=True)
def _tiny_models_are_found_by_worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def bench(bundle: Path, *arguments: object) -> dict[str, dict[str, object]]:
    """Its rows by runtime, and everything else under ''."""
    result = json.loads(ok("bench", bundle, "--json", *arguments))
    return {"": result, **{row["runtime"]: row for row in result["rows"]}}


def test_every_runtime_takes_the_same_steps(bundle: Path) -> None:
    found = bench(bundle, "--steps", 3)
    whole, native = found.pop(""), found["native"]
    assert tuple(found) == HERE and tuple(whole["left_out"]) == tuple(r for r in RUNTIMES if r not in HERE)
    for name, row in found.items():
        assert row["loss"] == pytest.approx(native["loss"], rel=1e-6), name
        assert 0 < row["step_ms_p10"] <= row["step_ms_median"]
        assert 0 < row["evaluation_ms_p10"] <= row["evaluation_ms_median"]
        assert row["ratio"] == pytest.approx(native["step_ms_p10"] / row["step_ms_p10"])
        seconds = row["step_ms_p10"] / 1e3
        work = open_bundle(bundle).manifest.multiply_adds * whole["batch_size"]
        assert row["share_of_peak"] == pytest.approx(work / seconds / whole["peak_multiply_adds_per_s"])
        assert row["start_ms"] > 0
    # A process with an interpreter in it takes more memory than one without.
    assert all(row["peak_rss_bytes"] > 2 * native["peak_rss_bytes"] for name, row in found.items() if name != "native")
    assert whole["native_operator_ms"]["loss"] > 0


@pytest.mark.parametrize(
    ("what", "missing"),
    [
        (("--classes", 4, "--train", "full", "--optimizer", "momentum"), {ORT, PLAIN}),
        (("--classes", 4, "--train", "bias", "--optimizer", "sgd", "--multi-label"), set(RUNTIMES) - set(HERE)),
    ],
    ids=["momentum", "multi-label"],
)
def test_every_loss_and_optimizer_is_the_same_everywhere(tmp_path: Path, what: tuple, missing: set[str]) -> None:
    found = bench(prepare(tmp_path / "bundle", *what), "--steps", 1)
    assert found.pop("")["left_out"].keys() == missing
    assert found.keys() == set(RUNTIMES) - missing
    for row in found.values():
        assert row["loss"] == pytest.approx(found["native"]["loss"], rel=1e-6)


def test_a_board_has_the_native_trainer_alone(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(benchmark, "version", version)
    for module in ("torch", "onnx", "onnxruntime", "numpy"):
        monkeypatch.setitem(sys.modules, module, None)  # cannot be imported
    text = ok("bench", bundle, "--steps", 1)
    assert [line.split()[0] for line in text.splitlines() if line.startswith(RUNTIMES)] == ["native"]
    for name in set(HERE) - {"native", PYTORCH}:
        assert f"Without {name}: onnxruntime-training is not installed: pip install 'tinytl-edge[ort]'." in text
    assert "which a board does without: pip install 'tinytl-edge[prepare]'" in text
    assert "pytorch needs torch" in fails(2, "bench", bundle, "--runtime", PYTORCH)


def test_a_bundle_of_single_images_is_not_measured_in_batches(tmp_path: Path) -> None:
    single = open_bundle(prepare(tmp_path / "bundle", "--classes", 4, "--batch-size", 1))
    job = {"command": "bench", "program": str(single.file(STEP)), "steps": 1}
    assert len(run_worker(worker_command("native"), job, lambda event: None).last["step_ms"]) == 1
    with pytest.raises(UsageError, match="prepared for a batch of 1"):
        run_worker(worker_command("native"), {**job, "batch_size": 2}, lambda event: None)


def test_a_bundle_that_nobody_counted_has_no_share_of_the_peak(bundle: Path, tmp_path: Path) -> None:
    older = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((older / MANIFEST).read_text())
    del manifest["multiply_adds"], manifest["checksum"]
    (older / MANIFEST).write_text(json.dumps(manifest))
    found = bench(older, "--runtime", "native", "--steps", 1)
    assert found["native"]["share_of_peak"] is None and found[""]["multiply_adds"] is None
    assert "a step is" not in ok("bench", older, "--runtime", "native", "--steps", 1)


def test_wrong_usage_is_said(bundle: Path) -> None:
    assert "'tensorflow' is no runtime" in fails(2, "bench", bundle, "--runtime", "tensorflow")
    assert "--steps 0 is out of range" in fails(2, "bench", bundle, "--steps", 0)
    assert "--threads 0 is out of range" in fails(2, "bench", bundle, "--threads", 0)


@pytest.mark.parametrize("method", ["last", "bias", "full"])
def test_multiply_adds_are_those_of_forward_and_backward(method: str) -> None:
    image = torch.zeros(1, 3, RESOLUTION, RESOLUTION)
    network = Tiny()
    forward = _forward_multiply_adds(network, image)
    everything, stem, last = sum(forward.values()), forward["stem.0"], forward["classifier"]
    expected = {
        "last": everything + last,  # the gradient of its weight
        "bias": everything + everything - stem + last,  # nothing trains below the stem
        "full": everything + everything - stem + everything,
    }
    assert count_multiply_adds(prepared(Tiny(), method, RESOLUTION).graph()) == expected[method]


def _forward_multiply_adds(network: nn.Module, image: torch.Tensor) -> dict[str, int]:
    """By layer, from the shapes that pass through."""
    found: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda module, _, output, name=name: found.update({name: output.numel() * module.weight[0].numel()})
            )
    with torch.no_grad():
        network(image)
    return found


def test_a_tenth_of_the_values_are_at_most_the_tenth_percentile() -> None:
    assert tenth_percentile([5.0]) == 5
    assert tenth_percentile([float(value) for value in range(100, 0, -1)]) == 10
