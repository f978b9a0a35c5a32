"""A second, independent model: other formulas for what a camera does wrong, for figures and never for training."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from medenhance_dicom.training.degradation.model import Model
from medenhance_dicom.training.degradation.optics import sharpness_left
from medenhance_dicom.training.degradation.scene import Scene, Seen, fundus_field
from medenhance_dicom.training.degradation.sensor import jpeg
from medenhance_dicom.training.degradation.simple import Picture, blur_inside, endoscope_field


def cast(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """A colour cast: each channel to its own power, 0.7 to 1.5, and a grey of up to 30 % over all."""
    powers = 2 ** (strength * rng.uniform(-0.5, 0.6, 3)).astype(np.float32)
    grey, share = np.float32(rng.uniform(0.15, 0.6)), np.float32(strength * rng.uniform(0, 0.3))
    level = float(scene.mean(picture)[1])
    seen = float((1 - share) * level / max(float((1 - share) * level + share * grey), 1e-3))
    return np.power(np.maximum(picture, 0), powers) * (1 - share) + share * grey, seen


def vignette(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Natural vignetting about a point off the middle, 1 / (1 + k r^2)^2, times a ramp of up to 1 : 3."""
    height, width = scene.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    cy, cx = rng.uniform(-0.5, 0.5, 2)
    light = 1 / (1 + strength * rng.uniform(0.1, 0.9) * ((y - cy) ** 2 + (x - cx) ** 2)) ** 2
    angle = rng.uniform(0, 2 * np.pi)
    light = light * np.exp(strength * rng.uniform(0, 0.55) * (np.cos(angle) * x + np.sin(angle) * y))
    light = light.astype(np.float32)
    return picture * light[..., None], np.minimum(1, 0.5 + 0.5 * light)


def gamma(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """A wrong tone curve: I^g about the field's own mean, g between 0.55 and 1.8, then up to half a stop darker."""
    power = np.float32(2 ** (strength * rng.uniform(-0.85, 0.85)))
    level = np.float32(max(float(scene.mean(picture).mean()), 0.05))
    out = level * np.power(np.maximum(picture, 0) / level, power) * np.float32(2 ** (-0.5 * strength * rng.random()))
    return out, min(1.0, float(power))


def blur(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """A Gaussian of up to 2 pixels of a picture 256 wide."""
    sigma = strength * rng.uniform(0.3, 2.0)
    return blur_inside(picture, scene.field.astype(np.float32), sigma * scene.pixel), sharpness_left(1.5 * sigma)


def blotches(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Filtered white noise of a scale between 4 and 20 % of the width, as a gain of up to 2^(+-0.6), and speckle."""
    plane = gaussian_filter(rng.standard_normal(scene.shape, np.float32), scene.shape[1] * rng.uniform(0.04, 0.2))
    gain = 2 ** (strength * 0.6 * plane / max(float(np.abs(plane).max()), 1e-6))
    speckle = 1 + np.float32(strength * rng.uniform(0, 0.05)) * rng.standard_normal(picture.shape, np.float32)
    return picture * gain[..., None] * speckle, 1 - 0.2 * strength


FUNDUS = Model(fundus_field, {cast: 0.8, vignette: 0.7, gamma: 0.6, blotches: 0.4, blur: 0.6, jpeg: 0.6})
ENDOSCOPY = Model(endoscope_field, {vignette: 0.8, cast: 0.5, gamma: 0.7, blotches: 0.3, blur: 0.6, jpeg: 0.6})
