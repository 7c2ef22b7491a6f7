"""The classifier of a network graph: the last layer with weights, and giving it other outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tinytl_edge.export.onnx_graph import Array, add_initializer, constant, maker, set_initializer, sizes, weight_source
from tinytl_edge.export.passes.origin import forget, record
from tinytl_edge.runtime.errors import UsageError
from tinytl_edge.runtime.files.bundle import Head

from .trainables import widen_weight

# What may stand between the classifier and the logits: nothing that mixes channels.
_BETWEEN = {
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose", "GlobalAveragePool", "ReduceMean",
    "AveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "Relu", "Clip",
}  # fmt: skip
_SCALE_OF_NEW_WEIGHTS = 0.01


@dataclass(frozen=True)
class Classifier:
    """Its layer (Conv, Gemm or MatMul), its weight's and (if any) its bias' initializers, and its number of outputs."""

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    outputs: int

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its parameters."""
        return tuple(value.name for value in (self.weight, self.bias) if value is not None and value.name is not None)


def find_classifier(model: ir.Model) -> Classifier:
    """The layer that gives the logits.

    Raises:
        UsageError: the network ends in something else than a linear layer or convolution.
    """
    value, bias = model.graph.outputs[0], None
    while (node := value.producer()) is not None:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            weight = weight_source(node.inputs[1])
            own = weight_source(node.inputs[2]) if len(node.inputs) > 2 else None
            array = constant(weight)
            if weight is None or array is None or (node.op_type == "MatMul" and maker(node.inputs[1]) is None):
                break
            return Classifier(node, weight, own or bias, array.shape[0])
        maps = [source for source in node.inputs if source is not None and weight_source(source) is None]
        if node.op_type == "Add" and len(maps) == 1 and bias is None:
            bias = next(weight_source(source) for source in node.inputs if source is not maps[0])
        elif node.op_type not in _BETWEEN or len(maps) != 1:
            break
        value = maps[0]
    what = node.op_type if node is not None else "its input"
    raise UsageError(f"The model ends in {what}, not in a linear layer or a convolution: no classifier to adapt.")


# What leaves single pixels as they are.
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose"}


def features_of(classifier: Classifier) -> ir.Value | None:
    """The features that a classifier is linear in: [batch, features, ...] of one pixel; None, where it is not.

    It is not where its layer sees more than one pixel, has no bias, or something changes what it gives.
    """
    node, bias = classifier.node, classifier.bias
    features, weight = node.inputs[0], constant(classifier.weight)
    if features is None or features.shape is None or weight is None or bias is None:
        return None
    size = math.prod(int(length) for length in features.shape[1:] if isinstance(length, int))
    if size != weight.size // classifier.outputs:
        return None
    value = node.outputs[0]
    while uses := list(value.uses()):
        behind = uses[0].node
        adds_bias = behind.op_type == "Add" and any(weight_source(each) is bias for each in behind.inputs)
        if len(uses) > 1 or not (behind.op_type in _VIEWS or adds_bias):
            return None
        value = behind.outputs[0]
    return features


def find_head(model: ir.Model) -> Head | None:
    """The classifier as a bundle describes it, where one pass can fit it."""
    classifier = find_classifier(model)
    features = features_of(classifier)
    if features is None:
        return None
    weight, bias = classifier.parameters
    return Head(weight, bias, math.prod(sizes(features)))


def new_outputs(model: ir.Model, classifier: Classifier, count: int, seed: int) -> Classifier:
    """Replace the classifier's weights by small random ones for `count` classes; its bias starts at zero."""
    shape = _weights(classifier).shape[1:]
    weight = np.random.default_rng(seed).normal(0, _SCALE_OF_NEW_WEIGHTS, (count, *shape)).astype(np.float32)
    return with_outputs(model, classifier, weight, np.zeros(count, np.float32))


def more_outputs(model: ir.Model, classifier: Classifier, count: int) -> Classifier:
    """Add `count` classes behind the known ones. They start as the mean of those, a little less likely."""
    weight, bias = rows_of(classifier)
    mean = np.broadcast_to(weight.mean(0, keepdims=True), (count, *weight.shape[1:]))
    low = np.full(count, bias.mean() - bias.std(), np.float32)
    return with_outputs(model, classifier, np.concatenate([weight, mean]), np.concatenate([bias, low]))


def two_outputs(model: ir.Model, classifier: Classifier) -> Classifier:
    """One logit z, whose sigmoid is the second of two classes, becomes two: (-z/2, z/2), whose softmax is the same."""
    weight, bias = rows_of(classifier)
    made = with_outputs(model, classifier, np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2)
    for value in (made.weight, made.bias):
        if value is not None:
            record(value, "two_outputs")
    return made


def rows_of(classifier: Classifier) -> tuple[Array, Array]:
    """Its weights [outputs, ...] and biases [outputs]."""
    return _weights(classifier), _biases(classifier)


def _weights(classifier: Classifier) -> Array:
    array = constant(classifier.node.inputs[1])
    assert array is not None
    return array.T if classifier.node.op_type == "MatMul" else array


def _biases(classifier: Classifier) -> Array:
    array = constant(classifier.bias)
    return np.zeros(classifier.outputs, np.float32) if array is None else array.reshape(-1).astype(np.float32)


def with_outputs(
    model: ir.Model, classifier: Classifier, weight: Array, bias: Array, known: int | None = None
) -> Classifier:
    """Give the classifier these weights float32 [outputs, ...] and biases [outputs], and what follows as many.

    Args:
        known: how many of the outputs stand for a class; default: all.
    """
    node, old, count = classifier.node, classifier.outputs, len(weight)
    reader = next(iter(classifier.weight.uses())).node
    if reader.op_type == "DequantizeLinear":
        widen_weight(model, reader)
    set_initializer(classifier.weight, weight.astype(np.float32))
    made = classifier.bias
    if (count if known is None else known) != 2:
        for value in (classifier.weight, made):
            if value is not None:
                forget(value, "two_outputs")
    if made is not None:
        shape = tuple(count if size == old else size for size in (constant(made)).shape)  # type: ignore[union-attr]
        set_initializer(made, bias.astype(np.float32).reshape(shape))
    elif node.op_type != "MatMul":
        made = add_initializer(
            model, f"{(classifier.weight.name or '').removesuffix('.weight')}.bias", bias.astype(np.float32)
        )
        node.resize_inputs(3)
        node.replace_input_with(2, made)
    _resize_behind(model, node, old, count)
    return Classifier(node, classifier.weight, made, count)


def _resize_behind(model: ir.Model, first: ir.Node, old: int, new: int) -> None:
    """Let the values from `first` to the logits have `new` channels where they had `old`."""
    if first.op_type == "MatMul":
        first = maker(first.inputs[1]) or first  # its Transpose has a shape, too
        transposed = first.outputs[0]
        if transposed.shape is not None:
            transposed.shape = ir.Shape([new if size == old else size for size in transposed.shape])
        first = next(iter(transposed.uses())).node
    pending = [first]
    while pending:
        node = pending.pop()
        for value in node.outputs:
            if value.shape is not None:
                batch, *rest = tuple(value.shape)
                value.shape = ir.Shape([batch, *(new if size == old else size for size in rest)])
            pending += [use.node for use in value.uses()]
        if node.op_type == "Reshape":
            target = constant(node.inputs[1])
            if target is not None and (target[1:] == old).any():
                changed = target.copy()
                changed[1:][changed[1:] == old] = new
                node.replace_input_with(1, add_initializer(model, f"{node.name}/shape", changed))
