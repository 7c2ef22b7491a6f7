"""The native trainer against PyTorch, onnxruntime-training and float64 autograd: same bundle, data and seed."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from attention import AlongChannels, Branches, response_normalised
from bundles import FRAMING, check_moved_by_gradient, make_bundle
from conftest import CLASSES, make_images
from graph_cases import floats
from graph_cases import graph as onnx_graph
from runtimes import needs_ort
from small_net import SPEC, SmallNetwork, prepared
from small_net import smooth_network as smooth_network_of
from torch import nn

from tinytl_edge import TrainOptions, evaluate, predict, train
from tinytl_edge.export.eager_training import loss, train_eager
from tinytl_edge.export.step.compile import Knobs
from tinytl_edge.export.tinytl.methods import METHODS
from tinytl_edge.runtime import threads
from tinytl_edge.runtime.course import priors
from tinytl_edge.runtime.errors import DamagedFileError, MemoryLimitError, TinyTLError, UsageError
from tinytl_edge.runtime.files.bundle import MANIFEST, STEP, Bundle, write_manifest
from tinytl_edge.runtime.files.tensors import open_tensors
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.images.packing import pack
from tinytl_edge.runtime.training_plan import Asked, plan_training
from tinytl_edge.runtime.workers.event_log import EventLog
from tinytl_edge.runtime.workers.native_worker import find_trainer

if find_trainer() is None:
    pytest.skip("this installation came without the native trainer", allow_module_level=True)

OPTIONS = TrainOptions(epochs=4, batch_size=4, log_every=1, seed=3)


def smooth_network(method: str) -> SmallNetwork:
    """For the classes of the tests' images."""
    return smooth_network_of(method, len(CLASSES))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed images: train.safetensors and val.safetensors; 14, so that the last batch is smaller."""
    folder = tmp_path_factory.mktemp("images")
    for part, seed in (("train", 0), ("val", 1)):
        make_images(folder / part, dict(zip(CLASSES, (5, 5, 4))), seed=seed)
        pack(folder / part, folder / f"{part}.safetensors", FRAMING, CLASSES)
    return folder


def losses(run: Path) -> list[float]:
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["event"] == "step"]


def adapter(run: Path) -> dict[str, np.ndarray]:
    tensors = open_tensors(run / "adapter.safetensors")
    return {
        name: np.frombuffer(tensors.read(name), np.float32).reshape(entry.shape)
        for name, entry in tensors.entries.items()
    }


def losses_in_torch(bundle: Bundle, data: Path, options: TrainOptions) -> list[float]:
    with open_dataset(data) as dataset:
        return [step.loss for step in train_eager(bundle, dataset, options)]


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "momentum"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_are_pytorchs_step_by_step(tmp_path: Path, data: Path, method: str, optimizer: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network(method), optimizer)
    options = replace(OPTIONS, lr=0.02) if optimizer == "sgd" else OPTIONS  # at the default its loss jumps
    train(bundle.path, data / "train.safetensors", None, tmp_path / "run", runtime="native", options=options)
    ours = losses(tmp_path / "run")
    assert len(ours) == 16
    np.testing.assert_allclose(ours, losses_in_torch(bundle, data / "train.safetensors", options), rtol=1e-3)


@needs_ort
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_agree_step_by_step(tmp_path: Path, data: Path, method: str, optimizer: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network(method), optimizer)
    options = replace(OPTIONS, lr=0.02) if optimizer == "sgd" else OPTIONS  # at the default its loss jumps
    done = {}
    for runtime in ("native", "onnxruntime-training"):
        sources = (data / "train.safetensors", data / "val.safetensors")
        done[runtime] = train(bundle.path, *sources, tmp_path / runtime, runtime=runtime, options=options)
        assert done[runtime]["runtime"] == runtime
    ours, theirs = losses(tmp_path / "native"), losses(tmp_path / "onnxruntime-training")
    assert len(ours) == 16
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    for key in ("val_loss", "train_loss"):
        assert done["native"][key] == pytest.approx(done["onnxruntime-training"][key], rel=2e-3)
    mine, others = adapter(tmp_path / "native"), adapter(tmp_path / "onnxruntime-training")
    assert {n: v.shape for n, v in mine.items()} == {n: v.shape for n, v in others.items()}


class Excited(nn.Module):
    """What the small network lacks: squeeze and excitation, smooth activations, pooling of windows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Hardswish(), nn.MaxPool2d(3, 2, 1))
        self.wide = nn.Sequential(nn.Conv2d(8, 24, 1), nn.SiLU(), nn.Conv2d(24, 24, 5, 1, 2, groups=24), nn.Hardswish())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 6, 1), nn.SiLU(), nn.Conv2d(6, 24, 1))
        self.narrow = nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.Conv2d(24, SPEC.head_channels, 1), nn.Sigmoid())
        self.classifier = nn.Linear(SPEC.head_channels, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(self.stem(x))
        x = x * nn.functional.hardsigmoid(self.squeeze(x))
        logits: torch.Tensor = self.classifier(self.narrow(x).mean((2, 3)))
        return logits


class Attentive(nn.Module):
    """What weighs channels and branches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU())
        self.branches = nn.Sequential(Branches(8, stacked=True), AlongChannels(8), Branches(8, stacked=False))
        self.wide = nn.Sequential(nn.Conv2d(8, SPEC.head_channels, 3, 2, 1), nn.GELU())
        self.classifier = nn.Linear(SPEC.head_channels, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = response_normalised(self.wide(self.branches(self.stem(x))))
        x = x * torch.sigmoid(x.mean(1, keepdim=True))
        logits: torch.Tensor = self.classifier(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("runtime", ["native", pytest.param("onnxruntime-training", marks=needs_ort)])
@pytest.mark.parametrize("recomputed", [0, 1000])
@pytest.mark.parametrize("kind", [Excited, Attentive])
def test_other_operators_agree_with_pytorch(
    tmp_path: Path, data: Path, kind: type[nn.Module], recomputed: int, runtime: str
) -> None:
    network = prepared(kind(), "full")
    bundle = make_bundle(tmp_path / "bundle", network, knobs=Knobs(recomputed=recomputed, scratch_bytes=4_096))
    train(bundle.path, data / "train.safetensors", None, tmp_path / "run", runtime=runtime, options=OPTIONS)
    expected = losses_in_torch(bundle, data / "train.safetensors", OPTIONS)
    np.testing.assert_allclose(losses(tmp_path / "run"), expected, rtol=1e-3)


@pytest.mark.parametrize("size", [3, 4])
def test_a_local_response_normalisation_learns_as_in_pytorch(tmp_path: Path, data: Path, size: int) -> None:
    body = f"""
        c = Conv<kernel_shape=[3,3], strides=[4,4]>(x, first_w, first_b)
        n = LRN<size={size}, alpha=0.5, beta=0.75, bias=1.5>(c)
        m = ReduceMean<axes=[2,3], keepdims=0>(n)
        logits = Gemm<transB=1>(m, last_w, last_b)
    """
    constants = {
        "first_w": floats(9, 3, 3, 3, seed=1), "first_b": floats(9, seed=2), "last_w": floats(len(CLASSES), 9, seed=3),
        "last_b": floats(len(CLASSES), seed=4),
    }  # fmt: skip
    model = onnx_graph(body, constants, (3, SPEC.resolution, SPEC.resolution), "logits")
    model.graph.inputs[0].name = "images"
    bundle = make_bundle(tmp_path / "bundle", SmallNetwork(model, (), dict.fromkeys(constants, "weight")))
    train(bundle.path, data / "train.safetensors", None, tmp_path / "run", runtime="native", options=OPTIONS)
    expected = losses_in_torch(bundle, data / "train.safetensors", OPTIONS)
    np.testing.assert_allclose(losses(tmp_path / "run"), expected, rtol=1e-3)


LOW = Knobs("int8", True, "bfloat16", "8bit", "none", "bfloat16", 1000, 4_096)


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "sgd"])
@pytest.mark.parametrize(
    "knobs",
    [
        LOW,
        replace(LOW, accumulation="bfloat16", saved="8bit", scratch_bytes=16_384),
        Knobs(streamed=True, scratch_bytes=2_048),
    ],
    ids=["one sample a step", "sums in bfloat16", "streamed"],
)
def test_with_every_knob_it_learns_and_resumes(tmp_path: Path, data: Path, knobs: Knobs, optimizer: str) -> None:
    """Low precision follows float32 from afar, and a resumed run is the uninterrupted one, bit by bit."""
    batch = 1 if knobs.accumulation == "none" else 4
    rate = {"adam": 1e-3, "momentum": 1e-3, "sgd": 1e-2}[optimizer]
    options = replace(OPTIONS, batch_size=batch, lr=rate, lr_bias=rate, lr_lite_residual=rate, lr_weight=rate / 10)
    source = data / "train.safetensors"
    runs = {}
    for name, used in (("low", knobs), ("exact", Knobs(knobs.frozen_weights))):
        bundle = make_bundle(tmp_path / f"bundle-{name}", smooth_network("full"), optimizer, used)
        train(bundle.path, source, None, tmp_path / name, runtime="native", options=options)
        runs[name] = losses(tmp_path / name)
    np.testing.assert_allclose(runs["low"][:2], runs["exact"][:2], rtol=3e-2)
    assert np.mean(runs["low"]) == pytest.approx(np.mean(runs["exact"]), rel=0.1)

    def stop_early(event: dict[str, object]) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise KeyboardInterrupt

    low = tmp_path / "bundle-low"
    with pytest.raises(KeyboardInterrupt):
        train(low, source, None, tmp_path / "parts", runtime="native", options=options, on_event=stop_early)
    train(low, source, None, tmp_path / "parts", resume=True, options=options)
    for name, value in adapter(tmp_path / "low").items():
        np.testing.assert_array_equal(adapter(tmp_path / "parts")[name], value, err_msg=name)


class Wide(nn.Module):
    """As VGG ends: linear layers that are large for this test, dropout and ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.one, self.two = nn.Linear(8 * 8 * 8, 60), nn.Linear(60, 40)
        self.drop = nn.Dropout(0.3)
        self.classifier = nn.Linear(40, len(CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.one(torch.relu(self.conv(x)).flatten(1)))
        logits: torch.Tensor = self.classifier(self.drop(torch.relu(self.two(self.drop(x)))))
        return logits


@pytest.mark.parametrize("method", ["bias", "full"])
@pytest.mark.parametrize("knobs", [Knobs(), Knobs("int8", streamed=True)], ids=["mapped", "streamed"])
def test_samples_that_go_together_learn_as_alone(
    tmp_path: Path, data: Path, knobs: Knobs, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a last batch and a last few that are not full."""
    monkeypatch.setattr("tinytl_edge.export.step.joint._LARGE_BYTES", 4 * 40 * 60)
    options, source = replace(OPTIONS, batch_size=5), data / "train.safetensors"
    arenas = []
    for together in (1, 3):
        torch.manual_seed(0)
        used = replace(knobs, together=together)
        bundle = make_bundle(tmp_path / f"bundle{together}", prepared(Wide(), method), "momentum", used)
        arenas.append(bundle.manifest.planned_memory["arena"])
        train(bundle.path, source, source, tmp_path / f"run{together}", runtime="native", options=options)
    assert arenas[1] > arenas[0]
    np.testing.assert_allclose(losses(tmp_path / "run3"), losses(tmp_path / "run1"), rtol=1e-5)
    for name, value in adapter(tmp_path / "run1").items():
        np.testing.assert_allclose(adapter(tmp_path / "run3")[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    expected = losses_in_torch(bundle, source, options)
    np.testing.assert_allclose(losses(tmp_path / "run3"), expected, rtol=1e-3)


def test_a_batch_needs_room_for_sums(tmp_path: Path, data: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network("bias"), knobs=Knobs(accumulation="none"))
    with pytest.raises(UsageError, match="--batch-size 1"):
        train(bundle.path, data / "train.safetensors", None, tmp_path / "run", runtime="native", options=OPTIONS)


@pytest.mark.parametrize("frozen_weights", ["float32", "int8"])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_against_autograd_in_float64(tmp_path: Path, data: Path, method: str, frozen_weights: str) -> None:
    """One step of SGD at rate 1 over one batch: what changed is the gradient."""
    network = smooth_network(method)
    bundle = make_bundle(tmp_path / "bundle", network, "sgd", Knobs(frozen_weights))
    options = TrainOptions(
        epochs=1, batch_size=14, lr=1e-3, lr_bias=1e-3, lr_lite_residual=1e-3, lr_weight=1e-3, seed=5
    )
    train(bundle.path, data / "train.safetensors", None, tmp_path / "run", runtime="native", options=options)
    (batch,) = Batches(bundle.manifest, open_dataset(data / "train.safetensors")).training(options, 14, 0)

    exact = network.exact()
    feeds = {name: torch.from_numpy(values).double() for name, values in batch.feeds.items()}
    added = torch.tensor(priors(bundle.manifest, open_dataset(data / "train.safetensors")) or 0.0)
    found = loss(exact(feeds["images"], feeds) + added, feeds["targets"], bundle.manifest)
    found.backward()  # type: ignore[no-untyped-call]
    check_moved_by_gradient(exact, adapter(tmp_path / "run"), 1e-3)


def test_a_resumed_run_ends_bit_identical(tmp_path: Path, data: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network("lite-residual+bias"))
    source = data / "train.safetensors"
    train(bundle.path, source, None, tmp_path / "whole", runtime="native", options=OPTIONS)
    job_options = TrainOptions(**{**OPTIONS.__dict__})
    trainer = find_trainer()
    assert trainer is not None

    def stop_early(event: dict[str, object]) -> None:
        if event["event"] == "checkpoint" and event["step"] == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(bundle.path, source, None, tmp_path / "parts", runtime="native", options=job_options, on_event=stop_early)
    train(bundle.path, source, None, tmp_path / "parts", resume=True, options=OPTIONS)
    for name, value in adapter(tmp_path / "whole").items():
        np.testing.assert_array_equal(adapter(tmp_path / "parts")[name], value, err_msg=name)


@pytest.mark.parametrize("method", ["lite-residual+bias", "full"])
def test_any_number_of_threads_gives_the_same_bits(tmp_path: Path, data: Path, method: str) -> None:
    knobs = Knobs("int8", streamed=True, moments="8bit", accumulation="float32", scratch_bytes=8_192)
    bundle = make_bundle(tmp_path / "bundle", smooth_network(method), "adam", knobs)
    runs = []
    for count in (1, 2, 5):
        run = tmp_path / f"run-{count}"
        options = TrainOptions(epochs=2, batch_size=4, log_every=1, threads=count)
        train(bundle.path, data / "train.safetensors", data / "val.safetensors", run, runtime="native", options=options)
        start = json.loads((run / "events.jsonl").read_text().splitlines()[0])
        assert start["threads"] == count
        runs.append((run / "adapter.safetensors").read_bytes())
    assert runs[0] == runs[1] == runs[2]


def test_threads_are_the_cores_that_a_limit_has_room_for(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network("bias"))
    monkeypatch.setattr(threads, "performance_cores", lambda: 6)
    planned = sum(bundle.manifest.planned_memory.values())
    for limit, expected in ((None, 6), (planned, 1), (planned + 2 * threads.THREAD_BYTES, 3), (10**9, 6)):
        limited = replace(bundle, manifest=replace(bundle.manifest, memory_limit=limit))
        assert threads.threads_for(limited, None) == expected
        assert threads.threads_for(limited, 2) == 2


def test_more_threads_than_a_limit_has_room_for_are_refused(tmp_path: Path, data: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network("bias"))
    limit = sum(bundle.manifest.planned_memory.values()) + 2 * threads.THREAD_BYTES
    (bundle.path / MANIFEST).unlink()
    write_manifest(bundle.path, replace(bundle.manifest, memory_limit=limit))
    with pytest.raises(MemoryLimitError, match=r"With 4 threads .* above the bundle's limit of .*: --threads . fits"):
        train(bundle.path, data / "train.safetensors", None, tmp_path / "run", options=replace(OPTIONS, threads=4))
    assert not (tmp_path / "run").exists()
    train(bundle.path, data / "train.safetensors", None, tmp_path / "run", options=replace(OPTIONS, threads=3))


@needs_ort
def test_evaluate_and_predict_agree_with_onnxruntime(tmp_path: Path, data: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network("bias"))
    train(bundle.path, data / "train.safetensors", None, tmp_path / "run", runtime="native", options=OPTIONS)
    results = {
        runtime: evaluate(tmp_path / "run", data / "val.safetensors", runtime=runtime)
        for runtime in ("native", "onnxruntime-training")
    }
    assert results["native"]["loss"] == pytest.approx(results["onnxruntime-training"]["loss"], rel=1e-4)
    assert results["native"]["confusion"] == results["onnxruntime-training"]["confusion"]
    image = next((data / "val").rglob("*.png"))
    ours, theirs = (
        predict(tmp_path / "run", [image], runtime=runtime)[0]["probabilities"]
        for runtime in ("native", "onnxruntime-training")
    )
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_memory_stays_small_and_near_the_plan(tmp_path: Path, data: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network("bias"))
    source = data / "train.safetensors"
    options = replace(OPTIONS, threads=1)
    done = train(bundle.path, source, None, tmp_path / "run", runtime="native", options=options)
    assert done["planned_peak_bytes"] == sum(bundle.manifest.planned_memory.values())
    assert done["peak_rss_bytes"] < done["planned_peak_bytes"] + 4_000_000


@pytest.mark.parametrize("seed", range(40))
def test_damaged_programs_are_refused_or_harmless(tmp_path: Path, data: Path, seed: int) -> None:
    """Bytes flipped anywhere but in the weights: the trainer says so, or trains; it never crashes."""
    bundle = make_bundle(tmp_path / "bundle", smooth_network("last"))
    content = bytearray(bundle.file(STEP).read_bytes())
    random = np.random.default_rng(seed)
    header = 8 + int.from_bytes(content[:8], "little")
    tensors = open_tensors(bundle.file(STEP))
    ops = tensors.entries["ops"]
    spots = [*range(8, header), *range(ops.start, ops.stop)] if seed % 2 else [*range(ops.start, ops.stop)]
    for spot in random.choice(spots, 3):
        content[spot] ^= int(random.integers(1, 256))
    program = tmp_path / "damaged.safetensors"
    program.write_bytes(content)
    log = EventLog(None)
    plan = plan_training(Asked(bundle.path, data / "train.safetensors", out=tmp_path / "run", options=OPTIONS), log)
    log.close()
    job = {**plan.job(), "program": os.fspath(program)}
    trainer = find_trainer()
    assert trainer is not None
    ended = subprocess.run([trainer], input=json.dumps(job), capture_output=True, text=True, timeout=60, check=False)
    last = json.loads(ended.stdout.splitlines()[-1])
    assert ended.returncode in (0, 3, 4, 5, 7), ended
    assert last["event"] == ("done" if ended.returncode == 0 else "error")


def test_a_step_program_of_another_version_is_refused(tmp_path: Path, data: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", smooth_network("last"))
    assert issubclass(DamagedFileError, TinyTLError)
    program = bundle.file(STEP)
    program.write_bytes(program.read_bytes()[:-8])
    with pytest.raises(DamagedFileError, match=STEP):
        train(bundle.path, data / "train.safetensors", None, tmp_path / "run", runtime="native", options=OPTIONS)
