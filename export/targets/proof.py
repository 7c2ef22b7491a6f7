"""A template is believed when the file that it makes, read like any file, gives what the network gives."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from tinytl_edge.export.eager import EagerNetwork
from tinytl_edge.export.onnx_graph import Array, set_initializer, sizes
from tinytl_edge.export.sources.network import Network
from tinytl_edge.runtime.errors import TinyTLError
from tinytl_edge.runtime.model_files.stored_numbers import LOGITS_RANGE
from tinytl_edge.runtime.model_files.template import filled

from .content import FROZEN, Content, UnwritableError

_EXACT, _ROUNDED = 1e-4, 0.05  # of the largest logit: float32, and what is stored in fewer bits


def fill(made: Content, folder: Path, numbers: Mapping[str, Array]) -> Path:
    """Write a template's files with these numbers in them, as a board does it; returns the model's place."""
    template = folder / "template"
    template.mkdir()
    for name, content in made.files.items():
        (template / name).write_bytes(content)
    for index, name in enumerate(made.table.files):
        pieces = filled(template, made.table, index, lambda name: numbers[name].tobytes())
        (folder / name).write_bytes(b"".join(pieces))
    return folder / made.table.files[0]


def as_codes(numbers: Array, name: str, made: Content) -> Array:
    """A parameter as it is behind the rounding to codes of a scale of its own, or to 16 bits."""
    for hole in made.table.holes:
        if hole.parameter == name and hole.dtype == "float16" and {step.kind for step in hole.steps} <= {"permute"}:
            return numbers.astype(np.float16).astype(np.float32)
        if hole.parameter == name and hole.steps and hole.steps[0].kind == "over_scale" and not hole.steps[0].other:
            rows = numbers.reshape(-1, hole.steps[0].inner)
            scale = np.abs(rows).max(1, keepdims=True) / 127
            return np.asarray(np.rint(rows / scale) * scale, np.float32).reshape(numbers.shape)
    return numbers


def prove(made: Content, network: Network, trainable: Mapping[str, str], read: Callable[[Path], Network]) -> None:
    """Fill the template with numbers near to the network's, of what trains, read the file, and compare the logits, in
    float64.

    Raises:
        UnwritableError: they differ.
    """
    model = network.model.clone()
    filling: dict[str, Array] = {}
    random = np.random.default_rng(0)
    for name, group in trainable.items():
        value = model.graph.initializers[name]
        assert value.const_value is not None
        numbers = value.const_value.numpy()
        step = 0.1 * np.abs(numbers).mean() + 0.03 if group != FROZEN else 0
        filling[name] = (numbers + step * random.standard_normal(numbers.shape)).astype("<f4")
        set_initializer(value, as_codes(filling[name], name, made))
    images = torch.from_numpy(random.uniform(-1, 1, (2, *sizes(model.graph.inputs[0]))))
    with torch.no_grad():
        wanted = EagerNetwork(model).double()(images).numpy()
    filling[LOGITS_RANGE] = np.array([wanted.min(), wanted.max()], "<f4")
    with tempfile.TemporaryDirectory() as folder:
        try:
            again = read(fill(made, Path(folder), filling))
        except TinyTLError as error:
            raise UnwritableError(f"what would be written cannot be read again ({error})") from error
    as_file = images.flip(1) if network.takes_bgr != again.takes_bgr else images
    with torch.no_grad():
        found = EagerNetwork(again.model).double()(as_file).numpy()
    if made.table.one_output:
        wanted = wanted[:, 1:] - wanted[:, :1]
    if found.shape != wanted.shape:
        raise UnwritableError(f"what would be written gives {found.shape[1]} numbers, not {wanted.shape[1]}")
    exact = {"float32", "float64"} >= {hole.dtype for hole in made.table.holes}
    most = (_EXACT if exact else _ROUNDED) * max(float(np.abs(wanted).max()), 1.0)
    if not np.abs(found - wanted).max() <= most:
        raise UnwritableError(f"what would be written is off by {np.abs(found - wanted).max():.2g}")
