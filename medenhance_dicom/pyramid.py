"""Two honest resolutions: the whole frame at its own size, or the enhancer's size with the source's own fine levels.

Our networks normalise over the frame, so naive tiles would give wrong pictures. `enhance_pyramid` lets the enhancer see
the picture at its working size and carries up what it changed there; everything finer is the source's own detail,
scaled by a bounded local gain. So no fine structure can come from anywhere but the source.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.sparse import csr_array

from medenhance_dicom.conventional import luminance
from medenhance_dicom.enhancer import Enhancer, MaskedEnhancer
from medenhance_dicom.errors import RecipeError

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]
Padding = Literal["reflect", "black"]

BAND_ROWS = 256
CONTRAST_SIGMA = 3.0  # pixels at working size over which local contrast is measured
CONTRAST_FLOOR = 0.01  # contrast below this is noise, and gets a gain near 1


def enhance_whole(
    frames: Unit,
    enhancer: Enhancer,
    multiple: int | None = None,
    *,
    inside: Mask | None = None,
    padding: Padding = "reflect",
) -> Unit:
    """Enhance frames at their own size, padded on all sides to the enhancer's size multiple and cropped again.

    Args:
        frames: float32 (N, H, W, C), or one frame (H, W, C), in [0, 1].
        enhancer: what is done.
        multiple: rows and columns become a multiple of this; default: as `enhancer.spec` says.
        inside: bool (N, H, W) or (H, W); where False, the frames come back untouched.
        padding: "reflect" the picture, or "black" for pictures with a black surround.

    Returns:
        The same shape, in [0, 1].

    Raises:
        RecipeError: the enhancer does not take these channels.
    """
    if frames.ndim == 3:
        where = None if inside is None else inside[None]
        return enhance_whole(frames[None], enhancer, multiple, inside=where, padding=padding)[0]
    height, width = frames.shape[1:3]
    multiple = multiple or enhancer.spec.multiple
    top, left = (-height % multiple) // 2, (-width % multiple) // 2
    pad = ((0, 0), (top, -height % multiple - top), (left, -width % multiple - left))
    mode: Literal["reflect", "constant"] = "reflect" if padding == "reflect" else "constant"
    padded = np.pad(frames, (*pad, (0, 0)), mode=mode) if any(map(any, pad)) else frames
    padded = np.ascontiguousarray(_with_channels(padded, enhancer), dtype=np.float32)
    if inside is not None and isinstance(enhancer, MaskedEnhancer):
        enhanced = enhancer.enhance_within(padded, np.pad(inside, pad, mode=mode))
    else:
        enhanced = enhancer(padded)
    if enhanced.shape[3] != frames.shape[3]:
        enhanced = enhanced.mean(3, keepdims=True)
    enhanced = np.clip(enhanced[:, top : top + height, left : left + width], 0, 1).astype(np.float32, copy=False)
    return enhanced if inside is None else np.where(inside[..., None], enhanced, frames)


def enhance_pyramid(
    frames: Unit,
    enhancer: Enhancer,
    working_size: int,
    *,
    gain_bound: float = 2.0,
    inside: Mask | None = None,
    padding: Padding = "reflect",
) -> Unit:
    """Enhance frames at `working_size` and carry the change up to their own size.

    With small = the frame reduced to the working size (area means), U = enlarging and E = the enhancer:
    out = source + U(E(small) - small) + (U(gain) - 1) (source - U(small)). An enhancer that changes nothing gives the
    source back exactly. A frame that is no larger than the working size is enhanced whole.

    Args:
        frames: float32 (N, H, W, C), or one frame (H, W, C), in [0, 1].
        enhancer: what is done.
        working_size: longest side that the enhancer sees.
        gain_bound: the gain of the fine levels stays within 1/gain_bound..gain_bound.
        inside: bool (N, H, W) or (H, W); where False, the frames come back untouched.
        padding: as `enhance_whole`.

    Returns:
        The same shape, in [0, 1].

    Raises:
        RecipeError: the enhancer does not take these channels.
    """
    if frames.ndim == 3:
        where = None if inside is None else inside[None]
        result: Unit = enhance_pyramid(
            frames[None], enhancer, working_size, gain_bound=gain_bound, inside=where, padding=padding
        )[0]
        return result
    height, width = frames.shape[1:3]
    if max(height, width) <= working_size:
        return enhance_whole(frames, enhancer, inside=inside, padding=padding)
    scale = working_size / max(height, width)
    small_size = max(1, round(height * scale)), max(1, round(width * scale))
    down = _area_weights(height, small_size[0]), _area_weights(width, small_size[1])
    small = np.stack([_resample(frame, *down) for frame in frames])  # (N, h, w, C)
    masks = None if inside is None else np.stack([_resample(m[..., None], *down)[..., 0] > 0.99 for m in inside])
    enhanced = enhance_whole(small, enhancer, inside=masks, padding=padding)
    up = _cubic_weights(small_size[0], height), _cubic_weights(small_size[1], width)
    result = np.empty_like(frames)
    for n, frame in enumerate(frames):
        here = np.ones(small_size, bool) if masks is None else masks[n]
        before, after = fill_outside(small[n], here), fill_outside(enhanced[n], here)
        gain = _contrast_gain(luminance(before), luminance(after), here, gain_bound)
        _carry_up(frame, before, after - before, gain, up, result[n])
        if inside is not None:
            result[n] = np.where(inside[n][..., None], result[n], frame)
    return result


def _carry_up(
    source: Unit, small: Unit, change: Unit, gain: Unit, up: tuple[csr_array, csr_array], result: Unit
) -> None:
    """Write out = source + U(change) + (U(gain) - 1) (source - U(small)) into `result`, in bands of rows."""
    packed = np.concatenate([small, change, gain[..., None] - 1], axis=2)  # (h, w, 2 C + 1)
    rows, columns = up
    wide = _resample(packed, None, columns)  # (h, W, 2 C + 1)
    channels = source.shape[2]
    bound = float(np.abs(gain - 1).max())
    for start in range(0, source.shape[0], BAND_ROWS):
        band = slice(start, start + BAND_ROWS)
        smooth, shift, excess = np.split(_resample(wide, rows[band], None), [channels, 2 * channels], axis=2)
        excess = np.clip(excess, -bound, bound)  # a cubic overshoots
        result[band] = np.clip(source[band] + shift + excess * (source[band] - smooth), 0, 1)


def _contrast_gain(before: Unit, after: Unit, here: Mask, bound: float) -> Unit:
    """How much local contrast grew at working size, in its finest detail: (h, w) in [1/bound, bound]; 1 outside."""
    weight = here.astype(np.float32)
    energy = []
    for plane in (before, after):
        detail = plane - gaussian_filter(plane, 1.0, mode="nearest")
        energy.append(gaussian_filter(weight * detail**2, CONTRAST_SIGMA, mode="nearest"))
    count = gaussian_filter(weight, CONTRAST_SIGMA, mode="nearest")
    floor = np.float32(CONTRAST_FLOOR**2) * np.maximum(count, np.float32(1e-3))
    gain = np.sqrt((energy[1] + floor) / (energy[0] + floor))
    gain = np.clip(gain, 1 / bound, bound)
    return np.where(count > 0.05, gain, np.float32(1)).astype(np.float32)


def fill_outside(small: Unit, here: Mask) -> Unit:
    """(h, w, C) with every pixel outside replaced by the nearest inside, so that the field's edge is no contrast."""
    if here.all() or not here.any():
        return small
    nearest = distance_transform_edt(~here, return_distances=False, return_indices=True)
    filled: Unit = small[tuple(nearest)]
    return filled


def _with_channels(frames: Unit, enhancer: Enhancer) -> Unit:
    """Grey frames for a colour enhancer are given three equal channels."""
    wanted, channels = enhancer.spec.channels, frames.shape[3]
    if wanted in (None, channels):
        return frames
    if channels == 1:
        return np.repeat(frames, wanted, axis=3)
    raise RecipeError(f"the enhancer takes {wanted} channel(s), and the frames have {channels}")


def _resample(frame: Unit, rows: csr_array | None, columns: csr_array | None) -> Unit:
    """Apply weights (new rows, rows) and (new columns, columns) to a frame (rows, columns, C)."""
    if rows is not None:
        height, width, channels = frame.shape
        frame = (rows @ frame.reshape(height, width * channels)).reshape(-1, width, channels)
    if columns is not None:
        height, width, channels = frame.shape
        turned = frame.transpose(1, 0, 2).reshape(width, height * channels)
        frame = (columns @ turned).reshape(-1, height, channels).transpose(1, 0, 2)
    return np.ascontiguousarray(frame, dtype=np.float32)


def _area_weights(old: int, new: int) -> csr_array:
    """Means over the area of each new pixel, (new, old); rows sum to 1."""
    edges = np.linspace(0, old, new + 1)
    pixels = np.arange(old)
    first = np.floor(edges[:-1]).astype(int)
    last = np.minimum(np.ceil(edges[1:]).astype(int), old)
    reach = int((last - first).max())
    index = first[:, None] + np.arange(reach)  # (new, reach)
    inside = np.minimum(index + 1, edges[1:, None]) - np.maximum(index, edges[:-1, None])
    weight = np.clip(inside, 0, 1) * (old and new / old)
    return _sparse(weight, np.minimum(index, pixels[-1]), old)


def _cubic_weights(old: int, new: int) -> csr_array:
    """Catmull-Rom enlargement about pixel centres, (new, old); rows sum to 1, edges repeat."""
    position = (np.arange(new) + 0.5) * old / new - 0.5
    base = np.floor(position).astype(int)
    t = (position - base)[:, None]
    weight = 0.5 * np.concatenate(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], axis=1
    )
    return _sparse(weight, np.clip(base[:, None] + np.arange(-1, 3), 0, old - 1), old)


def _sparse(weight: NDArray[np.float64], index: NDArray[np.intp], columns: int) -> csr_array:
    """Rows of (weight, column index), both (rows, taps), as a sparse matrix; double entries add up."""
    rows, taps = weight.shape
    parts = (weight.astype(np.float32).ravel(), index.ravel(), np.arange(0, rows * taps + 1, taps))
    matrix = csr_array(parts, shape=(rows, columns))
    matrix.sum_duplicates()
    return matrix
