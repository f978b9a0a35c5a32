"""How well a segmentation agrees with the truth, with a tolerance for thin structures.

The papers (StillGAN, section IV; HQG-Net, Table VII) give no formula for their tolerance of 3 pixels. Taken here, after
Guimaraes et al.: a found pixel is right within that distance of a true one, and a true pixel is missed beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, maximum_filter

__all__ = ["SegmentationScores", "auroc", "segmentation_scores"]

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SegmentationScores:
    """Agreement of one picture's segmentation with its truth; 0/0 is 1: nothing was there and nothing was missed."""

    accuracy: float
    sensitivity: float
    specificity: float
    g_mean: float
    """sqrt(sensitivity x specificity)."""
    dice: float
    kappa: float
    """Cohen's: (accuracy - p_e) / (1 - p_e), p_e the accuracy that the marginals alone give."""
    auc: float
    """Area under the ROC curve; NaN where the truth, or what lies away from it, is empty."""


def segmentation_scores(
    probability: NDArray[Any],
    truth: NDArray[Any],
    *,
    tolerance: float = 0,
    inside: NDArray[Any] | None = None,
    threshold: float | Literal["otsu"] = 0.5,
) -> SegmentationScores:
    """Compare a segmentation S with the truth G.

    With D_t(X), the pixels within the Euclidean distance t of X, and N pixels in all: TP = |S in D_t(G)|,
    FP = |S outside D_t(G)|, FN = |G outside D_t(S)|, TN = N - TP - FP - FN. For the AUC a pixel of G scores the largest
    probability within t of it, the ring D_t(G) without G is left out, all others score their own.

    Args:
        probability: (H, W), of the foreground, in [0, 1]; or a mask.
        truth: (H, W), bool or 0 and 1.
        tolerance: t in pixels. 0 gives the usual definitions.
        inside: (H, W), the field of view; pixels outside are nobody's. None: the whole picture.
        threshold: S is what is above it; "otsu" finds it in the picture.

    Raises:
        ValueError: The shapes differ, or a probability is not finite.
    """
    score, true = np.asarray(probability, np.float64), np.asarray(truth, bool)
    field = np.ones_like(true) if inside is None else np.asarray(inside, bool)
    if score.ndim != 2 or not score.shape == true.shape == field.shape:
        raise ValueError(f"(H, W) of one shape wanted, not {score.shape}, {true.shape} and {field.shape}")
    if not np.isfinite(score).all():
        raise ValueError("a probability is not finite")
    true = true & field
    if threshold == "otsu":
        from skimage.filters import threshold_otsu

        threshold = float(threshold_otsu(score[field]))
    found = (score > threshold) & field
    near_true, near_found = _within(true, tolerance), _within(found, tolerance)
    n = int(field.sum())
    tp, fp, fn = (int(part.sum()) for part in (found & near_true, found & ~near_true, true & ~near_found))
    tn = n - tp - fp - fn
    accuracy, sensitivity, specificity = _ratio(tp + tn, n), _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    chance = _ratio((tp + fp) * (tp + fn) + (tn + fn) * (tn + fp), n**2)
    return SegmentationScores(
        accuracy=accuracy,
        sensitivity=sensitivity,
        specificity=specificity,
        g_mean=(sensitivity * specificity) ** 0.5,
        dice=_ratio(2 * tp, 2 * tp + fp + fn),
        kappa=_ratio(accuracy - chance, 1 - chance),
        auc=_area(np.where(field, score, -np.inf), true, field & ~near_true, tolerance),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _within(mask: Mask, distance: float) -> Mask:
    """D_t of a mask."""
    if not distance or not mask.any():
        return mask
    return np.asarray(distance_transform_edt(~mask) <= distance)


def _area(score: NDArray[np.float64], true: Mask, rest: Mask, tolerance: float) -> float:
    """How often a true pixel scores above one of `rest`."""
    best = score
    if tolerance:
        reach = int(tolerance)
        y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        best = maximum_filter(score, footprint=y**2 + x**2 <= tolerance**2, mode="constant", cval=-np.inf)
    return auroc(score[rest], best[true])


def auroc(negative: Sequence[float] | NDArray[Any], positive: Sequence[float] | NDArray[Any]) -> float:
    """Probability that a positive scores above a negative; ties count half (Mann and Whitney, 1947).

    Returns:
        In [0, 1]; NaN where there are none of one kind.

    >>> auroc([1, 2], [2, 3])
    0.875
    """
    from scipy.stats import rankdata  # takes as long to import as all else together

    n, m = len(negative), len(positive)
    if not n or not m:
        return float("nan")
    ranks = rankdata(np.concatenate([negative, positive]))
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))
