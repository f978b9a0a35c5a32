"""Endoscopic frames as they come from clinics: the lamp near and far, smoke, fog, highlights, old video."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter

from medenhance_dicom.training.degradation.eye import FLOOR, contrast_left
from medenhance_dicom.training.degradation.model import Model
from medenhance_dicom.training.degradation.optics import defocus, disc_blur, motion, sharpness_left
from medenhance_dicom.training.degradation.scene import Mask, Scene, Seen
from medenhance_dicom.training.degradation.sensor import add_noise, camera_colours, jpeg
from medenhance_dicom.training.degradation.simple import Picture, bleed_chroma, endoscope_field, interlace

CLIPPED = 0.97  # a channel above this holds no detail


def _relit(picture: Picture, scene: Scene, gain: Picture) -> tuple[Picture, Seen]:
    """I times a gain (CELLS, CELLS); what is lost is what sinks in noise and what newly clips in green and red."""
    signal = scene.coarse(picture)
    dark = np.minimum(gain * (signal + FLOOR) / (gain * signal + FLOOR), 1)
    out = picture * scene.enlarge(gain)[..., None]
    newly = ((out[2::4, 2::4, :2] > CLIPPED) & (picture[2::4, 2::4, :2] <= CLIPPED)).mean(axis=2, dtype=np.float32)
    if not newly.size:
        return out, np.clip(scene.enlarge(dark), 0, 1)
    return out, np.clip(scene.enlarge(dark) * (1 - scene.enlarge(uniform_filter(newly, 3))), 0, 1)


def wrong_exposure(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Too little light, down to -2.2 stops, or too much, up to 1.3 stops, and red, then green, then all clipped."""
    stops = strength * (rng.uniform(-2.2, -0.3) if rng.random() < 0.6 else rng.uniform(0.2, 1.3))
    return _relit(picture, scene, np.full((1, 1), 2**stops, np.float32) + np.zeros_like(scene.radius))


def near_light(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """The lamp is too near: what is near is brighter, what is far darker than it was, and a spot off the middle.

    Gain (c / mean c)^p L, c the local brightness, which falls with the distance; L = f + (1 - f) exp(-d^2 / 2 s^2).
    """
    local = scene.coarse(picture, 0)
    inside = scene.radius < 1
    far = np.clip(local / max(float(local[inside].mean()), 0.05), 0.15, 3) ** (strength * rng.uniform(0.0, 0.9))
    y, x = scene.place
    cy, cx = rng.uniform(-0.6, 0.6, 2)
    floor = 1 - strength * rng.uniform(0.3, 0.95)
    distance = (y - cy) ** 2 + (x - cx) ** 2
    spot = floor + (1 - floor) * np.exp(-distance / (2 * rng.uniform(0.4, 1.0) ** 2))
    gain = far * spot
    level = float(gain[inside].mean()) if rng.random() < 0.6 else float(gain[inside].max())
    return _relit(picture, scene, gain / max(level, 1e-3))


def smoke(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Smoke of coagulation or steam: I t + A (1 - t), A white-blue, t = exp(-thickness), in swaths of three sizes."""
    swaths: Picture = np.zeros_like(scene.radius)
    for cells, height in ((3, 1.0), (6, 0.55), (12, 0.3)):
        swaths = swaths + height * scene.patches(rng, cells)
    swaths = np.clip((swaths / 1.85 - rng.uniform(0.1, 0.4)) * rng.uniform(1.5, 2.5), 0, 1)
    least = rng.uniform(0, 0.5)
    passed = np.exp(-strength * rng.uniform(0.6, 2.2) * (least + (1 - least) * swaths))
    white = np.array([0.72, 0.75, 0.78]) * rng.uniform(0.6, 1.15) * rng.uniform(0.95, 1.05, 3)
    veil = white.astype(np.float32)
    seen = contrast_left(passed * scene.coarse(picture), (1 - passed) * veil[1])
    t = scene.enlarge(passed)[..., None]
    return veil + t * (picture - veil), np.clip(scene.enlarge(seen), 0, 1)


def fogged_lens(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Fog or a smear on the lens: blurred and veiled by its own light, over all or in one part of the field."""
    size = strength * rng.uniform(1.5, 5.0)
    blurred = disc_blur(picture, scene, max(size * scene.pixel, 0.3))
    white = np.array([0.75, 0.7, 0.66], np.float32) * np.float32(rng.uniform(0.6, 1.0))
    share = strength * rng.uniform(0.1, 0.6)
    place = np.clip(scene.waves(rng) * rng.uniform(1.0, 2.0) - rng.uniform(0, 0.5), 0, 1)
    veil = share * place
    seen = sharpness_left(size) * contrast_left(scene.coarse(picture) * (1 - veil), veil * white[1])
    wide, light = scene.enlarge(place)[..., None], scene.enlarge(veil)[..., None]
    out = picture + wide * (blurred - picture)
    left = 1 - place * (1 - seen)
    return out + light * (white - out), np.clip(scene.enlarge(left), 0, 1)


def highlights(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Wet tissue mirrors the lamp: 1 to 14 white patches with sharp edges and a faint halo, where it is brightest."""
    height, width = scene.shape
    rows, columns = np.nonzero(scene.field[4::8, 4::8])
    out, seen = picture.copy(order="K"), np.ones(scene.shape, np.float32)
    if not rows.size:
        return out, seen
    bright = picture[4::8, 4::8][rows, columns].mean(axis=1).astype(np.float64) ** 2 + 1e-6
    count = 1 + int(rng.integers(0, 1 + round(13 * strength)))
    for at in rng.choice(rows.size, count, p=bright / bright.sum()):
        cy, cx = 8 * rows[at] + 4 + rng.uniform(-4, 4), 8 * columns[at] + 4 + rng.uniform(-4, 4)
        size = width * 0.004 * 6 ** (rng.random() * (0.4 + 0.6 * strength))
        angle, squeeze = rng.uniform(0, np.pi), rng.uniform(1.0, 2.5)
        reach = int(np.ceil(4 * size * squeeze))
        top, left = max(0, int(cy) - reach), max(0, int(cx) - reach)
        patch = (slice(top, int(cy) + reach + 1), slice(left, int(cx) + reach + 1))
        dy = np.arange(height, dtype=np.float32)[patch[0], None] - cy
        dx = np.arange(width, dtype=np.float32)[None, patch[1]] - cx
        along = (dx * np.cos(angle) + dy * np.sin(angle)) / squeeze
        across = dy * np.cos(angle) - dx * np.sin(angle) + rng.uniform(-0.5, 0.5) * along * along / size
        distance = np.sqrt(along * along + across * across) / size
        halo = 0.35 * strength * np.exp(-distance)
        mirror = np.maximum(1 / (1 + np.exp(np.clip((distance - 1) * 6, -30, 30))), halo).astype(np.float32)
        out[patch] += mirror[..., None] * (1 - np.minimum(out[patch], 1))
        seen[patch] *= 1 - mirror
    return out, seen


def interlacing(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Old video: odd lines from up to 5 pixels to the side, and at times colour smeared along the lines."""
    shift = int(rng.choice([-1, 1])) * max(1, round(strength * rng.uniform(1, 5)))
    out = interlace(picture, scene.field, shift)
    if rng.random() < 0.5:
        out = bleed_chroma(out, 3 + round(4 * strength))
    return out, 1 / (1 + abs(shift) / 5)


def video_noise(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """+ N(0, a^2 + b^2 I): reading noise a to 0.025, photon noise b to 0.03, as a gain for dark places leaves it."""
    reading, photons = strength * rng.uniform(0.003, 0.025), strength * rng.uniform(0.004, 0.03)
    return add_noise(picture, scene, rng, reading, photons)


def ordinary_frame(picture: Picture, rng: np.random.Generator, field: Mask | None = None) -> Picture:
    """The same frame by another good endoscope: `camera_colours` at up to 0.4 of its strength, inside the field."""
    scene = Scene(endoscope_field(picture) if field is None else field)
    other, _ = camera_colours(picture, scene, rng, rng.uniform(0, 0.4))
    blended = picture + scene.weight * (np.clip(other, 0, 1) - picture)
    return np.ascontiguousarray(np.clip(blended, 0, 1), np.float32)


CLINICAL = Model(
    endoscope_field,
    {
        near_light: 0.6,
        smoke: 0.25,
        highlights: 0.2,
        fogged_lens: 0.25,
        wrong_exposure: 0.6,
        camera_colours: 0.35,
        defocus: 0.3,
        motion: 0.25,
        interlacing: 0.15,
        video_noise: 0.7,
        jpeg: 0.4,
    },
    ordinary_frame,
)
