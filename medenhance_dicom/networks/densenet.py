"""DenseNet without its classifier (Huang et al., CVPR 2017), without ImageNet weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BOTTLENECK = 4


class DenseLayer(nn.Module):
    """BN-ReLU-Conv1-BN-ReLU-Conv3; what it makes is laid beside what it was given."""

    def __init__(self, channels_in: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels_in),
            nn.ReLU(),
            nn.Conv2d(channels_in, BOTTLENECK * growth, 1, bias=False),
            nn.BatchNorm2d(BOTTLENECK * growth),
            nn.ReLU(),
            nn.Conv2d(BOTTLENECK * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, I + growth, H, W)."""
        return torch.cat([x, self.body(x)], dim=1)


class DenseNetEncoder(nn.Module):
    """(B, C, H, W) to features (B, `features`), the mean over the last map.

    The defaults are DenseNet-121: 6,953,856 parameters with three channels, 1024 features, the last map at 1/32.

    Args:
        channels: Channels of the picture.
        growth: Channels that each layer adds; the stem has twice as many.
        counts: Layers per block; between blocks a 1x1 convolution halves the channels and 2x2 means halve the sides.
    """

    def __init__(
        self, *, channels: int = 3, growth: int = 32, counts: tuple[int, int, int, int] = (6, 12, 24, 16)
    ) -> None:
        super().__init__()
        c = 2 * growth
        layers: list[nn.Module] = [
            nn.Conv2d(channels, c, 7, 2, 3, bias=False), nn.BatchNorm2d(c), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        ]  # fmt: skip
        for k, count in enumerate(counts):
            if k:
                layers += [nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c // 2, 1, bias=False), nn.AvgPool2d(2)]
                c //= 2
            layers += [DenseLayer(c + i * growth, growth) for i in range(count)]
            c += count * growth
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(c), nn.ReLU())
        self.features = c

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), H and W at least 32 -> (B, features)."""
        return self.body(x).mean(dim=(2, 3))
