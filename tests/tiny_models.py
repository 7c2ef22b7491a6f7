"""Classifiers for `--model tiny_models:NAME`: one that trains in milliseconds, and some that cannot be prepared."""

from __future__ import annotations

import torch
from torch import nn


class Tiny(nn.Module):
    """Two blocks with BatchNorm, ReLU6, a skip connection and dropout."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.blocks = nn.ModuleList([_Block(8, 16, 2), _Block(16, 16, 1)])
        self.dropout = nn.Dropout(0.2)
        self.classifier: nn.Module = nn.Linear(16, classes)
        if type(self) is Tiny:
            self.settle()

    def settle(self) -> None:
        """Let BatchNorm's statistics be those of its inputs, as training leaves them."""
        self.train()
        with torch.no_grad():
            for _ in range(30):
                self(torch.randn(8, 3, 32, 32) + torch.randn(8, 3, 1, 1))
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        x = self.middle(x)
        logits: torch.Tensor = self.classifier(self.dropout(x.mean((2, 3))))
        return logits

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x


class _Block(nn.Module):
    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU6()
        self.skip = stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.act(self.norm(self.conv(x)))
        return x + y if self.skip else y


class Fourier(Tiny):
    """Has no ONNX form."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft2(x).abs()


class RunningSum(Tiny):
    """Has an ONNX form, but onnxruntime-training knows no gradient of it."""

    def middle(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(-1)


def broken() -> nn.Module:
    raise RuntimeError("a message\nof two lines")
