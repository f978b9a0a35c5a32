"""How far a found point, the fovea, lies from the true one (StillGAN, Table IV), and how often one is found.

The papers do not say what a missed point costs. Here the mean is over those found, the rate stands beside it, and a
second mean counts a miss as far off as the field of view is wide from its centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medenhance_dicom.metrics.picture import Mask

__all__ = ["LocationScores", "field_radius", "location_distance", "location_scores"]

Point = tuple[float, float]


@dataclass(frozen=True)
class LocationScores:
    """Distances in pixels of the original picture; NaN where nothing was found."""

    mean: float
    deviation: float
    """Of the population."""
    rate: float
    """Share of the points that were found, in [0, 1]."""
    mean_with_misses: float
    """A miss counts as the radius of the field of view."""


def location_distance(true: Point, found: Point) -> float:
    """Euclidean distance of two points (row, column)."""
    return float(np.hypot(true[0] - found[0], true[1] - found[1]))


def field_radius(inside: Mask) -> float:
    """Half of the longer side of the field of view's bounding box, in pixels."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not rows.size:
        raise ValueError("the field of view is empty")
    return float(max(np.ptp(rows), np.ptp(columns)) + 1) / 2


def location_scores(true: Sequence[Point], found: Sequence[Point | None], radii: Sequence[float]) -> LocationScores:
    """Scores of N points.

    Args:
        true: (row, column) of each.
        found: The same, or None for a miss.
        radii: What a miss costs; `field_radius` of each picture.

    Raises:
        ValueError: The lengths differ, or there is none.
    """
    if not len(true) == len(found) == len(radii) or not true:
        raise ValueError(f"as many points as found ones and radii wanted, not {len(true)}, {len(found)}, {len(radii)}")
    distances = [np.nan if f is None else location_distance(t, f) for t, f in zip(true, found, strict=True)]
    d = np.array(distances)
    hit = np.isfinite(d)
    return LocationScores(
        mean=float(d[hit].mean()) if hit.any() else float("nan"),
        deviation=float(d[hit].std()) if hit.any() else float("nan"),
        rate=float(hit.mean()),
        mean_with_misses=float(np.where(hit, d, np.asarray(radii, np.float64)).mean()),
    )
