"""A run: the folder that `train` writes, with the adapter, a checkpoint, events.jsonl and run.json."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tinytl_edge.runtime.errors import DamagedFileError
from tinytl_edge.runtime.options import TrainOptions
from tinytl_edge.runtime.unknown import Unknown

from .adapter import FILE as ADAPTER
from .adapter import Adapter, open_adapter
from .bundle import Bundle, is_bundle, open_bundle, read_json, write_json
from .records import read_record

FORMAT = "tinytl-edge-run"
VERSION = 1
RUN = "run.json"
EVENTS = "events.jsonl"
CHECKPOINTS = {"native": "checkpoint.safetensors", "onnxruntime-training": "checkpoint.ort"}  # by runtime


@dataclass(frozen=True)
class Memory:
    """The peaks of all processes of a training together in each phase, in bytes; `measure`: "PSS" or "RSS"."""

    measure: str
    start: int
    packing: int
    training: int


@dataclass(frozen=True)
class Result:
    """How a training ended: what the `done` event says; `peak_rss_bytes` is of the process that computes."""

    runtime: str | None = None
    steps: int | None = None
    step_ms_median: float | None = None
    train_loss: float | None = None
    left_out_accuracy: float | None = None
    share: float | None = None
    judge: str | None = None
    val_images: int = 0
    start_loss: float | None = None
    start_accuracy: float | None = None
    start_class_accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    val_class_accuracy: float | None = None
    val_interval: tuple[float, ...] | None = None
    peak_rss_bytes: int | None = None
    memory: Memory | None = None
    kept_images: int = 0
    kept_accuracy_before: float | None = None
    kept_accuracy: float | None = None
    unknown: Unknown | None = None


@dataclass(frozen=True)
class FirstPass:
    """`known_classes`: how many of the first classes keep of what the classifier had learnt of them; 0: it is new.
    `pulled`: it knows all of them, and is fitted with a pull towards what it is in the bundle; `aligned`: the images
    have no labels, and its biases alone follow what the features' mean is here.
    `features`: the file of what stands in for images that are not at hand: `of_all` classes, or of those without. Of
    either those that `others` numbers are of the place that it comes from, and have the share `keep`.
    `kept_images`: a dataset of there, of which those that `kept_learnt` numbers are learnt from in the same way, and
    those that `kept_judged` does tell what is given up there.
    """

    known_classes: int
    features: str | None = None
    of_all: bool = False
    pulled: bool = False
    aligned: bool = False
    keep: float = 0.0
    others: tuple[int, ...] = ()
    kept_images: str | None = None
    kept_learnt: tuple[int, ...] = ()
    kept_judged: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.known_classes < 0:
            raise ValueError(f"{self.known_classes} known classes")

    def relative_to(self, run: Path) -> FirstPass:
        """As run.json has it."""
        return self._with_places(lambda place: os.path.relpath(place, run))

    def inside(self, run: Path) -> FirstPass:
        """With the places of files, where they were relative to the run's folder."""
        return self._with_places(lambda place: os.path.normpath(run / place))

    def _with_places(self, place: Callable[[str], str]) -> FirstPass:
        return replace(
            self,
            features=place(self.features) if self.features else None,
            kept_images=place(self.kept_images) if self.kept_images else None,
        )


@dataclass(frozen=True)
class Record:
    """run.json: how far the run has come, on what it trains and how. Places are relative to the run's folder."""

    bundle: str
    bundle_identity: str
    status: str
    runtime: str
    options: TrainOptions
    data: str
    val: str | None = None
    held_out: tuple[int, ...] = ()  # numbers of images that its trial was judged on
    first_pass: FirstPass | None = None
    executable: str | None = None  # which of the trainer's ran, or Python
    error: str | None = None
    result: Result = field(default_factory=Result)


@dataclass(frozen=True)
class Run:
    """An opened run."""

    path: Path
    bundle: Bundle
    record: Record

    @property
    def adapter_path(self) -> Path:
        """Where the trained parameters lie."""
        return self.path / ADAPTER

    def adapter(self) -> Adapter:
        """The trained parameters, checked against the bundle.

        Raises:
            DamagedFileError: there are none yet, or they are damaged.
        """
        if not self.adapter_path.is_file():
            raise DamagedFileError(f"{self.path} has no adapter yet: its training has not finished an epoch.")
        return open_adapter(self.adapter_path, self.bundle)


def is_run(path: Path) -> bool:
    """Does this folder hold a run?"""
    return (path / RUN).is_file()


def record_of(path: Path, bundle: Bundle, **content: Any) -> dict[str, Any]:
    """What run.json says; the bundle relative to the run, so that both can move together."""
    where = os.path.relpath(bundle.path.resolve(), path.resolve())
    record = {"format": FORMAT, "version": VERSION, "bundle": where, "bundle_identity": bundle.identity}
    return {**record, **content}


def write_record(path: Path, bundle: Bundle, **content: Any) -> None:
    """Write run.json."""
    write_json(path / RUN, record_of(path, bundle, **content))


def open_model(
    path: str | os.PathLike[str], bundle: str | os.PathLike[str] | None = None
) -> tuple[Bundle, Adapter | None]:
    """A run's bundle, for the classes that the run knows, and its adapter; or a bundle as it was prepared and None.

    Raises:
        DamagedFileError: it is neither, or see `open_run`; or the run has no adapter yet.
    """
    path = Path(path)
    if is_run(path):
        run = open_run(path, bundle)
        adapter = run.adapter()
        return run.bundle.with_classes(adapter.classes), adapter
    if not is_bundle(path):
        raise DamagedFileError(f"{path} is neither a run (from `tinytl-edge train`) nor a bundle.")
    return open_bundle(path), None


def open_run(path: str | os.PathLike[str], bundle: str | os.PathLike[str] | None = None) -> Run:
    """Open a run and its bundle (`bundle`, if it has moved).

    Raises:
        DamagedFileError: no run, its bundle is gone or damaged, or it is another bundle.
    """
    path = Path(path)
    if not is_run(path):
        raise DamagedFileError(f"{path} is no run: it is not a folder that `tinytl-edge train` has written.")
    content = read_json(path / RUN, "a run's record")
    if content.get("format") != FORMAT:
        raise DamagedFileError(f"{path / RUN} is not the record of a tinytl-edge run.")
    if content.get("version") != VERSION:
        raise DamagedFileError(
            f"{path / RUN} is of version {content.get('version')}, this tinytl-edge reads {VERSION}."
        )
    record = read_record(Record, content, path / RUN)
    place = Path(bundle) if bundle is not None else Path(os.path.normpath(path / record.bundle))
    if not place.exists():
        raise DamagedFileError(f"The bundle of {path} is no longer at {place}: name it with --bundle.")
    opened = open_bundle(place)
    if opened.identity != record.bundle_identity:
        raise DamagedFileError(f"{place} is not the bundle that {path} was trained from (its manifest differs).")
    return Run(path, opened, record)
