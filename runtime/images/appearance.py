"""What image files are like, beyond what they show: size, colours, light, sharpness, and what gives a class away."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinytl_edge.runtime.wording import are, counted, list_names

from .decoding import FORMATS, orientation, quarter_turns
from .findings import Finding
from .framing import Framing

if TYPE_CHECKING:
    from PIL import Image

# In grey levels of 256, over what is stored of an image.
_FLAT, _FAINT = 3, 12  # standard deviations: of a wall, of what is overexposed
_DARK, _BRIGHT = 12, 243  # mean
_GREY = 1  # how far colours are apart, on average
# An image that is scaled down to a quarter of its side and up again differs by this share of its standard deviation: of
# photographs by more than 2 %; half of what was enlarged from 20 pixels by less than 1.2 %.
_NO_DETAIL = 0.012
_ROUNDING = 0.25  # how far whole grey levels are off, on average
_ENLARGED = 2  # times its side
_TELLING = 0.9  # share of a class's images that have what at most 1 - 0.9 of the others have
_TELLING_LEAST = 5  # images of a class


@dataclass(frozen=True)
class Look:
    """An image: `enlarged`: by how much its side grows to become the input; `detail`, `mean` and `spread` as above."""

    path: Path
    label: int
    format: str
    size: tuple[int, int]  # width and height, upright
    turned: bool
    enlarged: float
    coloured: bool
    mean: float
    spread: float
    detail: float


def look(path: Path, label: int, pixels: bytes, framing: Framing) -> Look:
    """Of a file that could be read, and `pixels`, what is stored of it."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path, formats=FORMATS) as file:
            width, height = file.size
            turn, kind = orientation(file), file.format or ""
    if turn in quarter_turns():
        width, height = height, width
    ratios = framing.width / width, framing.height / height
    enlarged = {"crop": max, "pad": min, "squash": max}[framing.fit](ratios)
    height_in, width_in, channels = framing.stored
    image = Image.frombytes("RGB" if channels == 3 else "L", (width_in, height_in), pixels)
    return Look(
        path, label, kind, (width, height), turn is not None, enlarged, _coloured(image), *_light(image.convert("L"))
    )


def _coloured(image: Image.Image) -> bool:
    from PIL import ImageChops, ImageStat

    if image.mode == "L":
        return False
    red, green, blue = image.split()
    apart = (ImageStat.Stat(ImageChops.difference(green, other)).mean[0] for other in (red, blue))
    return max(apart) > _GREY


def _light(grey: Image.Image) -> tuple[float, float, float]:
    """Mean, spread, detail."""
    from PIL import Image, ImageChops, ImageStat

    statistics = ImageStat.Stat(grey)
    mean, spread = statistics.mean[0], statistics.stddev[0]
    whole = grey.crop((0, 0, max(grey.width // 4, 1) * 4, max(grey.height // 4, 1) * 4))
    again = whole.reduce(4).resize(whole.size, Image.Resampling.BICUBIC)
    lost = ImageStat.Stat(ImageChops.difference(whole, again)).mean[0]
    return mean, spread, (lost - _ROUNDING) / max(spread, 1e-9)


def odd_looks(looks: Sequence[Look], classes: Sequence[str], framing: Framing) -> list[Finding]:
    """What is odd about single images, each image named once; and what gives a class away."""
    findings = []
    left = list(looks)
    for kind, is_so, sentence in _ODD:
        found = [seen for seen in left if is_so(seen)]
        if found:
            left = [seen for seen in left if not is_so(seen)]
            findings.append(
                Finding(kind, f"{are(len(found), 'image')} {sentence}", tuple(str(seen.path) for seen in found))
            )
    if small := [seen for seen in looks if seen.enlarged > _ENLARGED]:
        findings.append(_small(small, framing))
    if turned := [seen for seen in looks if seen.turned]:
        message = (
            f"{counted(len(turned), 'image')} of {len(looks)} stored lying or mirrored, with a note of how to turn "
            "them (EXIF): they are turned upright here. The app that shows its images to the model has to do it too."
        )
        findings.append(Finding("turned", message, tuple(str(seen.path) for seen in turned)))
    return findings + _given_away(looks, classes)


_ODD: tuple[tuple[str, Callable[[Look], bool], str], ...] = (
    ("dark", lambda seen: seen.mean < _DARK, "nearly black."),
    ("bright", lambda seen: seen.mean > _BRIGHT and seen.spread < _FAINT, "nearly white."),
    ("blank", lambda seen: seen.spread < _FLAT, "of one colour all over: nothing is to be seen."),
    (
        "blurred",
        lambda seen: seen.detail < _NO_DETAIL and seen.enlarged <= _ENLARGED,
        "without detail: out of focus, or enlarged from much smaller ones.",
    ),
)


def _small(small: Sequence[Look], framing: Framing) -> Finding:
    least = max(small, key=lambda seen: seen.enlarged)
    width, height = least.size
    message = (
        f"{are(len(small), 'image')} smaller than the input of {framing.width} x {framing.height} px, and enlarged to "
        f"it (the smallest, {width} x {height} px, {least.enlarged:.1f} times): what a camera shows of it is sharper."
    )
    return Finding("small", message, tuple(str(seen.path) for seen in small))


_TELLING_OF: tuple[Callable[[Look], str], ...] = (
    lambda seen: "in colour" if seen.coloured else "grey",
    lambda seen: _shape(*seen.size),
    lambda seen: f"{seen.format} files",
)


def _shape(width: int, height: int) -> str:
    return "square" if width == height else "wider than high" if width > height else "higher than wide"


def _given_away(looks: Sequence[Look], classes: Sequence[str]) -> list[Finding]:
    """Classes that could be told from how their images were stored."""
    findings = []
    for value_of in _TELLING_OF:
        by_class: dict[int, Counter[str]] = defaultdict(Counter)
        for seen in looks:
            by_class[seen.label][value_of(seen)] += 1
        if len(by_class) < 2:
            continue
        in_all = sum(by_class.values(), Counter())
        for label, values in sorted(by_class.items()):
            value, count = values.most_common(1)[0]
            own = sum(values.values())
            others = len(looks) - own
            elsewhere = in_all[value] - count
            if own >= _TELLING_LEAST and count >= _TELLING * own and elsewhere <= (1 - _TELLING) * others:
                message = (
                    f"{count} of {counted(own, 'image')} of {list_names([classes[label]])} are {value}, "
                    f"and {elsewhere} of {others} others: training may learn that instead of what the images show."
                )
                findings.append(Finding("given-away", message))
    return findings
