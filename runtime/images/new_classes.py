"""Classes that images show and a classifier does not know yet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinytl_edge.runtime.errors import DataError
from tinytl_edge.runtime.files.bundle import Manifest
from tinytl_edge.runtime.wording import counted, list_names, shown

from .class_folders import meant
from .dataset import SINGLE, open_dataset
from .folders import composed, find_images
from .label_table import has_table


def with_new_classes(manifest: Manifest, source: Path) -> tuple[str, ...]:
    """The names of a classifier's classes, in their order, and behind them those that only `source` has.

    A folder whose name differs from a class's in case or spaces alone is none of its own.

    Raises:
        DataError: there is not as much room for further classes.
        DamagedFileError: a packed dataset is damaged.
    """
    known = tuple(manifest.classes)
    if not known or manifest.labels != SINGLE or not manifest.room:
        return known
    new = [name for name in _names(source) if name not in map(composed, known) and not meant(name, known)]
    if len(new) > manifest.room:
        raise DataError(
            f"{shown(source)} has {counted(len(new), 'folder')} of classes that the model does not know "
            f"({list_names(new)}), and there is room for {manifest.room} more: rename or remove folders, or prepare "
            f"the bundle with --room {len(new)}."
        )
    return (*known, *new)


def _names(source: Path) -> Sequence[str]:
    if source.is_file():
        with open_dataset(source) as dataset:
            return dataset.classes
    if has_table(source):
        return ()
    return [name for name, images in find_images(source).items() if images]
