"""Figures with their 95 % intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

Z = 1.959964
"""97.5 % of the standard normal distribution."""


class Estimate(NamedTuple):
    """A figure and its 95 % interval; equal ends: it is known, not estimated; None: too few to tell."""

    value: float
    low: float | None
    high: float | None


def wilson(successes: float, trials: float) -> Estimate:
    """A share and its 95 % interval by Wilson (1927); no trials: 0, and nothing is known.

    Args:
        successes: In [0, trials]; need not be whole.
        trials: How many.

    Example:
        >>> [round(x, 4) for x in wilson(2, 10)]
        [0.2, 0.0567, 0.5098]
    """
    if trials <= 0:
        return Estimate(0.0, 0.0, 1.0)
    p, z2 = successes / trials, Z * Z
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    return Estimate(p, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half)))
