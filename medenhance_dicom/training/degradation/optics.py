"""Blur: defocus, motion, a soft lens. Lengths are in pixels of a picture 256 wide."""

from __future__ import annotations

import numpy as np

from medenhance_dicom.training.degradation.scene import Scene, Seen, spline
from medenhance_dicom.training.degradation.simple import Picture

WIDE = 3.0  # pixels: larger discs are drawn at half the size
VESSEL = 2.5  # pixels: a blur of this size leaves half of the fine contrast


def _framed(picture: Picture, scene: Scene) -> Picture:
    """Planes (4, H, W): the picture in its field, and the field: a blur of all four takes nothing from outside."""
    planes = np.empty((4, *scene.shape), np.float32)
    planes[3] = scene.field
    np.multiply(picture.transpose(2, 0, 1), planes[3], out=planes[:3])
    return planes


def _normalised(planes: Picture) -> Picture:
    """(H, W, 3) of the blurred planes."""
    return (planes[:3] / np.maximum(planes[3], 1e-3)).transpose(1, 2, 0)


def _padded(planes: Picture, pad: int) -> Picture:
    return np.pad(planes, ((0, 0), (pad, pad), (pad, pad)), mode="edge")


def _disc(planes: Picture, radius: float) -> Picture:
    """The mean over a disc that reaches half a pixel beyond the radius, rows as differences of a running sum.

    A wide disc is drawn at half the size.
    """
    height, width = planes.shape[1:]
    if radius > WIDE:
        even = np.pad(planes, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
        small = (even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]) / 4
        rows, columns = (spline(n, 2 * n)[:size] for n, size in zip(small.shape[1:], (height, width), strict=True))
        return rows @ _disc(small, radius / 2 - 0.25) @ columns.T
    reach = int(np.ceil(radius))
    middle = reach + 2
    sums = _padded(planes, middle).cumsum(axis=2)

    def run(rows: Picture, half: int) -> Picture:
        """Sums over 2 half + 1 pixels of each row."""
        after, before = middle + half, middle - half - 1
        return rows[:, :, after : after + width] - rows[:, :, before : before + width]

    out, area = np.zeros_like(planes), 0.0
    for dy in range(reach + 1):
        share = min(1.0, max(0.0, radius + 0.5 - dy))  # of the last row
        half = np.sqrt(max(radius * radius - dy * dy, 0.0))
        whole, part = int(half), half - int(half)
        rows = sums[:, middle + dy : middle + dy + height]
        if dy:
            rows = rows + sums[:, middle - dy : middle - dy + height]
        out += np.float32(share * (1 - part)) * run(rows, whole)
        if part:
            out += np.float32(share * part) * run(rows, whole + 1)
        area += share * (1 + 2 * half) * (2 if dy else 1)
    return out / np.float32(area)


def disc_blur(picture: Picture, scene: Scene, radius: float) -> Picture:
    """The mean over a disc of that radius in pixels of this picture, within the field."""
    return _normalised(_disc(_framed(picture, scene), radius))


def line_blur(picture: Picture, scene: Scene, length: float, angle: float) -> Picture:
    """The mean along a line of that length in pixels of this picture."""
    height, width = scene.shape
    count = max(2, int(np.ceil(length)) + 1)
    at = np.linspace(-length / 2, length / 2, count)
    rows, columns = np.rint(at * np.sin(angle)).astype(int), np.rint(at * np.cos(angle)).astype(int)
    pad = int(np.ceil(length / 2)) + 1
    planes = _padded(_framed(picture, scene), pad)
    out = np.zeros((4, height, width), np.float32)
    for dy, dx in zip(rows, columns, strict=True):
        out += planes[:, pad + dy : pad + dy + height, pad + dx : pad + dx + width]
    return _normalised(out / np.float32(count))


def sharpness_left(size: float) -> float:
    """The share of fine contrast under a blur of that size, in pixels of a picture 256 wide."""
    return 1 / (1 + (size / VESSEL) ** 2)


def defocus(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """A disc of up to 4 pixels' radius, over the whole field or more in one part of it (a tilted or curved retina)."""
    radius = strength * rng.uniform(0.6, 4.0)
    if radius * scene.pixel < 0.3:
        return picture, 1.0
    blurred = disc_blur(picture, scene, radius * scene.pixel)
    left = sharpness_left(radius)
    if rng.random() < 0.6:
        return blurred, left
    share = scene.enlarge(scene.waves(rng))
    return picture + share[..., None] * (blurred - picture), 1 - share * (1 - left)


def motion(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """The eye moves: a line of up to 9 pixels in any direction."""
    length, angle = strength * rng.uniform(1.5, 9.0), rng.uniform(0, np.pi)
    if length * scene.pixel < 0.5:
        return picture, 1.0
    return line_blur(picture, scene, length * scene.pixel, angle), sharpness_left(length / 3)
