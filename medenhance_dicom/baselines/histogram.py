"""Histogram equalisation, of the whole field of view and of tiles, by scikit-image."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from skimage.color import lab2rgb, rgb2lab
from skimage.exposure import equalize_adapthist, equalize_hist

from medenhance_dicom.baselines.frame import Baseline, Mask, Picture, check_fields, is_flat, relight, value


@dataclass(frozen=True)
class HistogramEqualization(Baseline):
    """HE: each value becomes its share of the field of view; on V of HSV, since per channel it shifts the hue."""

    bins: int = 256

    def __post_init__(self) -> None:
        check_fields(self, bins=(2, 65536))

    def _enhance(self, picture: Picture, inside: Mask) -> Picture:
        light = value(picture)
        if is_flat(light, inside):
            return picture
        return relight(picture, light, equalize_hist(light, self.bins, inside))


@dataclass(frozen=True)
class ClaheLab(Baseline):
    """CLAHE (Zuiderveld, Graphics Gems IV, 1994) as scikit-image has it, on L of CIE Lab, or on grey itself.

    `clip_limit` is counted as OpenCV's clipLimit: scikit-image's is this / 256. The frame is stretched to its own range
    before and after. `conventional.Clahe` is the same without that, for use in recipes.
    """

    clip_limit: float = 2.0
    """1: nearly nothing happens; 256: no limit, which is AHE."""
    tiles: int = 8
    """Down and across the field of view."""

    def __post_init__(self) -> None:
        check_fields(self, clip_limit=(1, 256), tiles=(1, 64))

    def _enhance(self, picture: Picture, inside: Mask) -> Picture:
        colour = picture.shape[2] == 3
        lab = rgb2lab(picture) if colour else None
        light = np.clip(picture[..., 0] if lab is None else lab[..., 0] / 100, 0, 1)
        if is_flat(light, inside):
            return picture
        kernel = [max(1, -(-size // self.tiles)) for size in light.shape]
        equalized = equalize_adapthist(light, kernel, self.clip_limit / 256)
        if lab is None:
            return equalized[..., None]
        lab[..., 0] = 100 * equalized
        with warnings.catch_warnings():  # colours that sRGB does not have are clipped
            warnings.simplefilter("ignore", UserWarning)
            result: Picture = lab2rgb(lab)
        return result
