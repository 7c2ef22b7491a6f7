"""On the workstation: a classifier becomes a bundle that a board can train."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tinytl_edge import __version__
from tinytl_edge.devices.board import Board
from tinytl_edge.devices.detect import find_board
from tinytl_edge.devices.prediction import predicted_step_seconds
from tinytl_edge.export.gains import measure_gains
from tinytl_edge.export.kept_features import keep_features
from tinytl_edge.export.matching.adaptable import (
    Adaptable,
    Wanted,
    make_adaptable,
    wanted_classes,
    with_room,
)
from tinytl_edge.export.matching.reproduced import compare_with_file
from tinytl_edge.export.matching.trying import exchange_colours
from tinytl_edge.export.ort.training import OPTIMIZERS, export_ort_training
from tinytl_edge.export.passes.origin import forget_all
from tinytl_edge.export.sources import read_network
from tinytl_edge.export.sources.network import Network
from tinytl_edge.export.step.choices import Choice, weigh_choices
from tinytl_edge.export.step.compile import Knobs, StepPlan, compile_step, count_multiply_adds
from tinytl_edge.export.step.fit import fit
from tinytl_edge.export.step.importers import import_network
from tinytl_edge.export.step.program import write_program
from tinytl_edge.export.step.verify import PlanError
from tinytl_edge.export.step.work import count_work
from tinytl_edge.export.targets import write_templates
from tinytl_edge.export.tinytl.classifier import features_of, find_classifier, find_head
from tinytl_edge.export.tinytl.parameters import find_parameters
from tinytl_edge.export.tinytl.rounding import round_frozen_weights
from tinytl_edge.export.tinytl.trainables import cheap_weights
from tinytl_edge.export.tinytl.transform import Transformed, transform
from tinytl_edge.runtime.errors import DamagedFileError, MemoryLimitError, StorageError, UsageError
from tinytl_edge.runtime.files.bundle import (
    FORWARD,
    ORT_FOLDER,
    STEP,
    Bundle,
    Candidate,
    Dropout,
    Head,
    Manifest,
    new_bundle,
    open_bundle,
    write_manifest,
)
from tinytl_edge.runtime.files.features import FILE as FEATURES
from tinytl_edge.runtime.first_pass import keeps_features
from tinytl_edge.runtime.images.dataset import MULTI, SINGLE

from .board_choice import choose_memory_limit, choose_threads, explain_resolution, explain_time, smaller_resolution
from .options import ROOM, PrepareOptions
from .weight_choice import as_many_as_fit, in_order, weighed

DEFAULT_MODEL = "efficientnet-lite0"


@dataclass(frozen=True)
class Prepared:
    """The bundle, and what the user should know about how it was made."""

    bundle: Bundle
    notes: tuple[str, ...]


def prepare(
    model: str,
    out: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    options: PrepareOptions | None = None,
    *,
    overwrite: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Prepared:
    """Prepare a classifier for training on a board and write the bundle `out`.

    Args:
        model: a backbone's name or .json description, FILE.tflite, FILE.onnx, or 'package.module:factory' of a
            torch.nn.Module classifier ('torchvision.models:NAME' and 'timm:NAME' are such).
        data: a folder with one sub-folder of images a class, whose names are taken; or with labels.csv, which
            tells which of the classes each image has (multi-label). What a file does not tell about its input is found
            by trying it on these images.
        on_progress: called with a few words before each part of the work.

    Raises:
        TinyTLError: of the kind that says what is wrong; nothing is left behind.
    """
    say = on_progress or (lambda text: None)
    options = (options or PrepareOptions()).check()
    board = find_board(options.device) if options.device is not None else None
    wanted = wanted_classes(options.classes, data, options.multi_label)
    limited_by = "--device" if board is not None and options.memory_limit is None else "--memory-limit"
    choices: list[str] = []
    if board is not None and options.memory_limit is None:
        memory_limit, why = choose_memory_limit(board)
        options = replace(options, memory_limit=memory_limit)
        choices.append(why)
    if board is not None and options.threads is None:
        threads, why = choose_threads(board)
        options = replace(options, threads=threads)
        choices.append(why)
    options = replace(options, multi_label=wanted.multi_label)

    def at(size: tuple[int, int] | None) -> _Compiled:
        say("reading the model")
        network = read_network(model, options.weights, size, wanted.count, options.seed)
        _check_numbers(network)
        if options.raw_pixels and network.source is not None and network.source.kind == "onnx":
            raise UsageError(f"{model} keeps its own input when it is written again: leave --raw-pixels out.")
        if network.source is not None:
            say("comparing it with the file")
            network.notes.append(compare_with_file(network, wanted.folders))
        _tell(network, options)
        adaptable = make_adaptable(network, wanted, options.labels, options.seed, say)
        adaptable = with_room(adaptable, options.room, wanted, ROOM)
        return _compile(adaptable, options, wanted, limited_by, say)

    try:
        with new_bundle(Path(out), overwrite) as folder:
            compiled = at(options.size)
            is_backbone = compiled.network.source is None and ":" not in model
            if board is not None and options.size is None and is_backbone:
                compiled, why = _fast_enough(compiled, at, options.batch_size, board)
                choices.append(why)
            if board is not None:
                choices.append(explain_time(board, compiled.work, options.batch_size))
            step, refusal = compiled.step, list(compiled.refusal)
            of_files = write_templates(
                folder, compiled.network, compiled.transformed.trainable, options.multi_label, options.raw_pixels,
                compiled.adaptable.count, compiled.adaptable.room, compiled.adaptable.labels, say,
            )  # fmt: skip
            forget_all(compiled.network.model)
            ir.save(compiled.network.model, folder / FORWARD)
            runtimes = ["native"] if step else []
            said = _export_for_ort(compiled, options, folder / ORT_FOLDER, say)
            if said is None:
                runtimes.append("onnxruntime-training")
            elif step is None:
                raise UsageError(" ".join([*refusal, said]))
            else:
                refusal.append(f"For the native trainer only. {said}")
            manifest = _manifest(compiled, options, tuple(runtimes), board)
            if step:
                write_program(folder / STEP, step, manifest)
            if wanted.folders and keeps_features(manifest):
                keep_features(folder / FEATURES, compiled.network.model, manifest, wanted.folders, say)
            write_manifest(folder, manifest)
    except MemoryError:
        raise StorageError("There is not enough memory to prepare this model: use a smaller --resolution.") from None
    return Prepared(open_bundle(out), (*compiled.adaptable.notes, *compiled.notes, *of_files, *choices, *refusal))


@dataclass(frozen=True)
class _Compiled:
    """A transformed network, and the native step, or why there is none."""

    adaptable: Adaptable
    transformed: Transformed
    head: Head | None
    notes: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    step: StepPlan | None = None
    multiply_adds: int = 0
    work: dict[str, int] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    refusal: tuple[str, ...] = ()

    @property
    def network(self) -> Network:
        return self.adaptable.network


def _compile(
    adaptable: Adaptable, options: PrepareOptions, wanted: Wanted, limited_by: str, say: Callable[[str], None]
) -> _Compiled:
    """Compile the native step; what `auto` trains gives way to the memory limit, which `limited_by` set."""
    network, untouched = adaptable.network, adaptable.network.model.clone()
    may_train = cheap_weights(untouched, find_classifier(untouched).parameters) if options.method == "auto" else []
    sizes = {name: int(np.prod(use.value.shape or ())) for name, use in find_parameters(untouched).items()}  # type: ignore[arg-type]
    candidates = {name: sizes[name] for name in may_train}

    def with_weights(weights: Sequence[str] | None) -> _Compiled:
        network.model = untouched.clone()
        return _compile_with(adaptable, options, weights, limited_by, say)

    try:
        everything = with_weights(None)
        return replace(everything, candidates=weighed(candidates, {}, may_train))
    except MemoryLimitError:
        if not candidates:
            raise
        best = with_weights([])
    model = network.model

    def fits(weights: list[str]) -> bool:
        nonlocal best, model
        try:
            best, model = with_weights(weights), network.model
        except MemoryLimitError:
            return False
        return True

    gains = _gains(adaptable, untouched, options, wanted, candidates, say)
    chosen = as_many_as_fit(in_order(candidates, gains), candidates, fits)
    network.model = model  # the best one's, not that of the last attempt
    by_what = "those that bring most for their bytes" if gains else "the last ones"
    note = f"Of the weights that train for little memory, {len(chosen)} of {len(candidates)} fit the limit: {by_what}."
    return replace(best, notes=(note,), candidates=weighed(candidates, gains, chosen))


def _gains(
    adaptable: Adaptable, model: ir.Model, options: PrepareOptions, wanted: Wanted, weights: Collection[str],
    say: Callable[[str], None],
) -> dict[str, float]:  # fmt: skip
    """What each weight would bring, where there are images to measure it by."""
    if not any(wanted.folders.get(name) for name in adaptable.classes):
        return {}
    model = model.clone()
    transformed = transform(model, options.method, options.patterns, options.seed)
    manifest = _manifest(_Compiled(adaptable, transformed, find_head(model)), options, (), None)
    return measure_gains(model, manifest, wanted.folders, weights, say)


def _compile_with(
    adaptable: Adaptable, options: PrepareOptions, weights: Sequence[str] | None, limited_by: str,
    say: Callable[[str], None],
) -> _Compiled:  # fmt: skip
    """With these of the weights that `auto` may train; None: all."""
    model = adaptable.network.model
    transformed = transform(model, options.method, options.patterns, options.seed, weights)
    if options.frozen_weights == "int8":
        round_frozen_weights(model, transformed.trainable)
    compiled = _Compiled(adaptable, transformed, find_head(model))
    say("compiling the native step")
    try:
        return _with_step(compiled, options)
    except PlanError as error:
        refusal = f"The step compiler made a fault on this network, which is ours and not yours ({error})."
    except UsageError as error:
        refusal = str(error)
    if options.memory_limit is not None:
        raise UsageError(f"{limited_by} is for the native trainer. {refusal}")
    return replace(compiled, refusal=(f"For onnxruntime-training only. {refusal}",))


def _with_step(compiled: _Compiled, options: PrepareOptions) -> _Compiled:
    model, trainable = compiled.network.model, compiled.transformed.trainable
    stored = compiled.network.input.framing.stored
    graph = import_network(model, trainable, stored)
    step = fit(
        graph, options.optimizer, options.batch_size, options.frozen_weights, options.memory_limit,
        options.threads or 1, options.multi_label,
    )  # fmt: skip
    if step.knobs.frozen_weights == "int8" and options.frozen_weights != "int8":
        # Both runtimes compute the same function.
        round_frozen_weights(model, trainable)
        graph = import_network(model, trainable, stored)
        step = compile_step(graph, step.knobs, options.multi_label)

    def compile_with(knobs: Knobs) -> StepPlan:
        return compile_step(graph, knobs, options.multi_label)

    return replace(
        compiled,
        step=step,
        multiply_adds=count_multiply_adds(graph),
        work=count_work(step.graph, step.graph.ops(), step.knobs, options.optimizer),
        choices=tuple(weigh_choices(step, options.optimizer, options.batch_size, compile_with)),
    )


def _export_for_ort(
    compiled: _Compiled, options: PrepareOptions, folder: Path, say: Callable[[str], None]
) -> str | None:
    """Write onnxruntime-training's artifacts; or say why there are none."""
    if options.optimizer not in OPTIMIZERS:
        return f"onnxruntime-training has no {options.optimizer}."
    if not _has_ort_training():
        return "onnxruntime-training is not installed here."
    say("differentiating for onnxruntime-training")
    trainable = compiled.transformed.trainable
    frozen = [name for name in find_parameters(compiled.network.model) if name not in trainable]
    folder.mkdir()
    try:
        export_ort_training(
            compiled.network.model,
            list(trainable),
            frozen,
            options.optimizer,
            folder,
            multi_label=options.multi_label,
            features=features_of(find_classifier(compiled.network.model)),
        )
    except UsageError as error:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        return str(error)
    return None


def _has_ort_training() -> bool:
    try:
        return importlib.util.find_spec("onnxruntime.training") is not None
    except ModuleNotFoundError:  # not even onnxruntime
        return False


def _manifest(compiled: _Compiled, options: PrepareOptions, runtimes: tuple[str, ...], board: Board | None) -> Manifest:
    adaptable, transformed, step = compiled.adaptable, compiled.transformed, compiled.step
    network = adaptable.network
    return Manifest(
        backbone=network.name,
        method=options.method,
        classes=adaptable.classes,
        class_count=adaptable.count,
        input=network.input,
        optimizer=options.optimizer,
        batch_size=options.batch_size,
        dropouts=tuple(Dropout(d.name, d.shape, d.rate) for d in network.dropouts),
        trainable=transformed.trainable,
        parameter_count=transformed.parameter_count,
        trainable_count=transformed.trainable_count,
        paper_memory={
            "activations": transformed.paper_memory.activations,
            "parameters": float(transformed.paper_memory.parameters),
        },
        runtimes=runtimes,
        created_by=__version__,
        frozen_weights=step.knobs.frozen_weights if step else options.frozen_weights or "float32",
        memory_limit=options.memory_limit,
        planned_memory=step.memory(options.optimizer) if step else {},
        knobs=step.knobs if step else Knobs(),
        choices=compiled.choices,
        segments=step.segments if step else 0,
        labels=MULTI if options.multi_label else SINGLE,
        multiply_adds=compiled.multiply_adds,
        work=compiled.work,
        device=board.name if board else None,
        head=compiled.head,
        room=adaptable.room,
        classifier=adaptable.classifier,
        candidates=compiled.candidates,
    )


def _check_numbers(network: Network) -> None:
    """Refuse weights that are no numbers, by the name of the first.

    Raises:
        DamagedFileError: so it is.
    """
    for name, value in network.model.graph.initializers.items():
        array = value.const_value.numpy() if value.const_value is not None else None
        if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
            if array.size < 2:  # a clamp without an end
                continue
            wrong = array[~np.isfinite(array)].flat[0]
            raise DamagedFileError(
                f"{network.name} has {wrong} among the numbers of '{name}': its weights are damaged."
            )
    for node in network.model.graph:
        if node.op_type == "BatchNormalization":
            variance = node.inputs[4]
            if variance is not None and variance.const_value is not None and (variance.const_value.numpy() < 0).any():
                raise DamagedFileError(f"{network.name} has a negative variance in '{variance.name}': it is damaged.")


def _tell(network: Network, options: PrepareOptions) -> None:
    """Give the network's input what the user says of it."""
    taken = network.input

    def each(values: tuple[float, ...]) -> tuple[float, ...]:
        return values[: taken.channels] if len(values) >= taken.channels else values * taken.channels

    network.input = replace(
        taken,
        fit=options.fit or taken.fit,
        mean=each(options.mean) if options.mean else taken.mean,
        std=each(options.std) if options.std else taken.std,
        pixel_range=options.pixel_range or taken.pixel_range,
    )
    network.range_known |= options.mean is not None or options.std is not None
    network.fit_known |= options.fit is not None
    if options.colours is not None:
        network.colours_known = True
        if (options.colours == "bgr") != network.takes_bgr:
            exchange_colours(network)


def _fast_enough(
    compiled: _Compiled, at: Callable[[tuple[int, int]], _Compiled], batch_size: int, board: Board
) -> tuple[_Compiled, str]:
    """The same at the largest resolution that is fast enough for the board, and why it is that one."""

    def seconds_an_image() -> float | None:
        seconds = predicted_step_seconds(compiled.work, batch_size, board)
        return seconds and seconds / batch_size

    own, own_seconds = compiled.network.input.height, seconds_an_image()
    while resolution := smaller_resolution(compiled.network.input.height, seconds_an_image()):
        compiled = at((resolution, resolution))
    return compiled, explain_resolution(compiled.network.input.height, own, seconds_an_image(), own_seconds)
