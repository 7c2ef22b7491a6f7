"""What a training run can be told, its defaults, and the learning rate at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinytl_edge.runtime.files.records import read_record

from .errors import DamagedFileError, UsageError

if TYPE_CHECKING:
    from tinytl_edge.runtime.files.bundle import Manifest

# Learning rates by optimizer and group at a batch of 8, found in docs/accuracy.md: of a classifier that knows its
# classes when training begins, and of one that does not.
_RATES = {
    "adam": {"classifier": 3e-4, "bias": 5e-4, "lite_residual": 3e-3, "weight": 4e-4},
    "sgd": {"classifier": 0.01, "bias": 0.002, "lite_residual": 0.02, "weight": 0.005},
    "momentum": {"classifier": 0.001, "bias": 0.0002, "lite_residual": 0.002, "weight": 0.0005},
}
_RATES_OF_NEW = {
    "adam": {"classifier": 3e-3, "bias": 3e-3, "lite_residual": 3e-3, "weight": 2e-4},
    "sgd": {"classifier": 0.1, "bias": 0.02, "lite_residual": 0.02, "weight": 0.005},
    "momentum": {"classifier": 0.01, "bias": 0.002, "lite_residual": 0.002, "weight": 0.0005},
}
_RATES_BATCH = 8
_LOOKS, _LEAST, _MOST = 3600, 3, 30  # images looked at in a training, and how many epochs that may be
LOG_EVERY = 10  # steps
BLEND = 0.65
BLEND_OF_DEPLOYED = 0.2  # which knows another place, too
KEEP = 0.3
HELD_OUT = 0.2
OPTIMIZERS = tuple(_RATES)
ONE_PASS, PREPARED, RUN_START = STARTS = ("one-pass", "prepared", "run")
NEW, EXTENDED, KEPT = CLASSIFIERS = ("new", "extended", "kept")  # what a bundle's was before
GROUPS = tuple(_RATES["adam"])


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run; the defaults suit a few dozen to a few thousand images.

    `start` tells where training begins: "one-pass", with the classifier that one forward pass over the images finds,
    "prepared", with the bundle's, or "run", with what the run has learnt that it goes on from; None: the run, where
    there is one, else one pass, unless the classifier knows but some of the classes. `keep` is the share that images
    which the bundle was prepared with have in that pass, by their features, where the classifier knew all classes;
    None: KEEP. `epochs` None: as many as `rounds` says; 0: the pass alone.
    `hold_out` is the share of the images that training is first not shown, to be judged on; None: HELD_OUT, where there
    are images enough. `blend` is the share of what was trained in the result, the rest being where training began;
    None: what is judged best, or BLEND without a judge (BLEND_OF_DEPLOYED of a classifier that the file had); 1 where
    the classifier did not know its classes at the start. `lr` is the classifier's rate, `lr_bias`, `lr_lite_residual`
    and `lr_weight` the other groups'; None
    stands for the default of the optimizer and batch size. `batch_size` None is the bundle's, `threads` None
    the machine's fastest cores, `log_every` None LOG_EVERY steps, `dropout` None the model's own rate. `min_area` is
    the smallest fraction of an image that a random crop takes (1 and no `flip`: no augmentation). `flip` mirrors images
    at random; None: unless the images that it is judged on are, mirrored, taken for other classes.
    """

    epochs: int | None = None
    start: str | None = None
    keep: float | None = None
    hold_out: float | None = None
    blend: float | None = None
    batch_size: int | None = None
    lr: float | None = None
    lr_bias: float | None = None
    lr_lite_residual: float | None = None
    lr_weight: float | None = None
    seed: int = 0
    label_smoothing: float = 0.1
    dropout: float | None = None
    min_area: float = 0.22
    flip: bool | None = None
    threads: int | None = None
    log_every: int | None = None

    def check(self) -> TrainOptions:
        """Return self.

        Raises:
            UsageError: a value is out of its range; says which.
        """
        ranges: dict[str, tuple[float, float]] = {
            "epochs": (0, 10**6),
            "batch_size": (1, 4096),
            "lr": (0, 10),
            "lr_bias": (0, 10),
            "lr_lite_residual": (0, 10),
            "lr_weight": (0, 10),
            "keep": (0, 0.95),
            "hold_out": (0, 0.5),
            "blend": (0, 1),
            "seed": (0, 2**63 - 1),
            "label_smoothing": (0, 0.99),
            "dropout": (0, 0.95),
            "min_area": (0.01, 1),
            "threads": (1, 1024),
            "log_every": (1, 10**9),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"--{name.replace('_', '-')} {value} is out of range: {low} to {high}.")
        if self.start not in (None, *STARTS):
            raise UsageError(f"'{self.start}' is no way to start: choose one of {', '.join(STARTS)}.")
        return self

    def learning_rates(self, manifest: Manifest) -> dict[str, float]:
        """The rate of each parameter group, of training a bundle.

        Defaults scale from a batch of 8 with the batch size for SGD and momentum, and with its root for Adam. A
        classifier that knows its classes already would lose by steps that a new one needs.
        """
        optimizer = manifest.optimizer
        ratio = (self.batch_size or manifest.batch_size) / _RATES_BATCH
        factor = math.sqrt(ratio) if optimizer == "adam" else ratio
        given = {
            "classifier": self.lr,
            "bias": self.lr_bias,
            "lite_residual": self.lr_lite_residual,
            "weight": self.lr_weight,
        }
        return {
            group: rate * factor if given[group] is None else float(given[group] or 0)
            for group, rate in (_RATES if self.begins_knowing(manifest) else _RATES_OF_NEW)[optimizer].items()
        }

    def rounds(self, images: int) -> int:
        """How many epochs, of training on so many images: where there are few it is steps that count, not epochs."""
        return self.epochs if self.epochs is not None else min(max(round(_LOOKS / images), _LEAST), _MOST)

    def begins_knowing(self, manifest: Manifest) -> bool:
        """Does the classifier know its classes when training begins?"""
        return self.start in (ONE_PASS, RUN_START) or manifest.classifier == KEPT

    @classmethod
    def from_json(cls, content: object, where: object) -> TrainOptions:
        """Options as they were recorded in the file `where`.

        Raises:
            DamagedFileError: they are no options, or a field is of another type or out of its range.
        """
        options = read_record(cls, content, where)
        try:
            return options.check()
        except UsageError as error:
            raise DamagedFileError(f"{where} is damaged: in the options of the training run, {error}") from None


def schedule(step: int, total: int) -> float:
    """The share of the learning rate at `step` of `total`, from 0 on.

    A cosine to zero, (1 + cos(pi * step / total)) / 2 (the paper's); in the first tenth of the steps the rate rises in
    equal steps besides. Without that, Adam moves every parameter by a whole rate in the first step, whatever its
    gradient, and full fine-tuning may never come back from there (docs/accuracy.md).
    """
    warm_up = -(-total // 10)
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / total))
