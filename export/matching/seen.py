"""What of the images the classifier will see: how much of their area, and how many of their grey values."""

from __future__ import annotations

from pathlib import Path

from tinytl_edge.runtime.files.bundle import Input
from tinytl_edge.runtime.images.decoding import find_deep

_IMAGES = 60
_MOST_UNSEEN = 1 / 3


def area_note(folders: dict[str, list[Path]], taken: Input) -> str | None:
    """A sentence where more than a third of the images' area is cut off."""
    if taken.fit != "crop":
        return None
    shares = [share for file in _some(folders) if (share := _seen(file, taken)) is not None]
    if not shares:
        return None
    seen = sum(shares) / len(shares)
    if seen >= 1 - _MOST_UNSEEN:
        return None
    return (
        f"Of these images' area {1 - seen:.0%} is never seen, because their centre is cut out: what decides may lie at "
        "their edges. --fit squash or --fit pad shows all of them; it has to be what the app does."
    )


def deep_note(folders: dict[str, list[Path]], taken: Input) -> str | None:
    """A sentence where 16-bit images use little of the range of pixels that is taken of them."""
    return find_deep(_some(folders)).warning(taken.pixel_range)


def _some(folders: dict[str, list[Path]]) -> list[Path]:
    files = [file for each in folders.values() for file in each]
    return files[:: max(1, len(files) // _IMAGES)]


def _seen(file: Path, taken: Input) -> float | None:
    from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = image.size
    except Exception:  # damaged images are said elsewhere
        return None
    wanted = taken.width / taken.height
    share = min(wanted * height / width, width / (wanted * height))
    return share * (49 / 64 if taken.margin else 1.0)
