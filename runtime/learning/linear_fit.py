"""What a linear classifier that is fitted in closed form comes to, and what every such fit takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SHRINKAGES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
LEAST_VARIANCE = 1e-4  # of a feature
MOST_SCORES = 1 << 18  # of samples left out


@dataclass(frozen=True)
class LinearFit:
    """logits = features @ weight.T + bias: weight [classes, features], bias [classes].

    `shrinkage`, `pull`: how much of it the fit took, if it takes any.
    `loss` and `accuracy` are of samples that are left out of the fit, each class being as important; None where no
    class has two samples. `answers` of these samples: the probability of the likeliest class, and whether it is right;
    none where a sample may have several labels. `kept`: the accuracy before and now on samples of the place that the
    classifier comes from, which are left out, too.
    """

    weight: Array
    bias: Array
    shrinkage: float | None
    loss: float | None
    accuracy: float | None
    answers: list[tuple[float, bool]]
    pull: float | None = None
    kept: tuple[float, float] | None = None
