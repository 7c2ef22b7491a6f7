"""What `prepare` can be told about a classifier and its training, and the defaults."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from tinytl_edge.export.tinytl.methods import METHODS
from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.images.framing import FITS, range_text
from tinytl_edge.runtime.options import OPTIMIZERS

COLOURS = ("rgb", "bgr")
FROZEN_WEIGHTS = ("float32", "int8")
ROOM = 4  # outputs for classes that come later


@dataclass(frozen=True)
class PrepareOptions:
    """Options of a bundle; None stands for what the model says or what suits it.

    Args:
        weights: of a backbone or module: 'imagenet', 'random', or a PyTorch weight file.
        classes: how many, or their names; default: those of the images, or the model's own.
        multi_label: with `classes`: an image may have any of them, or none.
        room: for how many classes that the images do not show yet there are outputs; default: `ROOM` with images of
            one class each, whose names are known; else none.
        labels: a file with the names of the model's own outputs, one a line, where the model does not bring them.
        train: what trains: one of `METHODS`, name patterns of parameters, or a method and patterns. Patterns alone are
            trained with the classifier.
        resolution: the input's height and width in pixels, or one number for both.
        fit: how an image becomes the input: 'crop' (its centre), 'squash' (all of it, its aspect ignored), 'pad' (all
            of it, on black).
        colours: 'rgb' or 'bgr': which of them the model's input has first, where it does not say it or says it wrong.
        mean, std: of the pixels in 0..255 by channel, for the input (pixel - mean) / std, where the model's are wrong.
        pixel_range: of images with more than 8 bits (16-bit grey, floating point): the numbers that become 0 and 255;
            default: 0 and 65536.
        frozen_weights: 'float32', or 'int8': rounded to 8 bits, a quarter of the size in the native trainer; default:
            float32, unless `memory_limit` asks for less. Weights that a file has in 8 bits stay as they are.
        memory_limit: bytes that the native trainer's process may take in all; what it gives up for that, it gives up
            in the order of the time that it costs.
        threads: how many of the native trainer's `memory_limit` has room for; default: 1.
        device: a board's name, as `tinytl-edge devices` lists them: picks memory limit, threads and, of a backbone,
            resolution to fit the board, where they are not given; notes say what and why.
        raw_pixels: the model file that comes out takes uint8 [batch, H, W, C] as a camera gives it, instead of
            normalised float32 [batch, C, H, W].
        seed: of what is initialised at random (classifier, lite residual modules).
    """

    weights: str | None = None
    classes: int | Sequence[str] | None = None
    multi_label: bool = False
    room: int | None = None
    labels: str | PathLike[str] | None = None
    train: str | Sequence[str] = "auto"
    resolution: int | tuple[int, int] | None = None
    fit: str | None = None
    colours: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    pixel_range: tuple[float, ...] | None = None
    batch_size: int = 8
    optimizer: str = "adam"
    frozen_weights: str | None = None
    memory_limit: int | None = None
    threads: int | None = None
    device: str | None = None
    raw_pixels: bool = False
    seed: int = 0

    @property
    def method(self) -> str:
        """The one of `METHODS` that trains."""
        return next((word for word in self._train if word in METHODS), "last")

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of the names of further parameters that train."""
        return tuple(word for word in self._train if word not in METHODS)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the input."""
        return (self.resolution, self.resolution) if isinstance(self.resolution, int) else self.resolution

    @property
    def _train(self) -> tuple[str, ...]:
        return (self.train,) if isinstance(self.train, str) else tuple(self.train)

    def check(self) -> PrepareOptions:
        """Return self.

        Raises:
            UsageError: a value is out of its range; says which.
        """
        methods = [word for word in self._train if word in METHODS]
        if len(methods) > 1:
            raise UsageError(f"--train {methods[0]} and --train {methods[1]}: choose one of {', '.join(METHODS)}.")
        choices: list[tuple[str | None, str, Sequence[str]]] = [
            (self.optimizer, "optimizer", OPTIMIZERS),
            (self.frozen_weights, "kind of frozen weights", FROZEN_WEIGHTS),
            (self.fit, "way to fit an image", FITS),
            (self.colours, "order of colours", COLOURS),
        ]
        for value, what, of in choices:
            if value not in (None, *of):
                raise UsageError(f"'{value}' is no {what}: choose one of {', '.join(of)}.")
        numbers: list[tuple[str, int | None, int, int]] = [
            ("batch-size", self.batch_size, 1, 4096),
            ("threads", self.threads, 1, 1024),
            ("room", self.room, 0, 1000),
            *(("resolution", side, 16, 1024) for side in self.size or ()),
        ]
        for name, number, low, high in numbers:
            if number is not None and not low <= number <= high:
                raise UsageError(f"--{name} {number} is out of range: {low} to {high}.")
        if not all(map(math.isfinite, self.mean or ())) or not all(0 < value < math.inf for value in self.std or ()):
            raise UsageError("--mean and --std are of pixels in 0..255, and --std is above zero.")
        if self.pixel_range and not self.pixel_range[0] < self.pixel_range[1]:
            raise UsageError(f"--pixel-range {range_text(self.pixel_range)}: low goes before high.")
        return self
