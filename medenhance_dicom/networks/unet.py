"""A small U-Net (Ronneberger et al., MICCAI 2015) for segmentation, such as polyps in endoscopy."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def double_convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with batch normalisation and ReLU."""
    layers: list[nn.Module] = []
    for c in (channels_in, channels_out):
        layers += [nn.Conv2d(c, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """(B, C, H, W) to logits (B, 1, H, W), no sigmoid inside; H and W multiples of `multiple`, 2^poolings.

    Args:
        channels: Channels of the picture.
        width: Channels of the first level; doubles with each pooling.
        poolings: 2x2 max-poolings, undone by bilinear up-sampling.
    """

    def __init__(self, *, channels: int = 3, width: int = 16, poolings: int = 3) -> None:
        super().__init__()
        self.channels, self.multiple = channels, 2**poolings
        c = [width * 2**k for k in range(poolings + 1)]
        self.encoder = nn.ModuleList(double_convolution(i, o) for i, o in zip([channels, *c[:-1]], c, strict=True))
        self.decoder = nn.ModuleList(double_convolution(3 * o, o) for o in c[:-1])
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, 1, H, W) logits."""
        skips: list[Tensor] = []
        h = x
        for k, block in enumerate(self.encoder):
            h = block(F.max_pool2d(h, 2) if k else h)
            skips.append(h)
        h = skips.pop()
        for k in reversed(range(len(self.decoder))):
            h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
            h = self.decoder[k](torch.cat([skips[k], h], dim=1))
        return self.last(h)
