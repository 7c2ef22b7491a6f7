"""Where a training stands, and its stages: what runtime/native/store.h and course.h are to the native trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from tinytl_edge.runtime.unknown import Unknown

from .ort_judge import Score


@dataclass
class Sums:
    """Of an epoch: the sum of losses, right answers, images seen, lowest and highest logit."""

    losses: float = 0.0
    correct: int = 0
    seen: int = 0
    low: float = 0.0
    high: float = 0.0

    def add_range(self, low: float, high: float) -> None:
        """Widen the range of the logits."""
        self.low, self.high = min(self.low, low), max(self.high, high)


@dataclass
class Standing:
    """Where a training stands."""

    step: int = 0
    sums: Sums = field(default_factory=Sums)
    start: Score = field(default_factory=Score)
    score: Score = field(default_factory=Score)
    best: Score = field(default_factory=Score)
    best_step: int = 0
    ended: int = 0
    share: float | None = None
    left_out: float | None = None
    kept_before: float | None = None
    kept: float | None = None
    flips: bool = True
    unknown: Unknown | None = None

    @classmethod
    def from_text(cls, text: str) -> Standing:
        """As `text` kept it."""
        told = json.loads(text)
        told["sums"] = Sums(**told["sums"])
        told.update({name: Score(**told[name]) for name in ("start", "score", "best")})
        told["unknown"] = Unknown(**told["unknown"]) if told["unknown"] else None
        return cls(**told)

    def text(self) -> str:
        """To be kept."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Stage:
    """Epochs over images of its own."""

    images: Sequence[int]
    with_held_out: bool  # all of them, then
    start: str | None  # an adapter's file; None: where the training began
    first_epoch: int
    epochs: int
    first_step: int
    steps_an_epoch: int

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_an_epoch

    @property
    def end(self) -> int:
        return self.first_step + self.steps

    def epoch_of(self, step: int) -> int:
        return self.first_epoch + (step - self.first_step) // self.steps_an_epoch

    def ends_epoch(self, step: int) -> bool:
        return (step - self.first_step) % self.steps_an_epoch == 0
