"""The imported network against the file that it came from, on a few images, before anything is changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.onnx_graph import Array
from tinytl_edge.export.sources.network import Network
from tinytl_edge.runtime.errors import DamagedFileError, UsageError
from tinytl_edge.runtime.images.decoding import UnusableImageError, read_image
from tinytl_edge.runtime.model_files.interpreter import open_interpreter
from tinytl_edge.runtime.workers.measuring import probabilities

_IMAGES = 8
_OF_FLOATS = 0.01  # most that a score may differ by
# Where the file rounds activations to 8 bits: of images of another kind than it knows, rounding turns one or the other.
_OF_CODES = 0.3  # mean over the images
_SAME_CLASS = 0.5
_NEAR = 0.1  # scores that rounding may turn round


def compare_with_file(network: Network, folders: dict[str, list[Path]]) -> str:
    """A sentence with the largest difference of their scores, or why they were not compared.

    Args:
        network: one that came from a file.
        folders: images by class; without any, random ones are taken.

    Raises:
        UsageError: they differ by more than rounding does.
    """
    assert network.source is not None
    path, images = network.source.path, _images(network, folders)
    try:
        interpreter = open_interpreter(
            path, network.source.kind, network.model.metadata_props.get("tinytl-edge.output")
        )
        wanted = interpreter.scores(images[:, ::-1] if network.takes_bgr else images)
    except UsageError as error:
        return f"The import was not compared with the file: {error}"
    except DamagedFileError as error:  # what an interpreter refuses may be clear all the same
        return f"The import could not be compared with the file: {error}"
    with torch.no_grad():
        found = _scores(EagerNetwork(network.model)(torch.from_numpy(images)).numpy(), network.end)
    if found.shape != wanted.shape:
        raise UsageError(f"{path} gives {wanted.shape[1]} scores, its import {found.shape[1]}: it is not understood.")
    span = 1.0 if network.end in ("softmax", "sigmoid") else max(float(np.ptp(wanted)), 1e-6)
    differences = np.abs(found - wanted).max(1) / span
    difference = float(differences.max())
    has_codes = any(node.op_type == "DequantizeLinear" for node in network.model.graph)
    chosen = wanted[np.arange(len(wanted)), found.argmax(1)]
    same = float((wanted.max(1) - chosen <= _NEAR * span).mean())
    is_near = difference <= _OF_FLOATS
    if has_codes:
        is_near = float(differences.mean()) <= _OF_CODES and (same >= _SAME_CLASS or not folders)
    if not is_near:
        raise UsageError(
            f"{path} is not understood: on {len(images)} images the scores of its import are off by {difference:.2g}, "
            f"and {same:.0%} of the classes are the same."
        )
    agreed = f", the same class on {same:.0%}" if has_codes else ""
    what = "" if span == 1.0 else " of their span"
    return f"The import gives the file's own scores to {difference:.1g}{what} on {len(images)} images{agreed}."


def _images(network: Network, folders: dict[str, list[Path]]) -> Array:
    """Normalised, float32 [N, C, H, W]."""
    taken = network.input
    framing = replace(taken, margin=False).framing
    files = [file for each in zip(*folders.values()) for file in each][:_IMAGES]
    pixels = []
    for file in files:
        try:
            pixels.append(np.frombuffer(read_image(file, framing), np.uint8).reshape(framing.stored))
        except UnusableImageError:
            continue
    if not pixels:
        coarse = np.random.default_rng(0).integers(0, 256, (_IMAGES, 8, 8, taken.channels))
        rows, columns = (np.arange(size) * 8 // size for size in (taken.height, taken.width))
        pixels = list(coarse[:, rows][:, :, columns])
    mean, std = (np.array(numbers, np.float32) for numbers in (taken.mean, taken.std))
    normal = (np.stack(pixels).astype(np.float32) - mean) / std
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))


def _scores(logits: Array, end: str) -> Array:
    """What the file makes of its logits."""
    if not end:
        return logits
    odds = probabilities(logits, multi_label=end == "sigmoid")
    return np.log(np.maximum(odds, np.finfo(np.float32).tiny)) if end == "log_softmax" else odds
