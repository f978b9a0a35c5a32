"""How well a colour fundus photograph is lit, how far its vessels stand out, and what colour it has.

Lengths are shares of the picture's width, so that the same photograph has about the same figures at any size; they are
meant for 512 columns, where the finest noise is that of single pixels. Vessels and the quiet ground between them are
found on the source: an enhancer cannot choose where it is looked at.

No figure decides alone. Vessel depth grows with any gain, and contrast-to-noise with smoothing; one flat colour with
twice the green detail has the best unevenness and chroma spread there are; good photographs are no more even, and no
less colourful, than poor ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.ndimage import distance_transform_cdt

from medenhance_dicom.errors import ModelError
from medenhance_dicom.metrics.picture import Mask, Unit
from medenhance_dicom.resampling import area_weights, resample
from medenhance_dicom.uids import digest_of

__all__ = [
    "Changes", "FundusField", "GoodColours", "fit_colours", "load_colours", "mean_changes", "reduced_changes",
    "save_colours",
]  # fmt: skip

Plane = NDArray[np.float32]
Vector = NDArray[np.float64]

WIDTH = 512
MARGIN = 12 / WIDTH
"""Of the field's edge, which is not looked at; taken by steps along rows and columns."""
LIGHT, COLOUR, GRAIN, NEAR = 1 / 12, 1 / 24, 1 / WIDTH, 8 / WIDTH
"""Sigmas: of light that varies, of colour that varies, and of what noise is measured from and against."""
CALIBRE = 60
"""The widest vessel's radius is the width over this."""
DEEPEST = 95
"""Percentile of the depth, above which a pixel is a vessel's."""
QUIET = 0.02
"""Depth below which a pixel is ground."""
LEAST_NOISE = 1e-4


@dataclass(frozen=True)
class GoodColours:
    """The low-pass CIE L*, a*, b* (D65) of good photographs, usually of one camera."""

    mean: tuple[float, float, float]
    spread: tuple[float, float, float]
    """Population deviation from picture to picture."""
    pictures: int

    @property
    def id(self) -> str:
        """Of the metric that has these colours."""
        return f"colour-distance@{digest_of('colours', *map(repr, (*self.mean, *self.spread)))[:12]}"


class Changes(NamedTuple):
    """What an enhancer did to a fundus photograph; see the methods of `FundusField` of these names."""

    unevenness: tuple[float, float]
    """Before, after; as the next three."""
    vessel_depth: tuple[float, float]
    contrast_to_noise: tuple[float, float] | None
    """None where the source has no quiet ground."""
    chroma_spread: tuple[float, float]
    chroma_added: float
    colour_shift: float


class FundusField:
    """Where a photograph is measured, found on the source; then measures of it, and of what was made of it.

    >>> field = FundusField(source, inside)  # doctest: +SKIP
    >>> field.vessel_depth(source), field.vessel_depth(enhanced)  # doctest: +SKIP
    """

    def __init__(self, source: Unit, inside: Mask) -> None:
        """Find the inner field.

        Args:
            source: (H, W, 3) in [0, 1].
            inside: (H, W), the field of view, True inside.

        Raises:
            ValueError: No colour picture, a mask of another shape, or nothing is left of it within the margin.
        """
        if source.ndim != 3 or source.shape[2] != 3:
            raise ValueError(f"(H, W, 3) wanted, not {source.shape}")
        if inside.shape != source.shape[:2]:
            raise ValueError(f"a field of view of {inside.shape} for a picture of {source.shape[:2]}")
        self.width = source.shape[1]
        steps = distance_transform_cdt(np.pad(inside, 1), "taxicab")[1:-1, 1:-1]
        self.inside: Mask = steps > round(MARGIN * self.width)
        """(H, W), the field of view without its margin."""
        if not self.inside.any():
            raise ValueError("the field of view is empty within its margin")
        self.source = np.asarray(source, np.float32)
        self._last = self._before = _Seen(self.source, self)

    @cached_property
    def vessels(self) -> Mask:
        """(H, W), the deepest 5 % of the source's field: vessels, and dark lesions as narrow as they are."""
        depth = self._before.depth
        here: Mask = self.inside & (depth >= np.percentile(depth[self.inside], DEEPEST))
        return here

    @cached_property
    def ground(self) -> Mask:
        """(H, W), where the source has no depth to speak of."""
        here: Mask = self.inside & ~self.vessels & (self._before.depth < QUIET)
        return here

    @cached_property
    def light(self) -> _LowPass:
        """Low-pass for unevenness."""
        return _LowPass(self.inside, LIGHT * self.width)

    @cached_property
    def colour(self) -> _LowPass:
        """Low-pass for colour."""
        return _LowPass(self.inside, COLOUR * self.width)

    @cached_property
    def grain(self) -> _LowPass:
        """Low-pass below which there is noise alone."""
        return _LowPass(self.inside, GRAIN * self.width)

    @cached_property
    def near(self) -> _LowPass:
        """Low-pass that noise is related to."""
        return _LowPass(self.inside, NEAR * self.width)

    def unevenness(self, picture: Unit) -> float:
        """Deviation over mean of the low-pass of (red + green) / 2; 0 and more, infinite for black."""
        rgb = self._seen(picture).rgb
        light = self.light((rgb[..., 0] + rgb[..., 1]) / np.float32(2))
        mean = self.light.mean(light).item()
        return self.light.spread(light).item() / mean if mean > 0 else math.inf

    def vessel_depth(self, picture: Unit) -> float:
        """Mean over the source's vessels of (closing - green) / closing, closing by a disk; in [0, 1].

        Good photographs of one camera had .40, poor ones .18. Higher than good photographs have it is overdone.
        """
        return float(self._seen(picture).depth[self.vessels].mean())

    def contrast_to_noise(self, picture: Unit) -> float:
        """Vessel depth over the robust deviation of the finest green detail on the source's ground.

        No constant gain changes it; smoothing raises it.

        Raises:
            ValueError: The source has no ground.
        """
        if not self.ground.any():
            raise ValueError("no quiet ground between the vessels")
        green = self._seen(picture).rgb[..., 1]
        detail = ((green - self.grain(green)[..., 0]) / np.maximum(self.near(green)[..., 0], 1e-3))[self.ground]
        noise = 1.4826 * float(np.median(np.abs(detail - np.median(detail))))
        return self.vessel_depth(picture) / max(noise, LEAST_NOISE)

    def colours(self, picture: Unit) -> Vector:
        """(3,), mean of the low-pass L*, a*, b*."""
        return self.colour.mean(self._seen(picture).colours)

    def chroma_spread(self, picture: Unit) -> float:
        """Mean of the deviations of low-pass a* and b*: blotches, casts, and what good photographs have of colour."""
        return float(self.colour.spread(self._seen(picture).colours)[1:].mean())

    def chroma_added(self, picture: Unit) -> float:
        """Mean of the deviations of the change in low-pass a* and b*; 0 where colour changed alike everywhere."""
        change = self._seen(picture).colours - self._before.colours
        return float(self.colour.spread(change)[1:].mean())

    def colour_shift(self, picture: Unit) -> float:
        """How far the mean (a*, b*) moved from the source's, in units of CIE Lab."""
        return float(np.hypot(*(self._seen(picture).mean_lab - self._before.mean_lab)[1:]))

    def colour_distance(self, picture: Unit, good: GoodColours) -> float:
        """Mean of |low-pass L*, a*, b* - the good ones' mean| / their spread; about .8 for one of them."""
        return float(np.mean(np.abs(self.colours(picture) - good.mean) / good.spread))

    def changes(self, picture: Unit) -> Changes:
        """All that needs nothing but the source."""
        source = self.source
        return Changes(
            unevenness=(self.unevenness(source), self.unevenness(picture)),
            vessel_depth=(self.vessel_depth(source), self.vessel_depth(picture)),
            contrast_to_noise=(
                (self.contrast_to_noise(source), self.contrast_to_noise(picture)) if self.ground.any() else None
            ),
            chroma_spread=(self.chroma_spread(source), self.chroma_spread(picture)),
            chroma_added=self.chroma_added(picture),
            colour_shift=self.colour_shift(picture),
        )

    def _seen(self, picture: Unit) -> _Seen:
        """What is known of a picture; of the last one, and of the source, it is kept."""
        if picture is self._before.given:
            return self._before
        if picture is not self._last.given:
            if picture.shape != self.source.shape:
                raise ValueError(f"two pictures of one shape wanted, not {picture.shape} and {self.source.shape}")
            self._last = _Seen(picture, self)
        return self._last


class _Seen:
    """A picture, and what several measures need of it."""

    def __init__(self, picture: Unit, field: FundusField) -> None:
        self.given, self.rgb, self.field = picture, np.asarray(picture, np.float32), field

    @cached_property
    def depth(self) -> Plane:
        green = self.rgb[..., 1]
        closed = _closing(green, max(1, self.field.width // CALIBRE))
        return np.asarray((closed - green) / np.maximum(closed, 1e-3), np.float32)

    @cached_property
    def _lab(self) -> tuple[Plane, Vector]:
        low_pass = self.field.colour
        blocks = low_pass.blocks(_lab(self.rgb))
        return low_pass.smooth(blocks), blocks.sum(axis=(0, 1), dtype=np.float64) / low_pass.share.sum()

    @property
    def colours(self) -> Plane:
        """Low-pass L*, a*, b*."""
        return self._lab[0]

    @property
    def mean_lab(self) -> Vector:
        """(3,), of all pixels inside."""
        return self._lab[1]


def reduced_changes(source: Unit, result: Unit, inside: Mask, longest: int = WIDTH) -> Changes:
    """As `FundusField.changes`, of pictures reduced by area means to sides of at most `longest`: cheap at any size.

    Args:
        source: (H, W, 3) in [0, 1].
        result: The same shape.
        inside: (H, W), the field of view.
        longest: Pixels of the longer side.

    Raises:
        ValueError: As `FundusField`.
    """
    share = longest / max(source.shape[:2])
    if share >= 1:
        return FundusField(source, inside).changes(result)
    rows, columns = (area_weights(size, max(1, round(size * share))) for size in source.shape[:2])
    planes = source, result, inside[..., None].astype(np.float32)
    small, smaller, here = (resample(p, rows, columns) for p in planes)
    return FundusField(small, here[..., 0] > 0.99).changes(smaller)


def mean_changes(found: Sequence[Changes]) -> dict[str, Any]:
    """The mean of several, as JSON-able values by the metrics' ids, those with a before and after as {before, after}.

    Rounded to six digits; a figure that is not finite in one of them, or that one of them lacks, is left out; {} of
    none.
    """
    told: dict[str, Any] = {}
    for name, values in zip(Changes._fields, zip(*found, strict=True), strict=False):
        if None in values:
            continue
        mean = [float(f"{v:.6g}") for v in np.atleast_1d(np.mean(np.array(values, np.float64), axis=0))]
        if all(map(math.isfinite, mean)):
            told[name.replace("_", "-")] = {"before": mean[0], "after": mean[1]} if len(mean) == 2 else mean[0]
    return told


def fit_colours(pictures: Iterable[tuple[Unit, Mask]]) -> GoodColours:
    """What good photographs look like.

    Args:
        pictures: (H, W, 3) in [0, 1], each with its field of view; at least three.

    Raises:
        ValueError: Too few, or they do not differ.
    """
    found = np.array([FundusField(picture, inside).colours(picture) for picture, inside in pictures])
    if len(found) < 3 or not (found.std(axis=0) > 0).all():
        raise ValueError(f"{len(found)} pictures that differ; the colours of good ones want three and more")
    mean, spread = (tuple(float(v) for v in values) for values in (found.mean(axis=0), found.std(axis=0)))
    return GoodColours(mean, spread, len(found))  # type: ignore[arg-type]


def save_colours(path: Path, good: GoodColours) -> None:
    """Write colours as JSON, so that `load_colours` gives them back under the same id."""
    path.write_text(json.dumps(asdict(good), indent=1) + "\n", encoding="utf-8")


def load_colours(path: Path) -> GoodColours:
    """Read what `save_colours` wrote.

    Raises:
        ModelError: Missing, or not such a file; names it.
    """
    try:
        told = json.loads(path.read_bytes())
        mean, spread = (tuple(float(v) for v in told[name]) for name in ("mean", "spread"))
        good = GoodColours(mean, spread, int(told["pictures"]))  # type: ignore[arg-type]
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: no colours of good photographs ({type(error).__name__})") from error
    if len(mean) != 3 or len(spread) != 3 or not all(map(math.isfinite, mean)) or not all(0 < s < 1e3 for s in spread):
        raise ModelError(f"{path}: no colours of good photographs (three means and three spreads above 0 wanted)")
    return good


# ---------------------------------------------------------------- filters


class _LowPass:
    """Gaussian means over the pixels of a mask, mirrored at the frame's edge.

    Wide ones are taken of means of blocks, which such a Gaussian hides; by the cosine transform, of which mirroring and
    the Gaussian's truncation at 4 sigma are an exact part, so that width costs nothing.
    """

    def __init__(self, inside: Mask, sigma: float) -> None:
        height, width = inside.shape
        self.block = 1
        while sigma >= 16 * self.block and not (height % (2 * self.block) or width % (2 * self.block)):
            self.block *= 2
        left = math.sqrt(sigma**2 - (self.block**2 - 1) / 12) / self.block
        rows, columns = (_response(size // self.block, left) for size in inside.shape)
        self.response = (rows[:, None] * columns)[..., None]
        self.inside = inside.astype(np.float32)[..., None]
        self.share = self.blocks(np.ones_like(self.inside))
        """(h, w, 1), how much of each block is inside."""
        self.weight = np.maximum(self._gaussian(self.share), np.float32(1e-4))

    def __call__(self, plane: Plane) -> Plane:
        """(H, W) -> its low-pass, (h, w, 1)."""
        return self.smooth(self.blocks(plane[..., None]))

    def blocks(self, planes: Plane) -> Plane:
        """(H, W, C) -> (h, w, C), means of blocks, of which what lies outside counts as 0."""
        kept = planes * self.inside
        if self.block == 1:
            return kept
        rows = sum((kept[k :: self.block] for k in range(1, self.block)), start=kept[:: self.block])
        whole = sum((rows[:, k :: self.block] for k in range(1, self.block)), start=rows[:, :: self.block])
        return np.asarray(whole / np.float32(self.block**2))

    def smooth(self, blocks: Plane) -> Plane:
        """Of `blocks`, (h, w, C)."""
        return np.asarray(self._gaussian(blocks) / self.weight, np.float32)

    def mean(self, low: Plane) -> Vector:
        """Of a low-pass, over the mask: (C,)."""
        return np.asarray((low * self.share).sum(axis=(0, 1), dtype=np.float64) / self.share.sum(dtype=np.float64))

    def spread(self, low: Plane) -> Vector:
        """Population deviation of a low-pass over the mask, (C,)."""
        return np.sqrt(self.mean((low - self.mean(low).astype(np.float32)) ** 2))

    def _gaussian(self, planes: Plane) -> Plane:
        back: Plane = idctn(dctn(planes, axes=(0, 1), norm="ortho") * self.response, axes=(0, 1), norm="ortho")
        return back


@lru_cache(maxsize=64)  # pictures of one camera have one size
def _response(size: int, sigma: float) -> Plane:
    """(size,), what a Gaussian truncated at 4 sigma leaves of each frequency of a cosine transform."""
    offsets = np.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    waves = np.cos(np.pi * np.arange(size)[:, None] * offsets / size)
    return (waves @ (weights / weights.sum())).astype(np.float32)


def _closing(plane: Plane, radius: int) -> Plane:
    """Grey closing by a disk of whole pixels; what lies beyond the frame does not count."""
    return _over_disk(np.minimum, _over_disk(np.maximum, plane, radius), radius)


def _over_disk(extreme: np.ufunc, plane: Plane, radius: int) -> Plane:
    """The extreme over a disk about each pixel: of rows of it, which grow from the shortest to the middle one."""
    reach: dict[int, list[int]] = {}
    for offset in range(min(radius, plane.shape[0] - 1), -1, -1):
        reach.setdefault(math.isqrt(radius**2 - offset**2), []).append(offset)
    run, result, done = plane.copy(), plane.copy(), 0
    for half in sorted(reach):
        for k in range(done + 1, min(half, plane.shape[1] - 1) + 1):
            extreme(run[:, :-k], plane[:, k:], out=run[:, :-k])
            extreme(run[:, k:], plane[:, :-k], out=run[:, k:])
        done = half
        for offset in reach[half]:
            if offset == 0:
                extreme(result, run, out=result)
            else:
                extreme(result[:-offset], run[offset:], out=result[:-offset])
                extreme(result[offset:], run[:-offset], out=result[offset:])
    return result


XYZ = np.array([
    [0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]
])  # fmt: skip
WHITE = np.array([0.95047, 1.0, 1.08883])  # D65, 2 degrees


def _lab(rgb: Unit) -> Plane:
    """(H, W, 3) of sRGB -> CIE L*, a*, b*, as scikit-image's rgb2lab, in a third of its time."""
    flat = rgb.reshape(-1, 3)
    linear = np.where(flat > 0.04045, ((flat + np.float32(0.055)) / np.float32(1.055)) ** 2.4, flat / 12.92)
    xyz = linear.astype(np.float32) @ (XYZ / WHITE[:, None]).T.astype(np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), np.float32(7.787) * xyz + np.float32(16 / 116))
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    return lab.reshape(rgb.shape)
