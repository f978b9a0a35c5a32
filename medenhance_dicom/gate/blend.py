"""Where the maps of structure and colour object, the source's pixels come back, feathered; the rest stays enhanced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.gate.checks import FrameScores, detail_of, examine, structure_map
from medenhance_dicom.gate.verdict import LEVEL, Thresholds

__all__ = ["FEATHER", "Blended", "blend", "objection_map", "source_weight"]

Unit = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

MAP_CHECKS = ("local", "colour")
"""The checks whose maps say where the source comes back, each measured in its limit."""
FEATHER = 3.0
"""Standard deviation of the seam, in pixels of a frame brought to 384 on its longer side."""
GROWN_TO = 0.5
"""What objects takes along what hangs together with it above this part of the limit: a lesion's rim with its core."""
ROUNDS = 3
_NOTHING = 3.0  # standard deviations from the core; beyond, the weight is exactly 0


@dataclass(frozen=True)
class Blended:
    """A frame in which the source came back."""

    after: NDArray[np.float32]
    """(H, W, C) in [0, 1]."""
    scores: FrameScores
    """Of the blended frame."""
    weight: NDArray[np.float32]
    """(H, W), of the source, in [0, 1]."""

    @property
    def share(self) -> float:
        """Mean weight of the source."""
        return float(self.weight.mean())


def objection_map(
    before: Unit, after: Unit, thresholds: Thresholds, inside: Mask | None = None
) -> NDArray[np.float32] | None:
    """How much each place objects, in multiples of the limit: from 1 up, the structure counts as changed.

    Args:
        before: (H, W, C) in [0, 1], C = 1 or 3 (RGB).
        after: The same shape.
        thresholds: The limits.
        inside: (H, W), where the enhancer may have changed something; None: everywhere.

    Returns:
        (H, W), 0 and up, the larger of both maps; None where there is no limit to measure by.
    """
    within = thresholds.of(detail_of(before, inside) if thresholds.poor else None)
    limits = {name: within[name].withhold for name in MAP_CHECKS if name in within}
    maps = [structure_map(before, after, inside, name) / limit for name, limit in limits.items() if limit > 0]
    return np.maximum.reduce(maps).astype(np.float32) if maps else None


def blend(
    before: Unit,
    after: Unit,
    scores: FrameScores,
    thresholds: Thresholds,
    *,
    level: int = LEVEL,
    inside: Mask | None = None,
) -> Blended | None:
    """Put the source back where structure changed, and examine the result; again where it still objects.

    Args:
        before: (H, W, C) in [0, 1], C = 1 or 3 (RGB).
        after: The same shape.
        scores: Of this pair.
        thresholds: The limits.
        level: LaSSIM's Laplacian level.
        inside: (H, W), where the enhancer may have changed something; None: everywhere.

    Returns:
        The blended frame, which may still object; None where the maps' checks stay within their limits, or have none.
    """
    core = np.zeros(before.shape[:2], bool)
    found: Blended | None = None
    now, measured = after, scores
    for _ in range(ROUNDS):
        if not any(_is_beyond(measured, name, thresholds) for name in MAP_CHECKS):
            break
        objection = objection_map(before, now, thresholds, inside)
        grown = core if objection is None else core | _objecting(objection)
        if grown.sum() == core.sum():
            break
        core = grown
        weight = source_weight(core)
        now = (after + weight[..., None] * (before - after)).astype(np.float32)
        now[core] = before[core]
        measured = examine(before, now, level=level, inside=inside)
        found = Blended(now, measured, weight)
    return found


def source_weight(core: Mask) -> NDArray[np.float32]:
    """(H, W), True where the source has to come back -> its weight: 1 there, falling off as a Gaussian beside it."""
    from scipy.ndimage import distance_transform_edt

    if not core.any():
        return np.zeros(core.shape, np.float32)
    sigma = FEATHER * max(core.shape) / 384
    distance = distance_transform_edt(~core) / sigma
    return np.where(distance <= _NOTHING, np.exp(-(distance**2) / 2), 0).astype(np.float32)


def _is_beyond(scores: FrameScores, check: str, thresholds: Thresholds) -> bool:
    limit = thresholds.of(scores.detail).get(check)
    return limit is not None and scores.checks.get(check, 0.0) > limit.withhold


def _objecting(objection: NDArray[np.float32]) -> Mask:
    """Places of `GROWN_TO` and more that hang together with one of 1 and more."""
    from scipy.ndimage import label

    parts, _ = label(objection >= GROWN_TO)
    chosen = np.unique(parts[objection >= 1])
    return np.isin(parts, chosen[chosen > 0])
