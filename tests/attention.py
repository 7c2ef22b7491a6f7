"""What weighs channels and branches, as networks have it."""

from __future__ import annotations

import torch
from torch import nn


class Branches(nn.Module):
    """Attention to two branches, which were split or are stacked, as in ResNeSt and selective kernel networks."""

    def __init__(self, channels: int, stacked: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels if stacked else 2 * channels, 1)
        self.up = nn.Conv2d(channels, 2 * channels, 1)
        self.split, self.stacked = (2, channels), stacked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.stack((self.one(x), x), 1) if self.stacked else self.one(x).unflatten(1, self.split)
        weights = self.up(both.sum(1).mean((2, 3), keepdim=True)).unflatten(1, self.split).softmax(1)
        return (both * weights).sum(1)


class AlongChannels(nn.Module):
    """Efficient channel attention: a convolution along the channels of the pooled map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factors: torch.Tensor = self.one(x.mean((2, 3))[:, None])
        return x * torch.sigmoid(factors).view(-1, self.channels, 1, 1)


def response_normalised(x: torch.Tensor) -> torch.Tensor:
    """ConvNeXt V2's global response normalisation."""
    norms = x.norm(2, (2, 3), keepdim=True)
    return x * (norms / (norms.mean(1, keepdim=True) + 1e-6)) + x
