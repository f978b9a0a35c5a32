"""Downstream tasks that train along with an enhancer (HQG-Net, arXiv 2307.07829, eq. 12-18).

The paper's bi-level problem is solved as one joint step: min L_d(Theta(x_hat), m) + lambda_3 L_e over the enhancer and
Theta together, where m is the truth of the low-quality picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from medenhance_dicom.errors import ModelError, RecipeError
from medenhance_dicom.training.downstream import DownstreamTask, TaskDescription, read_kept
from medenhance_dicom.training.fovea import FoveaTask
from medenhance_dicom.training.grading import GradingTask, LevelTask, TortuosityTask
from medenhance_dicom.training.quality import QualityTask
from medenhance_dicom.training.recipe import Task, TrainingRecipe
from medenhance_dicom.training.segmentation import SegmentationTask

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["TASKS", "Cooperation", "DownstreamTask", "SegmentationTask", "load_task", "task_of"]

BETAS = (0.5, 0.999)

TASKS: dict[str, type[DownstreamTask]] = {
    "csnet": SegmentationTask,
    "unet": SegmentationTask,
    "heatmap": FoveaTask,
    "resnet8": GradingTask,
    "tortuosity": TortuosityTask,
    "mcfnet": QualityTask,
}
"""By `task.network`."""


def task_of(recipe: TrainingRecipe) -> DownstreamTask:
    """Untrained, as the recipe says; the segmenter of a grading task with its kept weights.

    Raises:
        RecipeError: The pictures' side does not fit the network, or `task.segmenter` is no segmenter.
        ModelError: The segmenter's file is missing or altered.
    """
    path = recipe.task.segmenter
    about = TaskDescription.of(recipe)
    if about.segmenter and about.segmenter.kind != "segmentation":
        raise RecipeError(f"task.segmenter: {path} is of a {about.segmenter.kind} task")
    if path and recipe.task.kind != "grading":
        raise RecipeError("task.segmenter: only grading takes one")
    made = TASKS[about.network].build(about)
    if path and isinstance(made, LevelTask) and made.segmenter is not None:
        made.segmenter.load(path)
    return made


def load_task(path: Path) -> DownstreamTask:
    """A kept task, ready to run.

    Raises:
        ModelError: The file is missing, altered, or says not what it is.
    """
    about, tensors = read_kept(path)
    task = TASKS[about.network].build(about)
    try:
        task.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{path}: weights of another network than it says") from error
    return task.eval()


class Cooperation:
    """The task beside an enhancer in training.

    Theta's batch normalisation keeps the statistics it was trained with, in both modes: those of half-enhanced pictures
    in small batches undo what it knows.

    Args:
        task: Theta.
        settings: The recipe's task table.
        fabric: Of the run.

    Attributes:
        network: Theta as Fabric runs it.
        optimizers: "task" in joint mode, none in frozen mode. To be zeroed and stepped together with the enhancer's.
        stepped: Their names.
    """

    def __init__(self, task: DownstreamTask, settings: Task, fabric: Fabric) -> None:
        self._fabric, self._task = fabric, task
        self._enhancer_weight = settings.enhancer_weight
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        task.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network: nn.Module
        if settings.mode == "joint":
            self.network = fabric.setup_module(task)
            adam = torch.optim.Adam(self.network.parameters(), lr=settings.rate, betas=BETAS)
            self.optimizers["task"] = fabric.setup_optimizers(adam)
        else:
            # Data-parallel wrappers refuse a module that learns nothing.
            self.network = fabric.to_device(task.requires_grad_(False))

    @property
    def stepped(self) -> tuple[str, ...]:
        """Names of the optimizers that step with the enhancer's."""
        return tuple(self.optimizers)

    @classmethod
    def of(cls, recipe: TrainingRecipe, fabric: Fabric) -> Self | None:
        """As the recipe says; None where nothing trains along.

        Raises:
            RecipeError: A frozen task without weights, or one that the pictures do not fit.
            ModelError: The weights are missing or another network's.
        """
        settings = recipe.task
        if settings.mode == "none":
            return None
        if settings.mode == "frozen" and settings.weights is None:
            raise RecipeError("task.weights: a frozen task has to be trained before")
        task = task_of(recipe)
        return cls(task.load(settings.weights) if settings.weights else task, settings, fabric)

    def joined(
        self, total: Tensor, enhance: Callable[[Tensor], Tensor], batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Eq. (15)-(18): the enhancer learns from both terms, Theta from L_d alone.

        Args:
            total: L_e, a scalar.
            enhance: Low-quality pictures (B, C, H, W) in [-1, 1] to x_hat of the same shape and range.
            batch: `task_low` and its truth `task_target`, as the task's `loss` takes it.

        Returns:
            lambda_3 L_e + L_d, and L_d.
        """
        x_hat = enhance(batch["task_low"])
        with self._fabric.autocast():
            out = self.network(x_hat)
        L_d = self._task.loss(out, batch["task_target"])
        return self._enhancer_weight * total + L_d, L_d
