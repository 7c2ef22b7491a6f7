"""Runs the compiler's graph value by value in float64, with PyTorch's functions: what each operator means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from tinytl_edge.export.step.ir import Graph, Op, Part

Tensors = dict[str, torch.Tensor]
CURVES: dict[str, Callable[..., torch.Tensor]] = {
    "hard_swish": lambda x, alpha, beta: x * (alpha * x + beta).clamp(0, 1),
    "hard_sigmoid": lambda x, alpha, beta: (alpha * x + beta).clamp(0, 1),
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "leaky_relu": lambda x, alpha: torch.where(x < 0, alpha * x, x),
    "elu": lambda x, alpha: functional.elu(x, alpha),
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "softplus": functional.softplus,
    "tanh": torch.tanh,
    "mish": functional.mish,
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
}


def curve(op: Op, x: torch.Tensor) -> torch.Tensor:
    """What an operator's curve makes of x."""
    parameters = {name: value for name, value in op.attributes.items() if name in ("alpha", "beta")}
    return CURVES[op.attributes["activation"]](x, **parameters)


class ReferenceStep:
    """One sample's forward and backward pass; `gradients` by parameter name, in PyTorch's layout."""

    def __init__(self, graph: Graph, parameters: Tensors, engine_masks: dict[int, torch.Tensor] | None = None) -> None:
        """`parameters`: in float64, of those that are not the graph's own. `engine_masks` [1, C, H, W], by the number
        of the operator that made them, are used instead of its own.

        Near a kink float32 and float64 may fall on either side, and both are right.
        """
        self._graph = graph
        own = {n: torch.tensor(p.to_torch(p.value), dtype=torch.float64) for n, p in graph.parameters.items()}
        # Numbers for channels may be written [channels, 1, 1], a filter along channels as [1, 1, 3].
        given = {n: p.reshape(own[n].shape) for n, p in parameters.items() if n in own}
        self._parameters = {**own, **given}
        self._engine_masks = engine_masks or {}
        self.gradients: Tensors = {}
        self.bits = self.bits_apart = 0

    def run(self, image: torch.Tensor, targets: torch.Tensor, masks: list[torch.Tensor]) -> float:
        """Image [3, H, W], targets [classes], a dropout mask for each layer; all float64. Returns the loss."""
        self._masks = masks
        self._values: Tensors = {self._graph.image: image[None], "targets": targets}
        for number, op in enumerate(self._graph.ops()):
            reads = {role: self._read(name) for role, name in op.reads.items() if role != "loaded"}
            results = getattr(self, f"_{op.kind}")(op, reads)
            for role, name in op.writes.items():
                result = results[role]
                if role == "mask" and number in self._engine_masks:
                    self.bits += result.numel()
                    self.bits_apart += int((result != self._engine_masks[number]).sum())
                    result = self._engine_masks[number]
                self._write(name, result, role in op.adds_to, role in op.completes)
        return self.loss

    def _read(self, name: str) -> torch.Tensor:
        value = self._graph.values[name]
        if value.base is None:
            return self._values[name]
        whole, (height, width, channels) = self._values[value.base], value.shape
        if whole.shape[2:] == (1, 1):
            return whole[:, value.first : value.first + channels]
        first_row = value.first // (width * channels)
        return whole[:, :, first_row : first_row + height]

    def _write(self, name: str, result: torch.Tensor, adds: bool, completes: bool) -> None:
        value = self._graph.values[name]
        if completes:  # a part of what another operator began
            known = self._values[name]
            self._values[name] = torch.where(result.isnan(), known, result)
            return
        if value.base is not None:
            if value.base not in self._values:
                self._values[value.base] = torch.full(self._shape(value.base), torch.nan, dtype=torch.float64)
            rows = self._read(name)
            rows.copy_(rows + result if adds else result)
        elif adds and name not in self._graph.persistent | self._values.keys():
            raise AssertionError(f"added to '{name}' before it was written")
        else:
            self._values[name] = self._values.get(name, 0) + result if adds else result

    def _shape(self, name: str) -> tuple[int, ...]:
        height, width, channels = self._graph.values[name].shape
        return 1, channels, height, width

    def _of(self, part: Part) -> torch.Tensor:
        return self._parameters[part.parameter.name].narrow(part.axis, part.first, part.count)

    def _parameter(self, op: Op, role: str) -> torch.Tensor | None:
        return self._of(self._graph.part(op.parameters[role])) if role in op.parameters else None

    def _trained(self, op: Op, role: str) -> torch.Tensor:
        """The part whose gradient an operator writes."""
        return self._of(self._graph.part(op.writes[role].removeprefix("gradient/")))

    def _zero(self, op: Op, reads: Tensors) -> Tensors:
        name = op.writes["y"]
        part = self._graph.parts.get(name.removeprefix("gradient/"))
        shape = self._shape(name) if part is None else self._of(part).shape
        return {"y": torch.zeros(shape, dtype=torch.float64)}

    def _update(self, op: Op, reads: Tensors) -> Tensors:
        part = self._graph.part(op.parameters["weight"])
        name = part.parameter.name
        whole = self.gradients.setdefault(name, torch.zeros_like(self._parameters[name]))
        whole.narrow(part.axis, part.first, part.count).add_(reads["dw"])
        return {}

    def _add_rounded(self, op: Op, reads: Tensors) -> Tensors:
        return {"y": reads["x"]}

    def _compress(self, op: Op, reads: Tensors) -> Tensors:
        return {"y": reads["x"]}  # exact: rounding is what the trainer's own tests are for

    _decompress = _compress

    def _load(self, op: Op, reads: Tensors) -> Tensors:
        return {"y": torch.zeros(0)}

    def _conv(self, op: Op, reads: Tensors) -> Tensors:
        x = reads["x"]
        weight = self._parameter(op, "weight")
        if weight is not None and weight.dim() == 2:
            y = torch.einsum("bihw,oi->bohw", self._vectors(op, x), weight)
            bias = self._parameter(op, "bias")
            y = y if bias is None else y + bias[:, None, None]
        else:
            g = op.attributes["geometry"]
            y = functional.conv2d(
                self._padded(op, x), self._parameter(op, "weight"), self._parameter(op, "bias"), g["stride"],
                dilation=g["dilation"], groups=g["groups"],
            )  # fmt: skip
            y = y[:, :, : g["out"][0], : g["out"][1]].reshape(self._shape(op.writes["y"]))
        return self._activate(op, {"x": y})

    _pointwise = _depthwise = _conv

    @staticmethod
    def _vectors(op: Op, x: torch.Tensor) -> torch.Tensor:
        """What a linear layer multiplies: each pixel, or the whole map as one."""
        height, width, channels = op.attributes["geometry"]["in"]
        return x.reshape(1, channels, height, width)

    @staticmethod
    def _pads(op: Op) -> tuple[int, int, int, int]:
        """Left, right, top, bottom; as many behind as the output reaches."""
        g = op.attributes["geometry"]
        behind = [
            max((g["out"][i] - 1) * g["stride"][i] + (g["kernel"][i] - 1) * g["dilation"][i] + 1 - g["pad"][i]
                - g["in"][i], 0)
            for i in range(2)
        ]  # fmt: skip
        return g["pad"][1], behind[1], g["pad"][0], behind[0]

    def _padded(self, op: Op, x: torch.Tensor) -> torch.Tensor:
        height, width, channels = op.attributes["geometry"]["in"]
        return functional.pad(x.reshape(1, channels, height, width), self._pads(op))  # channels of a pixel as columns

    def _conv_dx(self, op: Op, reads: Tensors) -> Tensors:
        g, weight, dy = op.attributes["geometry"], self._parameter(op, "weight"), reads["dy"]
        assert weight is not None
        if weight.dim() == 2:
            dx = torch.einsum("bohw,oi->bihw", dy, weight)
            return self._finished(op, reads, dx.reshape(self._shape(op.writes["dx"])))
        left, right, top, bottom = self._pads(op)
        height, width, channels = g["in"]
        shape = (1, channels, height + top + bottom, width + left + right)
        padded = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        y = functional.conv2d(padded, weight, None, g["stride"], dilation=g["dilation"], groups=g["groups"])
        y = y[:, :, : g["out"][0], : g["out"][1]]
        (dx,) = torch.autograd.grad(y, padded, dy.reshape(y.shape))
        dx = dx[:, :, top : top + height, left : left + width]
        return self._finished(op, reads, dx.reshape(self._shape(op.writes["dx"])))

    @staticmethod
    def _finished(op: Op, reads: Tensors, dx: torch.Tensor) -> Tensors:
        if "mask" in reads:
            dx = dx * reads["mask"]
        return {"dx": dx, "db": dx.sum((0, 2, 3))}

    _pointwise_dx = _depthwise_dx = _conv_dx

    def _conv_dw(self, op: Op, reads: Tensors) -> Tensors:
        g, dy, shape = op.attributes["geometry"], reads["dy"], self._trained(op, "dw").shape
        if len(shape) == 2:
            return {"dw": torch.einsum("bohw,bihw->oi", dy, self._vectors(op, reads["x"]))}
        weight = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        y = functional.conv2d(
            self._padded(op, reads["x"]), weight, None, g["stride"], dilation=g["dilation"], groups=g["groups"]
        )
        y = y[:, :, : g["out"][0], : g["out"][1]]
        return {"dw": torch.autograd.grad(y, weight, dy.reshape(y.shape))[0]}

    _pointwise_dw = _depthwise_dw = _conv_dw

    def _activate(self, op: Op, reads: Tensors) -> Tensors:
        x, kind = reads["x"], op.attributes["activation"]
        if kind != "clamp":
            return {"y": x if kind == "none" else curve(op, x)}
        low, high = op.attributes["low"], op.attributes["high"]
        return {"y": x.clamp(low, high), "mask": (x > low) & (x < high)}

    def _mask_gradient(self, op: Op, reads: Tensors) -> Tensors:
        return {"dx": reads["dy"] * reads["mask"]}

    def _bias_gradient(self, op: Op, reads: Tensors) -> Tensors:
        dy = reads["dy"]
        return {"db": dy.sum((0, 2, 3)) if dy.dim() == 4 else dy.sum(0)}

    def _add(self, op: Op, reads: Tensors) -> Tensors:
        return {"y": reads["other"] if op.adds_to else reads["x"] + reads["other"]}

    def _activation_dx(self, op: Op, reads: Tensors) -> Tensors:
        x = reads["x"].detach().requires_grad_()
        y = curve(op, x)
        return {"dx": torch.autograd.grad(y, x, reads["dy"])[0]}

    def _multiply(self, op: Op, reads: Tensors) -> Tensors:
        return {"y": reads["x"] * reads["other"]}

    def _multiply_dx(self, op: Op, reads: Tensors) -> Tensors:
        return {"dx": reads["dy"] * reads["other"]}

    def _multiply_dother(self, op: Op, reads: Tensors) -> Tensors:
        product = reads["dy"] * reads["x"]
        return {"dx": product.sum((2, 3), keepdim=True) if op.attributes["per_channel"] else product}

    @staticmethod
    def _windows(op: Op) -> dict[str, Any]:
        """Kernel, stride, padding and rounding of a pooling, as PyTorch takes them."""
        g = op.attributes["geometry"]
        floors = [(g["in"][i] + 2 * g["pad"][i] - g["kernel"][i]) // g["stride"][i] + 1 for i in range(2)]
        ceil = tuple(floors) != tuple(g["out"][:2])
        return {"kernel_size": g["kernel"], "stride": g["stride"], "padding": g["pad"], "ceil_mode": ceil}

    def _average_pool(self, op: Op, reads: Tensors) -> Tensors:
        include_pad = op.attributes["include_pad"]
        return {"y": functional.avg_pool2d(reads["x"], **self._windows(op), count_include_pad=include_pad)}

    def _max_pool(self, op: Op, reads: Tensors) -> Tensors:
        """The index counts within a channel's map, where the engine's counts within the window."""
        y, index = functional.max_pool2d(reads["x"], **self._windows(op), return_indices=True)
        return {"y": y, "index": index}

    def _max_pool_dx(self, op: Op, reads: Tensors) -> Tensors:
        height, width, channels = op.attributes["geometry"]["in"]
        dx = torch.zeros(1, channels, height * width, dtype=torch.float64)
        dx.scatter_add_(2, reads["index"].flatten(2), reads["dy"].flatten(2))
        return {"dx": dx.reshape(1, channels, height, width)}

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

    _average_pool_dx = _upsample_dx = _global_pool_dx = _resample_dx = _by_autograd

    def _resample(self, op: Op, reads: Tensors) -> Tensors:
        x, sizes = reads["x"], op.attributes["geometry"]
        for axis, role in ((2, "weight"), (3, "bias")):
            bands = self._parameter(op, role)
            assert bands is not None
            outputs, inputs = sizes["out"][axis - 2], sizes["in"][axis - 2]
            matrix = torch.zeros(outputs, inputs, dtype=torch.float64)
            for row, band in zip(matrix, bands.reshape(outputs, -1)):
                first = int(band[0])
                row[first : first + len(band) - 1] = band[1:]
            x = torch.tensordot(x, matrix, ([axis], [1])).movedim(-1, axis)
        return {"y": x}

    def _shuffle(self, op: Op, reads: Tensors) -> Tensors:
        x, groups = reads["x"], op.attributes["groups"]
        _, channels, height, width = x.shape
        return {"y": x.reshape(1, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)}

    def _copy(self, op: Op, reads: Tensors) -> Tensors:
        x, a = reads["x"], op.attributes
        shape, adds = self._shape(op.writes["y"]), "y" in op.adds_to
        rest = torch.full(shape, 0.0 if adds else torch.nan, dtype=torch.float64)
        rest[:, a["y_first"] : a["y_first"] + a["count"]] = x[:, a["x_first"] : a["x_first"] + a["count"]].reshape(
            1, a["count"], *shape[2:]
        )
        return {"y": rest}

    def _prelu(self, op: Op, reads: Tensors) -> Tensors:
        return {"y": torch.where(reads["x"] < 0, reads["x"] * self._channels(op, "weight"), reads["x"])}

    def _prelu_backward(self, op: Op, reads: Tensors) -> Tensors:
        x, dy = reads["x"], reads["dy"].reshape(reads["x"].shape)
        dx = torch.where(x > 0, dy, dy * self._channels(op, "weight"))
        return {"dx": dx, "dw": torch.where(x > 0, 0, dy * x).sum((0, 2, 3))}

    def _channel_normed(self, op: Op, x: torch.Tensor) -> torch.Tensor:
        mean = 0 if op.attributes["rms"] else x.mean(1, keepdim=True)
        variance = (x - mean).square().mean(1, keepdim=True)
        return (x - mean) / (variance + op.attributes["epsilon"]).sqrt()

    def _channel_norm(self, op: Op, reads: Tensors) -> Tensors:
        y = self._channel_normed(op, reads["x"])
        for role in ("weight", "bias"):
            if role in op.parameters:
                y = y * self._channels(op, role) if role == "weight" else y + self._channels(op, role)
        return {"y": y, "statistics": torch.zeros(0)}

    def _channel_norm_backward(self, op: Op, reads: Tensors) -> Tensors:
        x, dy = reads["x"].detach().requires_grad_(), reads["dy"]
        normal = self._channel_normed(op, x)
        scaled = dy * self._channels(op, "weight") if "weight" in op.parameters else dy
        (dx,) = torch.autograd.grad(normal, x, scaled)
        return {"dx": dx, "dw": (dy * normal.detach()).sum((0, 2, 3)), "db": dy.sum((0, 2, 3))}

    def _response_norm(self, op: Op, reads: Tensors) -> Tensors:
        a, x = op.attributes, reads["x"]
        before, behind = (a["size"] - 1) // 2, a["size"] // 2
        squares = functional.pad(x.square(), (0, 0, 0, 0, before, behind)).unfold(1, a["size"], 1).sum(-1)
        return {"y": x * (a["offset"] + a["alpha"] * squares) ** -a["beta"]}

    def _response_norm_dx(self, op: Op, reads: Tensors) -> Tensors:
        x = reads["x"].detach().requires_grad_()
        (dx,) = torch.autograd.grad(self._response_norm(op, {"x": x})["y"], x, reads["dy"])
        return {"dx": dx}

    def _group_norm(self, op: Op, reads: Tensors) -> Tensors:
        weight, bias = self._parameter(op, "weight"), self._parameter(op, "bias")
        y = functional.group_norm(reads["x"], op.attributes["groups"], weight, bias, op.attributes["epsilon"])
        return {"y": y, "statistics": torch.zeros(0)}

    def _group_norm_backward(self, op: Op, reads: Tensors) -> Tensors:
        x = reads["x"].detach().requires_grad_()
        weight = self._parameter(op, "weight")
        weight = (torch.ones(x.shape[1], dtype=torch.float64) if weight is None else weight.detach()).requires_grad_()
        bias = torch.zeros_like(weight, requires_grad=True)
        y = functional.group_norm(x, op.attributes["groups"], weight, bias, op.attributes["epsilon"])
        dx, dweight, dbias = torch.autograd.grad(y, (x, weight, bias), reads["dy"])
        return {"dx": dx, "dw": dweight, "db": dbias}

    def _channels(self, op: Op, role: str) -> torch.Tensor:
        values = self._parameter(op, role)
        assert values is not None
        return values.reshape(-1, 1, 1)

    def _affine(self, op: Op, reads: Tensors) -> Tensors:
        y = reads["x"]
        if "weight" in op.parameters:
            y = y * self._channels(op, "weight")
        return {"y": y + self._channels(op, "bias") if "bias" in op.parameters else y}

    def _affine_backward(self, op: Op, reads: Tensors) -> Tensors:
        dx = reads["dy"] * self._channels(op, "weight") if "weight" in op.parameters else reads["dy"]
        results = {"dx": dx, "db": reads["dy"].sum((0, 2, 3))}
        if "x" in reads:
            results["dw"] = (reads["dy"] * reads["x"]).sum((0, 2, 3))
        return results

    def _dropout(self, op: Op, reads: Tensors) -> Tensors:
        mask = self._masks[op.attributes["layer"]].reshape(reads["x"].shape)
        return {"y": reads["x"] * mask, "mask": mask}

    def _dropout_dx(self, op: Op, reads: Tensors) -> Tensors:
        return {"dx": reads["dy"].reshape(reads["mask"].shape) * reads["mask"]}

    def _loss(self, op: Op, reads: Tensors) -> Tensors:
        logits, targets = reads["x"].flatten(1).detach().requires_grad_(), reads["targets"]
        if op.attributes["multi_label"]:
            loss = functional.binary_cross_entropy_with_logits(logits[0], targets.flatten())
        else:
            loss = -(targets * logits.log_softmax(1)).sum()
        self.loss = float(loss.detach())
        gradient: Any = torch.autograd.grad(loss, logits)[0][:, :, None, None]
        return {"dx": gradient}
