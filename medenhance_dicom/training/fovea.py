"""Finding the fovea as a downstream task.

The papers use two Faster R-CNNs and the distance between the fovea and the optic disc (Wu et al., OMIA 2019). This is a
light stand-in: a heat map and its mean place.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.networks import build_network
from medenhance_dicom.networks.heatmap import STRIDE, soft_argmax
from medenhance_dicom.training.downstream import DownstreamTask, TaskDescription, standardised


class FoveaTask(DownstreamTask):
    """One place in each picture, the mean of a heat map.

    Places are (row, column) as fractions of the picture's sides; pixel i of n has its centre at (i + 1/2) / n.

    Args:
        network: (B, channels, H, W) to logits (B, 1, H/8, W/8).
        channels: 1 or 3, as `SegmentationTask`'s.
        size: Side in pixels of the pictures.
    """

    name = "fovea"

    def __init__(self, network: nn.Module, *, channels: int, size: int) -> None:
        super().__init__()
        self.network, self.channels, self.size = network, channels, size

    @classmethod
    def build(cls, about: TaskDescription) -> Self:
        """Untrained.

        Raises:
            RecipeError: The pictures' side is no multiple of 8.
        """
        if about.size % STRIDE:
            raise RecipeError(f"data.size: {about.size} is no multiple of {STRIDE}")
        network = build_network(about.network, channels=about.channels, width=about.width)
        made = cls(network, channels=about.channels, size=about.size)
        made.about = about
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [-1, 1] -> places (B, 2) in [0, 1]."""
        return soft_argmax(self.network(standardised(x, self.channels)))

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Smooth L1 of (B, 2) and (B, 2), in cells of the heat map (8 pixels)."""
        cells = self.size / STRIDE
        return F.smooth_l1_loss(cells * out, cells * target)

    @torch.no_grad()
    def metrics(self, out: Tensor, target: Tensor) -> dict[str, float]:
        """`distance`: mean Euclidean distance in pixels of the task's own pictures."""
        return {"distance": float(self.size * (out - target).norm(dim=1).mean())}
