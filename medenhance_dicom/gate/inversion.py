"""Inverted structure: local correlation on bands at half size."""

from __future__ import annotations

import torch
from torch import Tensor

from medenhance_dicom.gate.working import Pair, band, core_of, halved, smooth

__all__ = ["correlation_map"]

CONTRAST = 0.006  # local contrast below this is noise
COUNTED = 0.3  # of a window has to lie in the field
WINDOW = (2, 4)  # sigma 9 pixels at working size


def correlation_map(pair: Pair) -> Tensor:
    """1 - correlation of the bands before and after in windows, (h / 2, w / 2), in [0, 2]; 0 outside the field."""
    core = core_of(halved(pair.inside[None])[0]).float()
    x, y = (band(halved(smooth(z[:1])))[0] * core for z in (pair.before, pair.after))
    xx, xy, yy, share = _window(torch.stack([x * x, x * y, y * y, core]))
    noise = CONTRAST**2 * share + 1e-9
    return (1 - xy / torch.sqrt((xx + noise) * (yy + noise))).clamp(0, 2) * (core > 0) * (share > COUNTED)


def _window(x: Tensor) -> Tensor:
    """Gaussian means of (h, w) or (n, h, w)."""
    for step in WINDOW:
        x = smooth(x, step)
    return x
