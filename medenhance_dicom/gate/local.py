"""Invented and erased structure: what one picture shows and the other cannot explain, against the frame's own noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from medenhance_dicom.gate.working import Pair, band, core_of, halved, quantile, smooth

__all__ = ["RADII", "local_map"]

RADII = (2, 4, 8, 16)
"""Pixels at working size that the levels answer most to."""
LIGHT = (3.6, 2.6, 2.1, 1.7)
"""What honest enhancement seldom passes at each level in luminance: the unit of the map."""
COLOUR = (8.0, 7.0, 5.0, 2.0)
"""The same in the opponent channels."""
LINE = 2.8
"""The same of means along lines, in luminance at the finest level."""
TEXTURE, LINE_TEXTURE = 0.15, 0.05  # of the local contrast may stay unexplained
FLOOR, LINE_FLOOR = 0.005, 0.003
DEPTH = (4, 3, 2, 2)  # pixels of each level that the rim of the field reaches into
HALF_LINE = 6  # pixels
DIRECTIONS = 8
COMMON = 0.95  # of all places tell how much usually stays unexplained
FEWEST = 49  # places that tell it


def local_map(pair: Pair, invented: Tensor, erased: Tensor) -> Tensor:
    """How far unexplained structure stands out of what is usual in this frame; the worst of all levels and planes.

    Each band of the unexplained part is divided by its own root mean square without the largest 5 %, a share of the
    local contrast and a floor of about one grey level, joined, and by what honest enhancement seldom passes. So about 1
    is the most that is usual.

    Args:
        pair: The frame.
        invented: (P, h, w), what of `after` the picture before cannot explain.
        erased: (P, h, w), the reverse.

    Returns:
        (h, w), 0 and up; 0 outside the field and near its rim.
    """
    worst, here, cores = torch.zeros_like(pair.inside), pair.inside, []
    for depth in DEPTH:
        cores.append(core_of(here, depth))
        here = halved(here[None])[0]
    for whole, unexplained in ((pair.before, invented), (pair.after, erased)):
        source, rest = whole, unexplained
        if (found := _lines_standing_out(rest[0], source[0], cores[0])) is not None:
            worst = torch.maximum(worst, found / LINE)
        for light, colour, core in zip(LIGHT, COLOUR, cores, strict=True):
            found = _standing_out(rest, source, core)
            if found is None:
                break
            found = torch.cat([found[:1] / light, found[1:] / colour]).amax(0)[None, None]
            worst = torch.maximum(worst, functional.interpolate(found, size=worst.shape, mode="nearest")[0, 0])
            rest, source = halved(smooth(rest)), halved(smooth(source))
    return worst


def _standing_out(rest: Tensor, source: Tensor, counted: Tensor) -> Tensor | None:
    """(P, h, w), 0 where not counted; None where too little counts to say what is usual."""
    if int(counted.sum()) < FEWEST:
        return None
    size = band(rest).abs()
    texture = _energy(source)
    texture = torch.maximum(texture, texture[:1])  # a gain of light carries its texture into the colours
    return size / (torch.sqrt(_usual(size, counted) ** 2 + TEXTURE**2 * texture) + FLOOR) * counted


def _lines_standing_out(rest: Tensor, source: Tensor, counted: Tensor) -> Tensor | None:
    """The same of the finest band's means along lines, the worst of all directions, for vessels and nerves; (h, w)."""
    if int(counted.sum()) < FEWEST:
        return None
    height, width = rest.shape
    fine = functional.pad(band(rest[None])[0] * counted, (HALF_LINE,) * 4)
    size = torch.zeros_like(rest)
    steps = range(-HALF_LINE, HALF_LINE + 1, 2)
    for k in range(DIRECTIONS):
        angle = math.pi * k / DIRECTIONS
        total = torch.zeros_like(rest)
        for step in steps:
            top, left = (HALF_LINE + round(step * part) for part in (math.sin(angle), math.cos(angle)))
            total += fine[top : top + height, left : left + width]
        size = torch.maximum(size, total.abs_())
    size = size[None] / len(steps)
    texture = _energy(source[None])
    return (size / (torch.sqrt(_usual(size, counted) ** 2 + LINE_TEXTURE**2 * texture) + LINE_FLOOR) * counted)[0]


def _usual(size: Tensor, counted: Tensor) -> Tensor:
    """(P, 1, 1), root mean square without the largest 5 %, which count as that quantile."""
    values = size[:, counted]
    return values.minimum(quantile(values, COMMON)[:, None]).square().mean(1).sqrt()[:, None, None]


def _energy(source: Tensor) -> Tensor:
    return smooth(smooth(band(source).square(), 2), 2)
