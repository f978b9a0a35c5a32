"""A light DeepGrading: a picture to a level, led by bilinear attention (Mou et al., IEEE TMI 41, 2022).

The paper's ResNet-18 is a ResNet-8 here, and its second network on a region of interest is left out. Written from the
description, not from the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medenhance_dicom.networks.resnet import BasicBlock

SMALLEST = 1e-6


def bilinear_vector(x: Tensor) -> Tensor:
    """Second-order statistics of a map: X X^T / HW, signed square root, unit length; float32.

    Args:
        x: (B, C, H, W).

    Returns:
        (B, C^2).
    """
    X = x.float().flatten(2)  # (B, C, HW)
    z = (X @ X.transpose(1, 2) / X.shape[2]).flatten(1)
    z = z.sign() * (z.abs() + SMALLEST).sqrt()
    return nn.functional.normalize(z, dim=1)


class GatedResNet8(nn.Module):
    """(B, C, H, W) of any size from 16 x 16 to logits (B, 3, levels): the final head's, x1's and x2's.

    x1 = FC(GAP(x)); gate = sigmoid(ReLU(FC(bilinear(x)))), so in [1/2, 1); x2 = FC(GAP(x (1 + gate))); the final head
    is a FC of both. At width 16 with three channels and four levels: 340,156 parameters.

    Args:
        channels: Channels of the picture.
        width: Channels of the stem; doubles twice.
        levels: Levels to tell apart.
    """

    multiple = 1

    def __init__(self, *, channels: int = 3, width: int = 16, levels: int = 4) -> None:
        super().__init__()
        self.channels = channels
        c = 4 * width
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )  # fmt: skip
        self.stages = nn.Sequential(
            BasicBlock(width, width, 1, "batch"),
            BasicBlock(width, 2 * width, 2, "batch"),
            BasicBlock(2 * width, c, 2, "batch"),
        )
        self.fc_gate = nn.Linear(c * c, c)
        self.fc_1, self.fc_2 = nn.Linear(c, levels), nn.Linear(c, levels)
        self.fc = nn.Linear(2 * levels, levels)

    def gate(self, x: Tensor) -> Tensor:
        """(B, 4 width, H, W) -> (B, 4 width) in [1/2, 1)."""
        return torch.sigmoid(self.fc_gate(bilinear_vector(x)).relu())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 3, levels) logits."""
        h = self.stages(self.stem(x))
        x1 = self.fc_1(h.mean(dim=(2, 3)))
        x2 = self.fc_2(h.mean(dim=(2, 3)) * (1 + self.gate(h)))  # a gate per channel passes through the mean
        return torch.stack([self.fc(torch.cat([x1, x2], dim=1)), x1, x2], dim=1)
