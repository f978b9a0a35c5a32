"""A segmenter as a run of its own, scored as vessels and nerves are."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medenhance_dicom.metrics import segmentation_scores
from medenhance_dicom.training.supervised import SupervisedMethod

TOLERANCE = 3
"""Pixels, for truth that is drawn as centre lines (StillGAN, HQG-Net)."""


class SegmenterMethod(SupervisedMethod):
    """One segmentation network."""

    kept = "S"

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean Dice on good and on degraded validation pictures; "score" is of the kind that is trained on.

        Where thin truth was widened (`task.dilate`), the Dice has a tolerance of 3 pixels.
        """
        tolerance, dice = TOLERANCE if self.recipe.task.dilate else 0, []
        for good, degraded, truth in self.pictures.validation_task():
            found = (self._probability(network, x) for x in (good, degraded))
            dice.append([segmentation_scores(p, truth, tolerance=tolerance).dice for p in found])
        means = np.mean(dice, axis=0)
        return {"score": float(means[self._probed]), "dice_good": float(means[0]), "dice_degraded": float(means[1])}

    def samples(self, network: nn.Module) -> Tensor | None:
        """Rows of picture, probability and truth, (3, H, W) in [0, 1]."""
        rows = []
        for *pictures, truth in self.pictures.validation_task()[:4]:
            picture = pictures[self._probed]
            found = torch.from_numpy(self._probability(network, picture))
            parts = [(picture[0] + 1) / 2, found[None], torch.from_numpy(truth)[None].float()]
            rows.append(torch.cat([part.expand(3, -1, -1) for part in parts], dim=2))
        return torch.cat(rows, dim=1)

    def _probability(self, network: nn.Module, picture: Tensor) -> NDArray[np.float32]:
        """Of one picture (1, C, H, W) in [-1, 1]: (H, W)."""
        return self._out(network, picture).sigmoid()[0, 0].numpy()
