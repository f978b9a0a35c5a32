"""CS-Net, which segments nerve fibres and vessels (Mou et al., MICCAI 2019).

A residual U-Net with spatial and channel attention at its bottom. The authors' code holds one more layer that it never
calls (524,800 parameters) and ends in a sigmoid; this one has neither.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Conv3-BN-ReLU-Conv3-BN plus Conv1 of the input, ReLU on the sum."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        return F.relu(self.body(x) + self.shortcut(x))


class SpatialAttention(nn.Module):
    """gamma V softmax(Q^T K)^T + x over all pixels; Q from a 1x3, K from a 3x1 convolution; gamma starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(channels // 8, 1)
        self.query = nn.Sequential(
            nn.Conv2d(channels, narrow, (1, 3), padding=(0, 1)), nn.BatchNorm2d(narrow), nn.ReLU()
        )
        self.key = nn.Sequential(nn.Conv2d(channels, narrow, (3, 1), padding=(1, 0)), nn.BatchNorm2d(narrow), nn.ReLU())
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        q, k, v = (layer(x).flatten(2).transpose(1, 2) for layer in (self.query, self.key, self.value))  # (B, HW, .)
        attended = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2)
        return self.gamma * attended.reshape(x.shape) + x


class ChannelAttention(nn.Module):
    """gamma softmax(row maximum - X X^T) X + x over all channels; gamma starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        X = x.flatten(2)  # (B, C, HW)
        affinity = X @ X.transpose(1, 2)
        affinity = (affinity.amax(dim=-1, keepdim=True) - affinity).softmax(dim=-1)
        return self.gamma * (affinity @ X).reshape(x.shape) + x


class CSNet(nn.Module):
    """(B, C, H, W) to logits (B, 1, H, W), no sigmoid inside; H and W multiples of `multiple`, 2^poolings.

    Args:
        channels: Channels of the picture.
        width: Channels of the first level; doubles with each pooling. The authors' 32 with four poolings and one
            channel: 8,400,163 parameters.
        poolings: 2x2 max-poolings. Width 8 with three is the light one, 0.13 M parameters.
    """

    def __init__(self, *, channels: int = 1, width: int = 32, poolings: int = 4) -> None:
        super().__init__()
        self.channels, self.multiple = channels, 2**poolings
        c = [width * 2**k for k in range(poolings + 1)]
        self.encoder = nn.ModuleList(ResidualBlock(i, o) for i, o in zip([channels, *c[:-1]], c, strict=True))
        self.spatial, self.channel = SpatialAttention(c[-1]), ChannelAttention()
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * o, o, 2, 2) for o in c[:-1])
        self.decoder = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * o, o, 3, padding=1),
                nn.BatchNorm2d(o),
                nn.ReLU(),
                nn.Conv2d(o, o, 3, padding=1),
                nn.BatchNorm2d(o),
                nn.ReLU(),
            )
            for o in c[:-1]
        )
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, 1, H, W) logits."""
        skips: list[Tensor] = []
        h = x
        for k, block in enumerate(self.encoder):
            h = block(F.max_pool2d(h, 2) if k else h)
            skips.append(h)
        h = skips.pop()
        h = h + self.spatial(h) + self.channel(h)
        for k in reversed(range(len(self.decoder))):
            h = self.decoder[k](torch.cat([skips[k], self.up[k](h)], dim=1))
        return self.last(h)
