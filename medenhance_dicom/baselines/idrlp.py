"""IDRLP, dehazing by the region line prior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from medenhance_dicom.baselines.filters import guided_filter, resized
from medenhance_dicom.baselines.frame import Baseline, Mask, Picture, Plane, check_fields

THUMBNAIL = 50  # rows on which a and k are searched
ROUNDS, ACCURACY = 14, 1e-4
GUIDE_EPS = 0.02
LEAST_LIGHT = 1e-3
LEAST_T = 0.05
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class RegionLinePrior(Baseline):
    """IDRLP (Ju, Ding, Ren, Yang, Zhang and Guo, IEEE TIP 2021).

    Pictures are cut into regions by their blue channel; the mean of a region without haze is a line of its mean with
    haze, J = k (I - min I) + b. k and the airlight a C are found such that the result's mean is `mean` and the share
    `clipped` of its samples is 0 or 1. `mean` acts as an automatic exposure on dark pictures.
    """

    b: float = 0.1
    regions: int = 10
    clipped: float = 0.01
    """T1."""
    mean: float = 0.40
    """T2."""
    percentile: float = 0.1
    """Pixels from here to 0.1 further, by colour against grey, give the airlight its colour."""

    def __post_init__(self) -> None:
        check_fields(self, b=(0, 1), regions=(1, 256), clipped=(0, 1), mean=(0, 1), percentile=(0, 0.9))

    def _enhance(self, picture: Picture, inside: Mask) -> Picture:
        shape = tuple(max(1, size // 2) for size in inside.shape)
        half, within = resized(picture, shape), resized(inside.astype(np.float64), shape) > 0.5
        if not within.any():
            within = np.ones_like(within)
        colour = self._airlight_colour(half[within])
        scene = self._region_means(half)
        a, k = self._search(half, scene, within, colour)
        lit = self._line(scene, min(k, 1.0))
        mean_light = float(a * colour.mean())
        t = np.maximum(mean_light - scene, LEAST_T) / np.maximum(mean_light - lit, LEAST_T)
        t = guided_filter(half[..., -1:], t, max(1, round(shape[0] / 5)), GUIDE_EPS)
        return _clear(picture, np.maximum(resized(t, inside.shape), LEAST_T), a * colour)

    def _airlight_colour(self, pixels: Picture) -> Picture:
        """C = (1, G/R, B/R) of pixels (n, C) that are nearly, not wholly, grey."""
        grey = np.maximum(pixels.mean(axis=1), LEAST_LIGHT)
        saturation = np.abs(pixels - grey[:, None]).sum(axis=1) / grey
        ranked, n = np.sort(saturation), len(saturation)
        low, high = (ranked[min(n - 1, round(n * p))] for p in (self.percentile, self.percentile + 0.1))
        colour = pixels[(saturation >= low) & (saturation <= high)].mean(axis=0)
        return np.maximum(colour, LEAST_LIGHT) / max(float(colour[0]), LEAST_LIGHT)

    def _region_means(self, half: Picture) -> Plane:
        """Each pixel's region mean; regions are bins of equal width of the blue channel."""
        grey, blue = half.mean(axis=2), half[..., -1]
        spread = max(float(np.ptp(blue)), 1e-12)
        index = np.minimum((self.regions * (blue - blue.min()) / spread).astype(int), self.regions - 1).ravel()
        count = np.bincount(index, minlength=self.regions)
        means = np.bincount(index, grey.ravel(), self.regions) / np.maximum(count, 1)
        return means[index].reshape(grey.shape)

    def _search(self, half: Picture, scene: Plane, within: Mask, colour: Picture) -> tuple[float, float]:
        """The airlight's level a in [0, 1] and the line's slope k in [0, 65], in turns, on a thumbnail."""
        rows, columns = within.shape
        shape = (min(rows, THUMBNAIL), max(1, round(columns * min(1.0, THUMBNAIL / rows))))
        small, means = resized(half, shape), resized(scene, shape)
        counted = resized(within.astype(np.float64), shape) > 0.5
        counted = counted if counted.any() else np.ones_like(counted)

        def cleared(a: float, k: float) -> Picture:
            light = float(a * colour.mean())
            t = np.maximum(light - means, 1e-7) / np.maximum(light - self._line(means, k), 1e-10)
            return _clear(small, np.clip(t, 0.1, 0.99), a * colour)[counted]

        def clipping_error(k: float, a: float) -> float:
            picture = cleared(a, k)
            return abs(float(((picture == 0) | (picture == 1)).mean()) - self.clipped)

        def exposure_error(a: float, k: float) -> float:
            return abs(float(cleared(a, k).mean()) - self.mean)

        a, k = 0.0, 0.5
        for _ in range(ROUNDS):
            before = a
            a = golden_section(partial(clipping_error, k), 0, 1)
            k = golden_section(partial(exposure_error, a), 0, 65)
            if abs(a - before) < ACCURACY:
                break
        return a, k

    def _line(self, scene: Plane, k: float) -> Plane:
        return k * (scene - scene.min()) + self.b


def _clear(hazy: Picture, t: Plane, airlight: Picture) -> Picture:
    """J / A of I = t J + (1 - t) A, clipped to [0, 1]."""
    airlight = np.maximum(airlight, LEAST_LIGHT)
    return np.clip(((hazy - airlight) / t[..., None] + airlight) / airlight, 0, 1)


def golden_section(error: Callable[[float], float], low: float, high: float) -> float:
    """Where `error` is least in [low, high], to 1e-4, if it has one valley there."""
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = error(left), error(right)
    while high - low > ACCURACY:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = error(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = error(right)
    return (low + high) / 2
