"""PIQE, blockwise distortion of one picture without any trained parameter.

Source: Venkatanath et al., "Blind image quality evaluation using perception based features", NCC 2015, as MATLAB's piqe
computes it. That includes one oddity: the surround of a block's centre leaves out columns 8 and 10, not 8 and 9.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from medenhance_dicom.metrics.picture import Mask, Unit, bounding_box, grey_bytes
from medenhance_dicom.metrics.scenes import normalised_contrast

__all__ = ["piqe"]

BLOCK = 16
SEGMENT = 6
ACTIVE = 0.1  # a block's variance, and an edge segment's deviation
CENTRE = [7, 8]  # columns of a block, from 0
SURROUND = [k for k in range(BLOCK) if k not in (7, 9)]


def piqe(picture: Unit, inside: Mask | None = None) -> float:
    """PIQE in [0, 100], lower is better: to 20 excellent, 35 good, 50 fair, 80 poor, then bad. 100 for a flat picture.

    Args:
        picture: (H, W, C) in [0, 1].
        inside: (H, W), the field of view; its bounding box is what is judged.
    """
    plane = grey_bytes(bounding_box(picture, inside))
    plane = np.pad(plane, [(0, -size % BLOCK) for size in plane.shape], mode="symmetric")
    if plane.max() > 0:
        plane = np.floor(255 * plane / plane.max() + 0.5)
    contrast, _ = normalised_contrast(plane, "nearest")
    rows, columns = (size // BLOCK for size in contrast.shape)
    blocks = contrast.reshape(rows, BLOCK, columns, BLOCK).transpose(0, 2, 1, 3).reshape(-1, BLOCK, BLOCK)
    variance = blocks.var(axis=(1, 2), ddof=1)
    blocks, variance = blocks[variance > ACTIVE], variance[variance > ACTIVE]
    distortion = np.sum((1 - variance)[_has_artifact(blocks)]) + np.sum(variance[_has_noise(blocks, variance)])
    return float(100 * (distortion + 1) / (len(blocks) + 1))


def _has_artifact(blocks: NDArray[np.float64]) -> Mask:
    """(n,), whether a segment of 6 pixels on one of a block's four edges is flat."""
    edges = np.stack([blocks[:, 0], blocks[:, -1], blocks[:, :, 0], blocks[:, :, -1]], axis=1)
    return np.asarray((sliding_window_view(edges, SEGMENT, axis=2).std(axis=-1, ddof=1) < ACTIVE).any(axis=(1, 2)))


def _has_noise(blocks: NDArray[np.float64], variance: NDArray[np.float64]) -> Mask:
    """(n,), whether the centre's deviation relative to the surround's is far from the block's own."""
    deviation = np.sqrt(variance)
    centre, surround = (blocks[:, :, columns].std(axis=(1, 2), ddof=1) for columns in (CENTRE, SURROUND))
    relative = centre / surround
    return np.asarray(deviation > 2 * np.abs(deviation - relative) / np.maximum(deviation, relative))
