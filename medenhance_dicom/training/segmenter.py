"""A segmenter as a run of its own: Theta of cooperative training, and the judge that never sees that training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.metrics import segmentation_scores
from medenhance_dicom.training.data import Batch, TrainingPictures
from medenhance_dicom.training.method import Method, Stage, Terms, cosine_rate, set_rate
from medenhance_dicom.training.recipe import TrainingRecipe
from medenhance_dicom.training.tasks import SegmentationTask

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TOLERANCE = 3
"""Pixels, for truth that is drawn as centre lines (StillGAN, HQG-Net)."""


class SegmenterMethod(Method):
    """One segmentation network, supervised."""

    kept = "S"

    def __init__(self, recipe: TrainingRecipe, fabric: Fabric, pictures: TrainingPictures) -> None:
        super().__init__(recipe, fabric, pictures)
        if not pictures.task_validation:
            raise RecipeError("task.validation_pictures is empty")
        self.task = SegmentationTask.of(recipe)
        self.set_up({"S": self.task})
        self.optimizers["S"] = self.adam(self.task.parameters(), recipe.schedule.rate, (0.9, 0.999))
        self._probed = 1 if recipe.task.degraded_fraction else 0

    def stages(self) -> list[Stage]:
        """Supervised on pictures and masks."""
        return [Stage("supervised", self.recipe.schedule.steps, self.pictures.segmented, self.step)]

    def step(self, step: int, batch: Batch, rng: np.random.Generator) -> Terms:
        """L_d on `task_low` and `task_target`, the rate along half a cosine."""
        schedule = self.recipe.schedule
        set_rate(self.optimizers["S"], cosine_rate(schedule.rate, step, schedule.steps))
        out = self.modules["S"](batch["task_low"])
        loss = self.task.loss(out, batch["task_target"])
        self.descend(loss, "S")
        return {"task": float(loss.detach()), **self.task.metrics(out, batch["task_target"])}

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
        with torch.inference_mode(), self.fabric.autocast():
            logits: Tensor = network.eval()(self.fabric.to_device(picture))
        return logits.float().sigmoid()[0, 0].cpu().numpy()
