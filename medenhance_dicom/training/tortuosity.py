"""How tortuous the fibres of a segmentation are: centre lines, fibres, and four figures of each.

Figures per fibre of length L: arc over chord minus 1, the integrals of |kappa| and of kappa^2 along it over L, and the
inflections over L (compared for vessels by Hart et al., Int. J. Med. Inform. 53, 1999).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve, gaussian_filter1d, label
from skimage.morphology import skeletonize

FEATURES = 8
SHORTEST = 16
"""Pixels; what is shorter is no fibre."""
SMOOTHING = 4.0
"""Deviation in pixels of the Gaussian that takes the staircase out of a chain of pixels."""
STRAIGHT = 0.02
"""Curvature in 1/pixel below which a fibre counts as straight, so that noise makes no inflections."""

Line = NDArray[np.float64]
Mask = NDArray[np.bool_]
EVERYWHERE = np.ones((3, 3), int)


def fibre_features(line: Line) -> NDArray[np.float64]:
    """Arc / chord - 1, integral |kappa| / L, integral kappa^2 / L, inflections / L of a polyline.

    Curvature is the angle that a vertex turns by over the mean length of its two sides: 1/r for a circle.

    Args:
        line: (N, 2) places in pixels, N at least 2, none twice in a row.

    Returns:
        (4,) in 1, 1/pixel, 1/pixel^2, 1/pixel. A chord below one pixel counts as one.
    """
    sides = np.diff(line, axis=0)
    lengths = np.hypot(*sides.T)
    arc, chord = lengths.sum(), max(float(np.hypot(*(line[-1] - line[0]))), 1.0)
    before, after = sides[:-1], sides[1:]
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    angles = np.arctan2(cross, (before * after).sum(axis=1))
    spacing = (lengths[:-1] + lengths[1:]) / 2
    kappa = angles / spacing
    bends = np.sign(kappa[np.abs(kappa) > STRAIGHT])
    inflections = np.count_nonzero(np.diff(bends))
    return np.array([arc / chord - 1, np.abs(angles).sum() / arc, (kappa**2 * spacing).sum() / arc, inflections / arc])


def fibres(mask: Mask) -> list[Line]:
    """Centre lines of a segmentation, cut where they branch or cross.

    Args:
        mask: (H, W), True on fibres.

    Returns:
        Smoothed polylines (N, 2) of (row, column), each of at least `SHORTEST` pixels, a vertex every other pixel.
    """
    skeleton = skeletonize(np.asarray(mask, bool))
    branches = skeleton & (_neighbours(skeleton) > 2)
    parts, count = label(skeleton & (convolve(branches.astype(int), EVERYWHERE, mode="constant") == 0), EVERYWHERE)
    lines = []
    order = np.argsort(parts, axis=None, kind="stable")
    bounds = np.searchsorted(parts.ravel()[order], np.arange(1, count + 2))
    for first, last in pairwise(bounds):
        if last - first >= SHORTEST:
            chain = _in_order(np.stack(np.unravel_index(order[first:last], parts.shape), axis=1))
            if len(chain) >= SHORTEST:
                lines.append(_smooth(chain)[::2])
    return lines


def tortuosity_features(mask: Mask) -> NDArray[np.float32]:
    """Mean and maximum over the fibres of the four figures, at any scale: lengths in units of the longer side.

    Args:
        mask: (H, W), True on fibres.

    Returns:
        (8,), each as log(1 + figure), since they are skewed; zeros where there is no fibre.
    """
    found = np.array([fibre_features(line) for line in fibres(mask)])
    if not len(found):
        return np.zeros(FEATURES, np.float32)
    side = max(mask.shape)
    figures = np.log1p(found * [1, side, side**2, side])
    return np.concatenate([figures.mean(axis=0), figures.max(axis=0)]).astype(np.float32)


def _neighbours(skeleton: Mask) -> NDArray[np.int64]:
    """How many ways lead on from each pixel; a diagonal does not count where a corner leads there as well."""
    s = np.pad(skeleton, 1).astype(int)
    up, down, left, right = s[:-2, 1:-1], s[2:, 1:-1], s[1:-1, :-2], s[1:-1, 2:]
    diagonals: Any = 0
    for corner, one, other in (
        (s[:-2, :-2], up, left), (s[:-2, 2:], up, right), (s[2:, :-2], down, left), (s[2:, 2:], down, right)
    ):  # fmt: skip
        diagonals = diagonals + corner * (1 - one) * (1 - other)
    return up + down + left + right + diagonals


def _smooth(chain: Line) -> Line:
    """A chain of at least `SHORTEST` places without its staircase; it goes on point-symmetrically beyond its ends."""
    margin = int(3 * SMOOTHING)
    longer = np.pad(chain, ((margin, margin), (0, 0)), mode="reflect", reflect_type="odd")
    smooth: Line = gaussian_filter1d(longer, SMOOTHING, axis=0)[margin:-margin]
    return smooth


def _in_order(pixels: NDArray[np.int64]) -> Line:
    """The pixels of an unbranched chain from one end to the other; straight neighbours come before diagonal ones."""
    steps = ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
    left = {(int(row), int(column)) for row, column in pixels}

    def beside(at: tuple[int, int]) -> list[tuple[int, int]]:
        return [(at[0] + i, at[1] + j) for i, j in steps if (at[0] + i, at[1] + j) in left]

    at = min(sorted(left), key=lambda pixel: len(beside(pixel)))
    chain = [at]
    left.remove(at)
    while onward := beside(at):
        at = onward[0]
        left.remove(at)
        chain.append(at)
    return np.array(chain, float)
