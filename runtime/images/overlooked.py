"""What is no image, or no folder of them: said, where it is passed over or in the way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tinytl_edge.runtime.errors import DamagedFileError
from tinytl_edge.runtime.files.kinds import kind_in_words
from tinytl_edge.runtime.wording import shown

from .folders import IMAGE_ENDINGS, visible

# What lies beside images on purpose, or is made by systems.
_BESIDE = frozenset((".txt", ".csv", ".json", ".xml", ".md", ".html", ".yaml", ".yml", ".db", ".ini", ".log"))


def passed_over(folder: Path) -> list[str]:
    """A sentence for each class folder with files that are not taken for images because of their ending."""
    sentences = []
    for class_folder in sorted(path for path in visible(folder) if path.is_dir()):
        files = [path for path in visible(class_folder) if path.is_file()]
        endings = [path.suffix.lower() for path in files]
        odd = Counter(ending for ending in endings if ending not in IMAGE_ENDINGS and ending not in _BESIDE)
        if odd:
            sentences.append(_sentence(class_folder, odd))
    return sentences


def _sentence(class_folder: Path, odd: Counter[str]) -> str:
    named = sorted(ending for ending in odd if ending)
    if odd[""]:
        named.append(f"{odd['']} without an ending")
    count = sum(odd.values())
    what = f"{count} files are passed over, by their endings no images"
    if count == 1:
        what = "1 file is passed over, by its ending no image"
    return f"{shown(class_folder)}: {what} that can be read ({', '.join(named)})."


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
