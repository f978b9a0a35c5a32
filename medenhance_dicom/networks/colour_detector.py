"""A tiny U-Net that tells a spot of changed colour from what honest enhancement leaves unexplained."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medenhance_dicom.networks.unet import double_convolution


class ColourDetector(nn.Module):
    """Planes of a frame to log-odds that a place changed its colour alone, (B, 11, H, W) to (B, 1, H / 2, W / 2).

    Args:
        widths: Channels at a half, a quarter and an eighth of the size.
    """

    def __init__(self, *, widths: tuple[int, int, int] = (16, 24, 32)) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(double_convolution(i, o) for i, o in zip((44, *widths[:2]), widths, strict=True))
        self.decoder = nn.ModuleList(double_convolution(widths[k + 1] + widths[k], widths[k]) for k in (1, 0))
        self.last = nn.Conv2d(widths[0], 1, 1)
        nn.init.constant_(self.last.bias, -3.0)  # type: ignore[arg-type]  # most places are honest

    def forward(self, planes: Tensor) -> Tensor:
        """Log-odds, H and W rounded up.

        Args:
            planes: (B, 11, H, W), see `gate.colour.planes`; the last is 1 in the field, and all are 0 elsewhere.
        """
        height, width = (-(-side // 2) for side in planes.shape[2:])
        h = F.pixel_unshuffle(F.pad(planes, (0, -planes.shape[3] % 8, 0, -planes.shape[2] % 8)), 2)
        skips: list[Tensor] = []
        for k, block in enumerate(self.encoder):
            h = block(F.max_pool2d(h, 2) if k else h)
            skips.append(h)
        h = skips.pop()
        for block in self.decoder:
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0), skips.pop()], dim=1))
        return self.last(h)[..., :height, :width]
