"""The first models, one function for each modality. Weights were trained on them: they give the same bits for good.

Pictures are float32 (H, W, C) in [0, 1]; all randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter, uniform_filter1d

from medenhance_dicom.masks import DARK, field_of_view

Picture = NDArray[np.floating[Any]]


def smooth_field(rng: np.random.Generator, height: int, width: int) -> Picture:
    """A smooth random field in [0, 1] of shape (H, W): a ramp, a wide bump and a low-frequency wave."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    field = rng.uniform(0, 1) * (np.cos(angle) * x + np.sin(angle) * y)
    cy, cx, spread = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.4, 1.2)
    field += rng.choice([-1, 1]) * rng.uniform(0, 1.5) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * spread**2))
    k = rng.uniform(0.5, 1.5, 2)
    field += rng.uniform(0, 0.4) * np.sin(np.pi * (k[0] * x + k[1] * y) + rng.uniform(0, 2 * np.pi))
    low, high = field.min(), field.max()
    return ((field - low) / max(high - low, 1e-6)).astype(np.float32)


def degrade_fundus(picture: Picture, rng: np.random.Generator) -> Picture:
    """Uneven light, haze with its own colour, yellow veil, defocus and noise on a colour fundus photograph.

    Light: multiplied by a field between 0.3 and 1.6. Haze: I t + A (1 - t), t falling to 0.35, in places or
    growing to the rim. Veil: blue and a little green taken away. The black surround stays black.
    """
    H, W, _ = picture.shape
    inside = (gaussian_filter(picture.max(axis=2), 1) > 0.06).astype(np.float32)[..., None]
    out: Picture = picture
    if rng.random() < 0.5:
        out = gaussian_filter(out, (s := rng.uniform(0.3, 1.3), s, 0))
    if rng.random() < 0.35:
        veil = 1 - rng.uniform(0, 0.35) * np.array([0.1, 0.35, 1.0], np.float32) * rng.uniform(0.5, 1)
        out = out * veil
    if rng.random() < 0.75:
        mean = out.sum(axis=(0, 1)) / max(float(inside.sum()), 1.0)  # (C,) colour of the fundus itself
        white = np.array([0.75, 0.72, 0.5], np.float32) * rng.uniform(0.7, 1.2, 3).astype(np.float32)
        A = mean + (white - mean) * rng.uniform(0.1, 0.9)
        field = smooth_field(rng, H, W)
        if rng.random() < 0.4:
            y, x = np.mgrid[-1 : 1 : H * 1j, -1 : 1 : W * 1j]
            field = np.clip(field * 0.4 + 0.8 * (x**2 + y**2) ** rng.uniform(1, 3), 0, 1).astype(np.float32)
        thick, thin = sorted(rng.uniform(0.35, 1.0, 2))
        t = (thin + (thick - thin) * field)[..., None]
        out = out * t + A * (1 - t)
    if rng.random() < 0.85:
        dark, bright = rng.uniform(0.3, 1.0), rng.uniform(0.9, 1.6)
        light = dark + (bright - dark) * smooth_field(rng, H, W)
        # Cameras expose for the mean; a lamp or a small pupil only takes light away.
        middle = float((light * inside[..., 0]).sum() / max(float(inside.sum()), 1.0))
        level = middle if rng.random() < 0.6 else float(light.max())
        out = out * (light / level * rng.uniform(0.9, 1.05))[..., None]
    out = out + rng.normal(0, rng.uniform(0, 0.02), picture.shape) * rng.integers(0, 2)
    return np.clip(out * inside + picture * (1 - inside), 0, 1).astype(np.float32)


def degrade_cornea(picture: Picture, rng: np.random.Generator) -> Picture:
    """Vignetting, brightness and noise of a corneal confocal frame; the input is a flat one."""
    H, W, _ = picture.shape
    y, x = np.mgrid[-1 : 1 : H * 1j, -1 : 1 : W * 1j].astype(np.float32)
    cy, cx = rng.uniform(-0.4, 0.4, 2)
    radius = (y - cy) ** 2 + (x - cx) ** 2
    light = 1 / (1 + rng.uniform(0.1, 1.6) * radius ** rng.uniform(0.7, 1.6))
    light = light * (1 + rng.uniform(-0.5, 0.5) * (smooth_field(rng, H, W) - 0.5))
    light = light / light.mean() * rng.uniform(0.5, 1.6)
    out = picture * light[..., None]
    # Saturated nerves in the raw frame; the flat one is compressed there.
    out = np.where(out > 0.75, 0.75 + (out - 0.75) * rng.uniform(1, 2), out)
    out = out + rng.normal(0, rng.uniform(0, 0.012), picture.shape)
    return np.clip(out, 0, 1).astype(np.float32)


def endoscope_field(picture: Picture) -> NDArray[np.bool_]:
    """The endoscope's field of view (H, W), looked for at half size; what stands in the dark surround is outside."""
    H, W, _ = picture.shape
    field = field_of_view(np.ascontiguousarray(picture[::2, ::2], np.float32), "border")
    if field.all():
        return np.ones((H, W), bool)
    field = field.repeat(2, axis=0).repeat(2, axis=1)[:H, :W]
    rim = maximum_filter(field, 7) & (picture.max(axis=2) > DARK)
    return field | rim


def lamp(rng: np.random.Generator, height: int, width: int) -> Picture:
    """Light of a lamp beside the lens, (H, W): 1 at a spot off the centre, falling to 0.12 - 0.8 at a distance."""
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    cy, cx = rng.uniform(-0.6, 0.6, 2)
    squeeze, reach = rng.uniform(0.8, 1.25), rng.uniform(0.45, 1.1)
    spot = np.exp(-(((y - cy) * squeeze) ** 2 + ((x - cx) / squeeze) ** 2) / (2 * reach**2))
    floor = rng.uniform(0.12, 0.8)
    light: Picture = (floor + (1 - floor) * spot).astype(np.float32)
    return light


def blur_inside(picture: Picture, weight: Picture, sigma: float) -> Picture:
    """Gaussian blur of (H, W, C) that takes nothing in from where weight (H, W) is 0."""
    blurred = [gaussian_filter(c * weight, sigma, truncate=3) for c in np.moveaxis(picture, 2, 0)]
    return np.stack(blurred, axis=2) / np.maximum(gaussian_filter(weight, sigma, truncate=3), 1e-3)[..., None]


def interlace(picture: Picture, inside: NDArray[np.bool_], shift: int) -> Picture:
    """Odd lines from `shift` pixels to the side: the second field of a moving camera. Nothing comes in from outside."""
    out = picture.copy()
    moved = np.roll(inside[1::2], shift, axis=1)[..., None]
    out[1::2] = np.where(moved, np.roll(picture[1::2], shift, axis=1), picture[1::2])
    return out


def bleed_chroma(picture: Picture, length: int) -> Picture:
    """Colour differences smeared over `length` pixels of a line, luma as it was: subsampled or composite video."""
    luma = (picture @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    return luma + uniform_filter1d(picture - luma, length, axis=1)


def degrade_endoscopy(picture: Picture, rng: np.random.Generator) -> Picture:
    """Veil, uneven light, fog, defocus, old video and noise on an endoscopic frame, (H, W, 3) in [0, 1].

    In the order of the light's way; `docs/degradation.md` has every range. What lies outside `endoscope_field` stays as
    it is, dates in the dark surround with it. Writing across the tissue is degraded: finding it is slow.
    """
    H, W, _ = picture.shape
    inside = endoscope_field(picture)
    if not inside.any():
        return picture.astype(np.float32)
    weight = inside.astype(np.float32)
    mean = picture[inside].mean(axis=0)
    out: Picture = picture.astype(np.float32)
    if rng.random() < 0.35:  # a film of bile or blood takes light of its complement
        hue = np.array([[0.06, 0.28, 0.75], [0.05, 0.6, 0.65]][rng.integers(0, 2)], np.float32)
        out = out * (1 - (rng.uniform(0.15, 0.7) * smooth_field(rng, H, W))[..., None] * hue)
    if rng.random() < 0.85:
        light = lamp(rng, H, W)
        # Exposed for the mean, or for the spot; a lamp too near burns out.
        level = float(light[inside].mean()) if rng.random() < 0.5 else float(light[inside].max())
        out = out * (light / level * rng.uniform(0.55, 1.25))[..., None]
    if rng.random() < 0.45:
        white = np.array([0.72, 0.66, 0.6], np.float32) * rng.uniform(0.6, 1.15)
        A = (mean + (white - mean) * rng.uniform(0.2, 1.0)).astype(np.float32)
        thick, thin = sorted(rng.uniform(0.4, 1.0, 2))
        t = (thin + (thick - thin) * smooth_field(rng, H, W))[..., None]
        out = out * t + A * (1 - t)
    if rng.random() < 0.3:  # old cameras have duller colours
        grey = out.mean(axis=2, keepdims=True)
        out = grey + (out - grey) * rng.uniform(0.5, 1.0)
    out = np.minimum(out, 1)
    if rng.random() < 0.65:
        out = blur_inside(out, weight, rng.uniform(0.4, 1.7))
    if rng.random() < 0.2:
        out = interlace(out, inside, int(rng.choice([-1, 1]) * rng.integers(1, 5)))
    if rng.random() < 0.3:
        out = bleed_chroma(out, int(rng.integers(3, 8)))
    if rng.random() < 0.6:
        dark = 1 - np.clip(out.max(axis=2, keepdims=True), 0, 1)
        sd = rng.uniform(0.003, 0.012) + rng.uniform(0, 0.03) * dark**2
        out = out + sd * rng.standard_normal(picture.shape, np.float32)
    return np.where(inside[..., None], out, picture).clip(0, 1).astype(np.float32)
