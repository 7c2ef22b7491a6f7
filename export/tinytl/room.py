"""Outputs that wait for classes which come later, in the field: behind the known ones, and less likely than any.

A class that waits has weights of zero and a bias so low that its probability is exactly zero: neither the loss nor a
gradient tells that it is there, and no image is taken for it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .classifier import Classifier, find_classifier, rows_of, with_outputs

WAITS = -1e4  # the bias of an output that waits: exp(WAITS) is zero in float32


def add_room(model: ir.Model, classifier: Classifier, count: int) -> Classifier:
    """Give the classifier `count` further outputs that wait."""
    weight, bias = rows_of(classifier)
    weight = np.concatenate([weight, np.zeros((count, *weight.shape[1:]), np.float32)])
    return with_outputs(model, classifier, weight, np.append(bias, np.full(count, WAITS, np.float32)), known=len(bias))


def without_room(model: ir.Model, classes: int) -> ir.Model:
    """A copy with the first `classes` outputs alone."""
    model = model.clone()
    classifier = find_classifier(model)
    weight, bias = rows_of(classifier)
    with_outputs(model, classifier, weight[:classes], bias[:classes])
    return model
