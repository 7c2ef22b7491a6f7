"""A network graph in PyTorch, node by node: for gradients in float64, and for comparisons."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from tinytl_edge.runtime.errors import UsageError

from .eager_operators import OPERATORS
from .onnx_graph import constant


@dataclass(frozen=True)
class _Step:
    """One node: reads `inputs` ("" where absent), makes `outputs`; nothing reads `last` behind it."""

    node: ir.Node
    function: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...]

    def __deepcopy__(self, memo: object) -> _Step:
        return self


class EagerNetwork(nn.Module):
    """Interprets a network graph with torch's functions; any batch, and any float dtype after `.double()` or `.to()`.

    Float initializers become parameters, of which those named in `trainable` require gradients; 8-bit weights are
    dequantised once and are constants. Clip's gradient is PyTorch's, nonzero strictly between its limits.

    Raises:
        UsageError: the graph has an operator that is not known here.
    """

    def __init__(self, model: ir.Model | str | os.PathLike[str], trainable: Collection[str] = ()) -> None:
        super().__init__()
        if not isinstance(model, ir.Model):
            model = ir.load(os.fspath(model))
        graph = model.graph
        self._images, *self._masks = [str(value.name) for value in graph.inputs]
        self._logits = str(graph.outputs[0].name)
        self._keys: dict[str, str] = {}  # an initializer's name -> what torch registers it as: no dots
        self._steps = _steps(graph, self._logits)
        made = {name for step in self._steps for name in (*step.outputs, self._images, *self._masks, "")}
        values = {str(value.name): value for node in graph for value in (*node.inputs, *node.outputs) if value}
        for name in dict.fromkeys(name for step in self._steps for name in step.inputs if name not in made):
            content = constant(values[name])
            if content is None:
                raise UsageError(f"The graph's value '{name}' is neither computed nor constant.")
            tensor = torch.from_numpy(content.copy())
            self._keys[name] = key = f"value{len(self._keys)}"
            if tensor.is_floating_point() and values[name].producer() is None:
                self.register_parameter(key, nn.Parameter(tensor, requires_grad=name in trainable))
            else:
                self.register_buffer(key, tensor)

    @property
    def parameters_by_name(self) -> dict[str, nn.Parameter]:
        """The float initializers under their names in the graph."""
        return {name: p for name, key in self._keys.items() if (p := self._parameters.get(key)) is not None}

    def forward(self, images: Tensor, masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """images [batch, C, H, W] -> logits [batch, classes]; a dropout mask that is not given is 1."""
        values: dict[str, Any] = {name: getattr(self, key) for name, key in self._keys.items()}
        values[""] = None
        values[self._images] = images
        for name in self._masks:
            values[name] = masks[name] if masks and name in masks else images.new_ones(())
        for step in self._steps:
            made = step.function(step.node, *[values[name] for name in step.inputs])
            values.update(zip(step.outputs, made if isinstance(made, (tuple, list)) else (made,)))
            for name in step.last:
                values.pop(name, None)
        logits: Tensor = values[self._logits]
        return logits


def _steps(graph: ir.Graph, result: str) -> list[_Step]:
    steps: list[_Step] = []
    read = {result}
    for node in reversed(list(graph)):
        outputs = tuple(str(value.name or "") for value in node.outputs)
        if not read.intersection(outputs):
            continue
        if node.op_type == "DequantizeLinear" and constant(node.outputs[0]) is not None:
            continue  # a weight, taken as the constant that it is
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            raise UsageError(f"The network's operator {node.op_type} ('{node.name}') is not known here.")
        inputs = tuple(str(value.name) if value is not None else "" for value in node.inputs)
        last = tuple({*inputs, *outputs} - read - {""})
        read.update(inputs)
        steps.append(_Step(node, OPERATORS[node.op_type], inputs, outputs, last))
    return steps[::-1]
