"""What is measured of a frame before and after enhancement: the published LaSSIM, and checks for what it misses."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FrameScores", "Region", "examine"]

Unit = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Region:
    """A part of a frame, in pixels; `bottom` and `right` are beyond it."""

    top: int
    left: int
    bottom: int
    right: int

    def __str__(self) -> str:
        return f"rows {self.top + 1}-{self.bottom}, columns {self.left + 1}-{self.right}"


@dataclass(frozen=True)
class FrameScores:
    """What was measured of one frame; small, so that an instance of any length can keep them all."""

    lassim: float | None
    """NaN for non-finite values, None for a frame below 7 x 7."""
    checks: dict[str, float] = field(default_factory=dict)
    """Check -> its statistic; the larger, the worse. Empty where `lassim` is no number."""
    regions: dict[str, Region] = field(default_factory=dict)
    """Check -> where its statistic is worst."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def examine(before: Unit, after: Unit, *, level: int = 3, inside: NDArray[np.bool_] | None = None) -> FrameScores:
    """Measure one frame, in double precision.

    Args:
        before: (H, W, C) in [0, 1], C = 1 or 3 (RGB).
        after: The same shape.
        level: LaSSIM's Laplacian level.
        inside: (H, W), where the enhancer may have changed something; None: everywhere. LaSSIM looks everywhere.

    Raises:
        ValueError: The shapes differ.
    """
    import torch

    from medenhance_dicom.lassim import WINDOW, lassim

    if before.shape != after.shape or before.ndim != 3 or before.shape[2] not in (1, 3):
        raise ValueError(f"two (H, W, 1 or 3) of one shape wanted, not {before.shape} and {after.shape}")
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return FrameScores(math.nan)
    if min(before.shape[:2]) < WINDOW:
        return FrameScores(None)
    with torch.inference_mode():
        a, b = (torch.from_numpy(x.astype(np.float64)).permute(2, 0, 1)[None] for x in (before, after))
        return FrameScores(lassim(a, b, level).item())
