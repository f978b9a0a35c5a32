"""What a downstream task has to offer, and how it is kept: weights that say what they are the weights of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from medenhance_dicom.errors import ModelError
from medenhance_dicom.training.recipe import Kind, TaskNetwork, TrainingRecipe

if TYPE_CHECKING:
    import torch

SURROUND = 0.06
"""What is darker than this in all channels lies outside the field of view."""
GREEN = 1
METADATA = "task"


class TaskDescription(TaskNetwork):
    """All that rebuilds a kept task, but its weights."""

    size: int
    """Side in pixels of the square pictures that it was trained on."""
    picture_channels: Literal[1, 3]
    """Channels of those pictures."""
    segmenter: TaskDescription | None = None

    @classmethod
    def of(cls, recipe: TrainingRecipe) -> TaskDescription:
        """As the recipe's task and data tables say.

        Raises:
            ModelError: `task.segmenter` is missing, altered or says not what it is.
        """
        shape = {name: getattr(recipe.task, name) for name in TaskNetwork.model_fields}
        segmenter = read_kept(recipe.task.segmenter)[0] if recipe.task.segmenter else None
        return cls(**shape, size=recipe.data.size, picture_channels=recipe.data.channels, segmenter=segmenter)


class DownstreamTask(nn.Module):
    """A task whose forward is differentiable in the picture, unless its class says otherwise.

    Attributes:
        name: The kind.
        about: What is kept beside the weights; None for a task that was put together by hand.
    """

    name: ClassVar[Kind]

    def __init__(self) -> None:
        super().__init__()
        self.about: TaskDescription | None = None

    @classmethod
    def build(cls, about: TaskDescription) -> Self:
        """Untrained.

        Raises:
            RecipeError: The description contradicts itself.
        """
        raise NotImplementedError

    @classmethod
    def of(cls, recipe: TrainingRecipe) -> Self:
        """Untrained, as the recipe says.

        Raises:
            RecipeError: The pictures' side does not fit the network.
        """
        return cls.build(TaskDescription.of(recipe))

    def load(self, path: Path) -> Self:
        """Fill in kept weights; they may be older than the descriptions.

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
        """Pictures (B, 1 or 3, H, W) in [-1, 1] to the task's output."""
        raise NotImplementedError

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """L_d, a scalar."""
        raise NotImplementedError

    def metrics(self, out: Tensor, target: Tensor) -> dict[str, float]:
        """Figures to report, without gradients."""
        raise NotImplementedError


def standardised(x: Tensor, channels: int) -> Tensor:
    """Each picture at mean 0 and deviation 1 inside its field of view.

    An exposure that differs from the training pictures' should cost nothing, only what hides the structure.

    Args:
        x: (B, 1 or 3, H, W) in [-1, 1].
        channels: 1 or 3. A colour picture becomes its green plane, where vessels stand out most; a grey one is
            repeated.

    Returns:
        (B, channels, H, W).
    """
    u = (x.float() + 1) / 2
    field = (u.amax(dim=1, keepdim=True) > SURROUND).float()
    if channels == 1 and u.shape[1] == 3:
        u = u[:, GREEN : GREEN + 1]
    n = (field.sum(dim=(1, 2, 3), keepdim=True) * u.shape[1]).clamp_min(1)
    mean = (u * field).sum(dim=(1, 2, 3), keepdim=True) / n
    variance = ((u - mean).square() * field).sum(dim=(1, 2, 3), keepdim=True) / n
    return ((u - mean) / (variance + 1e-4).sqrt()).expand(-1, channels, -1, -1)


def kept_metadata(about: TaskDescription, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What a task's safetensors file says of itself: one entry, since the order of several would be left to chance."""
    said = about.model_dump(mode="json")
    return {METADATA: json.dumps({"about": said, "sha256": _digest(said, tensors)}, sort_keys=True)}


def read_kept(path: Path) -> tuple[TaskDescription, dict[str, torch.Tensor]]:
    """Description and weights of a kept task.

    Raises:
        ModelError: The file is missing, no safetensors, altered since it was written, or says not what it is.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            written = (handle.metadata() or {}).get(METADATA)
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: no weights to read ({type(error).__name__})") from error
    if written is None:
        raise ModelError(f"{path}: not a task's weights, or kept before they said what they are: train it again")
    try:
        said = json.loads(written)
        intact = said["sha256"] == _digest(said["about"], tensors)
        about = TaskDescription.model_validate(said["about"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ModelError(f"{path}: a task of an unknown kind") from error
    if not intact:
        raise ModelError(f"{path}: altered since it was written")
    return about, tensors


def _digest(said: object, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
