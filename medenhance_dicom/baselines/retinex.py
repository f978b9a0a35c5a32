"""Centre/surround retinex: one scale, several, and several with colour restoration."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np

from medenhance_dicom.baselines.frame import (
    Baseline,
    Mask,
    Picture,
    Unit,
    check_fields,
    is_flat,
    relight,
    stretch,
    value,
)
from medenhance_dicom.conventional import FLAT, blur_within


def retinex(picture: Picture, inside: Mask, sigmas: tuple[float, ...]) -> Picture:
    """The mean over sigma of log(I + 1) - log(G_sigma * I + 1), I in 0..255.

    Source: Jobson, Rahman and Woodell, IEEE TIP 6(3), 1997, for one sigma, and 6(7), 1997, for several.

    Args:
        picture: (H, W, C) in [0, 1].
        inside: (H, W); the surround is a mean over these pixels alone.
        sigmas: In pixels.

    Returns:
        (H, W, C), the reflectance as a natural logarithm: 0 where a pixel is as bright as its surround.
    """
    grey: Unit = (255 * picture).astype(np.float32)
    result = np.log1p(255 * picture)
    for c in range(picture.shape[2]):
        for sigma in sigmas:
            result[..., c] -= np.log1p(np.maximum(blur_within(grey[..., c], inside, sigma), 0)) / len(sigmas)
    return result


@dataclass(frozen=True)
class _Retinex(Baseline):
    """Reflectance, whose mean +- `dynamic` standard deviations, over all channels together, become [0, 1]."""

    dynamic: float = 2.0
    luma_only: bool = False
    """True: on V of HSV. Per channel, as published, every channel goes to grey, which takes a fundus its colour."""

    def _enhance(self, picture: Picture, inside: Mask) -> Picture:
        if self.luma_only and picture.shape[2] == 3:
            per_channel = replace(self, luma_only=False)
            light = value(picture)
            return relight(picture, light, per_channel._enhance(light[..., None], inside)[..., 0])
        if is_flat(picture, inside):
            return picture
        reflectance = self._reflectance(picture, inside)
        counted = reflectance[inside]
        centre, spread = float(counted.mean()), self.dynamic * max(float(counted.std()), FLAT)
        return stretch(reflectance, centre - spread, centre + spread)

    @abstractmethod
    def _reflectance(self, picture: Picture, inside: Mask) -> Picture:
        """(H, W, C) in [0, 1] -> the same shape, in any range."""


@dataclass(frozen=True)
class SingleScaleRetinex(_Retinex):
    """SSR (Jobson, Rahman and Woodell, IEEE TIP 6(3), 1997)."""

    sigma: float = 80.0

    def __post_init__(self) -> None:
        check_fields(self, sigma=(1, 1000), dynamic=(0.5, 6))

    def _reflectance(self, picture: Picture, inside: Mask) -> Picture:
        return retinex(picture, inside, (self.sigma,))


@dataclass(frozen=True)
class MultiScaleRetinex(_Retinex):
    """MSR (Jobson, Rahman and Woodell, IEEE TIP 6(7), 1997). `conventional.MultiScaleRetinex` is the gentle one."""

    sigmas: tuple[float, ...] = (15.0, 80.0, 250.0)

    def __post_init__(self) -> None:
        check_fields(self, dynamic=(0.5, 6))
        if not self.sigmas or not all(1 <= sigma <= 1000 for sigma in self.sigmas):
            raise ValueError("sigmas must be in 1..1000")

    def _reflectance(self, picture: Picture, inside: Mask) -> Picture:
        return retinex(picture, inside, self.sigmas)


@dataclass(frozen=True)
class ColourRestoredRetinex(MultiScaleRetinex):
    """MSRCR (the same paper): MSR_c times beta (log(alpha I_c) - log(sum_c I_c)), I + 1 in 1..256."""

    alpha: float = 125.0
    beta: float = 46.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, alpha=(1, 1000), beta=(0.1, 1000))

    def _reflectance(self, picture: Picture, inside: Mask) -> Picture:
        grey = 255 * picture + 1
        restoration = self.beta * np.log(self.alpha * grey / grey.sum(axis=2, keepdims=True))
        return restoration * super()._reflectance(picture, inside)
