"""Agreement of a picture with another of the same scene: PSNR and SSIM of 8-bit pictures."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import correlate1d

from medenhance_dicom.metrics.picture import Mask, Plane, Unit, byte_picture, field_of, grey_bytes

__all__ = ["psnr", "ssim", "ssim_map"]

REACH = 5
K1, K2 = 0.01, 0.03
WINDOW = np.exp(-(np.arange(-REACH, REACH + 1) ** 2) / (2 * 1.5**2))
WINDOW = WINDOW / WINDOW.sum()


def psnr(picture: Unit, other: Unit, inside: Mask | None = None) -> float:
    """10 log10(255^2 / MSE) of the 8-bit pictures in dB, over all channels; infinite for equal ones.

    Args:
        picture: (H, W, C) in [0, 1].
        other: The same shape.
        inside: (H, W), the field of view.

    Raises:
        ValueError: The shapes differ.
    """
    _same_shape(picture, other)
    error = (byte_picture(picture) - byte_picture(other))[field_of(picture.shape, inside)]
    square = float(np.mean(error**2))
    return 10 * math.log10(255**2 / square) if square else math.inf


def ssim(picture: Unit, other: Unit, inside: Mask | None = None) -> float:
    """Structural similarity (Wang et al., IEEE TIP 2004) of the 8-bit grey: the mean of `ssim_map`, in [-1, 1].

    Args:
        picture: (H, W, C) in [0, 1].
        other: The same shape.
        inside: (H, W), the field of view; windows count whose centre is inside.

    Raises:
        ValueError: The shapes differ, a side is below 11, or no window's centre is inside.
    """
    _same_shape(picture, other)
    counts = field_of(picture.shape, inside)[REACH:-REACH, REACH:-REACH]
    if not counts.any():
        raise ValueError("no whole window of 11 x 11 lies inside")
    return float(ssim_map(grey_bytes(picture), grey_bytes(other))[counts].mean())


def ssim_map(x: Plane, y: Plane) -> Plane:
    """Eq. (13) with an 11 x 11 Gaussian of 1.5 pixels, K = (0.01, 0.03), L = 255, and population (co)variances.

    Args:
        x: (H, W) in [0, 255], sides of 11 and more.
        y: The same shape.

    Returns:
        (H - 10, W - 10): of whole windows alone.
    """
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    mu_x, mu_y = _windowed(x), _windowed(y)
    spread = _windowed(x * x) - mu_x**2 + _windowed(y * y) - mu_y**2
    covariance = _windowed(x * y) - mu_x * mu_y
    return (2 * mu_x * mu_y + c1) * (2 * covariance + c2) / ((mu_x**2 + mu_y**2 + c1) * (spread + c2))


def _windowed(plane: Plane) -> Plane:
    whole = correlate1d(correlate1d(plane, WINDOW, 0), WINDOW, 1)
    return np.asarray(whole[REACH:-REACH, REACH:-REACH])


def _same_shape(picture: Unit, other: Unit) -> None:
    if picture.shape != other.shape:
        raise ValueError(f"two pictures of one shape wanted, not {picture.shape} and {other.shape}")
