"""Images as a command is given them: a folder (of class folders, or with labels.csv), or a packed dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tinytl_edge.runtime.errors import DataError
from tinytl_edge.runtime.files.bundle import Manifest
from tinytl_edge.runtime.wording import list_names

from .dataset import MULTI, SINGLE, Dataset, open_dataset
from .label_table import TABLE, has_table
from .overlooked import refuse_file
from .packing import pack, pack_unlabelled

OnText = Callable[[str], None]
OnCount = Callable[[int, int], None]


def dataset_for(
    manifest: Manifest,
    classes: Sequence[str],
    source: Path,
    packed: Path,
    on_warning: OnText,
    on_progress: OnCount,
    partly: bool = False,
) -> Path:
    """The dataset file for `source`, fit for the bundle: `source` itself, or `packed`, made from a folder.

    Args:
        classes: the names that the labels stand for; empty where the images bring them. A folder may hold images of
            some of them only, which is worth a warning unless it is `partly` what there is.

    Raises:
        DataError: the classes or the size of the images do not fit the bundle, or no image is usable.
        DamagedFileError: a packed dataset is damaged.
    """
    check_exists(source)
    check_kind(manifest, source)
    if source.is_dir():
        pack(source, packed, manifest.input.framing, classes or None, on_warning, on_progress, partly)
        source = packed
    with open_dataset(source) as dataset:
        _check(manifest, classes, dataset)
    return source


def unlabelled_for(manifest: Manifest, source: Path, packed: Path, on_warning: OnText, on_progress: OnCount) -> Path:
    """The dataset file for images without labels: `source` itself, or `packed`, made from a folder.

    Raises:
        DataError: they are of another size, or none is usable.
        DamagedFileError: a packed dataset is damaged.
    """
    check_exists(source)
    if source.is_dir():
        pack_unlabelled(source, packed, manifest.input.framing, on_warning, on_progress)
        return packed
    with open_dataset(source) as dataset:
        _check_framing(manifest, dataset)
    return source


def check_exists(source: Path) -> None:
    """Find a mistyped name before minutes of packing.

    Raises:
        DataError: there is nothing of that name.
        DamagedFileError: it is something else.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist: name a folder of images, or a packed dataset.")
    if source.is_file():
        refuse_file(source)


def check_kind(manifest: Manifest, source: Path) -> None:
    """Find single-label images where the bundle is multi-label, or the other way round.

    Raises:
        DataError: so it is.
        DamagedFileError: a packed dataset is damaged.
    """
    if source.is_dir():
        kind = MULTI if has_table(source) else SINGLE
    else:
        with open_dataset(source) as dataset:
            kind = dataset.kind
    if kind == manifest.labels:
        return
    if kind == MULTI:
        has = "is multi-label" + (f" ({TABLE})" if source.is_dir() else "")
        raise DataError(
            f"{source} {has}, the bundle was prepared for one class each: prepare it with --data on the folder of "
            f"these images, or with --multi-label, or sort them into class folders without {TABLE}."
        )
    has = f"has no {TABLE}" if source.is_dir() else "has one class for each image"
    raise DataError(
        f"{source} {has}, the bundle is multi-label: write the labels into a {TABLE} "
        "in the images' folder (first row: file,NAME,NAME,...), or prepare a bundle for one class each."
    )


def _check_framing(manifest: Manifest, dataset: Dataset) -> None:
    framing = manifest.input.framing
    if dataset.framing != framing:
        raise DataError(
            f"{dataset.path} is packed for {dataset.framing}; the bundle takes {framing}: "
            f"pack it again with --bundle, or {framing.options}."
        )


def _check(manifest: Manifest, classes: Sequence[str], dataset: Dataset) -> None:
    _check_framing(manifest, dataset)
    if classes and list(dataset.classes) != list(classes):
        raise DataError(
            f"{dataset.path} has the classes {list_names(dataset.classes)}, "
            f"where the model knows {list_names(classes)}: "
            "pack the images with `--bundle`, or prepare the model for these classes."
        )
    if not classes and len(dataset.classes) != manifest.class_count:
        raise DataError(
            f"{dataset.path} has {len(dataset.classes)} classes, the bundle was prepared for "
            f"{manifest.class_count}: prepare it with --data, or --classes {len(dataset.classes)}."
        )
    if not dataset.classes:
        raise DataError(f"{dataset.path} has images without a label.")
