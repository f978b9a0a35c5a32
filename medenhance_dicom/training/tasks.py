"""Downstream tasks that train along with an enhancer (HQG-Net, arXiv 2307.07829, eq. 12-18).

The paper's bi-level problem is solved as one joint step: min L_d(Theta(x_hat), m) + lambda_3 L_e over the enhancer and
Theta together, where m is the truth of the low-quality picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from medenhance_dicom.errors import ModelError, RecipeError
from medenhance_dicom.networks import build_network
from medenhance_dicom.training.recipe import Task, TrainingRecipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BETAS = (0.5, 0.999)
SURROUND = 0.06
"""What is darker than this in all channels lies outside the field of view."""
SMOOTH = 1e-4
GREEN = 1


class DownstreamTask(Protocol):
    """What a task has to offer; an nn.Module whose forward is differentiable in the picture."""

    name: str

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, 1 or 3, H, W) in [-1, 1] to the task's output."""
        ...

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """L_d, a scalar."""
        ...

    def metrics(self, out: Tensor, target: Tensor) -> dict[str, float]:
        """Figures to report, without gradients."""
        ...


class SegmentationTask(nn.Module):
    """A segmentation network that takes the enhancer's pictures, whatever their channels and brightness.

    Args:
        network: (B, channels, H, W) to logits (B, 1, H, W).
        channels: 1 or 3. A colour picture is given to one channel as its green plane, where vessels stand out most; a
            grey one is repeated for three.
        loss: "mse_dice" is CS-Net's, of the sigmoid; "bce_dice" that of many others.
    """

    name = "segmentation"

    def __init__(
        self, network: nn.Module, *, channels: Literal[1, 3], loss: Literal["mse_dice", "bce_dice"] = "mse_dice"
    ) -> None:
        super().__init__()
        self.network, self.channels, self.kind = network, channels, loss

    @classmethod
    def of(cls, recipe: TrainingRecipe) -> Self:
        """Untrained, as the recipe's task table says.

        Raises:
            RecipeError: The pictures' side does not fit the network's poolings.
        """
        task, multiple = recipe.task, 2**recipe.task.poolings
        if recipe.data.size % multiple:
            raise RecipeError(f"data.size: {recipe.data.size} is no multiple of {multiple} (task.poolings)")
        network = build_network(task.network, channels=task.channels, width=task.width, poolings=task.poolings)
        return cls(network, channels=task.channels, loss=task.loss)

    def load(self, path: Path) -> Self:
        """Fill in the weights that a run with `method = "segmenter"` kept.

        Raises:
            ModelError: The file is missing, no safetensors, or of another network.
        """
        try:
            self.load_state_dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: no weights to read ({type(error).__name__})") from error
        except RuntimeError as error:
            raise ModelError(f"{path}: weights of another network than the task's") from error
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [-1, 1] -> logits (B, 1, H, W).

        Each picture is brought to mean 0 and deviation 1 inside its field of view: an exposure that differs from the
        training pictures' should cost nothing, only what hides the structure.
        """
        u = (x.float() + 1) / 2
        field = (u.amax(dim=1, keepdim=True) > SURROUND).float()
        if self.channels == 1 and u.shape[1] == 3:
            u = u[:, GREEN : GREEN + 1]
        n = (field.sum(dim=(1, 2, 3), keepdim=True) * u.shape[1]).clamp_min(1)
        mean = (u * field).sum(dim=(1, 2, 3), keepdim=True) / n
        variance = ((u - mean).square() * field).sum(dim=(1, 2, 3), keepdim=True) / n
        u = (u - mean) / (variance + 1e-4).sqrt()
        return self.network(u.expand(-1, self.channels, -1, -1))

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """Mean squared error (or cross-entropy) plus 1 - Dice, the Dice per picture.

        Args:
            out: Logits (B, 1, H, W).
            target: (B, 1, H, W) in {0, 1}.
        """
        out = out.float()
        if self.kind == "mse_dice":
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

    def __init__(self, task: SegmentationTask, settings: Task, fabric: Fabric) -> None:
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
        task = SegmentationTask.of(recipe)
        return cls(task.load(settings.weights) if settings.weights else task, settings, fabric)

    def joined(
        self, total: Tensor, enhance: Callable[[Tensor], Tensor], batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Eq. (15)-(18): the enhancer learns from both terms, Theta from L_d alone.

        Args:
            total: L_e, a scalar.
            enhance: Low-quality pictures (B, C, H, W) in [-1, 1] to x_hat of the same shape and range.
            batch: `task_low` and its truth `task_target` (B, 1, H, W) in {0, 1}.

        Returns:
            lambda_3 L_e + L_d, and L_d.
        """
        x_hat = enhance(batch["task_low"])
        with self._fabric.autocast():
            out = self.network(x_hat)
        L_d = self._task.loss(out, batch["task_target"])
        return self._enhancer_weight * total + L_d, L_d
