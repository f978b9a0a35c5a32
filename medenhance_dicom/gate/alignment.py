"""Moved and inverted structure: local shift and local correlation, on bands of equal local contrast at half size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from medenhance_dicom.gate.working import Pair, band, core_of, halved, smooth

__all__ = ["correlation_map", "shift_map"]

CONTRAST = 0.006  # local contrast below this is noise
SHARE = 0.3  # shrinks shifts where the window's gradients have one direction,
NOISE = 0.1  # and where they are weak
COUNTED = 0.3  # of a window has to lie in the field
SHIFT_WINDOW = (2, 4, 8)  # sigma 18 pixels at working size
CORRELATION_WINDOW = (2, 4)  # sigma 9


def shift_map(pair: Pair, invented: Tensor) -> Tensor:
    """Length of the local shift of structure, in pixels at working size.

    Lucas and Kanade's equations (IJCAI 1981) between the picture after and what the picture before explains of it, so
    that changed tones do not count. Shifts are shrunk towards 0 where a window cannot tell them, and large ones come
    out too short.

    Args:
        pair: The frame.
        invented: (h, w), what of the luminance after the picture before cannot explain.

    Returns:
        (h / 2, w / 2); 0 outside the field.
    """
    core = core_of(halved(pair.inside[None])[0]).float()
    after, off = (band(halved(smooth(x)))[0] * core for x in (pair.after[:1], invented[None]))
    share = _window(core, SHIFT_WINDOW)
    contrast = torch.sqrt(_window(after * after, SHIFT_WINDOW) / (share + 1e-6) + CONTRAST**2)
    after, off = after / contrast, off / contrast
    middle = functional.pad((after - off / 2)[None], (1, 1, 1, 1), "replicate")[0]
    down, across = (middle[2:, 1:-1] - middle[:-2, 1:-1]) / 2, (middle[1:-1, 2:] - middle[1:-1, :-2]) / 2
    products = torch.stack([down * down, down * across, across * across, down * off, across * off])
    dd, da, aa, od, oa = _window(products, SHIFT_WINDOW)
    ridge = SHARE * (dd + aa) + NOISE * share + 1e-6
    dd, aa = dd + ridge, aa + ridge
    length = torch.hypot(aa * od - da * oa, dd * oa - da * od) / (dd * aa - da * da)
    return 2 * length * (core > 0) * (share > COUNTED)


def correlation_map(pair: Pair) -> Tensor:
    """1 - correlation of the bands before and after in windows, (h / 2, w / 2), in [0, 2]; 0 outside the field."""
    core = core_of(halved(pair.inside[None])[0]).float()
    x, y = (band(halved(smooth(z[:1])))[0] * core for z in (pair.before, pair.after))
    xx, xy, yy, share = _window(torch.stack([x * x, x * y, y * y, core]), CORRELATION_WINDOW)
    noise = CONTRAST**2 * share + 1e-9
    return (1 - xy / torch.sqrt((xx + noise) * (yy + noise))).clamp(0, 2) * (core > 0) * (share > COUNTED)


def _window(x: Tensor, steps: tuple[int, ...]) -> Tensor:
    """Gaussian means of (h, w) or (n, h, w)."""
    for step in steps:
        x = smooth(x, step)
    return x
