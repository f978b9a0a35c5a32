"""Grading as a downstream task, such as the tortuosity of corneal nerves: by a network, or by what fibres measure."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medenhance_dicom.networks import build_network
from medenhance_dicom.training.downstream import DownstreamTask, TaskDescription, standardised
from medenhance_dicom.training.segmentation import SegmentationTask
from medenhance_dicom.training.tortuosity import FEATURES, tortuosity_features


def _segmenter(about: TaskDescription) -> SegmentationTask | None:
    """Untrained, for pictures of the grader's own size."""
    if about.segmenter is None:
        return None
    return SegmentationTask.build(about.segmenter.model_copy(update={"size": about.size}))


class LevelTask(DownstreamTask):
    """What graders share: heads of logits, the first of which counts; a segmenter that never learns.

    Args:
        segmenter: Finds the fibres; None: there is none.
    """

    name = "grading"

    def __init__(self, segmenter: SegmentationTask | None) -> None:
        super().__init__()
        self.segmenter = None if segmenter is None else segmenter.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """The segmenter's batch normalisation keeps its statistics."""
        super().train(mode)
        if self.segmenter is not None:
            self.segmenter.eval()
        return self

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, summed over the heads (DeepGrading).

        Args:
            out: Logits (B, heads, levels).
            target: (B,) int64, levels from 0.
        """
        return torch.stack([F.cross_entropy(head, target) for head in out.float().unbind(dim=1)]).sum()

    @torch.no_grad()
    def metrics(self, out: Tensor, target: Tensor) -> dict[str, float]:
        """`accuracy`: of the first head's largest logit."""
        return {"accuracy": float((out[:, 0].argmax(dim=1) == target).float().mean())}


class GradingTask(LevelTask):
    """The differentiable grader. With a segmenter the network sees picture, segmentation, picture, as DeepGrading does.

    Args:
        network: (B, C, H, W) to logits (B, 3, levels); C is `channels`, or 3 with a segmenter.
        channels: 1 or 3, as `SegmentationTask`'s.
        segmenter: Finds the fibres.
    """

    def __init__(self, network: nn.Module, *, channels: int, segmenter: SegmentationTask | None = None) -> None:
        super().__init__(segmenter)
        self.network, self.channels = network, channels

    @classmethod
    def build(cls, about: TaskDescription) -> Self:
        """Untrained.

        Raises:
            RecipeError: The pictures' side does not fit the segmenter's poolings.
        """
        segmenter = _segmenter(about)
        seen = 3 if segmenter else about.channels
        network = build_network(about.network, channels=seen, width=about.width, levels=about.levels)
        made = cls(network, channels=about.channels, segmenter=segmenter)
        made.about = about
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [-1, 1] -> logits (B, 3, levels)."""
        if self.segmenter is None:
            return self.network(standardised(x, self.channels))
        grey = standardised(x, 1)
        return self.network(torch.cat([grey, 2 * self.segmenter(x).float().sigmoid() - 1, grey], dim=1))


class TortuosityTask(LevelTask):
    """Multinomial logistic regression on `tortuosity_features`, standardised. Not differentiable in the picture.

    Args:
        levels: Levels to tell apart.
        segmenter: Finds the fibres; None: the pictures are segmentations, fibres above half.
    """

    def __init__(self, *, levels: int, segmenter: SegmentationTask | None = None) -> None:
        super().__init__(segmenter)
        self.linear = nn.Linear(FEATURES, levels)
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("deviation", torch.ones(FEATURES))

    @classmethod
    def build(cls, about: TaskDescription) -> Self:
        """Untrained.

        Raises:
            RecipeError: The pictures' side does not fit the segmenter's poolings.
        """
        segmenter = _segmenter(about)
        made = cls(levels=about.levels, segmenter=segmenter)
        made.about = about
        return made

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [-1, 1] -> (B, 8)."""
        masks = x.amax(dim=1) > 0 if self.segmenter is None else self.segmenter(x)[:, 0] > 0
        return torch.from_numpy(np.stack([tortuosity_features(m) for m in masks.cpu().numpy()])).to(x.device)

    def standardise(self, features: Tensor) -> None:
        """Take mean and deviation from the training pictures' features (N, 8)."""
        self.mean.copy_(features.mean(dim=0))
        self.deviation.copy_(features.std(dim=0, correction=0).clamp_min(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, 1 or 3, H, W) in [-1, 1], or their features (B, 8) -> logits (B, 1, levels)."""
        features = x if x.ndim == 2 else self.features(x)
        return self.linear((features - self.mean) / self.deviation)[:, None]
