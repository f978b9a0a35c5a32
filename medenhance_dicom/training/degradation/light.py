"""The camera's light: uneven or wrong exposure, flare from iris and cornea, reflexes of the lens, dust.

After cofe-Net (Shen, Fu, Shen, Shao 2020, "Modeling and enhancing low-quality retinal fundus images", IEEE TMI 40):
light transmission disturbance, and the artefacts of dust and stray light, sums of soft bright or dark spots.
"""

from __future__ import annotations

import numpy as np

from medenhance_dicom.training.degradation.eye import FLOOR, contrast_left
from medenhance_dicom.training.degradation.scene import Scene, Seen
from medenhance_dicom.training.degradation.simple import Picture


def exposure(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Uneven and wrong light: I 2^stops, stops = e + u (S - mean S); what is too bright will be clipped.

    e, of the whole picture, lies between -1.5 and 0.7 stops; u, of the smooth field S, is 2 at most.
    """
    field = scene.waves(rng)
    whole = strength * (rng.uniform(-1.5, 0) if rng.random() < 0.5 else rng.uniform(0, 0.7))
    stops = whole + strength * rng.uniform(0.2, 2.0) * (field - field.mean())
    gain = 2**stops
    signal = scene.coarse(picture)
    dark = gain * (signal + FLOOR) / (gain * signal + FLOOR)
    clipped = np.clip((gain * signal - 0.75) / 0.3, 0, 1) - np.clip((signal - 0.75) / 0.3, 0, 1)
    seen = np.clip(np.minimum(dark, 1) * (1 - np.maximum(clipped, 0)), 0, 1)
    return picture * scene.enlarge(gain)[..., None], np.clip(scene.enlarge(seen), 0, 1)


def flare(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Light from iris, lids or cornea: a soft crescent at the rim, or a halo all along it; warm white to yellow-green.

    1 - (1 - I)(1 - F): F_c = a_c exp(-(depth / w_c)^p) inside an angle, depth measured from the rim, or from a circle
    that is off the field; red reaches deeper than blue.
    """
    y, x = scene.place
    angle = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.55:
        # A displaced circle of light: the crescent between it and the field's own rim.
        off, size = rng.uniform(0.15, 0.6), rng.uniform(0.8, 1.08)
        depth = size + off * 0.75 - np.sqrt((y + off * np.sin(angle)) ** 2 + (x + off * np.cos(angle)) ** 2)
        reach, power = rng.uniform(0.06, 0.28), rng.uniform(0.9, 1.8)
        tint = np.array([1.0, 0.85, 0.62]) * rng.uniform(0.88, 1.08, 3)
        height = strength * rng.uniform(0.35, 1.0)
        around: Picture = np.ones((1, 1), np.float32)
    else:
        depth = 1 - scene.radius
        reach, power = rng.uniform(0.03, 0.16), rng.uniform(0.8, 1.4)
        tint = np.array([0.8, 0.78, 0.42]) * rng.uniform(0.8, 1.15, 3)
        height = strength * rng.uniform(0.25, 0.8)
        turned = np.cos(np.arctan2(y, x) - angle)
        around = np.exp(rng.uniform(0, 2.5) * (turned - 1))
    depth = np.maximum(depth, 0)
    colours = [
        np.clip(height * t * around * np.exp(-((depth / (reach * wide)) ** power)), 0, 1)
        for t, wide in zip(tint, (1.15, 1.0, 0.85), strict=True)
    ]
    seen = contrast_left(scene.coarse(picture) * (1 - colours[1]), colours[1])
    return 1 - (1 - picture) * (1 - np.clip(scene.enlarge_colours(*colours), 0, 1)), np.clip(scene.enlarge(seen), 0, 1)


def reflexes(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Grey-white or bluish streaks near the middle, from the camera's lens: I + F, F a sum of bent Gaussians."""
    y, x = scene.place
    total: Picture = np.zeros((1, 1), np.float32)
    cy, cx = rng.uniform(-0.3, 0.3, 2)
    for _ in range(int(rng.integers(1, 4))):
        angle, long, thin = rng.uniform(0, np.pi), rng.uniform(0.06, 0.28), rng.uniform(0.025, 0.09)
        dy, dx = y - cy - rng.uniform(-0.12, 0.12), x - cx - rng.uniform(-0.12, 0.12)
        along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        across = across - rng.uniform(-1.2, 1.2) * along * along
        total = total + rng.uniform(0.3, 1) * np.exp(-((along / long) ** 2 + (across / thin) ** 2) / 2)
    tint = np.array([0.8, 0.95, 1.0]) * rng.uniform(0.85, 1.1, 3)
    added = np.minimum(strength * rng.uniform(0.1, 0.45) * total, 0.8)
    seen = contrast_left(scene.coarse(picture), added)
    return picture + scene.enlarge_colours(*(added * t for t in tint)), np.clip(scene.enlarge(seen), 0, 1)


def spots(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Dust on lens and sensor: 1 to 12 spots, dark or bright, sharp or blurred, 0.3 to 4 % of the width in radius.

    A dark spot is I (1 - a B), a bright one I + a B (W - I): B falls from 1 to 0 over the spot's edge.
    """
    height, width = scene.shape
    out, seen = picture.copy(order="K"), np.ones(scene.shape, np.float32)
    for _ in range(1 + int(rng.integers(0, 1 + round(11 * strength)))):
        radius = width * 0.003 * (13 ** rng.random())
        soft = radius * rng.uniform(0.15, 1.2) + 0.3 * scene.pixel
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        amount, bright = strength * rng.uniform(0.05, 0.6), rng.random() < 0.5
        tint = np.array([0.85, 0.75, 0.6], np.float32) * rng.uniform(0.7, 1.1, 3).astype(np.float32)
        reach = int(np.ceil(radius + 3 * soft))
        top, left = max(0, int(cy) - reach), max(0, int(cx) - reach)
        rows, columns = slice(top, int(cy) + reach + 1), slice(left, int(cx) + reach + 1)
        dy = np.arange(height, dtype=np.float32)[rows, None] - cy
        dx = np.arange(width, dtype=np.float32)[None, columns] - cx
        if not dy.size or not dx.size:
            continue
        edge = (np.sqrt(dy * dy + dx * dx) - radius) / (soft / 2)
        blob = (amount / (1 + np.exp(np.clip(edge, -30, 30)))).astype(np.float32)
        patch = out[rows, columns]
        out[rows, columns] = patch + blob[..., None] * (tint - patch) if bright else patch * (1 - blob[..., None])
        seen[rows, columns] *= 1 - blob
    return out, seen
