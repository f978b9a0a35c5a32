"""StillGAN's generator, a residual U-Net.

Ma et al., "Structure and Illumination Constrained GAN for Medical Image Enhancement", IEEE TMI 40(12), 2021, Fig. 3.

Eight encoder blocks with seven 2x2 max-poolings between them, seven decoder blocks with as many skips, 1x1 convolution
and Tanh. Instance normalisation without affine parameters and without running statistics, LeakyReLU(0.2).
`layout="released"` follows the code that the authors published instead: one more pooling and decoder, nearest
up-sampling and one more convolution before each concatenation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medenhance_dicom.networks.heads import Head, apply_head, head_channels

Layout = Literal["figure", "released"]

LEAK = 0.2
LEVELS = 8


def _norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels)


class ResidualBlock(nn.Module):
    """Conv3-Norm-LReLU-Conv3-Norm plus Conv1-Norm of the input, LReLU on the sum."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1),
            _norm(channels_out),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
            _norm(channels_out),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, bias=False), _norm(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        return F.leaky_relu(self.body(x) + self.shortcut(x), LEAK)


class UpConvolution(nn.Module):
    """The released code's Conv3-Norm-LReLU between up-sampling and concatenation."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, padding=1), _norm(channels_out), nn.LeakyReLU(LEAK)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        return self.body(x)


class StillGANGenerator(nn.Module):
    """Residual U-Net from (B, C, H, W) in [-1, 1] to the same shape and range.

    H and W must be multiples of `multiple` (128 for the figure's layout, 256 for the released one).

    Args:
        channels: Channels of the picture, 1 or 3.
        width: Channels of the first level; doubles up to 8 x width. The paper: 64, 58,553,155 parameters with C = 3.
        layout: "figure" (the paper's Fig. 3) or "released" (the authors' code).
        head: "tanh", the paper's. "gain" reads the last 1x1 convolution as a bounded log-gain and an offset for the
            picture itself, so that at its zero start the network is the identity and pixel noise need not travel
            through it. "normalised_gain" does the same to the picture brought to zero mean and unit deviation, for
            domains whose good pictures all have one brightness. "fields": gain, veil and detail as smooth fields,
            see `networks.fields`.
    """

    def __init__(self, *, channels: int = 3, width: int = 64, layout: Layout = "figure", head: Head = "tanh") -> None:
        super().__init__()
        self.channels, self.layout, self.head = channels, layout, head
        released = layout == "released"
        self.multiple = 2 ** (LEVELS if released else LEVELS - 1)
        c = [width * min(2**k, 8) for k in range(LEVELS)]  # 64 128 256 512 512 512 512 512
        self.encoder = nn.ModuleList(ResidualBlock(i, o) for i, o in zip([channels, *c[:-1]], c, strict=True))
        below = [*c[1:], c[-1]] if released else c[1:]  # channels that reach each decoder from below
        self.decoder = nn.ModuleList(
            ResidualBlock((s if released else b) + s, s) for b, s in zip(below, c, strict=False)
        )
        self.up = nn.ModuleList(UpConvolution(b, s) for b, s in zip(below, c, strict=True)) if released else None
        self.last = nn.Conv2d(c[0], head_channels(head, channels), 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if head != "tanh":
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, C, H, W) in [-1, 1]."""
        skips: list[Tensor] = []
        h = x
        for k, block in enumerate(self.encoder):
            h = block(F.max_pool2d(h, 2) if k else h)
            skips.append(h)  # level k: (B, c_k, H / 2^k, W / 2^k)
        h = F.max_pool2d(h, 2) if self.up is not None else skips.pop()
        for k in reversed(range(len(self.decoder))):
            if self.up is not None:
                h = self.up[k](F.interpolate(h, scale_factor=2.0, mode="nearest"))
            else:
                h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
            h = self.decoder[k](torch.cat([skips[k], h], dim=1))
        h = self.last(h)  # (B, what the head asks for, H, W)
        return apply_head(x, h, self.head)
