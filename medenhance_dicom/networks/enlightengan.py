"""EnlightenGAN's generator, a U-Net led by a map of darkness (Jiang et al., IEEE TIP 30, 2021).

Convolution, LeakyReLU(0.2), then batch normalisation, in this order. The map g = 1 - luma joins the input, multiplies
the bottom and every skip after as many max-poolings, and weighs the correction that is added to the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medenhance_dicom.networks.initialisation import normal_start

LUMA = (0.299, 0.587, 0.114)
LEVELS = 5


def _unit(channels_in: int, channels_out: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.BatchNorm2d(channels_out),
    ]


def attention_map(x: Tensor) -> Tensor:
    """Bright where the picture is dark: (B, 1 or 3, H, W) in [-1, 1] -> g, (B, 1, H, W) in [0, 1]."""
    if x.shape[1] == 3:
        r, g, b = x.split(1, dim=1)
        x = LUMA[0] * r + LUMA[1] * g + LUMA[2] * b
    return (1 - x) / 2


class EnlightenGANGenerator(nn.Module):
    """x + g latent: (B, C, H, W) in [-1, 1] to the same shape and range; H and W multiples of `multiple`, 16.

    Args:
        channels: Channels of the picture, 1 or 3.
        width: Channels of the first of five levels. The authors': 32, 8.64 M parameters with C = 3.
    """

    multiple = 2 ** (LEVELS - 1)

    def __init__(self, *, channels: int = 3, width: int = 32) -> None:
        super().__init__()
        self.channels = channels
        c = [width * 2**k for k in range(LEVELS)]  # 32 64 128 256 512
        self.encoder = nn.ModuleList(
            nn.Sequential(*_unit(i, o), *_unit(o, o)) for i, o in zip([channels + 1, *c[:-1]], c, strict=True)
        )
        self.up = nn.ModuleList(nn.Conv2d(2 * o, o, 3, padding=1) for o in c[:-1])
        self.decoder = nn.ModuleList(nn.Sequential(*_unit(2 * o, o), *_unit(o, o)) for o in c[:-1])
        self.last = nn.Conv2d(width, channels, 1)
        normal_start(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, C, H, W) in [-1, 1]."""
        g = attention_map(x)
        h, a = torch.cat([x, g], dim=1), g
        skips: list[Tensor] = []
        for k, block in enumerate(self.encoder):
            h, a = (F.max_pool2d(h, 2), F.max_pool2d(a, 2)) if k else (h, a)
            h = block(h)
            skips.append(h * a)
        h = skips.pop()
        for k in reversed(range(len(self.decoder))):
            h = self.up[k](F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False))
            h = self.decoder[k](torch.cat([skips[k], h], dim=1))
        return (x.float() + g * self.last(h).float()).clamp(-1, 1)
