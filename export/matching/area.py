"""How much of the images the classifier will see, with the shape that it takes."""

from __future__ import annotations

from pathlib import Path

from tinytl_edge.runtime.files.bundle import Input

_IMAGES = 60
_MOST_UNSEEN = 1 / 3


def area_note(folders: dict[str, list[Path]], taken: Input) -> str | None:
    """A sentence where more than a third of the images' area is cut off."""
    if taken.fit != "crop":
        return None
    files = [file for each in folders.values() for file in each]
    shares = [share for file in files[:: max(1, len(files) // _IMAGES)] if (share := _seen(file, taken)) is not None]
    if not shares:
        return None
    seen = sum(shares) / len(shares)
    if seen >= 1 - _MOST_UNSEEN:
        return None
    return (
        f"Of these images' area {1 - seen:.0%} is never seen, because their centre is cut out: what decides may lie at "
        "their edges. --fit squash or --fit pad shows all of them; it has to be what the app does."
    )


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
