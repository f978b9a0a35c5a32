"""Scores of a grading: one level against the rest, and their averages weighted by how often a level is true.

StillGAN's Table V is averaged so; the paper does not say it, its integers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["GradingScores", "grading_scores", "scores_of_counts"]


@dataclass(frozen=True, eq=False)
class GradingScores:
    """Scores of each level (k,), in [0, 1]; 0/0 is 0, as nothing was found."""

    accuracy: NDArray[np.float64]
    """(TP + TN) / N."""
    precision: NDArray[np.float64]
    """TP / (TP + FP)."""
    sensitivity: NDArray[np.float64]
    """TP / (TP + FN)."""
    f1: NDArray[np.float64]
    """2 TP / (2 TP + FP + FN)."""
    support: NDArray[np.int64]
    """TP + FN."""

    def weighted(self, score: NDArray[np.float64]) -> float:
        """Mean of one of the scores, weighted by support."""
        return float(np.average(score, weights=self.support))


def grading_scores(true: Sequence[int], predicted: Sequence[int]) -> GradingScores:
    """Scores of predicted levels; the levels are those that occur, in rising order.

    Args:
        true: (N,).
        predicted: (N,).

    Raises:
        ValueError: The lengths differ, or there is none.
    """
    t, p = np.asarray(true), np.asarray(predicted)
    if t.shape != p.shape or t.ndim != 1 or not t.size:
        raise ValueError(f"two lists of levels of one length wanted, not {t.shape} and {p.shape}")
    levels = np.union1d(t, p)[:, None]
    tp, fp, fn = (((t == levels) & (p == levels)), ((t != levels) & (p == levels)), ((t == levels) & (p != levels)))
    return scores_of_counts(tp.sum(1), fp.sum(1), fn.sum(1), t.size)


def scores_of_counts(tp: ArrayLike, fp: ArrayLike, fn: ArrayLike, total: int) -> GradingScores:
    """Scores of counts of each level (k,), of `total` pictures in all."""
    tp, fp, fn = (np.asarray(counts, np.int64) for counts in (tp, fp, fn))
    return GradingScores(
        accuracy=(total - fp - fn) / total,
        precision=_ratio(tp, tp + fp),
        sensitivity=_ratio(tp, tp + fn),
        f1=_ratio(2 * tp, 2 * tp + fp + fn),
        support=tp + fn,
    )


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
