"""Images in class folders: found, sorted, and counted by class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tinytl_edge.runtime.errors import DataError
from tinytl_edge.runtime.wording import list_names, shown

# What counts as an image in a folder. HEIC and AVIF cannot be read, and so are reported, not overlooked.
IMAGE_ENDINGS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pbm", ".pnm",
    ".tif", ".tiff", ".heic", ".heif", ".avif",
))  # fmt: skip
# Folders that archives, memory cards and servers bring along.
_NOT_CLASSES = frozenset((
    "__MACOSX", "lost+found", "System Volume Information", "$RECYCLE.BIN", "RECYCLER", "#recycle", "@eaDir",
    "__pycache__",
))  # fmt: skip


def find_images(folder: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """The images of `<folder>/<class>/*.jpg` (and .png, ...) by class, classes and files sorted by name.

    Hidden files and folders are ignored; a class folder without images has an empty list. Names are in
    Unicode's composed form, however the medium spells them.

    Raises:
        DataError: the folder is missing, cannot be read, or is not arranged in class folders.
    """
    folder = Path(folder)
    class_folders, loose = _list_folder(folder)
    example = Path(folder, "daisy", "1.jpg")
    if not class_folders:
        if loose:
            if why := unpacked_wrongly(loose):
                raise DataError(f"{shown(folder)} {why}")
            raise DataError(
                f"{shown(folder)} holds images but no class folders: "
                f"put each into a folder named after its class, as in {shown(example)}."
            )
        raise DataError(f"{shown(folder)} has no class folders: it needs one for each class, as in {shown(example)}.")

    images: dict[str, list[Path]] = {}
    for class_folder in class_folders:
        images.setdefault(_class_name(class_folder), []).extend(_list_folder(class_folder)[1])
    if not any(images.values()):
        _refuse_folder_of_data_sets(folder, class_folders)
    return dict(sorted(images.items()))


def find_unlabelled(folder: Path) -> list[Path]:
    """All images in a folder and in folders below it, sorted by name.

    Raises:
        DataError: the folder is missing or cannot be read.
    """
    folders, images = _list_folder(folder)
    return sorted(images + [image for inner in folders for image in find_unlabelled(inner)])


def _refuse_folder_of_data_sets(folder: Path, inner_folders: list[Path]) -> None:
    """Many data sets come as train/<class> and test/<class>: the one to use is a level further down."""
    data_sets = [inner for inner in inner_folders if any(_list_folder(below)[1] for below in _list_folder(inner)[0])]
    if data_sets:
        names = list_names([path.name for path in data_sets])
        likely = next((path for path in data_sets if path.name.lower().startswith("train")), data_sets[0])
        raise DataError(
            f"{shown(folder)} has its class folders one level further down, in {names}: "
            f"name one such folder, for example {shown(likely)}."
        )


def _list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """The visible folders and the images in `folder`, sorted by name."""
    try:
        paths = visible(folder)
        folders = [path for path in paths if path.is_dir()]
        files = [path for path in paths if is_image(path)]
    except FileNotFoundError:
        raise DataError(f"{shown(folder)} does not exist: name a folder of images.") from None
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be read as a folder: {error.strerror}.") from None
    return folders, files


def is_image(path: Path) -> bool:
    """By its name. A dangling link is one, to be reported when it is opened; a pipe or a device is none."""
    return path.suffix.lower() in IMAGE_ENDINGS and (path.is_file() or not path.exists())


def visible(folder: Path) -> list[Path]:
    """What lies in a folder and may be meant for us, sorted by name.

    Raises:
        OSError: it cannot be read.
    """
    return sorted(path for path in folder.iterdir() if not _is_hidden(path.name))


def unpacked_wrongly(files: Sequence[Path]) -> str | None:
    r"""What is wrong with names as train\cat\1.jpg, which archives from Windows leave behind on other systems."""
    example = next((path.name for path in files if "\\" in path.name), None)
    if example is None:
        return None
    return (
        f"has files whose names hold their folders ({example}): an archive from Windows was unpacked by a tool that "
        "does not know its backslashes. Put each into the folder that its name says."
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _NOT_CLASSES


def _class_name(folder: Path) -> str:
    try:
        folder.name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{shown(folder)} has a name that is not Unicode text: rename the folder.") from None
    return composed(folder.name)


def composed(name: str) -> str:
    """The spelling by which names of classes are compared: some media write 'ü' as 'u' and two dots."""
    if name.isascii():
        return name
    import unicodedata  # a megabyte that most names can do without

    return unicodedata.normalize("NFC", name)
