"""Segmentation as a downstream task: vessels, nerves, polyps."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.networks import build_network
from medenhance_dicom.training.downstream import DownstreamTask, TaskDescription, standardised

SMOOTH = 1e-4


class SegmentationTask(DownstreamTask):
    """A segmentation network that takes the enhancer's pictures, whatever their channels and brightness.

    Args:
        network: (B, channels, H, W) to logits (B, 1, H, W).
        channels: 1 or 3. A colour picture is given to one channel as its green plane; a grey one is repeated for three.
        loss: "mse_dice" is CS-Net's, of the sigmoid; "bce_dice" that of many others.
    """

    name = "segmentation"

    def __init__(
        self, network: nn.Module, *, channels: Literal[1, 3], loss: Literal["mse_dice", "bce_dice"] = "mse_dice"
    ) -> None:
        super().__init__()
        self.network, self.channels, self.pixel_loss = network, channels, loss

    @classmethod
    def build(cls, about: TaskDescription) -> Self:
        """Untrained.

        Raises:
            RecipeError: The pictures' side does not fit the network's poolings.
        """
        multiple = 2**about.poolings
        if about.size % multiple:
            raise RecipeError(f"data.size: {about.size} is no multiple of {multiple} (task.poolings)")
        network = build_network(about.network, channels=about.channels, width=about.width, poolings=about.poolings)
        made = cls(network, channels=about.channels, loss=about.loss)
        made.about = about
        return made

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [-1, 1] -> logits (B, 1, H, W)."""
        return self.network(standardised(x, self.channels))

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Mean squared error (or cross-entropy) plus 1 - Dice, the Dice per picture.

        Args:
            out: Logits (B, 1, H, W).
            target: (B, 1, H, W) in {0, 1}.
        """
        out = out.float()
        if self.pixel_loss == "mse_dice":
            pixels = F.mse_loss(out.sigmoid(), target)
        else:
            pixels = F.binary_cross_entropy_with_logits(out, target)
        return pixels + 1 - _dice(out.sigmoid(), target).mean()

    @torch.no_grad()
    def metrics(self, out: Tensor, target: Tensor) -> dict[str, float]:
        """`dice`: mean over the pictures, of what is above probability 0.5."""
        return {"dice": float(_dice((out > 0).float(), target).mean())}


def _dice(p: Tensor, t: Tensor) -> Tensor:
    """2 |p t| / (|p| + |t|) of each picture, (B,); 1 where both are empty."""
    common, both = (p * t).sum(dim=(1, 2, 3)), (p + t).sum(dim=(1, 2, 3))
    return (2 * common + SMOOTH) / (both + SMOOTH)
