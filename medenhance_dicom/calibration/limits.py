"""Limits by split conformal prediction: the largest statistic, in units of each check's own usual size, decides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from medenhance_dicom.gate import FrameScores, Limit, Thresholds
from medenhance_dicom.gate.checks import CHECKS
from medenhance_dicom.verdicts import excess_of

__all__ = ["auroc", "conformal_quantile", "fit_limits"]

USUAL = 0.95  # quantile of honest statistics that is a check's unit
LEAST_UNIT = 1e-3


def fit_limits(
    first: Sequence[FrameScores], second: Sequence[FrameScores], alpha: float, *, warn_alpha: float
) -> Thresholds:
    """Limits that withhold at most `alpha` of honest frames like these, over all checks together.

    The first half gives each check's unit, its 95 % quantile. In the second half each frame scores its largest
    statistic in units, and the conformal quantile of these scores times the unit is the limit of every check (Vovk et
    al., Algorithmic Learning in a Random World, 2005; Papadopoulos et al., ECML 2002, for the split).

    Args:
        first: Honest frames with a LaSSIM, for the units.
        second: Other honest frames, exchangeable with those to come.
        alpha: Share of honest frames that may be withheld.
        warn_alpha: Share that may be withheld or warned of.

    Raises:
        ValueError: Too few frames for this alpha, or alphas out of order.
    """
    if not 0 < alpha <= warn_alpha < 1:
        raise ValueError(f"wanted 0 < alpha <= warn_alpha < 1, not {alpha} and {warn_alpha}")
    lassim = _unit([1 - (math.nan if f.lassim is None else f.lassim) for f in first])
    units = {name: _unit([f.checks.get(name, 0.0) for f in first]) for name in CHECKS}
    yardstick = Thresholds(1 - lassim, 1 - lassim, {name: Limit(unit, unit) for name, unit in units.items()})
    scores = [excess_of(frame, yardstick)[0] for frame in second]
    withhold, warn = (conformal_quantile(scores, a) for a in (alpha, warn_alpha))
    checks = {name: Limit(unit * warn, unit * withhold) for name, unit in units.items()}
    return Thresholds(max(-1.0, 1 - lassim * withhold), max(-1.0, 1 - lassim * warn), checks)


def conformal_quantile(scores: Sequence[float], alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest score: one more like them exceeds it with probability alpha at most.

    Raises:
        ValueError: n < 1 / alpha - 1, where only infinity would do.

    >>> conformal_quantile(range(1, 20), 0.05)
    19.0
    """
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    if rank > len(scores):
        least = math.ceil(1 / alpha) - 1
        raise ValueError(f"{len(scores)} honest frames are too few for alpha {alpha:g}: {least} or more wanted")
    return float(np.sort(np.asarray(scores, float))[rank - 1])


def auroc(honest: Sequence[float], altered: Sequence[float]) -> float:
    """Probability that an altered frame scores above an honest one; ties count half (Mann and Whitney, 1947).

    >>> auroc([1, 2], [2, 3])
    0.875
    """
    ranks = rankdata(np.concatenate([honest, altered]))
    n, m = len(honest), len(altered)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def _unit(values: Sequence[float]) -> float:
    return max(float(np.quantile(values, USUAL)), LEAST_UNIT)
