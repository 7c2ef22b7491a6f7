"""Images of none of the classes: how sure a classifier has to be of its likeliest class not to say "unknown".

runtime/native/unknown.cc does the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

UNKNOWN = "unknown"
_DEVIATIONS = 1.645  # below the middle of a normal distribution lies all but a twentieth
_SUREST = 1 - 1e-6
_FEW = 10  # right answers
_STEPS = 1000  # thresholds are multiples of one part in so many
JUNK = 32


@dataclass(frozen=True)
class Unknown:
    """`below` which probability of the likeliest class an image is likely of none.

    With it how many of the `right` answers are rejected that it was found by, of the `wrong` ones, and of `junk`: grey
    and noisy images.
    """

    below: float
    right: int = 0
    right_rejected: int = 0
    wrong: int = 0
    wrong_rejected: int = 0
    junk: int = 0
    junk_rejected: int = 0

    def with_answers(self, answers: Iterable[tuple[float, bool]]) -> Unknown:
        """Count further answers: the probability of the likeliest class, and whether it is right."""
        right = right_rejected = wrong = wrong_rejected = 0
        for probability, is_right in answers:
            rejected = probability < self.below
            right, right_rejected = right + is_right, right_rejected + (is_right and rejected)
            wrong, wrong_rejected = wrong + (not is_right), wrong_rejected + (not is_right and rejected)
        return replace(
            self, right=self.right + right, right_rejected=self.right_rejected + right_rejected,
            wrong=self.wrong + wrong, wrong_rejected=self.wrong_rejected + wrong_rejected,
        )  # fmt: skip

    def with_junk(self, probabilities: Sequence[float]) -> Unknown:
        """Count how many grey and noisy images are rejected, by the probabilities of their likeliest classes."""
        rejected = sum(probability < self.below for probability in probabilities)
        return replace(self, junk=len(probabilities), junk_rejected=rejected)

    def as_dict(self) -> dict[str, Any]:
        """For an event."""
        return asdict(self)


def find_unknown(answers: Sequence[tuple[float, bool]], classes: int) -> Unknown | None:
    """The probability that rejects about a twentieth of right answers.

    It is found as if their log-odds were normally distributed, as wide as the half below their median: of a few dozen
    answers no twentieth can be counted.

    Args:
        answers: of images that were not learnt from: the probability of the likeliest class, and whether it is right.

    Returns:
        None where there are few right answers, or no answer can be less sure.
    """
    sure = (min(probability, _SUREST) for probability, is_right in answers if is_right)
    right = sorted(math.log(probability / (1 - probability)) for probability in sure)
    if len(right) < _FEW:
        return None
    half = len(right) // 2
    middle = right[half]
    spread = math.sqrt(sum((odds - middle) ** 2 for odds in right[:half]) / half)
    below = math.floor(_STEPS / (1 + math.exp(_DEVIATIONS * spread - middle))) / _STEPS
    if below <= 1 / classes:
        return None
    return Unknown(below).with_answers(answers)


def unknown_said(unknown: Mapping[str, Any]) -> str:
    """'4 of 85 right images, 3 of 5 wrong ones, 32 of 32 grey and noisy ones': what becomes unknown."""
    words = f"{unknown['right_rejected']} of {unknown['right']} right images"
    words += f", {unknown['wrong_rejected']} of {unknown['wrong']} wrong ones" if unknown["wrong"] else ""
    return words + (f", {unknown['junk_rejected']} of {unknown['junk']} grey and noisy ones" if unknown["junk"] else "")
