"""HQG-Net's cue extractor G, a ResNet-18 that codes a high-quality picture in 64 numbers (arXiv 2307.07829, Fig. 3a).

It is pre-trained as the encoder of an auto-encoder. The authors' code gives that auto-encoder skip connections; here it
has none, since with them the picture passes beside the code.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medenhance_dicom.networks.fields import GUIDE
from medenhance_dicom.networks.resnet import BasicBlock, ResNetEncoder

COARSEST = 8  # side of the decoder's first feature map
NARROWEST = 16


class GuideEncoder(nn.Module):
    """v_z = FC(GAP(ResNet-18(z))). At width 64: 11,209,344 parameters with three channels.

    Args:
        channels: Channels of the picture, 1 or 3.
        width: Channels of the stem.
    """

    def __init__(self, *, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.channels = channels
        self.encoder = ResNetEncoder(BasicBlock, (2, 2, 2, 2), channels=channels, width=width)
        self.fc = nn.Linear(8 * width, GUIDE)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1], of any size from 64 x 64 -> (B, 64)."""
        return self.fc(self.encoder(z)[3].mean(dim=(2, 3)))


class GuideDecoder(nn.Module):
    """The auto-encoder's other half: 64 numbers to (B, C, size, size) in [0, 1]. Only pre-training needs it.

    FC to (8 x width, 8, 8), then bilinear x2 and Conv3-BN-ReLU with half the channels, down to 16, until `size`.

    Args:
        channels: Channels of the picture, 1 or 3.
        width: As the encoder's.
        size: Side of the picture, 8 x 2^k.

    Raises:
        ValueError: Another size.
    """

    def __init__(self, *, channels: int = 3, width: int = 64, size: int = 256) -> None:
        super().__init__()
        doublings = (size // COARSEST).bit_length() - 1
        if size < COARSEST or size != COARSEST << doublings:
            raise ValueError(f"size {size} is not {COARSEST} times a power of two")
        c = [max(8 * width >> k, NARROWEST) if k else 8 * width for k in range(doublings + 1)]
        self.fc = nn.Linear(GUIDE, c[0] * COARSEST**2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            for i, o in pairwise(c)
        )
        self.last = nn.Conv2d(c[-1], channels, 3, padding=1)

    def forward(self, v_z: Tensor) -> Tensor:
        """(B, 64) -> (B, C, size, size) in [0, 1]."""
        h = self.fc(v_z).unflatten(1, (-1, COARSEST, COARSEST))
        for block in self.blocks:
            h = block(F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False))
        return torch.sigmoid(self.last(h).float())
