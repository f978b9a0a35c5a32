"""LaSSIM written out literally: explicit loops for the pyramid, scikit-image for SSIM. Slow; for tests alone.

Follows the definition in words (sums over five taps, OpenCV's borders) and shares no code with the package.
"""

from __future__ import annotations

import numpy as np
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

TAPS = [1, 4, 6, 4, 1]


def mirrored(i: int, n: int) -> int:
    """Index i reflected about the first and last sample until it is inside."""
    while not 0 <= i < n:
        i = -i if i < 0 else 2 * (n - 1) - i
    return i


def down(row: np.ndarray) -> np.ndarray:
    n = len(row)
    return np.array([sum(TAPS[k + 2] * row[mirrored(i + k, n)] for k in range(-2, 3)) / 16 for i in range(0, n, 2)])


def up(row: np.ndarray, n: int) -> np.ndarray:
    """Zeros between the samples, five taps of twice the weight; left mirrored, right repeated."""
    m = len(row)
    result = np.zeros(n)
    for i in range(n):
        for k in range(-2, 3):
            j = i + k
            if j % 2 == 0:
                s = j // 2
                s = mirrored(s, m) if s < 0 else min(s, m - 1)
                result[i] += TAPS[k + 2] * row[s] / 8
    return result


def both_axes(picture: np.ndarray, along_rows, along_columns) -> np.ndarray:
    rows = np.stack([along_rows(r) for r in picture])
    return np.stack([along_columns(c) for c in rows.T], axis=1)


def laplacian(grey: np.ndarray, level: int) -> np.ndarray:
    g = grey
    for _ in range(level):
        g = both_axes(g, down, down)
    coarser = both_axes(g, down, down)
    height, width = g.shape
    return g - both_axes(coarser, lambda r: up(r, width), lambda c: up(c, height))


def lassim(before: np.ndarray, after: np.ndarray, level: int = 3) -> float:
    """Two (H, W) or (H, W, 3) float pictures in [0, 1]."""
    a, b = (laplacian(rgb2gray(z) if z.ndim == 3 else z, level) for z in (before, after))
    data_range = max(a.max(), b.max()) - min(a.min(), b.min())
    return structural_similarity(a, b, data_range=data_range)
