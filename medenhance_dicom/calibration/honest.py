"""Honest enhancements, which the gate must let pass: a network on pictures of any quality, methods without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medenhance_dicom.conventional import Clahe, MultiScaleRetinex
from medenhance_dicom.enhancer import MaskedEnhancer

__all__ = ["METHODS", "SOURCES", "conventional"]

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]
Change = Callable[[Unit, np.random.Generator], NDArray[np.floating[Any]]]


def gaussian_denoise(x: Unit, rng: np.random.Generator) -> NDArray[np.floating[Any]]:
    """A narrow Gaussian, sigma 0.5 to 0.9 pixels at 384."""
    sigma = rng.uniform(0.5, 0.9) * max(x.shape) / 384
    return gaussian_filter(x, (sigma, sigma, 0))


def edge_keeping_denoise(x: Unit, _: np.random.Generator) -> NDArray[np.floating[Any]]:
    """Flat parts smoothed at sigma 1, edges kept."""
    scale = max(x.shape) / 384
    fine, coarse, smooth = (gaussian_filter(x, (s * scale, s * scale, 0)) for s in (0.7, 2.0, 1.0))
    edge = np.clip(np.abs(fine - coarse).mean(axis=2, keepdims=True) / 0.02, 0, 1)
    return edge * x + (1 - edge) * smooth


def unsharp_mask(x: Unit, rng: np.random.Generator) -> NDArray[np.floating[Any]]:
    """Detail below 1.5 pixels at 384 raised by half to all."""
    sigma = 1.5 * max(x.shape) / 384
    return x + rng.uniform(0.5, 1.0) * (x - gaussian_filter(x, (sigma, sigma, 0)))


def even_light(x: Unit, rng: np.random.Generator) -> NDArray[np.floating[Any]]:
    """A smooth random change of light: gamma between about 0.6 and 1.6, varying over a quarter of the frame."""
    field = gaussian_filter(rng.standard_normal(x.shape[:2]), 0.25 * max(x.shape))
    return np.clip(x, 0, 1) ** np.exp(0.25 * field / field.std())[..., None]


METHODS: dict[str, Change] = {
    "gamma below 1": lambda x, rng: x ** rng.uniform(0.5, 0.8),
    "gamma above 1": lambda x, rng: x ** rng.uniform(1.25, 1.8),
    "clahe 2": lambda x, _: x,
    "clahe 2, strength 0.6": lambda x, _: x,
    "retinex": lambda x, _: x,
    "gaussian denoise": gaussian_denoise,
    "edge-keeping denoise": edge_keeping_denoise,
    "unsharp mask": unsharp_mask,
    "smooth light": even_light,
}
"""Name -> the method; CLAHE and retinex are the package's own, see `conventional`."""
PACKAGED: dict[str, MaskedEnhancer] = {
    "clahe 2": Clahe(clip_limit=2.0),
    "clahe 2, strength 0.6": Clahe(clip_limit=2.0, strength=0.6),
    "retinex": MultiScaleRetinex(strength=0.5, dynamic=3.0, max_gain=2.5),
}
SOURCES: dict[str, Change] = {
    "as it is": lambda x, _: x,
    "darker": lambda x, rng: x ** rng.uniform(1.1, 1.3),
    "brighter": lambda x, rng: x ** rng.uniform(0.8, 0.95),
    "noisy": lambda x, rng: x + rng.normal(0, rng.uniform(0.005, 0.015), x.shape),
}
"""What a network is given: the picture, and the picture made a little worse."""


def conventional(name: str, x: Unit, inside: Mask, rng: np.random.Generator) -> Unit:
    """One of `METHODS` on (H, W, C) in [0, 1], where `inside` (H, W) lets it."""
    if name in PACKAGED:
        return PACKAGED[name].enhance_within(x[None], inside[None])[0]
    changed = np.clip(METHODS[name](x, rng), 0, 1)
    return np.where(inside[..., None], changed, x).astype(np.float32)
