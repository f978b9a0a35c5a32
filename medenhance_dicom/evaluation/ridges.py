"""Centre lines of bright ridges: a stand-in for tracings of nerves that nobody made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import apply_hysteresis_threshold, sato
from skimage.morphology import skeletonize

from medenhance_dicom.conventional import luminance

SIGMAS = (2.0, 3.0)
"""Half widths in pixels of the ridges looked for, in a picture of 384 x 384."""
STRONG, WEAK = 0.97, 0.90
"""Quantiles of the ridge measure: a line has a strong pixel and goes on while it is weak."""
SHORTEST = 40
"""Pixels of a centre line, in a picture of 384 x 384."""


def ridge_centre_lines(picture: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Skeleton of the bright ridges (Sato et al., Medical Image Analysis 1998) of a picture.

    Args:
        picture: float32 (H, W, 1 or 3) in [0, 1].

    Returns:
        bool (H, W), one pixel wide lines; all False where nothing stands out.
    """
    scale = max(picture.shape[:2]) / 384
    measure = sato(luminance(picture).astype(np.float64), [s * scale for s in SIGMAS], black_ridges=False)
    strong, weak = np.quantile(measure, (STRONG, WEAK))
    if strong <= 1e-6:
        return np.zeros(measure.shape, bool)
    lines = skeletonize(apply_hysteresis_threshold(measure, weak, strong))
    labels, count = ndimage.label(lines, np.ones((3, 3), bool))
    long = np.bincount(labels.ravel(), minlength=count + 1) >= SHORTEST * scale
    long[0] = False
    return np.asarray(long[labels], bool)
