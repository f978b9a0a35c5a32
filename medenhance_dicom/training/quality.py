"""Low or high quality as a downstream task, after MCF-Net (Fu et al., MICCAI 2019): s_HQ is output 5's "high"."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medenhance_dicom.metrics import auroc
from medenhance_dicom.networks import build_network
from medenhance_dicom.training.downstream import DownstreamTask, TaskDescription

OUTPUTS = (0.1, 0.1, 0.1, 0.1, 0.6)
"""Weights of the five outputs' cross-entropies."""
HIGH = 0
CLASSES = 2


class QualityTask(DownstreamTask):
    """Two classes, high (first) and low, learned from two folders.

    Args:
        network: (B, 1 or 3, H, W) in [0, 1] to logits (B, 5, 2).
    """

    name = "quality"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @classmethod
    def build(cls, about: TaskDescription) -> Self:
        """Untrained."""
        made = cls(build_network(about.network, width=about.width, classes=CLASSES, branch=about.branch))
        made.about = about
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [-1, 1] -> logits (B, 5, 2). Exposure is not taken out: it is part of quality."""
        return self.network((x + 1) / 2)

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy of each class and output, the outputs weighted by `OUTPUTS`.

        Args:
            out: Logits (B, 5, 2).
            target: (B,), 1 for high quality, 0 for low.
        """
        truth = torch.stack([target, 1 - target], dim=1)[:, None].expand_as(out)
        losses = F.binary_cross_entropy_with_logits(out.float(), truth, reduction="none").mean(dim=(0, 2))
        return (losses * losses.new_tensor(OUTPUTS)).sum()

    @staticmethod
    def score(out: Tensor) -> Tensor:
        """s_HQ of logits (B, 5, 2): (B,) in [0, 1]."""
        return out[:, -1, HIGH].float().sigmoid()

    @torch.no_grad()
    def metrics(self, out: Tensor, target: Tensor) -> dict[str, float]:
        """`accuracy` at s_HQ 1/2, and `auc`, the chance that s_HQ tells a high from a low one (nan: one kind only)."""
        found, truth = (t.cpu().numpy() for t in (self.score(out), target > 0.5))
        accuracy = float(np.mean((found > 0.5) == truth))
        return {"accuracy": accuracy, "auc": auroc(found[~truth], found[truth])}
