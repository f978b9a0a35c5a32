"""A field of any shape in a dark surround: an endoscope's, an ultrasound's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medenhance_dicom.masks.reduced import LONG_SIDE

Unit = NDArray[np.float32]
Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

DARK = 32 / 255  # a surround is not brighter than this
TOLERANCE = 8 / 255  # a surround varies by no more than this
SMALLEST_FIELD = 0.1  # of the frame; less is no field of view
EVERYWHERE = np.ones((3, 3), bool)


def find_dark_bordered_field(frame: Unit) -> Mask | None:
    """What is not dark surround in a frame (H, W, C) in [0, 1]; None where there is no dark surround.

    Returns:
        bool (H, W), True in the field, its dark parts included; black corners, insets and writing beside it are not.
    """
    height, width = frame.shape[:2]
    factor = max(1, -(-max(height, width) // LONG_SIDE))
    brightest = frame[::factor, ::factor].max(axis=2)
    surround = surround_level(brightest)
    if surround is None:
        return None
    field = _largest_field(brightest, surround)
    if field.mean() < SMALLEST_FIELD:
        return None
    field = ndimage.binary_erosion(field, EVERYWHERE, border_value=1)
    rows, columns = (
        np.minimum(np.arange(n) // factor, m - 1) for n, m in zip((height, width), field.shape, strict=True)
    )
    full: Mask = field[rows[:, None], columns[None, :]]
    return full


def surround_level(brightest: Plane) -> float | None:
    """Grey level of the dark surround, from the frame's corners; None if fewer than two of them are dark and even."""
    size = max(4, min(brightest.shape) // 32)
    near, far = slice(None, size), slice(-size, None)
    corners = [brightest[rows, columns] for rows in (near, far) for columns in (near, far)]
    levels = [float(np.median(c)) for c in corners if np.median(c) <= DARK and np.ptp(c) <= 2 * TOLERANCE]
    return max(levels) if len(levels) >= 2 else None


def _largest_field(brightest: Plane, surround: float) -> Mask:
    """The largest thing that is not surround, thin writing cut off, dark parts inside it included."""
    dark = brightest <= surround + TOLERANCE
    labels, _ = ndimage.label(np.pad(dark, 1, constant_values=True))
    bright = (labels != labels[0, 0])[1:-1, 1:-1]  # not connected to the outside by dark pixels
    core = ndimage.binary_opening(bright, EVERYWHERE, iterations=3)
    labels, count = ndimage.label(core)
    if not count:
        return np.zeros_like(core)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    field = labels == sizes.argmax()
    field = ndimage.binary_dilation(field, EVERYWHERE, iterations=2) & bright
    field = np.pad(field, 8)
    field = ndimage.binary_closing(field, EVERYWHERE, iterations=6)[8:-8, 8:-8]
    filled: Mask = ndimage.binary_fill_holes(field)
    return filled
