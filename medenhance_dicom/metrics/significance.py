"""Is a difference more than chance? Paired tests, their size, a correction for several of them, and an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["PairedComparison", "bootstrap_interval", "compare_paired", "holm"]


@dataclass(frozen=True)
class PairedComparison:
    """Two-sided tests of the differences of pairs."""

    n: int
    difference: float
    """Mean of after - before."""
    t: float
    """Student's t of the differences, with n - 1 degrees of freedom."""
    p_t: float
    w: float
    """Wilcoxon's signed rank statistic, the smaller sum of ranks; pairs without a difference are left out."""
    p_wilcoxon: float
    effect: float
    """Cohen's d_z: mean over sample deviation of the differences."""

    @property
    def freedom(self) -> int:
        """Degrees of freedom of t."""
        return self.n - 1


def compare_paired(after: ArrayLike, before: ArrayLike) -> PairedComparison:
    """Compare two scores of the same pictures; pairs in which one is not finite are left out.

    Where no pair differs, both p are 1 and t and the effect 0; where all differ by the same amount they are infinite.

    Args:
        after: (N,).
        before: (N,), of the same pictures in the same order.

    Raises:
        ValueError: The shapes differ, or fewer than two pairs are finite.
    """
    from scipy import stats  # takes as long to import as all else together

    a, b = np.asarray(after, np.float64), np.asarray(before, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"two lists of one length wanted, not {a.shape} and {b.shape}")
    finite = np.isfinite(a) & np.isfinite(b)
    change = a[finite] - b[finite]
    n, mean = len(change), float(change.mean()) if finite.any() else 0.0
    if n < 2:
        raise ValueError(f"{n} finite pairs; a test wants two and more")
    if not change.any():
        return PairedComparison(n, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0)
    spread = float(change.std(ddof=1))
    signed = stats.wilcoxon(change)
    if spread == 0:
        t, p, effect = float(np.copysign(np.inf, mean)), 0.0, float(np.copysign(np.inf, mean))
    else:
        tested = stats.ttest_1samp(change, 0)
        t, p, effect = float(tested.statistic), float(tested.pvalue), mean / spread
    return PairedComparison(n, mean, t, p, float(signed.statistic), float(signed.pvalue), effect)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics, 1979) of p-values of one family, in their order.

    >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return [float(value) for value in corrected]


def bootstrap_interval(
    values: ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> tuple[float, float]:
    """Percentile interval (Efron 1979) of the mean of N values; the same seed gives the same interval.

    Args:
        values: (N,), finite.
        level: How much of the draws lies inside.
        draws: How many samples with replacement.
        seed: Of the draws.
        statistic: (draws, N) -> (draws,), another statistic than the mean.

    Raises:
        ValueError: There is no value, or one is not finite.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"a list of finite values wanted, not {x.shape}")
    drawn = x[np.random.default_rng(seed).integers(0, x.size, (draws, x.size))]
    found = drawn.mean(1) if statistic is None else statistic(drawn)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
