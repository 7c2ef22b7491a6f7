"""Memory as the TinyTL paper counts it: what `inspect` shows beside the planned and the measured figure.

memory = peak_activation(batch 1) x batch + parameters (Cai et al. 2020, section 4 and its released
profiler). It leaves out gradients, optimizer state, workspaces and code; see docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .backbones.inverted_residual import InvertedResidual

BYTES = 4  # an activation and a trained parameter are float32; a frozen parameter counts one byte


@dataclass(frozen=True)
class PaperMemory:
    """Bytes by the paper's accounting: `activations` for one image, and `parameters`."""

    activations: float
    parameters: int

    def total(self, batch_size: int) -> float:
        """Bytes at this batch size."""
        return self.activations * batch_size + self.parameters


def paper_memory(model: nn.Module, image: torch.Tensor) -> PaperMemory:
    """Count by the paper's rules, BatchNorm not folded, for the parameters that require gradients.

    Args:
        model: a classifier; it is run once.
        image: float32 [1, 3, H, W].
    """
    count = _ActivationCount(model)
    with torch.no_grad():
        model(image)
    count.stop()
    parameters = sum(p.numel() * (BYTES if p.requires_grad else 1) for p in model.parameters())
    return PaperMemory(count.peak, parameters)


class _ActivationCount:
    """Walks a forward pass module by module: `kept` grows, `peak` is the most that ever stood at once."""

    def __init__(self, model: nn.Module) -> None:
        self.kept = 0.0
        self.skip = 0.0
        self.peak = 0.0
        self.anything_below_trains = False
        self._handles = []
        for module in model.modules():
            if isinstance(module, InvertedResidual) and module.skip:
                self._handles.append(module.register_forward_pre_hook(self._enter_block))
                self._handles.append(module.register_forward_hook(self._leave_block))
            if not any(module.children()):
                self._handles.append(module.register_forward_hook(self._count))

    def stop(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter_block(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.skip = inputs[0].numel() * BYTES

    def _leave_block(self, module: nn.Module, inputs: object, output: object) -> None:
        self.skip = 0.0

    def _count(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        entering, leaving = inputs[0].numel() * BYTES, output.numel() * BYTES
        self.anything_below_trains |= any(p.requires_grad for p in module.parameters(recurse=False))
        weight = getattr(module, "weight", None)
        keeps_input = weight is not None and weight.requires_grad
        transient = kept = 0.0
        if isinstance(module, nn.Conv2d):
            transient, kept = entering + leaving // module.groups, entering * keeps_input
        elif isinstance(module, nn.Linear):
            transient, kept = entering + leaving, entering * keeps_input
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            transient, kept = entering, entering * keeps_input
        elif isinstance(module, (nn.ReLU, nn.ReLU6)):
            transient, kept = entering, entering / 32 * self.anything_below_trains  # a bit for 32
        elif isinstance(module, (nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.SiLU)):
            transient, kept = entering, entering * self.anything_below_trains
        self.peak = max(self.peak, self.kept + self.skip + transient)
        self.kept += kept
