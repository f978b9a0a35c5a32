"""A frame made small, for what needs no detail."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]

LONG_SIDE = 384


@dataclass(frozen=True)
class Reduced:
    """Every `factor`-th row and column, or a mean of a few pixels in their place."""

    picture: Unit
    """(h, w, C)."""
    factor: int
    side: int = LONG_SIDE
    """What the longer side is at most."""

    @classmethod
    def of(cls, frame: Unit) -> Reduced:
        """Of a frame (H, W, C): the means of up to nine pixels of each block."""
        factor = max(1, -(-max(frame.shape[:2]) // LONG_SIDE))
        if factor == 1:
            return cls(frame, 1)
        rows, columns = (np.arange(-(-n // factor)) * factor for n in frame.shape[:2])
        total = np.zeros((len(rows), len(columns), frame.shape[2]), np.float32)
        places = sorted({0, factor // 2, factor - 1})
        for down in places:
            for right in places:
                y, x = np.minimum(rows + down, frame.shape[0] - 1), np.minimum(columns + right, frame.shape[1] - 1)
                total += frame[y[:, None], x]
        return cls(total / np.float32(len(places) ** 2), factor)
