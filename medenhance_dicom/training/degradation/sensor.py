"""Sensor, camera and file: noise that follows the signal, other cameras' colours, JPEG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from medenhance_dicom.training.degradation.scene import Scene, Seen
from medenhance_dicom.training.degradation.simple import Picture

FINE = 0.05  # contrast of a fine vessel: noise of this size leaves half of it


def grain(rng: np.random.Generator, shape: tuple[int, int], alike: float, *, coarse: bool = False) -> Picture:
    """White noise (H, W, 3) of unit variance, coarse: two pixels wide; `alike` of each channel's is common to all.

    One plane is drawn; the channels' own are the same plane rolled far away.
    """
    plane: Picture = rng.standard_normal(shape, np.float32)
    if coarse:
        plane = plane + np.roll(plane, 1, 0)
        plane = (plane + np.roll(plane, 1, 1)) / 2
    out = np.empty((3, *shape), np.float32)
    own = np.float32(np.sqrt(1 - alike * alike))
    for channel in out:
        dy, dx = (int(rng.integers(n // 8, n - n // 8 + 1)) for n in shape)
        channel[...] = np.float32(alike) * plane + own * np.roll(plane, (dy, dx), (0, 1))
    return out.transpose(1, 2, 0)


def add_noise(
    picture: Picture, scene: Scene, rng: np.random.Generator, reading: float, photons: float
) -> tuple[Picture, Seen]:
    """I + N(0, reading^2 + photons^2 I), two times in five coarse, as a camera's own filter leaves it."""
    field = grain(rng, scene.shape, rng.uniform(0, 0.8), coarse=rng.random() < 0.4)
    spread = np.sqrt(np.float32(reading**2) + np.float32(photons**2) * np.clip(picture, 0, 1))
    signal = float(scene.mean(picture)[1])
    relative = np.sqrt(reading**2 + photons**2 * max(signal, 0)) / max(signal, 0.05)
    return picture + spread * field, float(1 / (1 + (relative / (4 * FINE)) ** 2))


def noise(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """+ N(0, a^2 + b^2 I): reading noise a to 0.01, photon noise b to 0.02."""
    reading, photons = strength * rng.uniform(0.002, 0.01), strength * rng.uniform(0.004, 0.02)
    return add_noise(picture, scene, rng, reading, photons)


def camera_colours(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Another camera: (M I w)^g; M mixes the channels (rows sum to 1), w is the white balance, g 0.75 to 1.35."""
    mix = np.eye(3) + strength * rng.uniform(-0.12, 0.12, (3, 3))
    mix = mix / mix.sum(axis=1, keepdims=True) * (2 ** (strength * rng.uniform(-0.25, 0.25, 3)))[:, None]
    gamma = np.float32(2 ** (strength * rng.uniform(-0.4, 0.4)))
    planes = mix.astype(np.float32) @ picture.transpose(2, 0, 1).reshape(3, -1)
    return np.power(np.clip(planes, 0, None), gamma).reshape(3, *scene.shape).transpose(1, 2, 0), 1.0


def jpeg(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Through a JPEG file of quality 95 down to 20, colour at full or at half resolution."""
    quality = round(96 - strength * rng.uniform(20, 76))
    held = io.BytesIO()
    pixels = (np.clip(np.ascontiguousarray(picture), 0, 1) * 255 + 0.5).astype(np.uint8)
    Image.fromarray(pixels).save(held, "JPEG", quality=quality, subsampling=2 * int(rng.integers(0, 2)))
    read = np.asarray(Image.open(held), np.float32) / 255
    return read, min(1.0, 0.6 + 0.4 * quality / 90)
