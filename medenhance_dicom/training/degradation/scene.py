"""What the parts of a degradation work on: a picture's field of view, places in it, smooth things on a small grid.

Pictures are float32 (H, W, 3) in [0, 1]. A part is a function (picture, scene, rng, strength) -> (picture, seen):
strength in [0, 1], 0 changes nothing; seen is the share of the fine contrast of before that can still be seen, a plane
(H, W) or one number, in [0, 1]. Parts may leave [0, 1] and the field; who composes them clips and puts the surround
back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, binary_fill_holes, label, uniform_filter, zoom

from medenhance_dicom.training.degradation.simple import Picture, smooth_field

Mask = NDArray[np.bool_]
Seen = Picture | float

CELLS = 64  # of the grid that smooth things are drawn on
WAVES = 24  # of the grid that `smooth_field` is drawn on


@lru_cache(maxsize=64)
def spline(cells: int, size: int) -> Picture:
    """Cubic interpolation as a matrix (size, cells); its rows sum to 1."""
    return np.asarray(zoom(np.eye(cells), (size / cells, 1), order=3, mode="nearest", grid_mode=True), np.float32)


@lru_cache(maxsize=8)
def _centres(height: int, width: int) -> tuple[Picture, Picture]:
    """Rows (CELLS, 1) and columns (1, CELLS) of the grid's cells, in pixels."""
    middle = (np.arange(CELLS, dtype=np.float32) + 0.5) / CELLS
    return (middle * height - 0.5)[:, None], (middle * width - 0.5)[None]


@dataclass(frozen=True)
class Scene:
    """A picture's field of view (H, W), bool, and where things are in it."""

    field: Mask

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.field.shape
        return height, width

    @property
    def pixel(self) -> float:
        """The length of which the picture's width has 256: blur and noise look alike at every size."""
        return self.field.shape[1] / 256

    @cached_property
    def weight(self) -> Picture:
        """(H, W, 1): 1 inside, 0 outside, between them within a pixel of the inner edge."""
        if self.field.all():
            return np.ones((*self.field.shape, 1), np.float32)
        near = uniform_filter(self.field.astype(np.float32), 3, mode="nearest")
        return (near * self.field)[..., None]

    @cached_property
    def place(self) -> tuple[Picture, Picture]:
        """Y (CELLS, 1) and x (1, CELLS) of the grid's cells: 0 in the middle of the field, 1 at its rim."""
        rows, columns = np.flatnonzero(self.field.any(axis=1)), np.flatnonzero(self.field.any(axis=0))
        y, x = _centres(*self.shape)
        if not rows.size:
            rows, columns = np.arange(self.shape[0]), np.arange(self.shape[1])
        radius = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0]), 1) / 2
        return (y - (rows[0] + rows[-1]) / 2) / radius, (x - (columns[0] + columns[-1]) / 2) / radius

    @cached_property
    def radius(self) -> Picture:
        """(CELLS, CELLS): the distance from the middle of the field, 1 at its rim."""
        y, x = self.place
        return np.sqrt(y * y + x * x)

    def enlarge(self, grid: Picture) -> Picture:
        """A grid (h, w) at the picture's size (H, W)."""
        height, width = self.shape
        rows, columns = spline(grid.shape[0], height), spline(grid.shape[1], width)
        return rows @ grid.astype(np.float32) @ columns.T

    def enlarge_colours(self, *grids: Picture) -> Picture:
        """Grids at the picture's size, (H, W, number of grids)."""
        return np.stack([self.enlarge(grid) for grid in grids]).transpose(1, 2, 0)

    def waves(self, rng: np.random.Generator) -> Picture:
        """A smooth random grid (CELLS, CELLS) in [0, 1]."""
        step = spline(WAVES, CELLS)
        return np.clip(step @ smooth_field(rng, WAVES, WAVES) @ step.T, 0, 1)

    def patches(self, rng: np.random.Generator, cells: int) -> Picture:
        """A grid (CELLS, CELLS) in [0, 1], about: random levels in cells x cells places, smoothly joined."""
        step = spline(cells, CELLS)
        return step @ rng.random((cells, cells), np.float32) @ step.T

    def mean(self, picture: Picture) -> Picture:
        """The mean colour (3,) of the field."""
        inside = self.field[2::4, 2::4]
        if not inside.any():
            return np.full(3, 0.5, np.float32)
        return np.asarray(picture[2::4, 2::4][inside].mean(axis=0), np.float32)

    def coarse(self, picture: Picture, channel: int = 1) -> Picture:
        """A channel's local mean inside the field on the grid (CELLS, CELLS); 1/1000 at least."""
        height, width = self.shape
        rows = np.minimum(np.arange(CELLS) * height // CELLS + height // (2 * CELLS), height - 1)
        columns = np.minimum(np.arange(CELLS) * width // CELLS + width // (2 * CELLS), width - 1)
        at = np.ix_(rows, columns)
        inside = self.field[at].astype(np.float32)
        total = uniform_filter(picture[..., channel][at] * inside, 7, mode="nearest")
        share = uniform_filter(inside, 7, mode="nearest")
        return np.maximum(np.where(share > 0.02, total / np.maximum(share, 0.02), 0.2), 1e-3).astype(np.float32)


Part = Callable[[Picture, Scene, np.random.Generator, float], tuple[Picture, Seen]]


def fundus_field(picture: Picture) -> Mask:
    """The field (H, W) of a fundus photograph with a black surround, found at a glance; all of it where there is none.

    For pictures without a mask of their own: the largest patch brighter than 0.06 at about 96 pixels, its holes filled.
    """
    height, width = picture.shape[:2]
    brightest = picture.max(axis=2)
    step = max(1, min(height, width) // 96)
    bright = uniform_filter(brightest[::step, ::step], 3) > 0.06
    patches, count = label(bright)
    if not count:
        return np.ones((height, width), bool)
    largest = binary_fill_holes(patches == 1 + np.argmax(np.bincount(patches.ravel())[1:]))
    deep = binary_erosion(largest, iterations=3, border_value=1)
    rows, columns = (np.minimum(np.arange(n) // step, m - 1) for n, m in zip((height, width), deep.shape, strict=True))
    at = np.ix_(rows, columns)
    return deep[at] | (largest[at] & (brightest > 0.04))
