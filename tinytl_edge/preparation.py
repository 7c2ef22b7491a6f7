"""On the workstation: a classifier becomes a bundle that a board can train."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import torch

from tinytl_edge import __version__
from tinytl_edge.devices.board import Board
from tinytl_edge.devices.detect import find_board
from tinytl_edge.devices.prediction import predicted_step_seconds
from tinytl_edge.export.forward import export_forward
from tinytl_edge.export.ort_training import OPTIMIZERS as ORT_OPTIMIZERS
from tinytl_edge.export.ort_training import export_ort_training
from tinytl_edge.export.step.choices import Choice, weigh_choices
from tinytl_edge.export.step.compile import Knobs, StepPlan, compile_step, count_multiply_adds
from tinytl_edge.export.step.fit import fit
from tinytl_edge.export.step.program import write_program
from tinytl_edge.export.step.work import count_work
from tinytl_edge.runtime.bundle import (
    FORWARD,
    ORT_FOLDER,
    STEP,
    Bundle,
    Dropout,
    Manifest,
    new_bundle,
    open_bundle,
    write_manifest,
)
from tinytl_edge.runtime.dataset import ONE, SEVERAL
from tinytl_edge.runtime.errors import DataError, StorageError, UsageError
from tinytl_edge.runtime.label_table import TABLE, has_table, read_table
from tinytl_edge.runtime.photographs import find_photographs

from .board_choice import choose_memory_limit, choose_threads, explain_resolution, explain_time, smaller_resolution
from .lite_residual import attach_lite_residuals
from .model_source import Classifier, from_backbone, from_factory
from .paper_memory import paper_memory
from .transfer import (
    METHODS,
    choose_trainables,
    fold_batchnorm,
    parameter_group,
    round_frozen_weights,
    uses_lite_residuals,
)

OPTIMIZERS = (*ORT_OPTIMIZERS, "momentum")
DEFAULT_BACKBONE = "efficientnet-lite0"


@dataclass(frozen=True)
class Prepared:
    """The bundle, and what the user should know about how it was made."""

    bundle: Bundle
    notes: tuple[str, ...]


def prepare(
    out: str | os.PathLike[str],
    *,
    backbone: str | None = None,
    model: str | None = None,
    weights: str | None = None,
    classes: int | Sequence[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    several_labels: bool = False,
    method: str = "lite-residual+bias",
    resolution: int | None = None,
    batch_size: int = 8,
    optimizer: str = "adam",
    residual: Sequence[str] = (),
    train: Sequence[str] = (),
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    frozen_weights: str | None = None,
    memory_limit: int | None = None,
    threads: int | None = None,
    device: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Prepared:
    """Prepare a classifier for training on a board and write the bundle `out`.

    Args:
        backbone: name of a backbone (default: efficientnet-lite0) or a .json description; or
        model: 'package.module:factory' of any torch.nn.Module classifier.
        weights: 'imagenet', 'random', or a PyTorch weight file.
        classes: how many, or their names; or
        data: a folder with one sub-folder of photographs a class, whose names are taken; or with labels.csv, which
            gives each photograph several labels.
        several_labels: with `classes`: a photograph may have several of them, or none.
        method: one of `transfer.METHODS`.
        resolution: the input's height and width in pixels; default: the backbone's own.
        residual: with `model`, name patterns of the submodules that get lite residual modules.
        train: name patterns of further parameters to train.
        mean, std: with `model`, of the pixels in 0..255 by channel, for the input (pixel - mean) / std.
        frozen_weights: 'float32', or 'int8': rounded to 8 bits, a quarter of the size in the native trainer; default:
            float32, unless `memory_limit` asks for less.
        memory_limit: bytes that the native trainer's process may take in all; what it gives up for that, it gives up
            in the order of the time that it costs.
        threads: how many of the native trainer's `memory_limit` has room for; default: 1.
        device: a board's name, as `tinytl-edge devices` lists them: picks memory limit, threads and, of a backbone,
            resolution to fit the board, where they are not given; notes say what and why.
        seed: of what is initialised at random (classifier, lite residual modules).
        on_progress: called with a few words before each part of the work.

    Raises:
        TinyTLError: of the kind that says what is wrong; nothing is left behind.
    """
    say = on_progress or (lambda text: None)
    _check(method, optimizer, batch_size, threads, resolution, backbone, model, residual, mean, std)
    if frozen_weights not in (None, "float32", "int8"):
        raise UsageError(f"'{frozen_weights}' is no kind of frozen weights: choose float32 or int8.")
    board = find_board(device) if device is not None else None
    names, count, several = _classes(classes, data, several_labels)
    choices: list[str] = []
    if board is not None and memory_limit is None:
        memory_limit, why = choose_memory_limit(board)
        choices.append(why)
    if board is not None and threads is None:
        threads, why = choose_threads(board)
        choices.append(why)
    limited_by = "--device" if choices else "--memory-limit"
    options = _StepOptions(
        method,
        tuple(train),
        optimizer,
        batch_size,
        frozen_weights,
        memory_limit,
        threads or 1,
        limited_by,
        several,
        seed,
    )

    def at(resolution: int | None) -> _Compiled:
        say("building the model")
        if model is not None:
            classifier = from_factory(model, weights, count, resolution, tuple(residual), seed, mean, std)
        else:
            classifier = from_backbone(backbone or DEFAULT_BACKBONE, weights, count, resolution, seed)
        return _compile(classifier, options, say)

    try:
        with new_bundle(Path(out), overwrite) as folder:
            compiled = at(resolution)
            if board is not None and resolution is None and model is None:
                compiled, why = _fast_enough(compiled, at, batch_size, board)
                choices.append(why)
            if board is not None:
                choices.append(explain_time(board, compiled.work, batch_size))
            classifier, forward, step = compiled.classifier, compiled.forward, compiled.step
            network, trainable = classifier.model, compiled.trainable
            refusal = compiled.refusal
            onnx.save(forward, folder / FORWARD)

            runtimes = ["native"] if step else []
            if optimizer in ORT_OPTIMIZERS:
                say("differentiating for onnxruntime-training")
                present = {tensor.name for tensor in forward.graph.initializer}
                frozen = [n for n, _ in network.named_parameters() if n in present and n not in trainable]
                (folder / ORT_FOLDER).mkdir()
                export_ort_training(forward, list(trainable), frozen, optimizer, folder / ORT_FOLDER, several=several)
                runtimes.append("onnxruntime-training")
            elif not step:
                raise UsageError(f"--optimizer {optimizer} is for the native trainer. {' '.join(refusal)}")
            else:
                refusal = (f"For the native trainer only: onnxruntime-training has no {optimizer}.",)

            manifest = Manifest(
                backbone=classifier.name,
                method=method,
                classes=names,
                class_count=count,
                resolution=classifier.resolution,
                mean=classifier.mean,
                std=classifier.std,
                optimizer=optimizer,
                batch_size=batch_size,
                dropouts=compiled.dropouts,
                trainable=trainable,
                parameter_count=sum(p.numel() for p in network.parameters()),
                trainable_count=sum(p.numel() for p in network.parameters() if p.requires_grad),
                paper_memory=compiled.paper_memory,
                runtimes=tuple(runtimes),
                created_by=__version__,
                frozen_weights=step.knobs.frozen_weights if step else frozen_weights or "float32",
                memory_limit=memory_limit,
                planned_memory=step.memory(optimizer) if step else {},
                knobs=asdict(step.knobs) if step else {},
                choices=tuple(map(asdict, compiled.choices)),
                segments=step.segments if step else 0,
                labels=SEVERAL if several else ONE,
                multiply_adds=count_multiply_adds(forward, trainable) if step else 0,
                work=compiled.work,
                device=board.name if board else None,
            )
            if step:
                write_program(folder / STEP, step, manifest)
            write_manifest(folder, manifest)
    except MemoryError:
        raise StorageError("There is not enough memory to prepare this model: use a smaller --resolution.") from None
    return Prepared(open_bundle(out), (*classifier.notes, *choices, *refusal))


@dataclass(frozen=True)
class _StepOptions:
    """What of `prepare`'s arguments its step depends on, besides the classifier."""

    method: str
    also_train: tuple[str, ...]
    optimizer: str
    batch_size: int
    frozen_weights: str | None
    memory_limit: int | None
    threads: int
    limited_by: str  # the option that set it
    several: bool
    seed: int


@dataclass(frozen=True)
class _Compiled:
    """A transformed classifier, its forward graph, and the native step, or why there is none."""

    classifier: Classifier
    trainable: dict[str, str]
    paper_memory: dict[str, float]
    forward: onnx.ModelProto
    dropouts: tuple[Dropout, ...]
    step: StepPlan | None
    work: dict[str, int]
    choices: tuple[Choice, ...]
    refusal: tuple[str, ...]


def _compile(classifier: Classifier, options: _StepOptions, say: Callable[[str], None]) -> _Compiled:
    paper = transform(classifier, options.method, options.also_train, options.seed)
    network = classifier.model
    trainable = {
        name: parameter_group(name, classifier.head)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }

    say(f"exporting {FORWARD}")
    if options.frozen_weights == "int8":
        round_frozen_weights(network)
    forward, dropouts = export_forward(network, classifier.resolution)
    present = {tensor.name for tensor in forward.graph.initializer}
    unused = [name for name in trainable if name not in present]
    if unused:
        raise UsageError(f"The parameter '{unused[0]}' does not take part in the model's output: it cannot train.")

    say("compiling the native step")

    def compile_with(knobs: Knobs) -> StepPlan:
        return compile_step(forward, trainable, knobs, options.several)

    optimizer, frozen_weights, limit = options.optimizer, options.frozen_weights, options.memory_limit
    step: StepPlan | None = None
    work: dict[str, int] = {}
    choices: tuple[Choice, ...] = ()
    refusal: tuple[str, ...] = ()
    try:
        step = fit(
            forward, trainable, optimizer, options.batch_size, frozen_weights, limit, options.threads, options.several
        )
    except UsageError as error:
        if limit is not None:
            raise UsageError(f"{options.limited_by} is for the native trainer. {error}") from None
        refusal = (f"For onnxruntime-training only. {error}",)
    if step and step.knobs.frozen_weights != (frozen_weights or "float32"):
        round_frozen_weights(network)
        forward, dropouts = export_forward(network, classifier.resolution)
        step = compile_with(step.knobs)
    if step:
        work = count_work(step.graph, step.graph.ops(), step.knobs, optimizer)
        choices = tuple(weigh_choices(step, optimizer, options.batch_size, compile_with))
    masks = tuple(Dropout(d.name, d.shape, d.rate) for d in dropouts)
    return _Compiled(classifier, trainable, paper, forward, masks, step, work, choices, refusal)


def _fast_enough(
    compiled: _Compiled, at: Callable[[int], _Compiled], batch_size: int, board: Board
) -> tuple[_Compiled, str]:
    """The same at the largest resolution that is fast enough for the board, and why it is that one."""

    def seconds_a_photograph() -> float | None:
        seconds = predicted_step_seconds(compiled.work, batch_size, board)
        return seconds and seconds / batch_size

    own, own_seconds = compiled.classifier.resolution, seconds_a_photograph()
    while resolution := smaller_resolution(compiled.classifier.resolution, seconds_a_photograph()):
        compiled = at(resolution)
    return compiled, explain_resolution(compiled.classifier.resolution, own, seconds_a_photograph(), own_seconds)


def transform(classifier: Classifier, method: str, also: tuple[str, ...] = (), seed: int = 0) -> dict[str, float]:
    """Apply the TinyTL transform in place; returns the paper's memory count in bytes.

    The count is taken before BatchNorm is folded, as the paper does.
    """
    network = classifier.model.eval()
    size = classifier.resolution
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    if uses_lite_residuals(method):
        if not classifier.blocks:
            raise UsageError(
                f"--method {method} needs to know which blocks get a lite residual module: name them with --residual."
            )
        torch.manual_seed(seed)
        attach_lite_residuals(network, classifier.blocks, image)
    choose_trainables(network, method, classifier.head, also)
    counted = paper_memory(network, image)
    fold_batchnorm(network, image)
    return {"activations": counted.activations, "parameters": float(counted.parameters)}


def _check(
    method: str,
    optimizer: str,
    batch_size: int,
    threads: int | None,
    resolution: int | None,
    backbone: str | None,
    model: str | None,
    residual: Sequence[str],
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> None:
    if method not in METHODS:
        raise UsageError(f"'{method}' is no method: choose one of {', '.join(METHODS)}.")
    if optimizer not in OPTIMIZERS:
        raise UsageError(f"'{optimizer}' is no optimizer: choose one of {', '.join(OPTIMIZERS)}.")
    if not 1 <= batch_size <= 4096:
        raise UsageError(f"--batch-size {batch_size} is out of range: 1 to 4096.")
    if threads is not None and not 1 <= threads <= 1024:
        raise UsageError(f"--threads {threads} is out of range: 1 to 1024.")
    if resolution is not None and not 32 <= resolution <= 1024:
        raise UsageError(f"--resolution {resolution} is out of range: 32 to 1024.")
    if backbone is not None and model is not None:
        raise UsageError("--backbone and --model exclude each other: name one.")
    if residual and model is None:
        raise UsageError("--residual goes with --model: a backbone knows its blocks.")
    if (mean or std) and model is None:
        raise UsageError("--mean and --std go with --model: a backbone knows its own.")
    if not all(map(math.isfinite, mean or ())) or not all(0 < value < math.inf for value in std or ()):
        raise UsageError("--mean and --std are of pixels in 0..255, and --std is above zero.")


def _classes(
    classes: int | Sequence[str] | None, data: str | os.PathLike[str] | None, several: bool
) -> tuple[tuple[str, ...], int, bool]:
    """Names (none, if only their number is known) and number; and whether a photograph may have several."""
    if (classes is None) == (data is None):
        raise UsageError("Say what is to be told apart by one of --classes N, --classes NAME,NAME,... and --data DIR.")
    names: tuple[str, ...]
    if data is not None and has_table(Path(data)):
        names, several = read_table(Path(data)).classes, True
    elif data is not None:
        if several:
            raise UsageError(f"{os.fspath(data)} has no {TABLE}: several labels a photograph are written there.")
        found = find_photographs(data)
        empty = [name for name, files in found.items() if not files]
        if empty:
            raise DataError(f"The class '{empty[0]}' in {os.fspath(data)} has no photographs: add some, or remove it.")
        names = tuple(found)
    elif isinstance(classes, int):
        names = ()
    else:
        names = tuple(classes or ())
        if len(set(names)) != len(names):
            raise UsageError("--classes names a class twice.")
    count = classes if isinstance(classes, int) else len(names)
    if not (1 if several else 2) <= count <= 100_000:
        raise UsageError(
            f"A classifier of several labels a photograph has 1 to 100000 classes, not {count}."
            if several
            else f"A classifier tells at least 2 classes apart, not {count}."
        )
    return names, count, several
