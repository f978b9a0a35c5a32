"""A downstream task as a run of its own: Theta of cooperative training, and the judge that never sees that training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.training.data import Batch, TrainingPictures, to_batch
from medenhance_dicom.training.grading import TortuosityTask
from medenhance_dicom.training.method import Method, Stage, Terms, cosine_rate, set_rate
from medenhance_dicom.training.recipe import TrainingRecipe
from medenhance_dicom.training.tasks import task_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class SupervisedMethod(Method):
    """One task's network on pictures and their truth."""

    kept = "T"

    def __init__(self, recipe: TrainingRecipe, fabric: Fabric, pictures: TrainingPictures) -> None:
        super().__init__(recipe, fabric, pictures)
        if recipe.task.kind == "quality":
            if not (pictures.validation_low and pictures.validation_high):
                raise RecipeError("data.validation_low or data.validation_high is empty")
        elif not pictures.task_validation:
            raise RecipeError("task.validation_pictures is empty")
        self.task = task_of(recipe)
        self.set_up({self.kept: self.task})
        learning = [p for p in self.task.parameters() if p.requires_grad]
        self.optimizers[self.kept] = self.adam(learning, recipe.schedule.rate, (0.9, 0.999))
        self._probed = 1 if recipe.task.degraded_fraction else 0

    def stages(self) -> list[Stage]:
        """Supervised."""
        return [Stage("supervised", self.recipe.schedule.steps, self.pictures.of_task, self.step)]

    def step(self, step: int, batch: Batch, rng: np.random.Generator) -> Terms:
        """L_d on `task_low` and `task_target`, the rate along half a cosine."""
        schedule = self.recipe.schedule
        set_rate(self.optimizers[self.kept], cosine_rate(schedule.rate, step, schedule.steps))
        out = self.modules[self.kept](batch["task_low"])
        loss = self.task.loss(out, batch["task_target"])
        self.descend(loss, self.kept)
        return {"task": float(loss.detach()), **self.task.metrics(out, batch["task_target"])}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """The task's metrics on the validation pictures, of the kind that is trained on; "score" is minus the loss.

        Their names end in `_validation`: the diary has the last batch's beside them.
        """
        items = self.pictures.validation_task()
        out = torch.cat([self._out(network, (good, degraded)[self._probed]) for good, degraded, _ in items])
        target = torch.from_numpy(np.stack([truth for *_, truth in items]))
        metrics = {f"{name}_validation": value for name, value in self.task.metrics(out, target).items()}
        return {"score": -float(self.task.loss(out, target)), **metrics}

    def samples(self, network: nn.Module) -> Tensor | None:
        """Nothing to see."""
        return None

    def _out(self, network: nn.Module, picture: Tensor) -> Tensor:
        """Of one picture (1, C, H, W) in [-1, 1]; float32 on the CPU."""
        with torch.inference_mode(), self.fabric.autocast():
            out: Tensor = network.eval()(self.fabric.to_device(picture))
        return out.float().cpu()


class FoveaMethod(SupervisedMethod):
    """A place in each picture."""

    def samples(self, network: nn.Module) -> Tensor | None:
        """Rows of pictures, a white cross where the fovea is found and a black one where it is, (3, H, W) in [0, 1]."""
        rows = []
        for good, degraded, truth in self.pictures.validation_task()[:4]:
            picture = (good, degraded)[self._probed]
            drawn = ((picture[0] + 1) / 2).expand(3, -1, -1).clone()
            for place, value in ((torch.from_numpy(truth), 0.0), (self._out(network, picture)[0], 1.0)):
                row, column = (min(int(p * n), n - 1) for p, n in zip(place, drawn.shape[1:], strict=True))
                drawn[:, row, max(column - 4, 0) : column + 5] = value
                drawn[:, max(row - 4, 0) : row + 5, column] = value
            rows.append(drawn)
        return torch.cat(rows, dim=1)


class GradingMethod(SupervisedMethod):
    """Levels. The features of "tortuosity" are measured once, since no turn of a picture changes them by much."""

    def __init__(self, recipe: TrainingRecipe, fabric: Fabric, pictures: TrainingPictures) -> None:
        super().__init__(recipe, fabric, pictures)
        self._measured: Batch | None = None
        if isinstance(self.task, TortuosityTask):
            self._measured = self._measure(self.task, pictures)
            self.task.standardise(fabric.to_device(self._measured["task_low"]))

    def stages(self) -> list[Stage]:
        """Supervised; "tortuosity" sees all pictures' features at every step."""
        if self._measured is None:
            return super().stages()
        measured = self._measured
        return [Stage("supervised", self.recipe.schedule.steps, lambda rng: measured, self.step)]

    def _measure(self, task: TortuosityTask, pictures: TrainingPictures) -> Batch:
        seed = self.recipe.schedule.seed
        drawn = [pictures.task_item(i, np.random.default_rng((seed, i))) for i in range(len(pictures.task))]
        features = [task.features(self.fabric.to_device(to_batch([unit]))).cpu() for unit, _ in drawn]
        return {"task_low": torch.cat(features), "task_target": torch.tensor([int(level) for _, level in drawn])}
