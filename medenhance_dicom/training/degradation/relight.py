"""Better light without a model: what a pair of one real picture and itself is made of."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from medenhance_dicom.training.degradation.simple import Picture


def flatten_light(picture: Picture, exponent: float, *, detail: float = 1.0) -> Picture:
    """Divide a picture with a black surround by its slow shading; no pair of good and bad light is needed for that.

    Args:
        picture: (H, W, C) in [0, 1].
        exponent: 0 leaves the shading, 1 takes all of it.
        detail: Factor on what is finer than width / 25.

    Returns:
        The same shape, in [0, 1]; the surround untouched, the mean inside kept.
    """
    width = picture.shape[1]
    inside = picture.max(axis=2) > 0.06
    weight = inside.astype(np.float32)

    def blur(plane: Picture, sigma: float) -> Picture:
        return gaussian_filter(plane * weight, sigma) / (gaussian_filter(weight, sigma) + 1e-3)

    light = blur(picture.mean(axis=2), width / 9)
    gain = (light[inside].mean() / np.maximum(light, 0.03)) ** exponent if inside.any() else np.ones_like(light)
    flat = picture * gain[..., None]
    if detail != 1:
        flat = flat + (detail - 1) * np.stack([c - blur(c, width / 25) for c in np.moveaxis(flat, 2, 0)], axis=2)
    return np.where(inside[..., None], flat, picture).clip(0, 1).astype(np.float32)


def lift_veil(picture: Picture, share: float) -> Picture:
    """Take a share of the darkest light of each channel (5th percentile inside) away and stretch back to the same mean.

    Args:
        picture: (H, W, C) in [0, 1] with a black surround.
        share: Of what counts as veil.

    Returns:
        The same shape, in [0, 1]; the surround untouched.
    """
    inside = picture.max(axis=2) > 0.06
    if not inside.any():
        return picture
    veil = share * np.percentile(picture[inside], 5, axis=0)
    mean = picture[inside].mean(axis=0)
    lifted = (picture - veil) * mean / np.maximum(mean - veil, 0.02)
    return np.where(inside[..., None], lifted, picture).clip(0, 1).astype(np.float32)
