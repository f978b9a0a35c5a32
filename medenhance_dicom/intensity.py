"""Modality values to the enhancer's [0, 1], and its change back to modality values: decide, apply, undo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Unit = NDArray[np.float32]
Values = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Method = Literal["range", "window", "percentile"]

SAMPLE_VALUES = 4_000_000  # at most about so many go into the percentiles
WINDOW_SHARE = 1e-3  # of a frame's pixels; a window that holds fewer shows nothing of it
MOST_BEYOND = 1.5  # widths of a shared range, see `stands_out`
N4_SHRINK = 4
N4_BOUND = 4.0  # a bias field beyond this factor is not believed


@dataclass(frozen=True)
class IntensityMap:
    """The line that takes `lo` to 0 and `hi` to 1, or the other way round."""

    lo: float
    """Modality value that becomes 0 (1 if inverted)."""
    hi: float
    """Modality value that becomes 1 (0 if inverted)."""
    inverted: bool
    """MONOCHROME1: the enhancer must see bright where the reader does."""
    method: Method
    """How lo and hi were found, which is not what was asked where there was no window."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.lo) and np.isfinite(self.hi) and self.lo < self.hi):
            raise ValueError("lo must be finite and below hi")


def fit_intensity(
    sample: Sequence[Values],
    method: Method,
    *,
    paddings: Sequence[Mask | None] = (),
    window: tuple[float, float] | None = None,
    legal_range: tuple[float, float] | None = None,
    percentiles: tuple[float, float] = (0.5, 99.5),
    inverted: bool = False,
) -> IntensityMap:
    """Decide which modality values become 0 and 1, for all frames that share the map.

    Args:
        sample: modality values, each (H, W, C); only "percentile" looks at them, "window" where there is none.
        method: "range": all legal values; "window": the window; "percentile": of the sample's values.
        paddings: per frame of the sample a bool (H, W), True for padding, or None; empty: no padding anywhere.
        window: (lo, hi) in modality units.
        legal_range: lowest and highest modality value that can be stored.
        percentiles: lower and upper, 0..100.
        inverted: True for MONOCHROME1.

    Raises:
        ValueError: "range" without a legal range.
    """
    if method == "window" and window is not None and window[0] < window[1]:
        return IntensityMap(float(window[0]), float(window[1]), inverted, "window")
    if method == "range":
        if legal_range is None:
            raise ValueError("method range needs the legal range")
        return IntensityMap(float(legal_range[0]), float(legal_range[1]), inverted, "range")
    values = _pool(sample, paddings)
    if values.size:
        lo, hi = _ends(values, percentiles)
        if lo >= hi:  # nearly constant: take what little spread there is
            lo, hi = float(values.min()), float(values.max())
        if lo < hi:
            return IntensityMap(lo, hi, inverted, "percentile")
    if legal_range is not None:
        return IntensityMap(float(legal_range[0]), float(legal_range[1]), inverted, "range")
    lo = float(values[0]) if values.size else 0.0
    return IntensityMap(lo, lo + 1, inverted, "percentile")


def stands_out(values: Values, padding: Mask | None, lo: float, hi: float, percentiles: tuple[float, float]) -> bool:
    """Whether a frame reaches beyond a range by more than `MOST_BEYOND` of its width: another picture than its fellows.

    Args:
        values: modality values (H, W, C).
        padding: bool (H, W), True for padding; None: none.
        lo: of the range.
        hi: of the range.
        percentiles: how far the frame reaches.
    """
    pooled = _pool([values], [padding])
    if not pooled.size:
        return False
    first, last = _ends(pooled, percentiles)
    return max(last - hi, lo - first) > MOST_BEYOND * (hi - lo)


def without_outliers(
    sample: Sequence[tuple[Values, Mask | None]], percentiles: tuple[float, float]
) -> list[tuple[Values, Mask | None]]:
    """The frames, each with its padding, that do not stand out of the range that is usual among them."""
    pools = [pooled for pooled in (_pool([values], [padding]) for values, padding in sample) if pooled.size]
    if not pools:
        return list(sample)
    lo, hi = (float(end) for end in np.median([_ends(pooled, percentiles) for pooled in pools], axis=0))
    return [one for one in sample if not stands_out(*one, lo, hi, percentiles)]


def usable_window(
    modality: Values, padding: Mask | None, windows: Sequence[tuple[float, float]]
) -> tuple[float, float] | None:
    """The first window that holds pixels of a frame: within one that does not, an enhancer would change nothing.

    Args:
        modality: Modality values (H, W, C).
        padding: bool (H, W), True for padding; None: none.
        windows: (lo, hi) in modality units, the wanted ones first.

    Returns:
        One of them, which holds at least `WINDOW_SHARE` of the pixels outside padding; None: none does.
    """
    values = modality if padding is None else modality[~padding]
    for lo, hi in windows:
        if lo < hi and values.size and np.mean((values >= lo) & (values <= hi)) >= WINDOW_SHARE:
            return lo, hi
    return None


def to_unit(modality: Values, line: IntensityMap) -> Unit:
    """Modality values (any shape) -> float32 in [0, 1]; outside lo..hi it is clipped, and NaN is 0."""
    unit = (modality.astype(np.float64) - line.lo) / (line.hi - line.lo)
    unit = np.clip(np.nan_to_num(unit, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
    return (1 - unit if line.inverted else unit).astype(np.float32)


def delta_to_modality(before: Unit, after: Unit, line: IntensityMap) -> NDArray[np.float64]:
    """The enhancer's change as a difference in modality units, to be added to the source's own values.

    A value outside lo..hi is moved as the end of the range at its place is, and so is never compressed: most methods
    leave black and white alone, and then it stays as it is; where one does not (a bias field), a value that stayed
    behind its neighbours would stand out as structure.

    Args:
        before: unit values that the enhancer was given.
        after: unit values that it gave back, same shape.
        line: the map that made `before`.

    Returns:
        float64 of that shape; exactly 0 where after == before.
    """
    change = (after.astype(np.float64) - before) * (line.hi - line.lo)
    return np.negative(change, out=change) if line.inverted else change


def bias_field_n4(unit: Unit, mask: Mask | None = None) -> Unit:
    """Slow shading of a magnetic resonance frame (Tustison et al., N4ITK, IEEE TMI 2010), by SimpleITK.

    The frame divided by it is flat. It is estimated from a frame shrunk by 4, on one thread, so that it repeats.

    Args:
        unit: float32 (H, W) in [0, 1].
        mask: bool (H, W); pixels that count. Those near black never do.

    Returns:
        float32 (H, W) in [1/4, 4], of geometric mean 1 where it counts; ones where there is too little to see.
    """
    import SimpleITK

    shrink = max(1, min(N4_SHRINK, min(unit.shape) // 32))
    foreground = unit > max(0.25 * float(unit.mean()), 0.01)
    if mask is not None:
        foreground &= mask
    small_mask = np.ascontiguousarray(foreground[::shrink, ::shrink])
    if small_mask.sum() < 256:
        return np.ones_like(unit)
    image = SimpleITK.GetImageFromArray(np.maximum(unit, np.float32(1e-3)))
    small = SimpleITK.GetImageFromArray(np.maximum(_block_means(unit, shrink), np.float32(1e-3)))
    small.SetSpacing((float(shrink), float(shrink)))
    small.SetOrigin(((shrink - 1) / 2, (shrink - 1) / 2))
    small_mask = small_mask[: small.GetHeight(), : small.GetWidth()]
    region = SimpleITK.GetImageFromArray(small_mask.astype(np.uint8))
    region.CopyInformation(small)
    corrector = SimpleITK.N4BiasFieldCorrectionImageFilter()
    corrector.SetNumberOfThreads(1)
    corrector.SetMaximumNumberOfIterations([30, 20, 10])
    try:
        corrector.Execute(small, region)
        log_field = SimpleITK.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    except RuntimeError:  # ITK finds no histogram or lattice for this frame
        return np.ones_like(unit)
    log_field -= log_field[foreground].mean()
    bound = np.log(N4_BOUND)
    field: Unit = np.exp(np.clip(log_field, -bound, bound)).astype(np.float32)
    return field if np.isfinite(field).all() else np.ones_like(unit)


def _block_means(unit: Unit, factor: int) -> Unit:
    height, width = (size // factor * factor for size in unit.shape)
    blocks = unit[:height, :width].reshape(height // factor, factor, width // factor, factor)
    means: Unit = blocks.mean((1, 3), dtype=np.float32)
    return means


def _ends(values: Values, percentiles: tuple[float, float]) -> tuple[float, float]:
    lo, hi = (float(v) for v in np.percentile(values, percentiles))
    return lo, hi


def _pool(sample: Sequence[Values], paddings: Sequence[Mask | None]) -> Values:
    """The finite values of the sample outside padding, thinned evenly."""
    step = max(1, sum(frame.size for frame in sample) // SAMPLE_VALUES)
    pooled = []
    for n, frame in enumerate(sample):
        padding = paddings[n] if n < len(paddings) else None
        values = frame.ravel() if padding is None else frame[~padding].ravel()
        pooled.append(values[np.isfinite(values)][::step])
    return np.concatenate(pooled) if pooled else np.empty(0)
