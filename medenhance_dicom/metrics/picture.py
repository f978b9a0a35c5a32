"""What every measure of one picture starts from: its 8-bit grey, and the part inside the field of view."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Mask", "Plane", "Unit", "bounding_box", "byte_picture", "field_of", "grey", "grey_bytes"]

Unit = NDArray[np.float32]
Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]

GREY = (0.29893602129677541, 0.58704307445112125, 0.11402090425210336)  # MATLAB's rgb2gray: BT.601 from its own inverse


def grey(picture: Unit, weights: tuple[float, float, float] = GREY) -> Plane:
    """(H, W), (H, W, 1) or (H, W, 3) in [0, 1] -> (H, W) in [0, 255], not rounded.

    Raises:
        ValueError: Another shape, or a value is not finite.
    """
    values = 255 * _checked(picture)
    return np.asarray(values[..., 0] if values.shape[2] == 1 else values @ np.array(weights))


def byte_picture(picture: Unit) -> Plane:
    """(H, W, C) in whole steps of 0..255: what an 8-bit file of the picture holds."""
    return np.rint(255 * _checked(picture))


def grey_bytes(picture: Unit) -> Plane:
    """As `grey` of the 8-bit picture, rounded, half upwards: MATLAB's rgb2gray of a uint8 picture."""
    values = byte_picture(picture)
    return values[..., 0] if values.shape[2] == 1 else np.floor(values @ np.array(GREY) + 0.5)


def field_of(shape: tuple[int, ...], inside: Mask | None) -> Mask:
    """`inside`, or everywhere.

    Raises:
        ValueError: It has another shape, or holds nothing.
    """
    if inside is None:
        return np.ones(shape[:2], bool)
    if inside.shape != shape[:2]:
        raise ValueError(f"a field of view of {inside.shape} for a picture of {shape[:2]}")
    if not inside.any():
        raise ValueError("the field of view is empty")
    return np.asarray(inside, bool)


def bounding_box(picture: Unit, inside: Mask | None) -> Unit:
    """The smallest rectangle that holds the field of view; the whole picture without one."""
    here = field_of(picture.shape, inside)
    rows, columns = np.flatnonzero(here.any(1)), np.flatnonzero(here.any(0))
    return picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _checked(picture: Unit) -> NDArray[np.float64]:
    values = np.asarray(picture, np.float64)
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] not in (1, 3):
        raise ValueError(f"(H, W), (H, W, 1) or (H, W, 3) wanted, not {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("a value of the picture is not finite")
    return values
