"""The planes that the checks work on: luminance and two opponent channels at a bounded size, and small filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medenhance_dicom.lassim import GREY

__all__ = ["LONGEST", "Pair", "band", "core_of", "halved", "prepare", "quantile", "seen_detail", "smooth"]

LONGEST = 384
"""Pixels of the longer side at which sizes are stated; larger frames are brought to it by area means."""

DARK = 0.05  # added to luminance, under which detail is noise


@dataclass(frozen=True)
class Pair:
    """A frame before and after at working size."""

    before: Tensor
    """(P, h, w): luminance in [0, 1]; of colour also red - green and yellow - blue in [-1, 1]."""
    after: Tensor
    inside: Tensor
    """(h, w) in {0, 1}, where the enhancer was allowed to work."""


def prepare(before: NDArray[Any], after: NDArray[Any], inside: NDArray[np.bool_] | None) -> Pair:
    """Bring a frame to working size; see `gate.examine` for the arguments."""
    height, width = before.shape[:2]
    share = min(1.0, LONGEST / max(height, width))
    size = max(1, round(height * share)), max(1, round(width * share))
    here = torch.ones(height, width) if inside is None else torch.from_numpy(inside.astype(np.float32))
    x, y = (torch.from_numpy(p.astype(np.float32, copy=False)).permute(2, 0, 1).contiguous() for p in (before, after))
    if share < 1:
        x, y = (functional.adaptive_avg_pool2d(p[None], size)[0] for p in (x, y))
        here = functional.adaptive_avg_pool2d(here[None], size)[0]
    return Pair(_planes(x), _planes(y), (here > 0.99).float())


def _planes(picture: Tensor) -> Tensor:
    if len(picture) == 1:
        return picture
    red, green, blue = picture
    light = GREY[0] * red + GREY[1] * green + GREY[2] * blue
    return torch.stack([light, red - green, (red + green) / 2 - blue])


def smooth(x: Tensor, step: int = 1) -> Tensor:
    """The binomial filter (1 4 6 4 1) / 16 of (..., h, w) in both directions, border repeated; sigma is `step`."""
    planes = x.reshape(1, -1, *x.shape[-2:])
    for axis, reach in ((2, (0, 0, 2 * step, 2 * step)), (3, (2 * step, 2 * step, 0, 0))):
        size = planes.shape[axis]
        wide = functional.pad(planes, reach, "replicate")
        outer = wide.narrow(axis, 0, size) + wide.narrow(axis, 4 * step, size)
        inner = wide.narrow(axis, step, size) + wide.narrow(axis, 3 * step, size)
        planes = outer.add_(inner, alpha=4).add_(planes, alpha=6).mul_(1 / 16)
    return planes.view(x.shape)


def halved(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels of (..., h, w); an odd last row or column counts by itself."""
    planes = x.reshape(-1, 1, *x.shape[-2:])
    small = functional.avg_pool2d(planes, 2, ceil_mode=True, count_include_pad=False)
    return small.reshape(*x.shape[:-2], *small.shape[-2:])


def band(x: Tensor) -> Tensor:
    """The band of (..., h, w) that answers most to a disk of radius 2: smoothed at sigma 1 less at sigma 2.2."""
    fine = smooth(x)
    return fine - smooth(fine, 2)


def core_of(here: Tensor) -> Tensor:
    """Bool (h, w), what lies at least two pixels inside the field and the frame; a band sees the rim that far."""
    outside = functional.pad((here < 0.99).float(), (2, 2, 2, 2), value=1.0)
    return functional.max_pool2d(outside[None], 5, 1)[0] == 0


def quantile(values: Tensor, share: float) -> Tensor:
    """Of the last axis, from some 4000 of its values, evenly taken."""
    sample = values[..., :: max(1, values.shape[-1] // 4096)]
    return sample.kthvalue(max(1, round(share * sample.shape[-1])), dim=-1).values


def seen_detail(before: Tensor, inside: Tensor) -> float | None:
    """How much fine detail a source shows: the contrast that a tenth of its field exceeds.

    Contrast is the band that answers most to a disk of radius 2, over the luminance around (and 0.05).

    Args:
        before: (P, h, w), a `Pair`'s.
        inside: (h, w) in {0, 1}.

    Returns:
        Some .02 to .05 for good fundus photographs and .04 to .09 for endoscopy; None where there is no field.
    """
    core = core_of(inside)
    if not core.any():
        return None
    light = before[:1]
    contrast = band(light).abs() / (smooth(smooth(light, 2), 4).clamp(min=0) + DARK)
    return float(quantile(contrast[0][core], 0.9))
