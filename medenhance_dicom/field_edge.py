"""The edge of the field of view, and what an enhancer sees beyond it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter, uniform_filter

from medenhance_dicom.resampling import area_weights, cubic_weights, resample

Unit = NDArray[np.float32]
Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

REACH = 0.01  # of the longer side: from this deep inside the surround is filled, over this the rim passes into it
FILL_SIDE = 512  # a fill is smooth, and is made at about this size
WHOLLY = 0.9999  # of a reduced pixel lies inside: nothing from outside has a part in it


def fade(inside: Mask) -> Plane:
    """1 inside, falling smoothly to 0 over 1 % of the width within the mask's own edge.

    For what an enhancer sees. What it changed is not faded: the rim would keep its old light, and show as a ring.

    Args:
        inside: bool (H, W), True in the field. The frame's edge is no edge of the mask.

    Returns:
        float32 (H, W) in [0, 1]; 0 wherever `inside` is False.
    """
    reach = _reach(inside.shape)
    if reach < 1 or inside.all():
        return inside.astype(np.float32)
    share = uniform_filter(inside.astype(np.float32), 2 * reach + 1, mode="nearest")
    t = np.where(inside, np.clip(2.001 * share - 1, 0, 1), np.float32(0))  # sums run on: not quite 1
    result: Plane = t * t * (3 - 2 * t)
    return result


def fill_from_field(frame: Unit, inside: Mask) -> Unit:
    """The frame with everything outside the field continued smoothly from a little inside the field's edge.

    The rim itself, where lens and stop darken or brighten it, passes into the fill over 1 % of the width, as `fade` has
    it; all pixels further inside are the frame's own.

    Args:
        frame: float32 (H, W, C) in [0, 1].
        inside: bool (H, W), True in the field.

    Returns:
        float32 (H, W, C) in [0, 1]; the frame itself where nothing or everything is inside.
    """
    if inside.all() or not inside.any():
        return frame
    height, width = inside.shape
    scale = min(1, FILL_SIDE / max(height, width))
    small_size = max(1, round(height * scale)), max(1, round(width * scale))
    down = area_weights(height, small_size[0]), area_weights(width, small_size[1])
    reach = max(1, _reach(small_size))
    mask = resample(inside[..., None].astype(np.float32), *down)[..., 0] > WHOLLY
    deep = binary_erosion(mask, iterations=reach, border_value=1)
    source = next((where for where in (deep, mask) if where.any()), None)
    if source is None:
        return frame
    smooth = gaussian_filter(fill_outside(resample(frame, *down), source), (2 * reach, 2 * reach, 0), mode="nearest")
    fill = resample(smooth, cubic_weights(small_size[0], height), cubic_weights(small_size[1], width))
    weight = fade(inside)[..., None]
    return np.where(weight == 1, frame, np.clip(fill + weight * (frame - fill), 0, 1)).astype(np.float32)


def fill_outside(small: Unit, here: Mask) -> Unit:
    """(h, w, C) with every pixel outside replaced by the nearest inside, so that the field's edge is no contrast."""
    if here.all() or not here.any():
        return small
    nearest = distance_transform_edt(~here, return_distances=False, return_indices=True)
    filled: Unit = small[tuple(nearest)]
    return filled


def _reach(shape: tuple[int, ...]) -> int:
    return round(REACH * max(shape))
