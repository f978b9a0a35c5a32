"""MCF-Net, which judges a picture's quality in three colour spaces (Fu et al., MICCAI 2019).

Written from the description. `branch="densenet121"` has the paper's branches, `branch="cnn"` light ones.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from medenhance_dicom.networks.colour import rgb_to_hsv, rgb_to_lab
from medenhance_dicom.networks.densenet import DenseNetEncoder

Branch = Literal["cnn", "densenet121"]

BLOCKS = 4


class LightBranch(nn.Module):
    """Four of Conv3-BN-ReLU with 2x2 max-pooling, then the mean: (B, C, H, W) to (B, `features`).

    Args:
        channels: Channels of the picture.
        width: Channels of the first block; doubles with each.
    """

    def __init__(self, *, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in pairwise([channels, *(width * 2**k for k in range(BLOCKS))]):
            layers += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers)
        self.features = width * 2 ** (BLOCKS - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), H and W at least 16 -> (B, features)."""
        return self.body(x).mean(dim=(2, 3))


class MCFNet(nn.Module):
    """(B, C, H, W) in [0, 1] to five outputs (B, 5, classes), logits: the sigmoid is the reader's.

    Outputs 1 to 3 are the branches' (RGB, HSV, Lab), output 4 that of their features together; output 5, the one that
    counts, is made of the other four's sigmoids. Classes do not exclude each other. Parameters with three branches of
    DenseNet-121 and three classes: 20,880,051; light, of width 16 and with two classes: 294,602.

    Args:
        channels: Channels of the picture, 1 or 3; a grey one is repeated.
        width: Of a light branch.
        classes: Classes of quality, the best first.
        branch: Kind of branch.
    """

    multiple = 1

    def __init__(
        self, *, channels: int = 3, width: int = 16, classes: int = 2, branch: Branch = "cnn"
    ) -> None:  # fmt: skip
        super().__init__()
        self.channels = channels
        self.branches = nn.ModuleList(
            DenseNetEncoder() if branch == "densenet121" else LightBranch(width=width) for _ in range(3)
        )
        features = int(self.branches[0].features)  # type: ignore[arg-type]
        self.heads = nn.ModuleList(nn.Linear(features, classes) for _ in range(3))
        self.fused = nn.Linear(3 * features, classes)
        self.final = nn.Linear(4 * classes, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, 5, classes) logits."""
        rgb = x.float().expand(-1, 3, -1, -1)
        spaces = (rgb, rgb_to_hsv(rgb), rgb_to_lab(rgb))
        found = [branch(2 * space - 1) for branch, space in zip(self.branches, spaces, strict=True)]
        four = [head(h) for head, h in zip(self.heads, found, strict=True)] + [self.fused(torch.cat(found, dim=1))]
        return torch.stack([*four, self.final(torch.cat(four, dim=1).sigmoid())], dim=1)
