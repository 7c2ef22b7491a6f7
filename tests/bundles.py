"""Bundles of networks that tests build themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from conftest import CLASSES
from runtimes import HAS_ORT
from small_net import SPEC, SmallNetwork

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.onnx_graph import Array
from tinytl_edge.export.ort.training import OPTIMIZERS as ORT_OPTIMIZERS
from tinytl_edge.export.ort.training import export_ort_training
from tinytl_edge.export.step.compile import Knobs, compile_step
from tinytl_edge.export.step.program import write_program
from tinytl_edge.export.tinytl.classifier import features_of, find_classifier, find_head
from tinytl_edge.export.tinytl.rounding import round_frozen_weights
from tinytl_edge.runtime.files.bundle import (
    FORWARD,
    ORT_FOLDER,
    STEP,
    Bundle,
    Dropout,
    Input,
    Manifest,
    new_bundle,
    open_bundle,
    write_manifest,
)

INPUT = Input(SPEC.resolution, SPEC.resolution, 3, SPEC.mean, SPEC.std)
FRAMING = INPUT.framing


def make_bundle(
    out: Path,
    network: SmallNetwork,
    optimizer: str = "adam",
    knobs: Knobs = Knobs(),  # noqa: B008
    multi_label: bool = False,
    classes: tuple[str, ...] = CLASSES,
    model_input: Input = INPUT,
    memory_limit: int | None = None,
    classifier: str = "extended",  # trains from where it is, as a new one does
) -> Bundle:
    """A bundle for the native trainer and, where it is installed, for onnxruntime-training."""
    if knobs.frozen_weights == "int8":
        round_frozen_weights(network.model, network.trainable)
    step = compile_step(network.graph(model_input.framing.stored), knobs, multi_label)
    with_ort = HAS_ORT and optimizer in ORT_OPTIMIZERS
    manifest = Manifest(
        "small", "", classes, len(classes), model_input, optimizer, 4,
        tuple(Dropout(d.name, d.shape, d.rate) for d in network.dropouts), network.trainable, 2, 1,
        {"parameters": 1.0, "activations": 1.0}, ("native", "onnxruntime-training")[: 1 + with_ort], "test",
        knobs.frozen_weights, memory_limit, step.memory(optimizer), knobs, step.segments,
        labels="multi" if multi_label else "single", head=find_head(network.model),
        classifier=classifier,
    )  # fmt: skip
    with new_bundle(out) as folder:
        ir.save(network.model, folder / FORWARD)
        if with_ort:
            (folder / ORT_FOLDER).mkdir()
            export_ort_training(
                network.model, list(network.trainable), network.frozen, optimizer, folder / ORT_FOLDER,
                multi_label=multi_label, features=features_of(find_classifier(network.model)),
            )  # fmt: skip
        write_program(folder / STEP, step, manifest)
        write_manifest(folder, manifest)
    return open_bundle(out)


def check_moved_by_gradient(exact: EagerNetwork, after: Mapping[str, Array], rate: float) -> None:
    """After one step of SGD from `exact`, whose gradients are there in float64, each trained parameter is `after`."""
    steepest = max(float(p.grad.abs().max()) for p in exact.parameters() if p.grad is not None)
    for name, parameter in exact.parameters_by_name.items():
        if parameter.requires_grad:
            assert parameter.grad is not None
            before, gradient = parameter.detach().numpy(), parameter.grad.numpy()
            # float32's rounding of the parameter itself bounds how well its change shows the gradient.
            rounding = np.abs(before).max() * 2e-7 / rate + 5e-5 * np.abs(gradient).max() + 2e-6 * steepest
            moved = (before - after[name]) / rate
            np.testing.assert_allclose(moved, gradient, rtol=0, atol=rounding, err_msg=name)


def events(run: Path) -> list[dict[str, Any]]:
    """What a run's training said."""
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
