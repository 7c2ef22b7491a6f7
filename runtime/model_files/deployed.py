"""Files of a deployment are written over: each whole, where links lead, with the file before kept beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from tinytl_edge.runtime.errors import StorageError
from tinytl_edge.runtime.files.tensors import make_folder, sync_folder

BEFORE = ".before"
KINDS = ("onnx", "tflite")  # of model files
# What other programs build of a model file, and go on using until it is built again.
_BUILT = (".engine", ".plan", ".trt", ".ort", ".blob", ".hef", ".rknn", ".om")


def kind_of(path: Path) -> str | None:
    """Of a model file by its name, also of one that was kept: one of KINDS, or None."""
    ending = Path(path.name.lower().removesuffix(BEFORE)).suffix
    return {".onnx": "onnx", ".tflite": "tflite", ".lite": "tflite"}.get(ending)


def replace_files(files: Mapping[Path, Iterable[bytes]], keep: Collection[Path] = ()) -> dict[Path, int]:
    """Write several files: all are on the disk before the first takes its place, each in one rename.

    A symbolic link stays, and what it leads to is replaced; mode and owner stay as far as the system allows.

    Args:
        keep: of these files what was there stays beside the new one, as NAME.before.

    Returns:
        The number of bytes of each.

    Raises:
        StorageError: the folder cannot be written or the disk is full; what was there before stays.
    """
    written: dict[Path, Path] = {}  # the place of each, and where its content waits
    sizes = {}
    path = next(iter(files))
    try:
        for path, content in files.items():
            place = Path(os.path.realpath(path))
            if place.exists() and not place.is_file():
                raise OSError("there is something of that name that is not a file")
            make_folder(place.parent)
            written[place], sizes[path] = _beside(place, content)
        for path in keep:
            if path.exists():
                _keep(Path(os.path.realpath(path)))
        for place, waiting in list(written.items()):
            os.replace(waiting, place)  # noqa: PTH105
            del written[place]
        for folder in {Path(os.path.realpath(path)).parent for path in files}:
            with contextlib.suppress(OSError):  # the files are in place; not every filesystem syncs a folder
                sync_folder(folder)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        for waiting in written.values():
            waiting.unlink(missing_ok=True)
    return sizes


def _beside(place: Path, content: Iterable[bytes]) -> tuple[Path, int]:
    """A complete file in the same folder, on the disk, with the mode and owner of the one that it will replace."""
    descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
    try:
        size = 0
        with os.fdopen(descriptor, "wb") as file:
            for piece in content:
                size += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        _dress(Path(name), place)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name), size


def _dress(new: Path, place: Path) -> None:
    with contextlib.suppress(OSError):  # some media know no modes, and only root gives files away
        if place.exists():
            now = place.stat()
            new.chmod(now.st_mode & 0o7777)
            os.chown(new, now.st_uid, now.st_gid)
        else:
            umask = os.umask(0)
            os.umask(umask)
            new.chmod(0o666 & ~umask)


def _keep(place: Path) -> None:
    """The old content under its second name: by a link where the medium has them, else a copy."""
    descriptor, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}{BEFORE}.")
    os.close(descriptor)
    kept = Path(name)
    try:
        kept.unlink()
        try:
            os.link(place, kept)
        except OSError:
            shutil.copy2(place, kept)
            with kept.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(kept, place.with_name(place.name + BEFORE))  # noqa: PTH105
    finally:
        kept.unlink(missing_ok=True)


def beside(model: Path, name: str) -> Path:
    """Where a file that belongs to a model lies: beside it, or beside what it is a link to if it is there."""
    near, far = model.with_name(name), Path(os.path.realpath(model)).with_name(name)
    return far if far.exists() and not near.exists() else near


def stale_builds(model: Path) -> list[Path]:
    """Files beside a model that other programs built of what it was before."""
    real = Path(os.path.realpath(model))
    with contextlib.suppress(OSError):
        found = {
            path
            for folder in {model.parent, real.parent}
            for path in folder.iterdir()
            if path.suffix.lower() in _BUILT and path.name.startswith((model.stem, real.stem))
        }
        return sorted(found)
    return []
