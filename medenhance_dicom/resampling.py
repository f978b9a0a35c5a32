"""Other numbers of rows and columns: area means going down, cubics going up, as sparse matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Unit = NDArray[np.float32]


def resample(frame: Unit, rows: csr_array | None, columns: csr_array | None) -> Unit:
    """Apply weights (new rows, rows) and (new columns, columns) to a frame (rows, columns, C)."""
    if rows is not None:
        height, width, channels = frame.shape
        frame = (rows @ frame.reshape(height, width * channels)).reshape(-1, width, channels)
    if columns is not None:
        height, width, channels = frame.shape
        turned = frame.transpose(1, 0, 2).reshape(width, height * channels)
        frame = (columns @ turned).reshape(-1, height, channels).transpose(1, 0, 2)
    return np.ascontiguousarray(frame, dtype=np.float32)


def area_weights(old: int, new: int) -> csr_array:
    """Means over the area of each new pixel, (new, old); rows sum to 1."""
    edges = np.linspace(0, old, new + 1)
    pixels = np.arange(old)
    first = np.floor(edges[:-1]).astype(int)
    last = np.minimum(np.ceil(edges[1:]).astype(int), old)
    reach = int((last - first).max())
    index = first[:, None] + np.arange(reach)  # (new, reach)
    inside = np.minimum(index + 1, edges[1:, None]) - np.maximum(index, edges[:-1, None])
    weight = np.clip(inside, 0, 1) * (old and new / old)
    return _sparse(weight, np.minimum(index, pixels[-1]), old)


def cubic_weights(old: int, new: int) -> csr_array:
    """Catmull-Rom enlargement about pixel centres, (new, old); rows sum to 1, edges repeat."""
    position = (np.arange(new) + 0.5) * old / new - 0.5
    base = np.floor(position).astype(int)
    t = (position - base)[:, None]
    weight = 0.5 * np.concatenate(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], axis=1
    )
    return _sparse(weight, np.clip(base[:, None] + np.arange(-1, 3), 0, old - 1), old)


def _sparse(weight: NDArray[np.float64], index: NDArray[np.intp], columns: int) -> csr_array:
    """Rows of (weight, column index), both (rows, taps), as a sparse matrix; double entries add up."""
    rows, taps = weight.shape
    parts = (weight.astype(np.float32).ravel(), index.ravel(), np.arange(0, rows * taps + 1, taps))
    matrix = csr_array(parts, shape=(rows, columns))
    matrix.sum_duplicates()
    return matrix
