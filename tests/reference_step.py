"""Runs the compiler's graph value by value in float64, with PyTorch's functions: what each operator means."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional, grad

from tinytl_edge.export.step.ir import Graph, Op

Tensors = dict[str, torch.Tensor]


class ReferenceStep:
    """One sample's forward and backward pass; `gradients` by parameter name, in PyTorch's layout."""

    def __init__(self, graph: Graph, parameters: Tensors) -> None:
        self._graph = graph
        self._parameters = parameters
        self.gradients: Tensors = {}

    def run(self, image: torch.Tensor, targets: torch.Tensor, masks: list[torch.Tensor]) -> float:
        """Image [3, H, W], targets [classes], a dropout mask for each layer; all float64. Returns the loss."""
        self._masks = masks
        self._values: Tensors = {self._graph.image: image[None], "targets": targets}
        for op in self._graph.ops():
            reads = {role: self._values[name] for role, name in op.reads.items()}
            results = getattr(self, f"_{op.kind}")(op, reads)
            for role, name in op.writes.items():
                self._values[name] = results[role]
        return self.loss

    def _parameter(self, op: Op, role: str) -> torch.Tensor | None:
        return self._parameters[op.parameters[role]] if role in op.parameters else None

    def _add_gradient(self, name: str, value: torch.Tensor) -> None:
        self.gradients[name] = self.gradients.get(name, 0) + value.reshape(self._parameters[name].shape)

    def _conv(self, op: Op, reads: Tensors) -> Tensors:
        x = reads["x"]
        if op.parameters["weight"].startswith("classifier"):
            y = functional.linear(x.flatten(1), self._parameter(op, "weight"), self._parameter(op, "bias"))
        else:
            y = functional.conv2d(
                self._padded(op, x),
                self._parameter(op, "weight"),
                self._parameter(op, "bias"),
                op.attributes["geometry"]["stride"],
                groups=op.attributes["geometry"]["groups"],
            )
        return self._activate(op, {"x": y})

    _pointwise = _depthwise = _conv

    @staticmethod
    def _pads(op: Op) -> tuple[int, int, int, int]:
        """Left, right, top, bottom; as many behind as the output reaches."""
        g = op.attributes["geometry"]
        behind = [
            max((g["out"][i] - 1) * g["stride"][i] + g["kernel"][i] - g["pad"][i] - g["in"][i], 0) for i in range(2)
        ]
        return g["pad"][1], behind[1], g["pad"][0], behind[0]

    def _padded(self, op: Op, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x, self._pads(op))

    def _conv_dx(self, op: Op, reads: Tensors) -> Tensors:
        g, weight, dy = op.attributes["geometry"], self._parameter(op, "weight"), reads["dy"]
        assert weight is not None
        if weight.dim() == 2:
            return {"dx": (dy @ weight)[:, :, None, None]}
        left, right, top, bottom = self._pads(op)
        height, width, channels = g["in"]
        shape = (1, channels, height + top + bottom, width + left + right)
        dx = grad.conv2d_input(shape, weight, dy, g["stride"], groups=g["groups"])
        return {"dx": dx[:, :, top : top + height, left : left + width]}

    _pointwise_dx = _depthwise_dx = _conv_dx

    def _conv_dw(self, op: Op, reads: Tensors) -> Tensors:
        g, name, dy = op.attributes["geometry"], op.parameters["weight"], reads["dy"]
        if self._parameters[name].dim() == 2:
            self._add_gradient(name, dy.T @ reads["x"].flatten(1))
        else:
            x, shape = self._padded(op, reads["x"]), self._parameters[name].shape
            self._add_gradient(name, grad.conv2d_weight(x, shape, dy, g["stride"], groups=g["groups"]))
        return {}

    _pointwise_dw = _depthwise_dw = _conv_dw

    def _activate(self, op: Op, reads: Tensors) -> Tensors:
        x, kind = reads["x"], op.attributes["activation"]
        if kind == "none":
            return {"y": x}
        y = x.clamp(0, 6) if kind == "relu6" else x.clamp_min(0)
        return {"y": y, "mask": (y > 0) & ((y < 6) if kind == "relu6" else True)}

    def _mask_gradient(self, op: Op, reads: Tensors) -> Tensors:
        return {"dx": reads["dy"] * reads["mask"]}

    def _bias_gradient(self, op: Op, reads: Tensors) -> Tensors:
        self._add_gradient(op.parameters["bias"], reads["dy"].flatten(2).sum((0, 2)) if reads["dy"].dim() == 4
                           else reads["dy"].sum(0))  # fmt: skip
        return {}

    def _add(self, op: Op, reads: Tensors) -> Tensors:
        return {"y": reads["x"] + reads["other"]}

    def _average_pool(self, op: Op, reads: Tensors) -> Tensors:
        g = op.attributes["geometry"]
        return {"y": functional.avg_pool2d(reads["x"], g["kernel"], g["stride"])}

    def _upsample(self, op: Op, reads: Tensors) -> Tensors:
        size = op.attributes["geometry"]["out"][:2]
        return {"y": functional.interpolate(reads["x"], size=size, mode="bilinear", align_corners=False)}

    def _global_pool(self, op: Op, reads: Tensors) -> Tensors:
        return {"y": reads["x"].mean((2, 3), keepdim=True)}

    def _by_autograd(self, op: Op, reads: Tensors) -> Tensors:
        """A linear map's gradient does not depend on where it is taken."""
        forward = op.kind.removesuffix("_dx")
        height, width, channels = self._graph.values[op.writes["dx"]].shape
        x = torch.zeros(1, channels, height, width, dtype=torch.float64, requires_grad=True)
        y = getattr(self, f"_{forward}")(op, {"x": x})["y"]
        return {"dx": torch.autograd.grad(y, x, reads["dy"].reshape(y.shape))[0]}

    _average_pool_dx = _upsample_dx = _global_pool_dx = _by_autograd

    def _group_norm(self, op: Op, reads: Tensors) -> Tensors:
        weight, bias = self._parameter(op, "weight"), self._parameter(op, "bias")
        y = functional.group_norm(reads["x"], op.attributes["groups"], weight, bias, op.attributes["epsilon"])
        return {"y": y, "statistics": torch.zeros(0)}

    def _group_norm_backward(self, op: Op, reads: Tensors) -> Tensors:
        x = reads["x"].detach().requires_grad_()
        weight = self._parameter(op, "weight")
        assert weight is not None
        weight = weight.detach().requires_grad_()
        bias = torch.zeros_like(weight, requires_grad=True)
        y = functional.group_norm(x, op.attributes["groups"], weight, bias, op.attributes["epsilon"])
        dx, dweight, dbias = torch.autograd.grad(y, (x, weight, bias), reads["dy"])
        self._trained(op, dweight, dbias)
        return {"dx": dx}

    def _trained(self, op: Op, dweight: torch.Tensor | None, dbias: torch.Tensor) -> None:
        if "train_weight" in op.parameters:
            assert dweight is not None
            self._add_gradient(op.parameters["train_weight"], dweight)
        if "train_bias" in op.parameters:
            self._add_gradient(op.parameters["train_bias"], dbias)

    def _affine(self, op: Op, reads: Tensors) -> Tensors:
        weight, bias = (self._parameters[op.parameters[role]].reshape(-1, 1, 1) for role in ("weight", "bias"))
        return {"y": reads["x"] * weight + bias}

    def _affine_backward(self, op: Op, reads: Tensors) -> Tensors:
        dweight = (reads["dy"] * reads["x"]).sum((0, 2, 3)) if "x" in reads else None
        self._trained(op, dweight, reads["dy"].sum((0, 2, 3)))
        return {"dx": reads["dy"] * self._parameters[op.parameters["weight"]].reshape(-1, 1, 1)}

    def _dropout(self, op: Op, reads: Tensors) -> Tensors:
        mask = self._masks[op.attributes["layer"]].reshape(reads["x"].shape)
        return {"y": reads["x"] * mask, "mask": mask}

    def _dropout_dx(self, op: Op, reads: Tensors) -> Tensors:
        return {"dx": reads["dy"].reshape(reads["mask"].shape) * reads["mask"]}

    def _loss(self, op: Op, reads: Tensors) -> Tensors:
        logits, targets = reads["x"].detach().requires_grad_(), reads["targets"]
        loss = -(targets * logits.log_softmax(1)).sum()
        self.loss = float(loss.detach())
        gradient: Any = torch.autograd.grad(loss, logits)[0]
        return {"dx": gradient}
