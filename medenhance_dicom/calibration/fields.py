"""An honest result as field networks give it: smooth gain and veil of each channel, a gain of each band of detail."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medenhance_dicom.networks.fields import CELLS, LEVELS, as_field, enlarged, pyramid, smoothed

__all__ = ["smooth_fields"]

MOST_GAIN = 3.0
DARKEST = 0.05


def smooth_fields(
    picture: NDArray[np.float32], inside: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Even out light, take away a veil by fields of 12 x 12 cells, tint at random, raise or lower each band of detail.

    Args:
        picture: (H, W, C) in [0, 1].
        inside: (H, W), where it works; elsewhere the picture stays.
        rng: Decides how far each goes.
    """
    x = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    field = torch.from_numpy(inside.astype(np.float32))[None, None]

    def drawn(mean: float, spread: float, *shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(mean, spread, (1, *shape))).float()

    channels = x.shape[1]
    covered = functional.adaptive_avg_pool2d(field, CELLS)
    low = functional.adaptive_avg_pool2d(x * field, CELLS) / covered.clamp(min=0.02)
    mean = (low * covered).sum((2, 3), keepdim=True) / covered.sum().clamp(min=1e-3)
    low = torch.where(covered > 0.02, low, mean)
    least = low.amin((2, 3), keepdim=True)
    veil = float(rng.uniform(0, 0.6)) * least * torch.from_numpy(rng.uniform(0.3, 1, (1, channels, 1, 1))).float()
    veil = veil + drawn(0, 0.02, channels, CELLS, CELLS)
    evened = float(rng.uniform(0, 1))
    gain = evened * (mean / (low - veil).clamp(min=DARKEST)).log() + drawn(0.1, 0.2, 1, 1, 1)
    gain = gain + (1 - evened) * (mean / (mean - veil.mean((2, 3), keepdim=True)).clamp(min=DARKEST)).log()
    gain = gain + drawn(0, 0.12, channels, 1, 1) + drawn(0, 0.05, channels, CELLS, CELLS)
    most = math.log(MOST_GAIN)
    gain, veil = (most * torch.tanh(smoothed(gain) / most)).exp(), smoothed(veil)
    detail = smoothed((drawn(0.3, 0.3, LEVELS, 1, 1) + drawn(0, 0.1, LEVELS, CELLS, CELLS)).clamp(-0.7, 1.2)).exp()
    bands, base = pyramid(x)
    y = base - as_field(veil, base)
    for k in reversed(range(LEVELS)):
        y = enlarged(y, bands[k]) + as_field(detail[:, k : k + 1], bands[k]) * bands[k]
    y = torch.where(field > 0, (y * as_field(gain, x)).clamp(0, 1), x)
    return np.ascontiguousarray(y[0].permute(1, 2, 0).numpy())
