"""A picture of any shape in the square that a network sees: its longer side is the square's, around it is black."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Unit = NDArray[np.float32]


@dataclass(frozen=True)
class Placement:
    """Where a picture of height x width lies in the middle of a square, its longer side being the square's."""

    height: int
    width: int
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width inside the square."""
        scale = self.size / max(self.height, self.width)
        return max(round(self.height * scale), 1), max(round(self.width * scale), 1)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the square that it fills."""
        (h, w), n = self.shape, self.size
        top, left = (n - h) // 2, (n - w) // 2
        return slice(top, top + h), slice(left, left + w)

    def point(self, row: float, column: float) -> tuple[float, float]:
        """A place in pixels of the picture as fractions of the square; pixel i has its centre at i + 1/2."""
        (h, w), (rows, columns) = self.shape, self.window
        y, x = (row + 0.5) * h / self.height + rows.start, (column + 0.5) * w / self.width + columns.start
        return y / self.size, x / self.size

    def point_back(self, y: float, x: float) -> tuple[float, float]:
        """The reverse of `point`."""
        (h, w), (rows, columns) = self.shape, self.window
        row, column = (y * self.size - rows.start) * self.height / h, (x * self.size - columns.start) * self.width / w
        return row - 0.5, column - 0.5


def reduced(picture: Unit, size: int) -> Unit:
    """A picture (H, W, C) with its longer side brought to `size` by area means."""
    height, width = Placement(picture.shape[0], picture.shape[1], size).shape
    planes = [Image.fromarray(np.ascontiguousarray(plane, np.float32)) for plane in np.moveaxis(picture, 2, 0)]
    return np.stack([np.asarray(plane.resize((width, height), Image.Resampling.BOX)) for plane in planes], axis=2)


def squared(picture: Unit, size: int) -> Unit:
    """A picture (H, W, C) as (size, size, C): `reduced`, in the middle of black."""
    place = Placement(picture.shape[0], picture.shape[1], size)
    square = np.zeros((size, size, picture.shape[2]), np.float32)
    square[place.window] = reduced(picture, size)
    return square
