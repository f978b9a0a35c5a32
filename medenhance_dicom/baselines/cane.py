"""CaNE, content-aware enhancement of filaments; most likely what HQG-Net calls CAEFI."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import uniform_filter

from medenhance_dicom.baselines.frame import Baseline, Mask, Picture, Plane, check_fields

WINDOW = 9  # pixels, of the structure tensor
ITERATIONS, RENEWED = 20, 10  # the prominence is computed again every so many
LEAST_PROMINENCE = 1e-6


@dataclass(frozen=True)
class Cane(Baseline):
    """Gradient sparsity weighted by prominence (Jeelani, Liang, Acton and Weller, IEEE TIP 2019, algorithm 1).

    Made for grey; a colour picture is three of them. Scaled to a maximum of 1 for the while, with periodic edges. It
    flattens what is not filament and does not brighten. `smoothness` is lambda.
    """

    smoothness: float = 0.006

    def __post_init__(self) -> None:
        check_fields(self, smoothness=(1e-5, 1))

    def _enhance(self, picture: Picture, inside: Mask) -> Picture:
        top = float(picture.max())
        if not top:
            return picture
        planes = [smooth_filaments(picture[..., c] / top, self.smoothness) for c in range(picture.shape[2])]
        return top * np.stack(planes, axis=2)


def smooth_filaments(image: Plane, smoothness: float) -> Plane:
    """S of I (H, W) in [0, 1] by half-quadratic splitting; beta = 2 lambda, gamma = 2000 lambda double each time."""
    rows = np.fft.fftfreq(image.shape[0])[:, None]
    columns = np.fft.rfftfreq(image.shape[1])
    laplacian = 4 - 2 * np.cos(2 * np.pi * rows) - 2 * np.cos(2 * np.pi * columns)
    beta, gamma = 2 * smoothness, 2000 * smoothness
    s = image
    weight = np.ones_like(image)
    for iteration in range(ITERATIONS):
        if iteration % RENEWED == 0:
            weight = 1 / np.maximum(prominence(s), LEAST_PROMINENCE)
        down, across = (np.roll(s, -1, axis) - s for axis in (0, 1))
        kept = down**2 + across**2 >= smoothness * weight / beta
        down, across = down * kept, across * kept
        adjoint = np.roll(down, 1, 0) - down + np.roll(across, 1, 1) - across
        d = s - image
        d[d**2 < 1 / gamma] = 0
        s = irfft2((rfft2(image + d) + beta * rfft2(adjoint)) / (1 + beta * laplacian), image.shape)
        beta, gamma = 2 * beta, 2 * gamma
    return s


def prominence(plane: Plane) -> Plane:
    """Q = l2 |l2 - l1| / (l1 + l2), l1 <= l2 the roots of the 9 x 9 structure tensor's eigenvalues; (H, W)."""
    down, across = np.zeros_like(plane), np.zeros_like(plane)
    down[1:-1] = (plane[2:] - plane[:-2]) / 2
    across[:, 1:-1] = (plane[:, 2:] - plane[:, :-2]) / 2
    yy, xx, xy = (WINDOW**2 * uniform_filter(p, WINDOW, mode="wrap") for p in (down**2, across**2, down * across))
    root = np.sqrt((xx - yy) ** 2 + 4 * xy**2)
    small, large = (np.sqrt(np.maximum(xx + yy + sign * root, 0) / 2) for sign in (-1, 1))
    return large * (large - small) / np.maximum(large + small, 1e-12)
