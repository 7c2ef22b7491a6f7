"""A network graph becomes what trains on a board: lite residual modules, the choice of trainables, BatchNorm folded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .batchnorm import fold_batchnorm
from .blocks import find_blocks
from .classifier import find_classifier
from .lite_residual import attach_lite_residuals
from .methods import uses_lite_residuals
from .paper_memory import PaperMemory, paper_memory
from .parameters import find_parameters
from .trainables import choose_trainables, widen


@dataclass(frozen=True)
class Transformed:
    """What trains, by name, with its learning rate's group; the paper's count of memory; numbers of parameters."""

    trainable: dict[str, str]
    paper_memory: PaperMemory
    parameter_count: int
    trainable_count: int


def transform(
    model: ir.Model, method: str, also: Sequence[str] = (), seed: int = 0, weights: Collection[str] | None = None
) -> Transformed:
    """Apply the TinyTL transform in place.

    The paper's memory is counted before BatchNorm is folded, as the paper does.

    Args:
        method: one of `trainables.METHODS`.
        also: name patterns of further parameters to train.
        weights: which of the weights that `auto` would train; default: all of them.
        seed: of the lite residual modules' first values.

    Raises:
        UsageError: the method is unknown or does not fit the network, or a pattern matches nothing.
    """
    classifier = find_classifier(model)
    if uses_lite_residuals(method):
        attach_lite_residuals(model, find_blocks(model), seed)
    trainable = choose_trainables(model, method, classifier.parameters, also, weights)
    widen(model, trainable)
    counted = paper_memory(model, trainable)
    trainable = fold_batchnorm(model, trainable)
    sizes = {name: int(np.prod(use.value.shape or ())) for name, use in find_parameters(model).items()}  # type: ignore[arg-type]
    trained = sum(sizes.get(name, 0) for name in trainable)
    return Transformed(trainable, counted, sum(sizes.values()), trained)
