"""GroupNorm in TFLite's elementary operators, as lite residual modules come out, read as one operator again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .tflite_graph import ANY, GraphBuilder
from .tflite_reader import Operator, TFLiteModel

# (x - mean) / sqrt(variance + epsilon) of groups of channels: what stands one behind the other.
_KINDS = ("RESHAPE", "MEAN", "SQUARED_DIFFERENCE", "MEAN", "ADD", "RSQRT", "SUB", "MUL", "RESHAPE")


@dataclass(frozen=True)
class GroupNorm:
    """The tensor that is normalised, in so many groups, and the operators that do it."""

    tensor: int
    groups: int
    epsilon: float
    operators: tuple[Operator, ...]


def find_group_norms(file: TFLiteModel) -> dict[int, GroupNorm]:
    """All of a file, by the index of their last operator."""
    found = {}
    for first in range(len(file.operators) - len(_KINDS) + 1):
        operators = file.operators[first : first + len(_KINDS)]
        if tuple(operator.kind for operator in operators) == _KINDS:
            norm = _group_norm(file, operators)
            if norm is not None:
                found[operators[-1].index] = norm
    return found


def _group_norm(file: TFLiteModel, operators: Sequence[Operator]) -> GroupNorm | None:
    reshape, mean, squares, variance, above, root, centred, scaled, back = operators
    x, y = reshape.inputs[0], reshape.outputs[0]
    grouped, whole = file.tensors[y].shape, file.tensors[x].shape
    axes, epsilon = (_numbers(file, operator.inputs[1]) for operator in (mean, above))
    wired = (
        mean.inputs[0] == y
        and squares.inputs == (y, mean.outputs[0])
        and variance.inputs == (squares.outputs[0], mean.inputs[1])
        and above.inputs[0] == variance.outputs[0]
        and root.inputs == above.outputs
        and centred.inputs == (y, mean.outputs[0])
        and scaled.inputs == (centred.outputs[0], root.outputs[0])
        and back.inputs[0] == scaled.outputs[0]
        and file.tensors[back.outputs[0]].shape == whole
    )
    groups_of_channels = (
        len(whole) == len(grouped) == 4
        and grouped[1] == whole[1] * whole[2]
        and grouped[2] * grouped[3] == whole[3]
        and axes == [1, 3]
    )
    if not (wired and groups_of_channels and len(epsilon) == 1 and _alone(file, operators)):
        return None
    return GroupNorm(x, int(grouped[2]), float(epsilon[0]), tuple(operators))


def _alone(file: TFLiteModel, operators: Sequence[Operator]) -> bool:
    """Does nothing else read what is made in between?"""
    made = {output for operator in operators[:-1] for output in operator.outputs}
    others = [operator for operator in file.operators if operator not in operators]
    return not made & {index for operator in others for index in operator.inputs} and not made & set(file.outputs)


def _numbers(file: TFLiteModel, tensor: int) -> list[float]:
    found = file.tensors[tensor]
    return [] if found.data is None else [float(number) for number in found.codes().reshape(-1)]


def convert_group_norm(graph: GraphBuilder, norm: GroupNorm) -> None:
    """As an InstanceNormalization of the groups, without scale and shift, which stand behind it."""
    last = norm.operators[-1]
    graph.begin(last)
    x = graph.map(norm.operators[0])
    _, height, width, channels = x.shape
    inner = (channels, height, width)
    each = channels // norm.groups * height * width
    to_groups = graph.integer_list((0, norm.groups, -1), "groups")
    y = graph.node("Reshape", [x.value, to_groups], (norm.groups, each))
    ones, zeros = (graph.initializer(np.full(norm.groups, n, np.float32), f"{n:g}s") for n in (1.0, 0.0))
    y = graph.node("InstanceNormalization", [y, ones, zeros], (norm.groups, each), {"epsilon": norm.epsilon})
    y = graph.node("Reshape", [y, graph.integer_list((0, *inner), "channels")], inner)
    graph.finish(last, replace(x, value=y, bounds=ANY))
