"""Pictures of any shape as squares of one size, for protocols that state theirs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.resampling import area_weights, cubic_weights, resample

Unit = NDArray[np.float32]


def squared(picture: Unit, size: int) -> Unit:
    """(H, W, C) in [0, 1], padded with black on both sides to a square, as (size, size, C): area means, or cubics."""
    height, width = picture.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    padded = np.pad(picture, ((top, side - height - top), (left, side - width - left), (0, 0)))
    if side == size:
        return padded
    weights = area_weights(side, size) if side > size else cubic_weights(side, size)
    return np.clip(resample(padded, weights, weights), 0, 1)


def in_square(point: tuple[float, float], shape: tuple[int, ...], size: int) -> tuple[float, float]:
    """Where a (row, column) of a picture of this shape lies in what `squared` makes of it; pixel centres are whole."""
    side = max(shape[:2])
    row, column = (
        (value + (side - length) // 2 + 0.5) * size / side - 0.5 for value, length in zip(point, shape, strict=False)
    )
    return row, column
