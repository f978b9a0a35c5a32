"""Enhancement as smooth fields: what light and veil did to a picture, never its pixels.

From a small picture the network gives, on a grid of 12 x 12 cells, a gain and a veil for each channel, one gain for
each octave of the source's own detail, and how much is seen there. Cubic interpolation makes fields of them, which act
on the picture at its own size:

    L_k, B = the Laplacian pyramid of y with K levels and its rest
    x_hat = exp(a) * (B - v + sum_k exp(d_k) * L_k)

with v, a (B, C, ...) and d_k common to all channels. All of them are zero where nothing is seen, which is the identity.
So there can be no blotch smaller than a cell, no line that was not there, and no colour of its own in any detail. After
the bilateral grid's idea of small predictions and full-size application (Gharbi et al., ACM TOG 36(4), 2017), the
illumination of Foracchia et al. (Medical Image Analysis 9(3), 2005) and HQG-Net's guide (arXiv 2307.07829): its vector
tells what a good picture of this camera looks like.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GUIDE = 64  # numbers in v_z
CELLS = 12
SIDE = 192  # of the picture from which the fields are predicted
LEVELS = 4
CONTRASTS = 3  # levels whose local contrast the network sees
LEAK = 0.2

GAIN = math.log(3.0)
VEIL = 0.6
DETAIL = math.log(4.0)
"""Bounds of |a|, |v| and |d|."""
SEEN = 2.0  # the confidence that an untrained network has, before the sigmoid
SHARPENING = 20.0  # brings a level's contrast to the order of 1


class Fields(NamedTuple):
    """What is done to a picture, on the grid of cells; all zero: nothing. Already scaled by `seen`."""

    log_gain: Tensor
    """a, (B, C, cells, cells), within +-`GAIN`."""
    veil: Tensor
    """v, (B, C, cells, cells), within +-`VEIL`."""
    log_detail: Tensor
    """d, (B, LEVELS, cells, cells), within +-`DETAIL`, finest first."""
    seen: Tensor
    """(B, 1, cells, cells) in (0, 1): how much is seen there."""


def pyramid(y: Tensor, levels: int = LEVELS) -> tuple[list[Tensor], Tensor]:
    """The Laplacian pyramid by means of 2 x 2 and bilinear enlargement: levels, finest first, and the rest.

    Args:
        y: (B, C, H, W), of any size.
        levels: How many.
    """
    found = []
    for _ in range(levels):
        smaller = F.avg_pool2d(y, 2, ceil_mode=True)
        found.append(y - enlarged(smaller, y))
        y = smaller
    return found, y


def apply_fields(levels: list[Tensor], rest: Tensor, fields: Fields) -> Tensor:
    """x_hat of the module's formula.

    Args:
        levels: Of `pyramid`.
        rest: Of `pyramid`.
        fields: On any grid.

    Returns:
        float32 (B, C, H, W), not clipped.
    """
    y = rest - as_field(fields.veil, rest)
    for k in reversed(range(len(levels))):
        y = enlarged(y, levels[k]) + as_field(fields.log_detail[:, k : k + 1], levels[k]).exp() * levels[k]
    return y * as_field(fields.log_gain, levels[0]).exp()


def numbers_of_fields(channels: int) -> int:
    """How many numbers a cell has."""
    return 2 * channels + LEVELS + 1


def fields_of(h: Tensor, channels: int) -> Fields:
    """Read a network's last layer as fields.

    Args:
        h: (B, `numbers_of_fields`, cells, cells), before bounds; zero means no change.
        channels: C.
    """
    log_gain, veil, log_detail, seen = h.float().split([channels, channels, LEVELS, 1], dim=1)
    seen = torch.sigmoid(seen + SEEN)
    return Fields(
        GAIN * torch.tanh(log_gain) * seen,
        VEIL * torch.tanh(veil) * seen,
        DETAIL * torch.tanh(log_detail) * seen,
        seen,
    )


class PlainBlock(nn.Module):
    """Conv3-LReLU-Conv3 plus shortcut, LReLU on the sum; no normalisation, which would take light and colour away.

    The last convolution starts at zero.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride, 1)
        self.second = nn.Conv2d(channels_out, channels_out, 3, 1, 1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.stride = stride
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, film: Tensor | None = None) -> Tensor:
        """(B, I, H, W), and (B, 2 O, 1, 1) that scales and shifts within -> (B, O, H/stride, W/stride)."""
        h = F.leaky_relu(self.first(x), LEAK)
        if film is not None:
            scale, shift = film.chunk(2, dim=1)
            h = h * (1 + scale) + shift
        kept = F.avg_pool2d(x, 2) if self.stride == 2 else x
        return F.leaky_relu(self.shortcut(kept) + self.second(h), LEAK)


class LookEncoder(nn.Module):
    """The guide encoder of `FieldsGenerator`: v_z = FC(GAP(three plain blocks)).

    Args:
        channels: Channels of the picture, 1 or 3.
        width: Channels of the stem.
    """

    def __init__(self, *, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        c = [width, 2 * width, 4 * width, 4 * width]
        self.stem = nn.Conv2d(channels, width, 3, 2, 1)
        self.blocks = nn.ModuleList(PlainBlock(i, o, 2) for i, o in pairwise(c))
        self.fc = nn.Linear(c[-1], GUIDE)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1], sides multiples of 16 -> (B, 64)."""
        h = F.leaky_relu(self.stem(2 * z - 1), LEAK)
        for block in self.blocks:
            h = block(h)
        return self.fc(h.mean(dim=(2, 3)))


class FieldsGenerator(nn.Module):
    """Smooth fields from a picture, a guide and a look: (B, C, H, W) in [0, 1] to the same, of any size.

    Untrained it is the identity.

    Args:
        channels: Channels of the picture, 1 or 3.
        width: Channels of the stem; then 2, 3 and 4 times as many.
    """

    multiple = 1

    def __init__(self, *, channels: int = 3, width: int = 24) -> None:
        super().__init__()
        self.channels = channels
        c = [width, 2 * width, 3 * width, 4 * width]
        wanted, hidden = numbers_of_fields(channels), 64
        self.stem = nn.Conv2d(channels + CONTRASTS, width, 3, 2, 1)
        self.down = nn.ModuleList(PlainBlock(i, o, 2) for i, o in pairwise(c))
        self.deep = nn.ModuleList(PlainBlock(c[-1], c[-1], 1) for _ in range(3))
        told = GUIDE + 1 + 2 * c[-1]  # the guide, the look, mean and deviation of each feature
        self.condition = nn.Sequential(nn.Linear(told, hidden), nn.LeakyReLU(LEAK))
        self.film = nn.ModuleList(nn.Linear(hidden, 2 * c[-1]) for _ in self.deep)
        self.last = nn.Conv2d(c[-1], wanted, 1)
        self.whole = nn.Sequential(nn.Linear(told, hidden), nn.LeakyReLU(LEAK), nn.Linear(hidden, wanted))
        for layer in (*self.film, self.last, self.whole[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, y: Tensor, v_z: Tensor, look: Tensor) -> Tensor:
        """Enhance.

        Args:
            y: (B, C, H, W) in [0, 1]; the surround is best filled from the field's edge.
            v_z: (B, 64), or (1, 64) for all of them.
            look: (B, 1), or (1, 1) for all: 0 natural, as a good camera would have taken it; 1 even light and colour.

        Returns:
            x_hat, float32 (B, C, H, W) in [0, 1].
        """
        levels, rest = pyramid(y.float())
        return apply_fields(levels, rest, self.predict(y, levels, v_z, look)).clamp(0, 1)

    def predict(self, y: Tensor, levels: list[Tensor], v_z: Tensor, look: Tensor) -> Fields:
        """The fields; arguments as `forward`, and the levels of y's pyramid."""
        one = min(1, self.channels - 1)  # green carries a fundus photograph's contrast
        contrast = [
            F.adaptive_avg_pool2d(level[:, one : one + 1].abs(), SIDE) * SHARPENING for level in levels[:CONTRASTS]
        ]
        h = torch.cat([2 * F.adaptive_avg_pool2d(y, SIDE) - 1, *contrast], dim=1)
        h = F.leaky_relu(self.stem(h), LEAK)
        for block in self.down:
            h = block(h)
        told = torch.cat([v_z, look], dim=1).expand(len(y), -1)
        condition = self.condition(torch.cat([told, _statistics(h)], dim=1))
        for block, film in zip(self.deep, self.film, strict=True):
            h = block(h, film(condition)[:, :, None, None])
        h = self.last(h) + self.whole(torch.cat([told, _statistics(h)], dim=1))[:, :, None, None]
        return fields_of(smoothed(h.float()), self.channels)


def _statistics(h: Tensor) -> Tensor:
    """Mean and deviation of each channel: (B, C, H, W) -> (B, 2 C)."""
    mean = h.mean(dim=(2, 3))
    deviation = ((h - mean[:, :, None, None]).square().mean(dim=(2, 3)) + 1e-8).sqrt()
    return torch.cat([mean, deviation], dim=1)


def smoothed(grid: Tensor) -> Tensor:
    """Means over 3 x 3 cells, so that neighbours agree; (B, C, cells, cells) as before."""
    return F.avg_pool2d(F.pad(grid, (1, 1, 1, 1), mode="replicate"), 3, 1)


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """A coarser octave (B, C, h, w) at the size of a finer one, bilinear."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def as_field(grid: Tensor, like: Tensor) -> Tensor:
    """A grid (B, C, cells, cells) as a smooth field of the size of a picture, cubic."""
    return F.interpolate(grid, size=like.shape[-2:], mode="bicubic", align_corners=False)
