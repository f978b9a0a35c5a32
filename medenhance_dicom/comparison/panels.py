"""Pictures for people: source, enhanced, and where the structure check objects."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medenhance_dicom.comparison.maps import ObjectionMap
from medenhance_dicom.gate import Region

__all__ = ["Picture", "colours", "difference_picture", "map_picture", "map_scale", "panels", "picture", "save"]

Unit = NDArray[np.floating[Any]]
Picture = NDArray[np.uint8]

LONGEST = 1024
"""Pixels of the longer side of a picture; larger frames are shrunk."""
_TOP = 2.0
"""Multiples of the limit at the upper end of the scale."""
_BOX = (0, 255, 255)
_GAP = 8


def panels(before: Unit, after: Unit, objection: ObjectionMap, box: Region | None) -> Picture:
    """Source, enhanced and map side by side, the region boxed in all three, with the map's scale.

    Args:
        before: (H, W, C) in [0, 1], C = 1 or 3 (RGB).
        after: The same shape.
        objection: As `maps.shown_map` gives it.
        box: What is boxed; None: nothing.

    Returns:
        uint8 (h, w, 3).
    """
    parts = [Image.fromarray(x) for x in (picture(before), picture(after), map_picture(objection))]
    scale = parts[0].width / before.shape[1]
    if box is not None:
        width = max(1, round(max(parts[0].size) / 256))
        corners = [round(v * scale) for v in (box.left, box.top, box.right, box.bottom)]
        for part in parts:
            ImageDraw.Draw(part).rectangle(
                (corners[0] - width, corners[1] - width, corners[2] + width - 1, corners[3] + width - 1),
                outline=_BOX,
                width=width,
            )
    parts.append(map_scale(parts[0].height, objection))
    whole = Image.new("RGB", (sum(p.width for p in parts) + _GAP * (len(parts) - 1), parts[0].height), (24, 24, 24))
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + _GAP
    return np.asarray(whole)


def picture(unit: Unit) -> Picture:
    """(H, W, 1 or 3) in [0, 1] -> uint8 (h, w, 3), at most LONGEST on its longer side."""
    grey = (np.clip(unit, 0, 1) * 255 + 0.5).astype(np.uint8)
    return _bounded(np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey)


def difference_picture(before: Unit, after: Unit) -> Picture:
    """The change in mean grey: darker is blue, brighter is red, unchanged is grey; full colour at a quarter."""
    change = np.clip((after - before).mean(axis=2) * 4, -1, 1)
    return _bounded(_diverging()[np.round((change + 1) * 127.5).astype(np.uint8)])


def map_picture(objection: ObjectionMap) -> Picture:
    """uint8 (h, w, 3), on the scale of `map_scale`."""
    place = np.clip(np.nan_to_num(objection.values, nan=np.inf) / _top(objection), 0, 1)
    return _bounded(colours()[np.round(place * 255).astype(np.uint8)])


def map_scale(height: int, objection: ObjectionMap) -> Image.Image:
    """The colour scale of a map: from 0 to twice the limit, or from LaSSIM 1 down to 0."""
    size = int(np.clip(height / 24, 9, 22))
    ramp = np.repeat(colours()[np.linspace(255, 0, height).astype(np.uint8)][:, None], 2 * size, axis=1)
    scale = Image.new("RGB", (6 * size, height), (24, 24, 24))
    scale.paste(Image.fromarray(ramp), (0, 0))
    draw = ImageDraw.Draw(scale)
    top, bottom = (f"{_TOP:g} x", "0") if objection.calibrated else ("SIM 0", "SIM 1")
    texts = [(2, top), (height - size - 4, bottom)]
    if objection.calibrated:
        draw.line((0, height // 2, 2 * size + size // 2, height // 2), fill=(255, 255, 255), width=max(1, size // 8))
        texts.append(((height - size) // 2, "limit"))
    for y, text in texts:
        draw.text((2 * size + size // 2 + 3, y), text, fill=(230, 230, 230), font_size=size)
    return scale


def _top(objection: ObjectionMap) -> float:
    return _TOP if objection.calibrated else 1.0


@functools.cache
def colours() -> Picture:
    """256 colours, (256, 3): black through violet and orange to pale yellow, lightness L* rising evenly (CIELAB)."""
    from skimage.color import lab2rgb

    t = np.linspace(0, 1, 256)
    lightness = 4 + 92 * t
    hue = np.deg2rad(300 + 150 * t)  # violet, red, orange, yellow
    chroma = 62 * np.sin(np.pi * np.clip(0.06 + 0.9 * t, 0, 1)) ** 0.8
    return _rgb(lab2rgb, lightness, chroma, hue)


@functools.cache
def _diverging() -> Picture:
    """256 colours, (256, 3), from blue over grey to red, as light at both ends."""
    from skimage.color import lab2rgb

    t = np.linspace(-1, 1, 256)
    hue = np.deg2rad(np.where(t < 0, 265.0, 35.0))
    return _rgb(lab2rgb, 62 - 14 * np.abs(t), 60 * np.abs(t), hue)


def _rgb(lab2rgb: Any, lightness: Unit, chroma: Unit, hue: Unit) -> Picture:
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    return np.asarray(np.clip(lab2rgb(lab[None])[0], 0, 1) * 255 + 0.5).astype(np.uint8)


def _bounded(pixels: Picture) -> Picture:
    factor = LONGEST / max(pixels.shape[:2])
    if factor >= 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def save(pixels: Picture, path: Path) -> None:
    """Write a PNG, all or nothing."""
    part = path.with_name(f".{path.name}.part")
    Image.fromarray(pixels.squeeze()).save(part, format="png")
    part.replace(path)
