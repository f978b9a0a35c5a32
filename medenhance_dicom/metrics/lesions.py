"""How much of the contrast of lesions to what lies round them an enhancer keeps."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, find_objects, label

from medenhance_dicom.metrics.picture import Mask, Unit, field_of

__all__ = ["lesion_contrast", "lesions_in_boxes"]

AROUND = 8 / 512
"""Of the picture's width: how far the surround of a lesion reaches."""
SMALLEST = 4
"""Pixels; less is no lesion that could be measured."""
SHARE = 0.25
"""Of a box, that the lesion in it is taken to fill."""
EVERYWHERE = np.ones((3, 3), bool)


def lesion_contrast(source: Unit, result: Unit, lesions: Mask, inside: Mask | None = None) -> float:
    """Contrast of the lesions in the result over that in the source; 1: kept, above: raised, below 0: turned round.

    A lesion's contrast is (mean of its green - mean of its surround's) over the surround's; each counts by its pixels
    and with the sign that it has in the source, so dark and bright ones stand together.

    Args:
        source: (H, W, C) in [0, 1]; of grey pictures the grey.
        result: The same shape.
        lesions: (H, W), their pixels; connected ones are one.
        inside: (H, W), the field of view; None: everywhere.

    Raises:
        ValueError: The shapes differ, or no lesion with a surround is inside, or none stands out in the source.
    """
    if source.shape != result.shape or lesions.shape != source.shape[:2]:
        raise ValueError(f"one shape wanted, not {source.shape}, {result.shape} and {lesions.shape}")
    here = field_of(source.shape, inside)
    channel = min(1, source.shape[2] - 1)
    before, after = (np.asarray(p[..., channel], np.float64) for p in (source, result))
    reach = max(2, round(AROUND * source.shape[1]))
    beside = here & ~binary_dilation(lesions, EVERYWHERE)
    labels, _ = label(lesions & here, EVERYWHERE)
    there = kept = 0.0
    for number, box in enumerate(find_objects(labels), start=1):
        near = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        part = labels[near] == number
        around = binary_dilation(part, iterations=reach) & beside[near]
        if part.sum() < SMALLEST or not around.any():
            continue
        was, is_now = ((p[near][part].mean() / max(p[near][around].mean(), 1e-3)) - 1 for p in (before, after))
        there += part.sum() * abs(was)
        kept += part.sum() * np.sign(was) * is_now
    if there == 0:
        raise ValueError("no lesion with a surround stands out inside the field of view")
    return float(kept / there)


def lesions_in_boxes(picture: Unit, boxes: list[tuple[int, int, int, int]]) -> Mask:
    """The pixels of lesions of which only boxes are known: in each the quarter farthest from its own surround's green.

    Args:
        picture: (H, W, C) in [0, 1], a good one.
        boxes: (left, top, right, bottom) in pixels, right and bottom beyond the box.
    """
    green = picture[..., min(1, picture.shape[2] - 1)]
    found = np.zeros(green.shape, bool)
    for left, top, right, bottom in boxes:
        place = slice(max(0, top), bottom), slice(max(0, left), right)
        if not green[place].size:
            continue
        margin = 1 + max(bottom - top, right - left) // 2
        wide = tuple(slice(max(0, s.start - margin), s.stop + margin) for s in place)
        ring = np.ones(green.shape, bool)
        ring[place] = False
        ring = ring[wide]
        ground = float(np.median(green[wide][ring])) if ring.any() else float(np.median(green[place]))
        apart = np.abs(green[place] - ground)
        found[place] |= apart >= np.quantile(apart, 1 - SHARE)
    return found
