"""Conventional enhancers: CLAHE, multi-scale retinex, normalisation of colour fields, and none at all.

They count only pixels of the field of view; CLAHE and retinex work on luminance and leave hue and saturation alone.
Nothing in them looks at the frame's own minimum and maximum, so that one noisy or bright pixel does not change a whole
picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medenhance_dicom.enhancer import Enhancer, EnhancerSpec
from medenhance_dicom.errors import RecipeError

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]

LUMA = np.array([0.2125, 0.7154, 0.0721], np.float32)  # Rec. 709, as LaSSIM takes it
BINS = 256
FLAT = 1e-6  # below this spread a frame counts as constant


@dataclass(frozen=True)
class Identity:
    """Gives every frame back, bit for bit."""

    spec: EnhancerSpec = field(default=EnhancerSpec(channels=None), init=False)

    def __call__(self, frames: Unit) -> Unit:
        """`frames`: float32 (N, H, W, C) in [0, 1]. Returns a copy."""
        return frames.copy()


class FrameByFrame(ABC):
    """Frames one after the other, each by itself; a flat one stays as it is."""

    def __call__(self, frames: Unit) -> Unit:
        """`frames`: float32 (N, H, W, C) in [0, 1], C = 1 or 3. Returns the same shape and range."""
        return self.enhance_within(frames, np.ones(frames.shape[:3], bool))

    def enhance_within(self, frames: Unit, inside: Mask) -> Unit:
        """As called, for the pixels of `inside` (N, H, W) only."""
        result = frames.copy()
        for frame, here, out in zip(frames, inside, result, strict=True):
            light = luminance(frame)
            if not _is_flat(light, here):
                self._enhance_frame(frame, light, here, out)
        return result

    @abstractmethod
    def _enhance_frame(self, frame: Unit, light: Unit, here: Mask, out: Unit) -> None:
        """Write into `out` (H, W, C), a copy of `frame` with the luminance `light` (H, W), where `here` is True."""


@dataclass(frozen=True)
class Clahe(FrameByFrame):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994) on luminance.

    `clip_limit` is the largest slope of a tile's curve, as OpenCV's clipLimit; scikit-image's is this / 256. Unlike
    scikit-image's, it does not stretch each frame to its own range, so the frames of a series stay comparable, it has a
    field of view, and black stays black and white white in every tile.
    """

    clip_limit: float = 2.0
    tiles: int = 8
    strength: float = 1.0
    """1: CLAHE; 0: nothing; between: their mean."""
    max_gain: float = 3.0
    """Luminance is raised or lowered by at most this factor."""
    spec: EnhancerSpec = field(default=EnhancerSpec(channels=None, whole=True), init=False)

    def __post_init__(self) -> None:
        _require(1 <= self.clip_limit <= 40, "clip_limit must be in 1..40")
        _require(1 <= self.tiles <= 32 and self.tiles == int(self.tiles), "tiles must be a whole number in 1..32")
        _require(0 <= self.strength <= 1, "strength must be in 0..1")
        _require(1 <= self.max_gain <= 16, "max_gain must be in 1..16")

    def _enhance_frame(self, frame: Unit, light: Unit, here: Mask, out: Unit) -> None:
        blended = light + np.float32(self.strength) * (equalize_tiles(light, here, self) - light)
        _write_luminance(out, light, blended, here, self.max_gain)


@dataclass(frozen=True)
class MultiScaleRetinex(FrameByFrame):
    """Multi-scale retinex (Jobson, Rahman and Woodell, IEEE TIP 1997): log(I + 1) - log(G * I + 1), I in 0..255.

    The mean over the scales is mapped from mean +- `dynamic` standard deviations to [0, 1]. On luminance by default,
    since retinex per channel pulls every picture towards grey, which gives fundus and mucosa a wrong colour.
    """

    sigmas: tuple[float, ...] = (15.0, 80.0, 250.0)
    """In pixels of a picture whose longer side has 512; scaled to others."""
    dynamic: float = 2.0
    strength: float = 0.5
    """1: retinex; 0: nothing; between: their mean."""
    luma_only: bool = True
    max_gain: float = 3.0
    """Luminance is raised or lowered by at most this factor."""
    spec: EnhancerSpec = field(default=EnhancerSpec(channels=None, whole=True), init=False)

    def __post_init__(self) -> None:
        _require(len(self.sigmas) > 0 and all(1 <= s <= 1000 for s in self.sigmas), "sigmas must be in 1..1000")
        _require(0.5 <= self.dynamic <= 6, "dynamic must be in 0.5..6")
        _require(0 <= self.strength <= 1, "strength must be in 0..1")
        _require(1 <= self.max_gain <= 16, "max_gain must be in 1..16")

    def _enhance_frame(self, frame: Unit, light: Unit, here: Mask, out: Unit) -> None:
        if self.luma_only or frame.shape[2] == 1:
            share = np.float32(self.strength) * _between_black_and_white(light)
            blended = light + share * (self._retinex(light, here, light) - light)
            _write_luminance(out, light, blended, here, self.max_gain)
            return
        for channel in range(frame.shape[2]):
            plane = frame[..., channel]
            share = np.float32(self.strength) * _between_black_and_white(plane)
            change = self._retinex(plane, here, light) - plane
            out[..., channel] = np.where(here, np.clip(plane + share * change, 0, 1), plane)

    def _retinex(self, plane: Unit, here: Mask, light: Unit) -> Unit:
        """(H, W) in [0, 1] -> the same; weighted where the light is, so that black surround does not count."""
        scale = max(plane.shape) / 512
        values = plane * np.float32(255)
        reflectance = np.zeros_like(plane)
        for sigma in self.sigmas:
            blurred = blur_within(values, here, sigma * scale)
            reflectance += np.log1p(values) - np.log1p(np.maximum(blurred, 0))
        reflectance /= np.float32(len(self.sigmas))
        counted = reflectance[here & (light > 0)]
        centre, spread = float(counted.mean()), float(counted.std()) * self.dynamic
        if spread < FLAT:
            return plane
        return np.clip((reflectance - np.float32(centre - spread)) / np.float32(2 * spread), 0, 1)


@dataclass(frozen=True)
class FieldNormalisation(FrameByFrame):
    """Local mean and spread of each channel, brought to those of good pictures.

    Local normalisation is that of Foracchia, Grisan and Ruggeri (Medical Image Analysis 9, 2005), without their search
    for the background; the transfer of mean and spread that of Reinhard et al. (IEEE CG&A 21(5), 2001), per channel of
    RGB and locally. What is as wide as `sigma` loses its brightness: disc and macula do. Where little is seen, noise
    and the target's colour are all there is.
    """

    mean: tuple[float, ...]
    """Red, green and blue of good pictures, in [0, 1]; see `field_statistics`."""
    spread: tuple[float, ...]
    """Their local deviation."""
    sigma: float = 0.08
    """Of the Gaussian window, as a share of the width."""
    least_gain: float = 2 / 3
    """Contrast is lowered to this share at most."""
    largest_gain: float = 4.0
    """And raised by at most this factor."""
    kept: float = 0.125
    """Share of the local mean's own variation that is kept."""
    spec: EnhancerSpec = field(default=EnhancerSpec(channels=3, whole=True), init=False)

    def __post_init__(self) -> None:
        for name in ("mean", "spread"):
            values = getattr(self, name)
            _require(isinstance(values, tuple) and len(values) == 3, f"{name} must be three numbers")
        _require(all(0 <= m <= 1 for m in self.mean), "mean must be in 0..1")
        _require(all(0 < s <= 0.5 for s in self.spread), "spread must be above 0, and 0.5 at most")
        _require(0.005 <= self.sigma <= 0.5, "sigma must be in 0.005..0.5")
        _require(0 < self.least_gain <= 1 <= self.largest_gain <= 16, "gains must be in 0..1 and 1..16")
        _require(0 <= self.kept <= 1, "kept must be in 0..1")

    def _enhance_frame(self, frame: Unit, light: Unit, here: Mask, out: Unit) -> None:
        if frame.shape[2] != 3:
            raise ValueError(f"field-normalisation is for colour pictures, not for {frame.shape[2]} channel(s)")
        for channel, (target, spread) in enumerate(zip(self.mean, self.spread, strict=True)):
            plane = frame[..., channel]
            mean, deviation = local_statistics(plane, here, self.sigma * frame.shape[1])
            gain = np.clip(np.float32(spread) / deviation, self.least_gain, self.largest_gain)
            rest = np.float32(self.kept) * (mean - mean[here].mean())
            wanted = np.float32(target) + gain * (plane - mean) + rest
            out[..., channel] = np.where(here, np.clip(wanted, 0, 1), plane)


def local_statistics(plane: Unit, here: Mask, sigma: float) -> tuple[Unit, Unit]:
    """Gaussian mean and deviation of (H, W) over the pixels of `here`; the deviation is at least 1e-4."""
    mean = blur_within(plane, here, sigma)
    return mean, np.sqrt(np.maximum(blur_within((plane - mean) ** 2, here, sigma), np.float32(1e-8)))


def field_statistics(
    pictures: Iterable[tuple[Unit, Mask]], sigma: float = FieldNormalisation.sigma
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What `FieldNormalisation` brings others to: medians over good pictures of their local means and deviations.

    Args:
        pictures: (H, W, 3) in [0, 1], each with its field of view.
        sigma: As there.

    Returns:
        `mean` and `spread`.

    Raises:
        ValueError: There are none.
    """
    means, spreads = [], []
    for picture, here in pictures:
        found = [local_statistics(plane, here, sigma * picture.shape[1]) for plane in np.moveaxis(picture, 2, 0)]
        means.append([mean[here].mean() for mean, _ in found])
        spreads.append([np.median(deviation[here]) for _, deviation in found])
    if not means:
        raise ValueError("no good pictures")
    mean, spread = (tuple(float(v) for v in np.median(values, axis=0)) for values in (means, spreads))
    return mean, spread


def build_conventional(method: str, parameters: Mapping[str, object]) -> Enhancer:
    """The enhancer of a recipe.

    Args:
        method: "identity", "clahe", "retinex" or "field-normalisation".
        parameters: of that method; the others keep their defaults.

    Raises:
        RecipeError: no such method or parameter, or a value out of its range.
    """
    methods: dict[str, type[Identity | Clahe | MultiScaleRetinex | FieldNormalisation]] = {
        "identity": Identity,
        "clahe": Clahe,
        "retinex": MultiScaleRetinex,
        "field-normalisation": FieldNormalisation,
    }
    if method not in methods:
        raise RecipeError(f"enhancer.method: no conventional method {method!r}")
    known = {f.name for f in fields(methods[method]) if f.init}
    if unknown := sorted(set(parameters) - known):
        raise RecipeError(f"enhancer.parameters.{unknown[0]}: {method} has no such parameter")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in parameters.items()
    }
    try:
        return methods[method](**values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"enhancer.parameters: {error}") from error


def luminance(frame: Unit) -> Unit:
    """(H, W, 1 or 3) in [0, 1] -> (H, W) in [0, 1]."""
    return frame[..., 0] if frame.shape[2] == 1 else np.minimum(frame @ LUMA, np.float32(1))


def equalize_tiles(light: Unit, here: Mask, how: Clahe) -> Unit:
    """CLAHE of one plane (H, W) in [0, 1]: a curve per tile, and between tile centres the bilinear mean of four."""
    rows, columns = (_tile_edges(size, how.tiles) for size in light.shape)
    tiles = [(slice(a, b), slice(c, d)) for a, b in pairwise(rows) for c, d in pairwise(columns)]
    curves = np.array([_tile_curve(light[tile][here[tile]], light[tile].size, how.clip_limit) for tile in tiles])
    curves = curves.reshape(len(rows) - 1, len(columns) - 1, BINS)
    levels = np.linspace(0, 1, BINS)
    result = np.empty_like(light)
    for row_cell, upper, lower, down in _cells(rows):
        for column_cell, left, right, across in _cells(columns):
            values = light[row_cell, column_cell]
            corner = [np.interp(values, levels, curves[i, j]) for i in (upper, lower) for j in (left, right)]
            top = corner[0] + across[None, :] * (corner[1] - corner[0])
            bottom = corner[2] + across[None, :] * (corner[3] - corner[2])
            result[row_cell, column_cell] = top + down[:, None] * (bottom - top)
    return result


def _tile_edges(size: int, tiles: int) -> list[int]:
    """Edges of at most `tiles` tiles of nearly equal size, none smaller than 8 pixels."""
    count = max(1, min(tiles, size // 8))
    return [round(i * size / count) for i in range(count + 1)]


def _cells(edges: list[int]) -> list[tuple[slice, int, int, NDArray[np.floating[Any]]]]:
    """Stretches between neighbouring tile centres: (pixels, tile before, tile after, weight of the latter)."""
    centres = [(a + b) / 2 - 0.5 for a, b in pairwise(edges)]
    cells = []
    stops = [0, *(int(np.ceil(c)) for c in centres), edges[-1]]
    for k, (start, stop) in enumerate(pairwise(stops)):
        if start == stop:
            continue
        before, after = max(k - 1, 0), min(k, len(centres) - 1)
        pixels = np.arange(start, stop)
        span = centres[after] - centres[before]
        weight = (pixels - centres[before]) / span if span else np.zeros(len(pixels))
        cells.append((slice(start, stop), before, after, weight))
    return cells


def _tile_curve(values: Unit, area: int, clip_limit: float) -> NDArray[np.float64]:
    """The tone curve of a tile, (BINS,) from 0 to 1, of slope at most about `clip_limit`.

    Pixels that do not count (`area` minus the values) are spread evenly over all levels, so that a tile with little in
    the field of view tends to leave it as it is.
    """
    index = np.rint(values * (BINS - 1)).astype(np.intp)
    histogram = np.bincount(index, minlength=BINS) + (area - len(values)) / BINS
    limit = clip_limit * area / BINS
    clipped = np.minimum(histogram, limit)
    clipped += (area - clipped.sum()) / BINS
    curve = np.cumsum(clipped) - clipped / 2  # half of a level's own pixels: a flat area keeps its level
    return (curve - curve[0]) / (curve[-1] - curve[0])


def blur_within(values: Unit, here: Mask, sigma: float) -> Unit:
    """Gaussian mean of (H, W) over the pixels of `here` only; where none is near, the value itself.

    Large sigmas work on a reduced grid.
    """
    factor = max(1, int(sigma / 4))
    weight = here.astype(np.float32)
    total = _reduce(values * weight, factor)  # pixels beyond the frame count no more than those outside the field
    count = _reduce(weight, factor)
    total, count = (gaussian_filter(x, sigma / factor, mode="constant", truncate=3) for x in (total, count))
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 1e-4)
    known = count > 1e-4
    if factor > 1:
        mean, known = (
            _enlarge(mean, values.shape, factor),
            _enlarge(known.astype(np.float32), values.shape, factor) > 0.99,
        )
    return np.where(known, mean, values).astype(np.float32)


def _reduce(plane: Unit, factor: int) -> Unit:
    """Block means; the last blocks are filled with zeros."""
    if factor == 1:
        return plane
    pad = [(0, -size % factor) for size in plane.shape]
    padded = np.pad(plane, pad)
    height, width = padded.shape
    return padded.reshape(height // factor, factor, width // factor, factor).mean((1, 3))


def _enlarge(plane: Unit, shape: tuple[int, ...], factor: int) -> Unit:
    """Bilinear, the inverse of `_reduce`."""
    for axis, size in enumerate(shape):
        position = np.clip((np.arange(size) + 0.5) / factor - 0.5, 0, plane.shape[axis] - 1)
        low = position.astype(np.intp)
        high = np.minimum(low + 1, plane.shape[axis] - 1)
        weight = np.expand_dims((position - low).astype(np.float32), 1 - axis)
        first = plane.take(low, axis)
        plane = first + weight * (plane.take(high, axis) - first)
    return plane


def _write_luminance(out: Unit, light: Unit, wanted: Unit, here: Mask, max_gain: float) -> None:
    """Give `out` (H, W, C), whose luminance is `light`, the luminance `wanted` where `here`, in place.

    Colour is scaled by one gain per pixel, which keeps hue and saturation; where a channel would pass 1, it is drawn
    towards grey just as far as it must. Pixels whose luminance stays are not touched.
    """
    changed = here & (wanted != light)
    old = light[changed]
    new = np.clip(wanted[changed], old / np.float32(max_gain), np.minimum(old * np.float32(max_gain), 1))
    if out.shape[2] == 1:
        out[changed, 0] = new
        return
    gain = new / np.maximum(old, np.float32(1e-6))
    scaled = out[changed] * gain[:, None]
    peak = scaled.max(1)
    room = np.divide(1 - new, peak - new, out=np.ones_like(new), where=peak > 1)
    out[changed] = np.clip(new[:, None] + np.minimum(room, 1)[:, None] * (scaled - new[:, None]), 0, 1)


def _between_black_and_white(plane: Unit) -> Unit:
    """1 for ordinary values, falling to 0 at black (nothing but noise to lift there) and at white (highlights)."""
    return np.clip(plane / np.float32(0.04), 0, 1) * np.clip((1 - plane) / np.float32(0.1), 0, 1)


def _is_flat(light: Unit, here: Mask) -> bool:
    counted = light[here]
    return counted.size < 2 or float(np.ptp(counted)) < FLAT


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
