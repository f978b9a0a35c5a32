"""Colour that changed by itself: what no smooth change of light, tint and detail explains, read by a small network.

An honest change of a channel is, within an eighth of a frame, a gain, a veil and a gain of each band of the source's
detail. It is fitted robustly, and what remains in CIELAB goes to the network beside what both pictures show: it knows
remainders of honest results, beside vessels and glare, from those of a spot that has only its colour changed.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from medenhance_dicom.gate.working import Pair, core_of, halved, quantile, smooth
from medenhance_dicom.lassim import GREY
from medenhance_dicom.manifest import load_colour_detector, load_manifest, models_folder

__all__ = ["PLANES", "colour_map", "halving", "planes"]

PLANES = 11
SMALL = 256
"""Pixels of the longer side up to which frames are not halved: a spot of radius 4 at 384 has 2.7 there."""
CELLS = 24
"""Cells of the longer side, between whose centres the fitted change is interpolated."""
REACH = 2.0  # sigma, in cells, of the windows in which it is fitted: a twelfth of the longer side
BANDS = (1, 2, 4, 8)  # sigma of the filters that part the source into detail and base, in pixels of the planes
ROUNDS = 2
REMAINDER = 0.7  # of a*, b*; what remains counts as little below this and half as much again as the median
TOWARDS_COMMON = (0.0, 1e-3, 1e-4, 1e-4, 1e-4, 1e-4)  # variances, as if seen with the gains of the whole frame
CLIPPED = (0.004, 0.98)  # a channel of the result beyond these tells no gain
LOUD = 3.0  # planes are kept within this
XYZ = ((0.433953, 0.376219, 0.189828), (0.212671, 0.715160, 0.072169), (0.017757, 0.109473, 0.872766))
"""Linear sRGB to CIE XYZ over the white of D65."""


def colour_map(pair: Pair) -> dict[str, Tensor]:
    """Where colour was changed by itself.

    Args:
        pair: The frame.

    Returns:
        "colour": log(1 + odds) of each place, half of the size of `planes`, 0 and up; 0 for a grey frame and where the
        enhancer was not allowed to work. Nothing where the manifest has no network for it.

    Raises:
        ModelError: Its weights are missing or altered.
    """
    network = _shipped(models_folder())
    if network is None:
        return {}
    cell = 2 * halving(pair)
    field = functional.avg_pool2d(pair.inside[None, None], cell, ceil_mode=True, count_include_pad=False)[0, 0] > 0.5
    if len(pair.before) == 1:
        return {"colour": torch.zeros(field.shape)}
    odds = network(planes(pair)[None])[0, 0, : field.shape[0], : field.shape[1]]
    return {"colour": functional.softplus(odds) * field}


def halving(pair: Pair) -> int:
    """How many pixels of a frame's side become one of `planes`: 2, or 1 of a small frame."""
    return 2 if max(pair.inside.shape) > SMALL else 1


def planes(pair: Pair) -> Tensor:
    """What the network takes of a colour frame, (11, h / 2, w / 2); of a small one (11, h, w).

    In L*, a*, b*: what the fitted change leaves over, over 10; the result and the changed source, both less their
    surroundings, over 20. Then 1 where a channel of the result is clipped, and 1 in the field.
    """
    here, before, after = core_of(pair.inside)[None].float(), _rgb(pair.before), _rgb(pair.after)
    if halving(pair) == 2:
        here, before, after = (halved(x) for x in (here, before, after))
    here = (here[0] > 0.99).float()
    explained = _explained(before, after, here)
    made, wanted = _lab(after), _lab(explained)
    shown = [(x - _base(x, here)) / 20 for x in (made, wanted)]
    clipped = ((after > CLIPPED[1]) | (after < CLIPPED[0])).any(0).float()
    seen = torch.cat([(made - wanted) / 10, *shown, clipped[None], torch.ones_like(here[None])])
    return seen.clamp(-LOUD, LOUD) * here


def _explained(before: Tensor, after: Tensor, here: Tensor) -> Tensor:
    """The source (3, h, w) after the smooth change that leads to the result, fitted with ever less heed to outliers."""
    parts = _parts(before, here)
    tells = here * ((after > CLIPPED[0]) & (after < CLIPPED[1])).float()
    cell = -(-max(here.shape) // CELLS)
    seen, heed = _in_cells(torch.cat([parts, after[:, None]], dim=1), cell), tells
    result, explained, rows, columns = _lab(after), before, *here.shape
    for _ in range(ROUNDS):
        gains = _gains(seen, _in_cells(heed[:, None], cell))
        fields = functional.interpolate(gains, scale_factor=float(cell), mode="bilinear", align_corners=False)
        explained = (fields[..., :rows, :columns] * parts).sum(1)
        left = smooth((result - _lab(explained))[1:] * here).norm(dim=0)
        usual = REMAINDER + 1.5 * (quantile(left[here > 0], 0.5) if (here > 0).any() else 0)
        heed = tells / (1 + (left / usual) ** 2) ** 2
    return explained


def _in_cells(x: Tensor, cell: int) -> Tensor:
    """(3, k, h, w) -> (3, rows, columns, cell * cell, k); what is missing of the last cells is 0."""
    wide = functional.pad(x, (0, -x.shape[3] % cell, 0, -x.shape[2] % cell))
    rows, columns = wide.shape[2] // cell, wide.shape[3] // cell
    return wide.reshape(3, -1, rows, cell, columns, cell).permute(0, 2, 4, 3, 5, 1).flatten(3, 4)


def _gains(seen: Tensor, heed: Tensor) -> Tensor:
    """Of each cell the weights (3, k, rows, columns) of the least squares, drawn towards those of the whole frame.

    Args:
        seen: (3, rows, columns, n, k + 1): the parts of the source, and last the result.
        heed: (3, rows, columns, n, 1): weights of pixels.
    """
    moments = (seen * heed).transpose(3, 4) @ seen  # (3, rows, columns, k + 1, k + 1)
    count = seen.shape[-1] - 1
    local = _gaussian(moments.flatten(3).permute(0, 3, 1, 2), REACH).permute(0, 2, 3, 1).reshape(moments.shape)
    pull, common = torch.diag(torch.tensor(TOWARDS_COMMON)), torch.ones(count)
    found = torch.empty(0)
    for sums, strength in ((moments.sum((1, 2), keepdim=True), 0.01), (local, 1.0)):
        means = sums / sums[..., :1, :1].clamp(min=1e-5)
        square = means[..., :count, :count] + pull * strength + 1e-7 * torch.eye(count)
        right = means[..., :count, count:] + (pull * strength) @ common[..., None]
        found = torch.linalg.solve(square, right)[..., 0]
        common = found
    return found.permute(0, 3, 1, 2)


def _parts(picture: Tensor, here: Tensor) -> Tensor:
    """(3, h, w) -> (3, 6, h, w): one, the base, and the bands from fine to coarse, of what lies in the field."""
    found, now = [], picture * here
    for step in BANDS:
        coarser = smooth(now, step) / smooth(here, step).clamp(min=1e-3) * here
        found.append(now - coarser)
        now = coarser
    return torch.stack([torch.ones_like(now), now, *found], dim=1)


def _base(picture: Tensor, here: Tensor) -> Tensor:
    """The surroundings of every place of the field."""
    for step in BANDS:
        picture = smooth(picture * here, step) / smooth(here, step).clamp(min=1e-3)
    return picture


def _gaussian(x: Tensor, sigma: float) -> Tensor:
    """(n, k, h, w) smoothed; beyond the border is nothing."""
    reach = round(3 * sigma)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(x)
    flat = x.reshape(-1, 1, *x.shape[2:])
    flat = functional.conv2d(flat, kernel.view(1, 1, -1, 1), padding=(reach, 0))
    return functional.conv2d(flat, kernel.view(1, 1, 1, -1), padding=(0, reach)).view(x.shape)


def _rgb(planes: Tensor) -> Tensor:
    """Luminance, red - green and yellow - blue (`working.Pair`) -> red, green, blue."""
    light, red_green, yellow_blue = planes
    green = light - GREY[0] * red_green - GREY[2] * (red_green / 2 - yellow_blue)
    return torch.stack([green + red_green, green, green + red_green / 2 - yellow_blue])


def _lab(picture: Tensor) -> Tensor:
    """SRGB (3, h, w), taken into [0, 1] -> CIE L*, a*, b* under D65."""
    clipped = picture.clamp(0, 1)
    linear = torch.where(clipped > 0.04045, ((clipped + 0.055) / 1.055) ** 2.4, clipped / 12.92)
    x, y, z = torch.einsum("ij,jhw->ihw", torch.tensor(XYZ), linear).clamp(min=0)
    x, y, z = (torch.where(v > 0.008856, v.clamp(min=0.008856) ** (1 / 3), 7.787 * v + 16 / 116) for v in (x, y, z))
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@cache
def _shipped(folder: Path) -> nn.Module | None:
    return load_colour_detector(load_manifest(folder))
