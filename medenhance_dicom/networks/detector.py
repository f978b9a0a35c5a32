"""A small U-Net that looks at a frame before and after enhancement and says where structure was altered or moved."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medenhance_dicom.networks.unet import double_convolution

WINDOW = 9  # quarter pixels, in which local contrast is taken
NOISE = 0.02  # local contrast below this counts as noise


class AlterationDetector(nn.Module):
    """Planes of a frame before and after to log-odds that a place was altered, (B, 7, H, W) to (B, 2, H / 4, W / 4).

    Beside the planes it sees the luminance of both in units of local contrast, all folded to half the size.

    Args:
        widths: Channels at a half, a quarter, an eighth and a sixteenth of the size.
    """

    def __init__(self, *, widths: tuple[int, int, int, int] = (24, 40, 56, 64)) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(double_convolution(i, o) for i, o in zip((36, *widths[:3]), widths, strict=True))
        deep = widths[3]
        self.excitation = nn.Sequential(nn.Linear(2 * deep, deep), nn.ReLU(), nn.Linear(deep, deep), nn.Sigmoid())
        self.decoder = nn.ModuleList(double_convolution(widths[k + 1] + widths[k], widths[k]) for k in (2, 1))
        self.last = nn.Conv2d(widths[1], 2, 1)
        nn.init.constant_(self.last.bias, -3.0)  # type: ignore[arg-type]  # most places are honest

    def forward(self, pair: Tensor) -> Tensor:
        """Log-odds of changed structure and of moved structure, H and W rounded up.

        Args:
            pair: (B, 7, H, W): luminance, red - green and yellow - blue before, the same after (zeros for the colours
                of a grey frame), and 1 where the enhancer was allowed to work, else 0.
        """
        height, width = (-(-side // 4) for side in pair.shape[2:])
        here = pair[:, 6:]
        seen = [pair * here, *(_in_local_contrast(pair[:, k : k + 1]) * here for k in (0, 3))]
        h = F.pixel_unshuffle(F.pad(torch.cat(seen, dim=1), (0, -pair.shape[3] % 16, 0, -pair.shape[2] % 16)), 2)
        skips: list[Tensor] = []
        for k, block in enumerate(self.encoder):
            h = block(F.max_pool2d(h, 2) if k else h)
            skips.append(h)
        h = skips.pop()
        h = h * (2 * self.excitation(torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1)))[..., None, None]
        for block in self.decoder:
            h = block(torch.cat([F.interpolate(h, scale_factor=2.0), skips.pop()], dim=1))
        return self.last(h)[..., :height, :width]


def _in_local_contrast(light: Tensor) -> Tensor:
    """Luminance (B, 1, H, W) less its local mean, over its local standard deviation."""
    off = light - _around(light)
    return off / (_around(off * off).clamp(min=0).sqrt() + NOISE)


def _around(x: Tensor) -> Tensor:
    """Local means, from a quarter of the size."""
    small = F.avg_pool2d(x, 4, ceil_mode=True, count_include_pad=False)
    small = F.avg_pool2d(small, WINDOW, 1, WINDOW // 2, count_include_pad=False)
    return F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
