"""The memory of a training step, laid open: bytes by kind while each operator runs, and what each pass saved.

All of it is read off compiled steps; the drawing is in `memory_plot`, the arena's addresses in `arena_map`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from tinytl_edge.export.step.choices import WITHOUT_ANY
from tinytl_edge.export.step.compile import Knobs, StepPlan, compile_step
from tinytl_edge.export.step.differentiate import gradient_of
from tinytl_edge.export.step.importers import import_network
from tinytl_edge.export.step.ir import Graph, Op
from tinytl_edge.export.step.plan import ALIGNMENT
from tinytl_edge.export.step.recompute import saved_values
from tinytl_edge.knob_words import KNOB_WORDS, knob_words
from tinytl_edge.runtime.errors import DamagedFileError, UsageError
from tinytl_edge.runtime.files.bundle import FORWARD, Bundle, is_bundle, open_bundle
from tinytl_edge.runtime.files.run import is_run, open_run
from tinytl_edge.runtime.images.dataset import MULTI

# Outside of the arena, from the first operator to the last.
CONSTANT = ("process", "frozen", "trainable", "optimizer")
# In the arena: gradients of parameters, floats of the forward pass that the backward pass reads, bits, weights that
# were read from the file, all else.
IN_ARENA = ("gradients", "saved", "masks", "loaded", "transient")


@dataclass(frozen=True)
class Place:
    """A value in the arena: its kind (one of IN_ARENA), and where it lies, in bytes [first, end)."""

    name: str
    kind: str
    first: int
    end: int


@dataclass(frozen=True)
class Timeline:
    """Bytes by kind (CONSTANT, then IN_ARENA), each a list by operator in step order.

    `operators` are the kernels' names; `gaps` is what the arena takes beyond the most that lives in it at once.
    """

    operators: list[str]
    layers: list[str]
    forward_operators: int
    bytes: dict[str, list[int]]
    gaps: int

    @property
    def totals(self) -> list[int]:
        """Bytes of all kinds, by operator."""
        return [sum(column) for column in zip(*self.bytes.values())]

    @property
    def peak(self) -> int:
        """The operator that runs in the most memory."""
        return max(range(len(self.operators)), key=self.totals.__getitem__)

    @property
    def planned(self) -> int:
        """What the step takes in all: the peak, and the gaps."""
        return max(self.totals) + self.gaps


@dataclass(frozen=True)
class Stage:
    """A step with some of its passes: the knob that was turned last (''), what that does, and what became of it."""

    knob: str
    name: str
    step: StepPlan


def open_step(path: str | os.PathLike[str], bundle: str | os.PathLike[str] | None = None) -> tuple[Bundle, int | None]:
    """A bundle, or the bundle of a run and the bytes that the native trainer took in it at most.

    Raises:
        UsageError: `path` is neither.
        DamagedFileError: it is damaged.
    """
    if is_run(Path(path)):
        run = open_run(path, bundle)
        result = run.record.result
        return run.bundle, result.peak_rss_bytes if result.runtime == "native" else None
    if is_bundle(Path(path)):
        return open_bundle(path), None
    raise UsageError(f"{os.fspath(path)} is neither a bundle nor a run: only these have a training step to show.")


def compile_bundle(bundle: Bundle) -> StepPlan:
    """The bundle's step, compiled once more.

    Raises:
        UsageError: the bundle has no native step.
        DamagedFileError: it was compiled by another version.
    """
    manifest = bundle.manifest
    if not manifest.planned_memory:
        raise UsageError(f"{bundle.path} was prepared for onnxruntime-training alone: there is no plan to show.")
    step = _compile(bundle, manifest.knobs)
    if step.memory(manifest.optimizer) != manifest.planned_memory:
        raise DamagedFileError(
            f"{bundle.path} was compiled by another version of tinytl-edge than this one: prepare it again."
        )
    return step


def stages(bundle: Bundle) -> list[Stage]:
    """The bundle's step, first without any pass, then with one more each time; the last is the step itself.

    Raises:
        UsageError: the bundle has no native step.
        DamagedFileError: it was compiled by another version.
    """
    step = compile_bundle(bundle)
    knobs = WITHOUT_ANY
    found = [Stage("", "without the passes", _compile(bundle, knobs))]
    for knob in KNOB_WORDS:
        setting = getattr(step.knobs, knob)
        if setting != getattr(knobs, knob):
            knobs = replace(knobs, **{knob: setting})
            name = knob_words(knob, setting)
            found.append(Stage(knob, name, step if knobs == step.knobs else _compile(bundle, knobs)))
    return found


def _compile(bundle: Bundle, knobs: Knobs) -> StepPlan:
    manifest = bundle.manifest
    network = import_network(ir.load(bundle.file(FORWARD)), manifest.trainable, manifest.input.framing.stored)
    return compile_step(network, knobs, manifest.labels == MULTI)


def timeline(step: StepPlan, optimizer: str) -> Timeline:
    """The memory of a step while each of its operators runs."""
    graph = step.graph
    operators = list(graph.ops())
    memory = step.memory(optimizer)
    series = {kind: [memory[kind]] * len(operators) for kind in CONSTANT}
    series.update({kind: [0] * len(operators) for kind in IN_ARENA})
    for index, places in enumerate(occupied(step)):
        for place in places:
            series[place.kind][index] += place.end - place.first
    kinds = [op.kind for op in operators]
    return Timeline(kinds, layers(graph), len(graph.forward), series, step.plan.arena_bytes - step.plan.floor)


def occupied(step: StepPlan) -> list[list[Place]]:
    """What lies in the arena while each operator runs, by address.

    Where an operator writes over what it reads, the place counts once, as its result's.
    """
    graph, plan = step.graph, step.plan
    kinds = _Kinds(graph)
    count = sum(1 for _ in graph.ops())
    found: list[dict[int, Place]] = [{} for _ in range(count)]
    for name, (first, last) in sorted(plan.lifetimes.items(), key=lambda item: item[1]):
        begin = plan.offsets[name]
        size = -(-graph.values[name].bytes // ALIGNMENT) * ALIGNMENT
        place = Place(name, kinds.of(name), begin, begin + size)
        for index in range(max(first, 0), min(last + 1, count)):
            found[index][begin] = place
    return [[places[begin] for begin in sorted(places)] for places in found]


class _Kinds:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._gradients = {gradient_of(name) for name in graph.parts} | graph.persistent
        self._saved = saved_values(graph)
        self._loaded = {op.writes["y"] for op in graph.ops() if op.kind == "load"}

    def of(self, name: str) -> str:
        if name in self._gradients:
            return "gradients"
        if name in self._loaded:
            return "loaded"
        if self._graph.values[name].dtype == "bit":
            return "masks"
        return "saved" if name in self._saved else "transient"


def layers(graph: Graph) -> list[str]:
    """The layer that each operator belongs to, as PyTorch names it ('blocks.3.expand.conv').

    A layer without parameters is named after its ONNX node, which may leave out numbers; '' has no name.
    """
    part_of = {gradient_of(name): name for name in graph.parts}

    def layer(op: Op) -> str:
        values = [*op.writes.values(), *op.reads.values()]
        for part in (*op.parameters.values(), *(part_of[name] for name in values if name in part_of)):
            return graph.part(part).parameter.name.rpartition(".")[0]
        # A value is named as its ONNX node: 'blocks/blocks.3/expand/conv/Conv'; the last is the operator's type.
        node = re.sub(r"^((again|gradient|saved)/)*|/masked|/mask|/statistics|\[.*\]|~\d+", "", values[0])
        path = node.split("/")[:-1]
        return ".".join(outer for outer, inner in zip(path, [*path[1:], ""]) if not inner.startswith(f"{outer}."))

    return [layer(op) for op in graph.ops()]
