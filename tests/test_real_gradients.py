"""The native trainer's gradients on real backbones, against float64 with the engine's own masks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conftest import make_images
from reference_step import ReferenceStep

from tinytl_edge import PrepareOptions, prepare
from tinytl_edge.export.step.compile import Knobs, StepPlan, compile_step
from tinytl_edge.export.step.importers import import_network
from tinytl_edge.export.step.ir import Graph
from tinytl_edge.runtime.files.bundle import FORWARD, STEP
from tinytl_edge.runtime.files.tensors import open_tensors
from tinytl_edge.runtime.images.batches import Batches
from tinytl_edge.runtime.images.dataset import open_dataset
from tinytl_edge.runtime.images.packing import pack
from tinytl_edge.runtime.workers.native_worker import find_trainer

TRAINER = find_trainer()
pytestmark = pytest.mark.skipif(TRAINER is None, reason="this installation came without the native trainer")
RESOLUTION = 96
CLASSES = ("cat", "dog", "fox")


def run_trace(program: Path, data: Path, out: Path) -> dict[str, np.ndarray]:
    job = {"command": "trace", "program": os.fspath(program), "data": os.fspath(data), "out": os.fspath(out)}
    assert TRAINER is not None
    subprocess.run([TRAINER], input=json.dumps(job), text=True, check=True, stdout=subprocess.DEVNULL)
    tensors = open_tensors(out)
    kinds = {"U8": np.uint8, "F32": np.float32}
    return {n: np.frombuffer(tensors.read(n), kinds[e.dtype]) for n, e in tensors.entries.items()}


def as_torch(graph: Graph, name: str, bits: np.ndarray) -> torch.Tensor:
    shape = graph.values[name].shape
    values = np.unpackbits(bits, bitorder="little")[: int(np.prod(shape))].reshape(shape)
    return torch.from_numpy(values.astype(bool)).permute(2, 0, 1)[None]


def engine_gradients(step: StepPlan, trace: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By parameter name, in PyTorch's layout."""
    whole: dict[str, np.ndarray] = {}
    for number, op in enumerate(step.graph.ops()):
        if op.kind == "update":
            part = step.graph.part(op.parameters["weight"])
            engine = whole.setdefault(part.parameter.name, np.zeros_like(part.parameter.value))
            axis = engine.ndim - 1 - part.axis if engine.ndim > 1 else 0
            index = [slice(None)] * engine.ndim
            index[axis] = slice(part.first, part.first + part.count)
            if part.count == part.parameter.shape[part.axis]:
                index[axis] = slice(None)
            engine[tuple(index)] = trace[f"gradient/{number}"].reshape(engine[tuple(index)].shape)
    return {name: step.graph.parameters[name].to_torch(value) for name, value in whole.items()}


@pytest.mark.parametrize(
    ("backbone", "method", "knobs"),
    [
        ("mobilenet-v2", "bias", Knobs(accumulation="none", scratch_bytes=65_536)),
        ("mobilenet-v2", "full", Knobs(accumulation="none", recomputed=1000, scratch_bytes=65_536)),
        (
            "proxylessnas-mobile",
            "lite-residual+bias",
            Knobs(accumulation="none", recomputed=1000, scratch_bytes=65_536),
        ),
        ("efficientnet-lite0", "lite-residual+bias", Knobs(scratch_bytes=65_536)),
        ("efficientnet-lite0", "norm+last", Knobs(accumulation="none", recomputed=20, scratch_bytes=131_072)),
    ],
)
def test_gradients_against_float64_with_the_engines_masks(
    tmp_path: Path, backbone: str, method: str, knobs: Knobs
) -> None:
    from tinytl_edge.export.step.program import write_program

    options = PrepareOptions(weights="random", classes=CLASSES, train=method, resolution=RESOLUTION, optimizer="sgd")
    bundle = prepare(backbone, tmp_path / "bundle", options=options).bundle
    graph = import_network(
        ir.load(bundle.file(FORWARD)), bundle.manifest.trainable, bundle.manifest.input.framing.stored
    )
    step = compile_step(graph, knobs)
    write_program(tmp_path / STEP, step, bundle.manifest)
    pack(
        make_images(tmp_path / "images", dict.fromkeys(CLASSES, 1)),
        tmp_path / "data",
        bundle.manifest.input.framing,
        CLASSES,
    )
    trace = run_trace(tmp_path / STEP, tmp_path / "data", tmp_path / "trace")

    graph = step.graph
    masks = {
        number: as_torch(graph, op.writes["mask"], trace[f"mask/{number}"])
        for number, op in enumerate(graph.ops())
        if f"mask/{number}" in trace
    }
    reference = ReferenceStep(graph, {}, masks)
    batch = next(iter(Batches(bundle.manifest, open_dataset(tmp_path / "data")).evaluation(1)))
    x, targets = (torch.from_numpy(batch.feeds[name]).double() for name in ("images", "targets"))
    ones = [torch.ones(d.shape, dtype=torch.float64) for d in bundle.manifest.dropouts]
    loss = reference.run(x[0], targets, ones)
    assert float(trace["loss/0"][0]) == pytest.approx(loss, rel=1e-5)
    gradients = engine_gradients(step, trace)
    assert set(gradients) == set(reference.gradients) == set(bundle.manifest.trainable)
    assert reference.bits_apart <= 1e-5 * reference.bits + 2  # those at a kink
    steepest = max(float(g.norm() / g.numel() ** 0.5) for g in reference.gradients.values())
    for name, gradient in gradients.items():
        expected = reference.gradients[name].numpy()
        apart = np.linalg.norm(gradient - expected)
        assert apart <= 1e-5 * np.linalg.norm(expected) + 1e-7 * steepest * expected.size**0.5, name
