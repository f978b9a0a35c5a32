"""Limits by split conformal prediction: the largest statistic, in units of each check's own usual size, decides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medenhance_dicom.gate import FrameScores, Limit, Poor, Thresholds
from medenhance_dicom.gate.checks import CHECKS

__all__ = ["conformal_quantile", "fit_by_quality", "fit_limits"]

LASSIM = "lassim"
COLOUR = "colour"
USUAL = 0.95  # a check's spread reaches from the median to this quantile of honest statistics
LEAST_SPREAD = {"lassim": 0.02, "local": 0.1, "displacement": 0.1, "inversion": 0.1, "blur": 0.05, "colour": 0.1}
"""So that a few patients who are much alike do not make a limit that the next one breaks."""
LEAST_LIMIT = {
    "lassim": 0.2, "local": math.log(4 / 3), "displacement": math.log(4 / 3), "inversion": 1.1, "blur": 1.15,
    "colour": math.log(4 / 3),
}  # fmt: skip
"""Whatever honest results like these say, nothing is objected to below odds of one to three, nor a contrast that has
kept its sign, nor a seventh of the sharpness lost, nor a LaSSIM of 0.8."""
POOR = 1 / 3
FEWEST = 9
MOST_LIMIT = {"colour": math.log(7)}
"""Whatever honest results say, odds of six to one that a spot changed its colour alone are objected to: one outlier
among few pictures would let lesions pass."""
ROOM = {"lassim": 3.0, "inversion": 3.0, "blur": 3.0}
"""Spreads that are taken so many times as wide: these stand guard, and shall not widen the limits of the detector's."""


def fit_limits(
    first: Sequence[FrameScores], second: Sequence[FrameScores], alpha: float, *, warn_alpha: float
) -> Thresholds:
    """Limits that withhold at most `alpha` of honest frames like these, over all checks together.

    The first half gives each check's median and spread. In the second half each frame scores its largest statistic in
    spreads above the median, and the conformal quantile of these scores gives the limit of every check; of colour
    pictures `colour` scores by itself, and each side has half of alpha, so that neither widens the other's (Vovk et
    al., Algorithmic Learning in a Random World, 2005; Papadopoulos et al., ECML 2002, for the split).

    Args:
        first: Honest frames with a LaSSIM, for medians and spreads.
        second: Other honest frames, exchangeable with those to come.
        alpha: Share of honest frames that may be withheld.
        warn_alpha: Share that may be withheld or warned of.

    Raises:
        ValueError: Too few frames for this alpha, or alphas out of order.
    """
    if not 0 < alpha <= warn_alpha < 1:
        raise ValueError(f"wanted 0 < alpha <= warn_alpha < 1, not {alpha} and {warn_alpha}")
    names = (LASSIM, *CHECKS)
    if len(first) < FEWEST:
        raise ValueError(f"{len(first)} honest frames are too few for medians and spreads: {FEWEST} or more wanted")
    usual, other = (np.array([_statistics(frame, names) for frame in frames]) for frames in (first, second))
    middle = np.median(usual, axis=0)
    least = [LEAST_SPREAD[name] for name in names]
    least_limit = [LEAST_LIMIT[name] for name in names]
    spread = np.maximum(np.quantile(usual, USUAL, axis=0) - middle, least)
    spread *= [ROOM.get(name, 1.0) for name in names]
    scores = (other - middle) / spread
    apart = np.array([name == COLOUR for name in names])
    parts = [~apart, apart] if (other[:, apart] > 0).any() else [~apart]
    withhold, warn = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for limits, share in ((withhold, alpha), (warn, warn_alpha)):
        quantiles = np.zeros(len(names))
        for part in parts:
            quantiles[part] = conformal_quantile(scores[:, part].max(axis=1).tolist(), share / len(parts))
        limits.update(zip(names, np.maximum(least_limit, middle + spread * quantiles).tolist(), strict=True))
    for limits in (withhold, warn):
        limits.update({name: min(limits[name], most) for name, most in MOST_LIMIT.items()})
    checks = {name: Limit(warn[name], withhold[name]) for name in CHECKS}
    return Thresholds(max(-1.0, 1 - withhold[LASSIM]), max(-1.0, 1 - warn[LASSIM]), checks)


def fit_by_quality(
    first: Sequence[FrameScores], second: Sequence[FrameScores], alpha: float, *, warn_alpha: float
) -> Thresholds:
    """`fit_limits` of ordinary and of really poor sources apart, so that what it says holds of each of the two.

    Really poor are those that show less detail (`FrameScores.detail`) than the lowest `POOR` of the first half. Limits
    that stand guard (`ROOM`) are the wider of both, the detectors' each class's own: Mondrian conformal prediction
    (Vovk et al., 2005). One class where there are too few of either for this alpha.

    Args:
        first: As of `fit_limits`.
        second: As of `fit_limits`.
        alpha: Of either class.
        warn_alpha: Of either class.

    Raises:
        ValueError: As `fit_limits`.
    """
    details = [frame.detail for frame in first if frame.detail is not None]
    below = float(np.quantile(details, POOR)) if details else 0.0

    def are_poor(frames: Sequence[FrameScores], poor: bool) -> list[FrameScores]:
        return [frame for frame in frames if (frame.detail is not None and frame.detail < below) == poor]

    try:
        ordinary, poor = (
            fit_limits(are_poor(first, which), are_poor(second, which), alpha, warn_alpha=warn_alpha)
            for which in (False, True)
        )
    except ValueError:
        return fit_limits(first, second, alpha, warn_alpha=warn_alpha)
    guards = {
        name: Limit(*(max(getattr(x.checks[name], at) for x in (ordinary, poor)) for at in ("warn", "withhold")))
        for name in ROOM
        if name != LASSIM
    }
    return Thresholds(
        min(ordinary.minimum, poor.minimum),
        min(ordinary.warn_below, poor.warn_below),
        {**ordinary.checks, **guards},
        poor=Poor(below, {name: limit for name, limit in poor.checks.items() if name not in guards}),
    )


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


def _statistics(frame: FrameScores, names: Sequence[str]) -> list[float]:
    """The larger the worse; infinite for a frame without a LaSSIM."""
    lost = math.inf if frame.lassim is None or math.isnan(frame.lassim) else 1 - frame.lassim
    return [lost if name == LASSIM else frame.checks.get(name, 0.0) for name in names]
