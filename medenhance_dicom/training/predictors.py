"""Kept tasks as judges: a picture of any size in, what the task says of it out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from medenhance_dicom.errors import ModelError
from medenhance_dicom.placement import Placement
from medenhance_dicom.training.data import stored, to_batch
from medenhance_dicom.training.data import unit as shown
from medenhance_dicom.training.downstream import DownstreamTask, TaskDescription
from medenhance_dicom.training.quality import QualityTask
from medenhance_dicom.training.recipe import Kind
from medenhance_dicom.training.tasks import load_task


@dataclass(frozen=True)
class Prediction:
    """What a task says of one picture; the fields of other kinds of task are None."""

    probability: NDArray[np.float32] | None = None
    """(H, W) in [0, 1], of segmentation."""
    grade: int | None = None
    """The level, from 0."""
    point: tuple[float, float] | None = None
    """Row and column in pixels of the picture, of the fovea; the first pixel's centre is 0."""
    quality: float | None = None
    """s_HQ in [0, 1]."""


class Predictor:
    """A kept task with an identifier.

    Args:
        task: With its description.
        digest: SHA-256 of its file, in hexadecimal.

    Attributes:
        kind: "segmentation", "fovea", "grading" or "quality".
        id: Network and 12 digits of the digest, "csnet:0123456789ab"; of quality "s_hq@lite:..." or "s_hq@dense:..."
            by its branches; "s_hq@mcf" is the published network's.
    """

    def __init__(self, task: DownstreamTask, digest: str) -> None:
        about = _about(task)
        self.task = task.eval()
        self.kind: Kind = about.kind
        name: str = about.network
        if about.kind == "quality":
            name = "s_hq@lite" if about.branch == "cnn" else "s_hq@dense"
        self.id = f"{name}:{digest[:12]}"

    def __call__(self, unit: NDArray[np.floating]) -> Prediction:
        """Of a picture (H, W, 1 or 3) in [0, 1]."""
        return predict(self.task, unit)


def load_predictor(path: Path) -> Predictor:
    """The task that a run kept.

    Raises:
        ModelError: The file is missing, altered, or says not what it is.
    """
    task = load_task(path)
    return Predictor(task, hashlib.sha256(path.read_bytes()).hexdigest())


def predict(task: DownstreamTask, unit: NDArray[np.floating]) -> Prediction:
    """What a task in evaluation mode says of one picture.

    The picture is brought to 8 bits and to the square that the task was trained on, as in training; what is found
    there is brought back.

    Args:
        task: With its description.
        unit: (H, W, 1 or 3) in [0, 1].

    Raises:
        ValueError: The picture has another shape.
        ModelError: The task was put together by hand.
    """
    about = _about(task)
    if unit.ndim != 3 or unit.shape[2] not in (1, 3):
        raise ValueError(f"a picture is (H, W, 1 or 3), not {unit.shape}")
    bytes_ = (np.rint(np.clip(unit, 0, 1) * 255) / 255).astype(np.float32)
    square = shown(stored(bytes_, about.picture_channels, about.size))
    device = next(task.parameters()).device
    with torch.inference_mode():
        out = task(to_batch([square]).to(device)).float().cpu()
    height, width = unit.shape[:2]
    place = Placement(height, width, about.size)
    if about.kind == "segmentation":
        inside = out.sigmoid()[(slice(None), slice(None), *place.window)]
        return Prediction(probability=F.interpolate(inside, (height, width), mode="bilinear")[0, 0].numpy())
    if about.kind == "fovea":
        return Prediction(point=place.point_back(*map(float, out[0])))
    if about.kind == "grading":
        return Prediction(grade=int(out[0, 0].argmax()))
    return Prediction(quality=float(QualityTask.score(out)[0]))


def _about(task: DownstreamTask) -> TaskDescription:
    if task.about is None:
        raise ModelError("a task without a description cannot say what pictures it takes")
    return task.about
