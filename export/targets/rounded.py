"""Frozen weights that were rounded to 8 bits, in a file that has them as floats: it gets the numbers that they are now,
for good."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tinytl_edge.export.onnx_graph import Array
from tinytl_edge.export.sources.network import Network
from tinytl_edge.export.tinytl.rounding import unrounded
from tinytl_edge.runtime.model_files.stored_numbers import Step, as_stored

from .content import FROZEN, Content, UnwritableError
from .onnx_source import added

Make = Callable[[Network, Mapping[str, str]], Content]


def with_rounded(make: Make, network: Network, trainable: Mapping[str, str]) -> Content:
    """The template that `make` makes of a network that came from a file.

    Places are found for the rounded weights as for what trains, and filled at once.

    Raises:
        UnwritableError: one has no place.
    """
    model, rounded = unrounded(network.model)
    if network.source is None or not rounded:
        return make(network, trainable)
    made = make(replace(network, model=model), {**trainable, **dict.fromkeys(rounded, FROZEN)})
    files = {name: bytearray(content) for name, content in made.files.items()}
    left = []
    for hole in made.table.holes:
        if hole.parameter in rounded:
            numbers = as_stored(hole.parameter, lambda name: rounded[name].tobytes(), hole.steps, hole.dtype)
            files[made.table.files[hole.file]][hole.offset : hole.offset + len(numbers)] = numbers
        else:
            left.append(replace(hole, steps=tuple(_by_itself(step, rounded) for step in hole.steps)))
    table = replace(made.table, holes=tuple(left))
    return replace(made, table=table, files={name: bytes(content) for name, content in files.items()})


def _by_itself(step: Step, rounded: Mapping[str, Array]) -> Step:
    """What a rounded weight adds to another parameter is a constant."""
    if step.other not in rounded:
        return step
    if step.kind != "add_product":
        raise UnwritableError(f"what trains is scaled by '{step.other}'")
    return added(step, rounded[step.other])
