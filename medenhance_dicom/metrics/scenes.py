"""Statistics of natural scenes, shared by NIQE, BRISQUE and PIQE: normalised contrast and what is fitted to it.

Sources: Mittal, Moorthy and Bovik, IEEE TIP 2012 (BRISQUE); Mittal, Soundararajan and Bovik, IEEE SPL 2013 (NIQE);
Lasmar, Stitou and Berthoumieu, ICIP 2009 (moment matching of the asymmetric generalised Gaussian).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from scipy.special import gamma

from medenhance_dicom.metrics.picture import Plane

__all__ = [
    "Asymmetric",
    "asymmetric_gaussian",
    "generalised_gaussian",
    "half_size",
    "half_size_sharp",
    "normalised_contrast",
]

Vector = NDArray[np.float64]

NOISE = 1e-10  # below this a normalised contrast is rounding; its sign would decide the fit of a flat area
SHAPES = np.arange(200, 10001) / 1000  # alpha, as the released code tabulates it
RATIO = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))  # E|x|^2 / E x^2; rises with alpha
GAUSSIAN = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
GAUSSIAN = GAUSSIAN / GAUSSIAN.sum()


class Asymmetric(NamedTuple):
    """An asymmetric generalised Gaussian, one value for each row of samples."""

    alpha: Vector
    left: Vector
    """Root mean square of the values below 0."""
    right: Vector
    """Of those above."""

    @property
    def scale(self) -> Vector:
        """Beta / sigma = sqrt(Gamma(1 / alpha) / Gamma(3 / alpha))."""
        return np.sqrt(gamma(1 / self.alpha) / gamma(3 / self.alpha))

    @property
    def mean(self) -> Vector:
        """(right - left) Gamma(2 / alpha) / Gamma(1 / alpha): eta over `scale`."""
        return (self.right - self.left) * gamma(2 / self.alpha) / gamma(1 / self.alpha)


def normalised_contrast(plane: Plane, border: Literal["nearest", "constant"]) -> tuple[Plane, Plane]:
    """MSCN, (I - mu) / (sigma + 1), with the local mean and deviation under a 7 x 7 Gaussian of 7/6 pixels.

    Args:
        plane: (H, W) in [0, 255].
        border: "nearest" repeats the border pixel, "constant" puts 0 around.

    Returns:
        MSCN, (H, W), exactly 0 where it is below 1e-10; and sigma, (H, W).
    """
    mean = _blur(plane, border)
    sigma = np.sqrt(np.abs(_blur(plane * plane, border) - mean * mean))
    contrast = (plane - mean) / (sigma + 1)
    return np.where(np.abs(contrast) < NOISE, 0, contrast), sigma


def half_size(plane: Plane) -> Plane:
    """(H, W) -> (ceil(H/2), ceil(W/2)): MATLAB's imresize by 0.5, bicubic (a = -0.5) with antialiasing.

    The kernel is stretched to 8 taps, the border mirrored with the border pixel repeated.
    """
    taps = _keys(np.abs(np.arange(8) - 3.5) / 2, -0.5)
    return _halved(plane, taps / taps.sum(), [-(-size // 2) for size in plane.shape], "symmetric")


def half_size_sharp(plane: Plane) -> Plane:
    """(H, W) -> about (H/2, W/2): OpenCV's resize by 0.5 with INTER_CUBIC (a = -0.75), of 4 taps; it aliases."""
    return _halved(plane, _keys(np.abs(np.arange(4) - 1.5), -0.75), [round(size / 2) for size in plane.shape], "edge")


def generalised_gaussian(values: NDArray[Any]) -> tuple[Vector, Vector]:
    """Alpha and sigma^2 of the zero-mean generalised Gaussian of each row of (..., n), by moments."""
    square = np.mean(values**2, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        inverse = square / np.mean(np.abs(values), axis=-1) ** 2
    return _shape_of(inverse, 1 / RATIO[::-1], SHAPES[::-1]), square


def asymmetric_gaussian(values: NDArray[Any], *, exact: bool = False) -> Asymmetric:
    """The asymmetric generalised Gaussian of each row of (..., n), by moments. Values of 0 count on neither side.

    Args:
        values: (..., n).
        exact: Count them on the right one, and find alpha between the table's entries, as the Python packages do.

    Returns:
        (...,) each; NaN where nothing varies, or a side is empty.
    """
    below, above = np.minimum(values, 0), np.maximum(values, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.sqrt(np.sum(below**2, axis=-1) / np.sum(values < 0, axis=-1))
        right = np.sqrt(np.sum(above**2, axis=-1) / np.sum(values >= 0 if exact else values > 0, axis=-1))
        balance = left / right
        ratio = np.mean(np.abs(values), axis=-1) ** 2 / np.mean(values**2, axis=-1)
        ratio = ratio * (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2
    alpha = np.interp(ratio, RATIO, SHAPES) if exact else _shape_of(ratio, RATIO, SHAPES)
    return Asymmetric(alpha, left, right)


def _shape_of(ratio: Vector, table: Vector, shapes: Vector) -> Vector:
    """The shape whose entry of the rising `table` is nearest; NaN where `ratio` is NaN: nothing varies there."""
    after = np.clip(np.searchsorted(table, ratio), 1, len(table) - 1)
    nearest = np.where(np.abs(table[after - 1] - ratio) <= np.abs(table[after] - ratio), after - 1, after)
    return np.where(np.isnan(ratio), np.nan, shapes[nearest])


def _blur(plane: Plane, border: Literal["nearest", "constant"]) -> Plane:
    return np.asarray(correlate1d(correlate1d(plane, GAUSSIAN, 0, mode=border), GAUSSIAN, 1, mode=border))


def _halved(plane: Plane, taps: Vector, shape: list[int], border: Literal["symmetric", "edge"]) -> Plane:
    """Every second pixel under `taps`, an even number of them, about the middle of each pair; per axis."""
    reach = len(taps) // 2
    for axis, size in enumerate(shape):
        padded = np.pad(plane, [(reach - 1, reach + 1) if a == axis else (0, 0) for a in (0, 1)], mode=border)
        plane = np.sum([w * padded.take(range(k, k + 2 * size, 2), axis) for k, w in enumerate(taps)], axis=0)
    return plane


def _keys(distance: Vector, a: float) -> Vector:
    """Keys' cubic convolution kernel (IEEE ASSP 1981) for distances in [0, 2]."""
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return np.where(distance <= 1, near, a * (distance**3 - 5 * distance**2 + 8 * distance - 4))
