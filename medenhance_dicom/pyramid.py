"""Two honest resolutions: the whole frame at its own size, or the enhancer's size with the source's own fine levels.

Our networks normalise over the frame, so naive tiles would give wrong pictures. `enhance_pyramid` lets the enhancer see
the picture at its working size and carries up what it changed there; everything finer is the source's own detail,
scaled by a bounded local gain. So no fine structure can come from anywhere but the source.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_array

from medenhance_dicom.conventional import luminance
from medenhance_dicom.enhancer import Enhancer, MaskedEnhancer
from medenhance_dicom.errors import RecipeError
from medenhance_dicom.field_edge import WHOLLY, fill_from_field, fill_outside
from medenhance_dicom.resampling import area_weights, cubic_weights, resample

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]
Padding = Literal["reflect", "black", "field"]

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
        padding: what the enhancer sees beyond the picture: "reflect" the picture, or "black" for pictures with a black
            surround, or "field": all that is not inside is the field's own edge continued, the rest reflected.

    Returns:
        The same shape, in [0, 1].

    Raises:
        RecipeError: the enhancer does not take these channels.
    """
    if frames.ndim == 3:
        where = None if inside is None else inside[None]
        return enhance_whole(frames[None], enhancer, multiple, inside=where, padding=padding)[0]
    seen = _seen(frames, inside, padding)
    enhanced = _apply(seen, enhancer, multiple, inside, padding)
    if inside is None:
        return enhanced
    changed = enhanced if seen is frames else np.clip(frames + (enhanced - seen), 0, 1)
    return np.where(inside[..., None], changed, frames)


def _seen(frames: Unit, inside: Mask | None, padding: Padding) -> Unit:
    """The frames as the enhancer sees them: (N, H, W, C), the surround filled where `padding` says so."""
    if inside is None or padding != "field":
        return frames
    return np.stack([fill_from_field(frame, here) for frame, here in zip(frames, inside, strict=True)])


def _apply(frames: Unit, enhancer: Enhancer, multiple: int | None, inside: Mask | None, padding: Padding) -> Unit:
    """Padded, enhanced and cropped; (N, H, W, C) in [0, 1]."""
    height, width = frames.shape[1:3]
    multiple = multiple or enhancer.spec.multiple
    top, left = (-height % multiple) // 2, (-width % multiple) // 2
    pad = ((0, 0), (top, -height % multiple - top), (left, -width % multiple - left))
    mode: Literal["reflect", "constant"] = "constant" if padding == "black" else "reflect"
    padded = np.pad(frames, (*pad, (0, 0)), mode=mode) if any(map(any, pad)) else frames
    padded = np.ascontiguousarray(_with_channels(padded, enhancer), dtype=np.float32)
    if inside is not None and isinstance(enhancer, MaskedEnhancer):
        enhanced = enhancer.enhance_within(padded, np.pad(inside, pad, mode=mode))
    else:
        enhanced = enhancer(padded)
    if enhanced.shape[3] != frames.shape[3]:
        enhanced = enhanced.mean(3, keepdims=True)
    return np.clip(enhanced[:, top : top + height, left : left + width], 0, 1).astype(np.float32, copy=False)


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
    down = area_weights(height, small_size[0]), area_weights(width, small_size[1])
    small = np.stack([resample(frame, *down) for frame in frames])  # (N, h, w, C)
    masks = None if inside is None else np.stack([resample(m[..., None], *down)[..., 0] > WHOLLY for m in inside])
    seen = _seen(small, masks, padding)
    enhanced = _apply(seen, enhancer, None, masks, padding)
    up = cubic_weights(small_size[0], height), cubic_weights(small_size[1], width)
    result = np.empty_like(frames)
    for n, frame in enumerate(frames):
        here = np.ones(small_size, bool) if masks is None else masks[n]
        before, after = fill_outside(seen[n], here), fill_outside(enhanced[n], here)
        gain = _contrast_gain(luminance(before), luminance(after), here, gain_bound)
        _carry_up(frame, fill_outside(small[n], here), after - before, gain, up, result[n])
        if inside is not None:
            result[n] = np.where(inside[n][..., None], result[n], frame)
    return result


def _carry_up(
    source: Unit,
    small: Unit,
    change: Unit,
    gain: Unit,
    up: tuple[csr_array, csr_array],
    result: Unit,
) -> None:
    """Write source + U(change) + (U(gain) - 1) (source - U(small)) into `result`, in bands of rows."""
    packed = np.concatenate([small, change, gain[..., None] - 1], axis=2)  # (h, w, 2 C + 1)
    rows, columns = up
    wide = resample(packed, None, columns)  # (h, W, 2 C + 1)
    channels = source.shape[2]
    bound = float(np.abs(gain - 1).max())
    for start in range(0, source.shape[0], BAND_ROWS):
        band = slice(start, start + BAND_ROWS)
        smooth, shift, excess = np.split(resample(wide, rows[band], None), [channels, 2 * channels], axis=2)
        excess = np.clip(excess, -bound, bound)  # a cubic overshoots
        shift += excess * (source[band] - smooth)
        result[band] = np.clip(source[band] + shift, 0, 1)


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


def _with_channels(frames: Unit, enhancer: Enhancer) -> Unit:
    """Grey frames for a colour enhancer are given three equal channels."""
    wanted, channels = enhancer.spec.channels, frames.shape[3]
    if wanted in (None, channels):
        return frames
    if channels == 1:
        return np.repeat(frames, wanted, axis=3)
    raise RecipeError(f"the enhancer takes {wanted} channel(s), and the frames have {channels}")
