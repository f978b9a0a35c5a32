"""Which map of objections a person is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.gate import LEVEL, Thresholds
from medenhance_dicom.gate.blend import objection_map

__all__ = ["ObjectionMap", "shown_map"]

Unit = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class ObjectionMap:
    """What is drawn beside a frame."""

    values: NDArray[np.float32]
    """(H, W), 0 and up."""
    calibrated: bool
    """In multiples of the structure map's limit; else 1 - LaSSIM of each place, for which there is no limit."""


def shown_map(
    before: Unit, after: Unit, thresholds: Thresholds, *, level: int = LEVEL, inside: NDArray[np.bool_] | None = None
) -> ObjectionMap:
    """Where structure changed: the structure map, or LaSSIM's own where the limits have none for it.

    Args:
        before: (H, W, C) in [0, 1], C = 1 or 3 (RGB).
        after: The same shape.
        thresholds: The limits.
        level: LaSSIM's Laplacian level.
        inside: (H, W), where the enhancer may have changed something; None: everywhere.

    Returns:
        The map; 0 everywhere for a frame that is too small to be judged.
    """
    objection = objection_map(before, after, thresholds, inside)
    if objection is not None:
        return ObjectionMap(objection, True)
    return ObjectionMap(_lassim_objection(before, after, level), False)


def _lassim_objection(before: Unit, after: Unit, level: int) -> NDArray[np.float32]:
    """1 - LaSSIM map, brought to the frame's size."""
    import torch
    from torch.nn import functional as F  # noqa: N812

    from medenhance_dicom.lassim import WINDOW, lassim_map

    if min(before.shape[:2]) < WINDOW:
        return np.zeros(before.shape[:2], np.float32)
    with torch.inference_mode():
        a, b = (torch.from_numpy(np.ascontiguousarray(x, np.float32)).permute(2, 0, 1)[None] for x in (before, after))
        found = F.interpolate(1 - lassim_map(a, b, level), before.shape[:2], mode="bilinear", align_corners=False)
    return found[0, 0].clamp_min(0).numpy()
