"""Which map of objections a person is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.gate import LEVEL, Thresholds
from medenhance_dicom.gate.blend import objection_map

__all__ = ["ObjectionMap", "local_lassim", "shown_map"]

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
    return ObjectionMap((1 - local_lassim(before, after, level)).clip(0), False)


def local_lassim(before: Unit, after: Unit, level: int = LEVEL) -> NDArray[np.float32]:
    """LaSSIM of each place of a frame.

    A pixel has that of the 7 x 7 window of the Laplacian level around it, the border that of the nearest whole window.

    Args:
        before: (H, W, C) in [0, 1], C = 1 or 3 (RGB).
        after: The same shape.
        level: The Laplacian level.

    Returns:
        (H, W) in [-1, 1]; 1 everywhere for a frame that is too small to be judged.
    """
    import torch
    from torch.nn import functional as F  # noqa: N812

    from medenhance_dicom.lassim import WINDOW, lassim_map

    if min(before.shape[:2]) < WINDOW:
        return np.ones(before.shape[:2], np.float32)
    with torch.inference_mode():
        a, b = (torch.from_numpy(np.ascontiguousarray(x, np.float32)).permute(2, 0, 1)[None] for x in (before, after))
        whole = F.pad(lassim_map(a, b, level), (WINDOW // 2,) * 4, mode="replicate")
        found = F.interpolate(whole, before.shape[:2], mode="bilinear", align_corners=False)
    return found[0, 0].numpy()
