"""A bundle: the folder that `prepare` writes and a board trains from.

manifest.json names every other file with its size and SHA-256; what does not match is not used.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tinytl_edge.runtime.errors import DamagedFileError, StorageError, UsageError
from tinytl_edge.runtime.images.framing import Framing
from tinytl_edge.runtime.knobs import Choice, Knobs
from tinytl_edge.runtime.options import CLASSIFIERS, GROUPS, NEW, OPTIMIZERS

from .digest import sha256, sha256_of
from .kinds import kind_in_words
from .records import read_record
from .tensors import atomic_write, make_folder

FORMAT = "tinytl-edge-bundle"
VERSION = 4
MANIFEST = "manifest.json"
FORWARD = "forward.onnx"
STEP = "step.safetensors"
ORT_FOLDER = "ort"


@dataclass(frozen=True)
class Dropout:
    """A dropout layer: the name of the graph's mask input, the activation's shape without batch, the rate."""

    name: str
    shape: tuple[int, ...]
    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1 or min(self.shape, default=1) < 1:
            raise ValueError(f"a rate of {self.rate}, a shape of {list(self.shape)}")


@dataclass(frozen=True)
class Input:
    """How an image becomes the model's input.

    `height`, `width` in pixels; `channels` 3 (RGB) or 1 (grey); `mean` and `std` of pixels in 0..255, one a channel,
    for (pixel - mean) / std. `fit`: "crop" takes the centre of the input's aspect ratio, "squash" the whole image with
    its aspect ignored, "pad" the whole image on black. With a `margin` the image is stored 8/7 as large on each side,
    and evaluation takes its centre; without, evaluation sees all that is stored. `pixel_range`: of images with more
    than 8 bits (16-bit grey, floating point), the numbers that become 0 and 255; none: 0 and 65536.

    Raises:
        ValueError: a value that cannot be; says which.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "crop"
    margin: bool = True
    pixel_range: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.framing.channels:
            raise ValueError(f"mean and std are not of {self.channels} channels")
        if min(self.std) <= 0:
            raise ValueError(f"std {list(self.std)} is not positive")

    @property
    def framing(self) -> Framing:
        """What its images have to become before they are normalised."""
        return Framing(self.height, self.width, self.channels, self.fit, self.margin, self.pixel_range)


@dataclass(frozen=True)
class Head:
    """A classifier that can be fitted in one pass: its parameters' names, and how many features it reads."""

    weight: str
    bias: str
    features: int


@dataclass(frozen=True)
class Candidate:
    """A weight that `--train auto` may train, how many numbers it has, and whether it trains.

    `gain`: what that would bring, as a share of what all candidates would; None: it was not measured, as there were no
    images or all fitted.
    """

    name: str
    numbers: int
    gain: float | None
    trains: bool


@dataclass(frozen=True)
class FileEntry:
    """A file of a bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a bundle says about itself.

    `classes` holds the outputs' names in their order or is empty (then `class_count` tells how many there are,
    and names come with the images); `room` is how many further outputs wait, behind them, for classes that come later;
    `trainable` maps a parameter's name to its
    learning-rate group; `paper_memory` is the paper's count in bytes: `activations` an image, `parameters`;
    `planned_memory` what the native trainer's step takes, in bytes by kind (empty: not compiled);
    `knobs` how that step trades time and precision for memory, `segments` how many of its
    segments could be recomputed; `memory_limit` the bytes it was to fit; `frozen_weights` is float32, or int8 where
    both runtimes take the weights rounded to 8 bits; `labels` an image: "single" (softmax), or
    "multi" (a sigmoid each); `multiply_adds` what a step of one image has to compute (0: nobody counted), `work`
    what the native trainer's does, by kind (export/step/work.py); `device` names the board that it was prepared for, if
    one was named; `classifier` is NEW, EXTENDED by further classes, or KEPT; `head` is None where the network ends in
    something else than one linear layer with a bias.
    """

    backbone: str
    method: str
    classes: tuple[str, ...]
    class_count: int
    input: Input
    optimizer: str
    batch_size: int
    dropouts: tuple[Dropout, ...]
    trainable: dict[str, str]
    parameter_count: int
    trainable_count: int
    paper_memory: dict[str, float]
    runtimes: tuple[str, ...]
    created_by: str
    frozen_weights: str = "float32"
    memory_limit: int | None = None
    planned_memory: dict[str, int] = field(default_factory=dict)
    knobs: Knobs = field(default_factory=Knobs)
    segments: int = 0
    labels: str = "single"
    multiply_adds: int = 0
    work: dict[str, int] = field(default_factory=dict)
    device: str | None = None
    classifier: str = NEW
    head: Head | None = None
    room: int = 0
    choices: tuple[Choice, ...] = ()  # what each knob saves and costs: export/step/choices.py
    candidates: tuple[Candidate, ...] = ()  # of `auto`: tinytl_edge/weight_choice.py
    files: dict[str, FileEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.labels not in ("single", "multi"):
            raise ValueError(f"labels {self.labels!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r}")
        if self.classifier not in CLASSIFIERS:
            raise ValueError(f"a {self.classifier!r} classifier")
        if self.class_count < 1 or len(self.classes) not in (0, self.class_count) or self.batch_size < 1:
            raise ValueError(f"{self.class_count} outputs, {len(self.classes)} classes, a batch of {self.batch_size}")
        if self.room < 0 or (self.room and (self.head is None or not self.classes or self.labels != "single")):
            raise ValueError(f"room for {self.room} further classes")
        if not 0 <= self.trainable_count <= self.parameter_count or self.parameter_count < 1:
            raise ValueError(f"{self.trainable_count} of {self.parameter_count} parameters train")
        for name, group in self.trainable.items():
            if group not in GROUPS:
                raise ValueError(f"the group {group!r} of {name!r}")

    @property
    def outputs(self) -> int:
        """How many logits the network gives, those that wait for classes among them."""
        return self.class_count + self.room

    def fits(self, classes: Sequence[str]) -> bool:
        """Are these its classes, and further ones for which there is room?"""
        own = len(self.classes)
        return tuple(classes[:own]) == self.classes and self.class_count <= len(classes) <= self.outputs

    def with_classes(self, classes: Sequence[str]) -> Manifest:
        """The same once further classes stand behind its own, or once it is told their names.

        Raises:
            ValueError: it has not as many outputs, or other classes.
        """
        names = tuple(classes)
        if not self.fits(names):
            raise ValueError(f"{len(names)} classes for {self.outputs} outputs")
        return replace(self, classes=names, class_count=len(names), room=self.outputs - len(names))


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, its manifest, and how many classes came to those that it was prepared for."""

    path: Path
    manifest: Manifest
    further: int = 0

    def file(self, name: str) -> Path:
        """The path of one of its files."""
        return self.path / name

    def with_classes(self, classes: Sequence[str]) -> Bundle:
        """The same for these classes; see there."""
        manifest = self.manifest.with_classes(classes)
        return Bundle(self.path, manifest, self.further + manifest.class_count - self.manifest.class_count)

    @property
    def identity(self) -> str:
        """SHA-256 of the manifest, which holds the SHA-256 of everything else."""
        return sha256(self.path / MANIFEST)


@contextlib.contextmanager
def new_bundle(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside `out` to write a bundle's files into, `write_manifest` last; then it moves into place.

    Raises:
        UsageError: `out` exists, and is no bundle or `overwrite` is not set.
        StorageError: the folder cannot be written (a place that cannot be is found out at once); what was at
            `out` before stays.
    """
    if out.exists() and not is_bundle(out):
        raise UsageError(f"{out} already exists and is no bundle: choose another --out.")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} already exists: add --overwrite to replace it, or choose another --out.")
    import shutil  # bring a megabyte that reading does without
    import tempfile

    temporary = None
    try:
        make_folder(out.parent)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        yield temporary
        temporary.chmod(0o755)
        _swap(temporary, out)
        temporary = None
    except OSError as error:
        raise StorageError(f"{out} could not be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, which lists what the folder holds."""
    files = {
        path.relative_to(folder).as_posix(): asdict(FileEntry(sha256(path), path.stat().st_size))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = {"format": FORMAT, "version": VERSION, **asdict(manifest), "files": files}
    write_json(folder / MANIFEST, {**content, "checksum": _checksum(content)})


def _swap(new: Path, place: Path) -> None:
    if not place.exists():
        new.rename(place)
        return
    import shutil
    import tempfile

    old = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.old."))
    place.rename(old / place.name)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def is_bundle(path: Path) -> bool:
    """Does this folder hold a bundle?"""
    return (path / MANIFEST).is_file()


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read the manifest and check every file against it.

    Raises:
        DamagedFileError: not a bundle, of another version, or a file is missing or changed; names the file.
    """
    path = Path(path)
    if not is_bundle(path):
        kind = kind_in_words(path)
        it_is = "it is not" if kind in (None, "a folder") else f"it is {kind}, not"
        raise DamagedFileError(
            f"{path} is no bundle: {it_is} a folder that `tinytl-edge prepare` has written (no {MANIFEST})."
        )
    manifest = _read_manifest(path / MANIFEST)
    for name, expected in manifest.files.items():
        file = path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DamagedFileError(f"{path / MANIFEST} names a file outside of its bundle: '{name}'.")
        if not file.is_file():
            raise DamagedFileError(f"{file} is missing from the bundle: copy the bundle again.")
        if file.stat().st_size != expected.bytes or sha256(file) != expected.sha256:
            raise DamagedFileError(f"{file} is not what `prepare` wrote (SHA-256 differs): copy the bundle again.")
    return Bundle(path, manifest)


def _read_manifest(path: Path) -> Manifest:
    content = read_json(path, "a bundle's manifest")
    if content.get("format") != FORMAT:
        raise DamagedFileError(f"{path} is not the manifest of a tinytl-edge bundle.")
    if content.get("version") != VERSION:
        raise DamagedFileError(
            f"{path} is of version {content.get('version')}, this tinytl-edge reads {VERSION}: prepare again."
        )
    checksum = content.pop("checksum", None)
    if checksum not in (None, _checksum(content)):
        raise DamagedFileError(f"{path} is damaged (its checksum differs): copy the bundle again.")
    return read_record(Manifest, content, path)


def _checksum(content: Mapping[str, object]) -> str:
    return sha256_of(json.dumps(content).encode())


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        DamagedFileError: it is missing, unreadable or no object; `what` names it for the message.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedFileError(f"{path} does not exist: {path.parent} is not what it should be.") from None
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise DamagedFileError(f"{path} is damaged: it is not JSON, as {what} is.") from None
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} is damaged: it is no JSON object, as {what} is.")
    return content


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON object atomically."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
