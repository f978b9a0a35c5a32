"""BRISQUE: 36 scene statistics of a picture, judged by a support vector regression that others trained.

Source: Mittal, Moorthy and Bovik, "No-reference image quality assessment in the spatial domain", IEEE TIP 2012. LIVE's
release and the package `brisque` of PyPI take the statistics in two ways, and each has its own model. A model is fed
with the statistics that belong to it, and a score means something together with the model's id alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.metrics.picture import Mask, Plane, Unit, bounding_box, grey, grey_bytes
from medenhance_dicom.metrics.scenes import (
    asymmetric_gaussian,
    generalised_gaussian,
    half_size,
    half_size_sharp,
    normalised_contrast,
)

__all__ = ["Statistics", "SupportVectors", "brisque", "brisque_features"]

Statistics = Literal["live", "pypi"]

SHIFTS = ((0, 1), (1, 0), (1, 1), (-1, 1))
REC709 = (0.2125, 0.7154, 0.0721)
KNOWN: dict[str, tuple[str, Statistics]] = {
    "618e4dc8a7d330ad127d493b3b450cb3f62590c8600675ba226a7adfb4372949": ("live774", "live"),
    "990971d4f0db7124618d944043e66d1c9d17d51415399e44c3315a0c9e11bd78": ("pypi770", "pypi"),
}


@dataclass(frozen=True, eq=False)
class SupportVectors:
    """An epsilon regression with a radial basis function, and the ranges that its inputs are scaled by."""

    gamma: float
    rho: float
    weights: NDArray[np.float64]
    """(n,)."""
    vectors: NDArray[np.float64]
    """(n, 36)."""
    smallest: NDArray[np.float64]
    """(36,), what becomes -1."""
    largest: NDArray[np.float64]
    """(36,), what becomes 1."""
    digest: str
    """SHA-256 of the model's file followed by the ranges' file."""

    @property
    def id(self) -> str:
        """`brisque@` and the model's name, or the first 12 digits of its digest."""
        return f"brisque@{KNOWN[self.digest][0] if self.digest in KNOWN else self.digest[:12]}"

    @property
    def statistics(self) -> Statistics:
        """What belongs to it; LIVE's for an unknown model."""
        return KNOWN[self.digest][1] if self.digest in KNOWN else "live"

    def __call__(self, features: NDArray[np.float64]) -> float:
        """sum_i w_i exp(-gamma |x - v_i|^2) - rho of (36,) features x, scaled without clipping."""
        x = 2 * (features - self.smallest) / (self.largest - self.smallest) - 1
        return float(self.weights @ np.exp(-self.gamma * np.sum((x - self.vectors) ** 2, axis=1)) - self.rho)


def brisque(picture: Unit, model: SupportVectors, inside: Mask | None = None) -> float:
    """BRISQUE; lower is better, mostly in 0..100. NaN for a flat picture.

    Args:
        picture: (H, W, C) in [0, 1].
        model: As `parameters.load_brisque` gives it.
        inside: (H, W), the field of view; its bounding box is what is judged.
    """
    return model(brisque_features(bounding_box(picture, inside), model.statistics))


def brisque_features(picture: Unit, statistics: Statistics = "live") -> NDArray[np.float64]:
    """(36,): at full and at half size alpha, sigma^2 and, for four neighbours, alpha, eta, sigma_l^2, sigma_r^2.

    Args:
        picture: (H, W, C) in [0, 1].
        statistics: "live": MATLAB's rounded grey and imresize, neighbours around the border, a symmetric fit of the
            contrast. "pypi": Rec. 709 grey, cubic halving without antialiasing, neighbours inside the picture, an
            asymmetric fit of the contrast, and 0 counts as a value of the right side.
    """
    live = statistics == "live"
    plane = grey_bytes(picture) if live else grey(picture, REC709)
    features: list[float] = []
    for _ in range(2):
        contrast, _ = normalised_contrast(plane, "constant")
        if live:
            features += [float(v) for v in generalised_gaussian(contrast.ravel())]
        else:
            fit = asymmetric_gaussian(contrast.ravel(), exact=True)
            features += [float(fit.alpha), float((fit.left**2 + fit.right**2) / 2)]
        for shift in SHIFTS:
            product = contrast * np.roll(contrast, shift, (0, 1))
            product = product if live else _inner(product, shift)
            fit = asymmetric_gaussian(product.ravel(), exact=not live)
            features += [float(v) for v in (fit.alpha, fit.mean * fit.scale, fit.left**2, fit.right**2)]
        plane = half_size(plane) if live else half_size_sharp(plane)
    return np.array(features)


def _inner(product: Plane, shift: tuple[int, int]) -> Plane:
    """Without the rows and columns that `np.roll` brought round from the other side."""
    down, right = shift
    rows = slice(down, None) if down >= 0 else slice(None, down)
    return product[rows, right:]
