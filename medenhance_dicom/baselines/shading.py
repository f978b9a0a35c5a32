"""Slow shading: the bias field that N4 finds, and contrast normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medenhance_dicom.baselines.frame import Baseline, Mask, Picture, check_fields, is_flat, relight, stretch, value
from medenhance_dicom.conventional import FLAT, blur_within, luminance
from medenhance_dicom.intensity import bias_field_n4


@dataclass(frozen=True)
class N4(Baseline):
    """The picture divided by its bias field (Tustison et al., IEEE TMI 2010), which is that of its luminance."""

    def _enhance(self, picture: Picture, inside: Mask) -> Picture:
        if is_flat(picture, inside):
            return picture
        result: Picture = picture / bias_field_n4(luminance(picture.astype(np.float32)), inside)[..., None]
        return result


@dataclass(frozen=True)
class ContrastNormalisation(Baseline):
    """ICN: (V - mu) / (s + eps) on V of HSV, mu and s the mean and deviation nearby; then `percentiles` become 0, 1."""

    window: float = 0.1
    """Sigma of the Gaussian window, as a share of the field's shorter side."""
    eps: float = 0.01
    percentiles: tuple[float, float] = (1.0, 99.0)

    def __post_init__(self) -> None:
        check_fields(self, window=(0.005, 1), eps=(1e-4, 1))
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError("percentiles must be two rising numbers in 0..100")

    def _enhance(self, picture: Picture, inside: Mask) -> Picture:
        old = value(picture)
        if is_flat(old, inside):
            return picture
        light = old.astype(np.float32)
        sigma = max(1.0, self.window * min(light.shape))
        mean = blur_within(light, inside, sigma)
        deviation = np.sqrt(np.maximum(blur_within((light - mean) ** 2, inside, sigma), 0))
        normal = (light - mean).astype(np.float64) / (deviation + self.eps)
        low, high = np.percentile(normal[inside], self.percentiles)
        return relight(picture, old, stretch(normal, low, max(high, low + FLAT)))
