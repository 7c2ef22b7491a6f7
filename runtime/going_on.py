"""A training that goes on from a run: with further images, or for more epochs.

Two adapters come along: the run's own, which has learnt from all of its images, and the one of its trial, which was not
shown those that it was judged on. The further training's trial begins with that one: what is judged stays unseen.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tinytl_edge.runtime.files.adapter import BEFORE, BEFORE_JUDGED, JUDGED, open_adapter
from tinytl_edge.runtime.files.adapter import FILE as ADAPTER
from tinytl_edge.runtime.files.features import FILE as FEATURES
from tinytl_edge.runtime.files.run import Run
from tinytl_edge.runtime.images.dataset import Dataset, open_dataset
from tinytl_edge.runtime.images.held_out import Known
from tinytl_edge.runtime.images.joining import join

from .errors import DataError, StorageError, UsageError
from .options import RUN_START

OnText = Callable[[str], object]


@dataclass(frozen=True)
class Earlier:
    """The run to go on from. `images`: its dataset's file, or None where that is gone; `val` likewise."""

    run: Run
    classes: tuple[str, ...]
    images: Path | None
    val: Path | None

    def known(self, start: str) -> Known:
        """Its images, which come first; those that are only known from being held out, where training begins anew."""
        out = self.run.record.held_out
        if self.images is None or (start != RUN_START and not out):
            return Known()
        with open_dataset(self.images) as dataset:
            return Known(dataset.count, out)


def open_earlier(run: Run) -> Earlier:
    """What of a run can be gone on with.

    Raises:
        UsageError: it did not come to its end.
        DamagedFileError: an adapter of it is missing or damaged.
        DataError: its dataset was replaced.
    """
    record = run.record
    if record.status != "done":
        raise UsageError(f"{run.path} did not come to its end ({record.status}): go on with --resume --out {run.path}.")
    if record.first_pass is not None and record.first_pass.aligned:
        raise UsageError(
            f"{run.path} was aligned with images without labels: with labelled ones train its bundle, "
            f"{run.bundle.path}."
        )
    adapter = run.adapter()
    images = _file(run, record.data)
    if images is not None:
        with open_dataset(images) as dataset:
            if tuple(dataset.classes) != adapter.classes or max(record.held_out, default=-1) >= dataset.count:
                raise DataError(f"{images}, on which {run.path} was trained, is another dataset now.")
        if record.held_out:
            open_adapter(run.path / JUDGED, run.bundle)
    return Earlier(run, adapter.classes, images, _file(run, record.val))


def _file(run: Run, name: str | None) -> Path | None:
    path = Path(os.path.normpath(run.path / name)) if name is not None else None
    return path if path is not None and path.is_file() else None


def bring_adapters(earlier: Earlier, run: Path) -> None:
    """Copy what the training begins with into its own run's folder.

    Raises:
        StorageError: it cannot be written.
    """
    import shutil  # and what it brings: only where a run goes on

    folder = earlier.run.path
    judged = JUDGED if earlier.images is not None and earlier.run.record.held_out else ADAPTER
    try:
        for source, name in ((ADAPTER, BEFORE), (judged, BEFORE_JUDGED)):
            shutil.copyfile(folder / source, run / name)
    except OSError as error:
        raise StorageError(f"The adapters of {folder} cannot be copied to {run}: {error.strerror}.") from error


def with_further(earlier: Earlier, further: Path | None, out: Path, say: OnText, warn: OnText) -> Path:
    """The dataset file of the run's images and `further` ones: `out`, or that of either where there is no other.

    Raises:
        DataError: there are neither.
    """
    if further is None:
        if earlier.images is None:
            raise DataError(f"The images that {earlier.run.path} learnt from are gone: name images with --data.")
        return earlier.images
    if earlier.images is None:
        if not (earlier.run.path / FEATURES).is_file():
            warn(
                f"The images that {earlier.run.path} learnt from are gone: it goes on with the new ones alone, and may "
                "unlearn what these do not show."
            )
        return further
    with open_dataset(earlier.images) as first, open_dataset(further) as second:
        say(_said(first, *join(first, second, out)))
    return out


def _said(first: Dataset, further: int, again: int, relabelled: int) -> str:
    words = f"{first.count} images of the run, and {further} further ones"
    if again:
        words += f" ({again} were there before" + (f", {relabelled} with another label" if relabelled else "") + ")"
    return words
