"""What is no image, or no folder of them: said, where it is passed over or in the way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tinytl_edge.runtime.errors import DamagedFileError
from tinytl_edge.runtime.files.kinds import kind_in_words
from tinytl_edge.runtime.wording import counted, list_names, shown

from .findings import Finding
from .folders import IMAGE_ENDINGS, is_image, visible

# What lies beside images on purpose, or is made by systems.
_BESIDE = frozenset((".txt", ".csv", ".json", ".xml", ".md", ".html", ".yaml", ".yml", ".db", ".ini", ".log"))


def passed_over(folder: Path) -> list[Finding]:
    """What lies in a folder of class folders and is not learnt from, though it may have been meant to be."""
    paths = visible(folder)
    findings = []
    if loose := [path for path in paths if is_image(path)]:
        are = "is 1 image" if len(loose) == 1 else f"are {len(loose)} images"
        message = f"{shown(folder)}: beside the class folders there {are}, passed over: of which class?"
        findings.append(Finding("loose", message, tuple(map(str, loose))))
    for class_folder in (path for path in paths if path.is_dir()):
        findings += [*_other_endings(class_folder), *_deeper(class_folder)]
    return findings


def _other_endings(class_folder: Path) -> list[Finding]:
    """Files that are not taken for images because of their ending."""
    files = [path for path in visible(class_folder) if path.is_file()]
    odd = [path for path in files if path.suffix.lower() not in IMAGE_ENDINGS | _BESIDE]
    if not odd:
        return []
    endings = Counter(path.suffix.lower() for path in odd)
    named = sorted(ending for ending in endings if ending)
    if endings[""]:
        named.append(f"{endings['']} without an ending")
    what = f"{len(odd)} files are passed over, by their endings no images"
    if len(odd) == 1:
        what = "1 file is passed over, by its ending no image"
    message = f"{shown(class_folder)}: {what} that can be read ({', '.join(named)})."
    return [Finding("ending", message, tuple(map(str, odd)))]


def _deeper(class_folder: Path) -> list[Finding]:
    """Images in folders of a class folder."""
    images = {
        path.name: [image for image in sorted(path.rglob("*")) if is_image(image)]
        for path in visible(class_folder)
        if path.is_dir()
    }
    inner = [name for name, found in images.items() if found]
    if not inner:
        return []
    files = tuple(str(image) for found in images.values() for image in found)
    message = (
        f"{shown(class_folder)}: {counted(len(files), 'image')} in folders below it ({list_names(inner)}) passed over: "
        "images of a class lie in its folder itself."
    )
    return [Finding("deeper", message, files)]


def refuse_file(path: Path) -> None:
    """Say what a file is that was named in the place of a folder of images, where it is no packed dataset.

    Raises:
        DamagedFileError: it is an archive, an image, or something else that is known.
    """
    kind = kind_in_words(path)
    if kind is None:
        return
    what = "name the folder of its images" if "archive" in kind else "name a folder of images, or a packed dataset"
    separator = " and " if "unpack it" in kind else ": "
    raise DamagedFileError(f"{shown(path)} is {kind}{separator}{what}.")
