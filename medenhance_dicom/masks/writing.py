"""Burned-in text, calipers, scales and traces, which stay as they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from medenhance_dicom.masks.dark_surround import TOLERANCE, surround_level
from medenhance_dicom.masks.reduced import LONG_SIDE

Unit = NDArray[np.float32]
Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]

GLYPHS = 3  # make a row of text
MOST_STROKES = 3000  # more is texture
EVERYWHERE = np.ones((3, 3), bool)


def burned_in_text(frame: Unit) -> Mask:
    """Pixels of burned-in text, calipers, scales and traces in ultrasound and endoscopy, with a small margin.

    Four rules, each of which adds to the mask: rows of at least three glyphs (thin, whiter than beside them, of
    equal height and brightness, on a line), and what continues them; what is bright and lies in the dark surround; and,
    in pictures that are grey but for their overlays, everything coloured and everything thin and nearly white. A
    highlight that is taken for text stays as it is, which costs little. Faint writing may be missed.

    Args:
        frame: float32 (H, W, C) in [0, 1].

    Returns:
        bool (H, W), True where nothing may change.
    """
    height, width = frame.shape[:2]
    if min(height, width) < 64:
        return np.zeros((height, width), bool)
    brightest = frame.max(axis=2)
    chroma = brightest - frame.min(axis=2)
    is_grey = float((chroma[brightest > 0.15] > 0.1).mean()) < 0.2 if (brightest > 0.15).any() else True
    size = 2 * max(3, round(min(height, width) / 64)) + 1
    relief = brightest - ndimage.grey_opening(brightest, (size, size))
    strokes = (relief > 0.2) & (brightest > 0.4) & (chroma < 0.25)
    fainter = (relief > 0.12) & (chroma < 0.3)
    rows = _lines(strokes, fainter, brightest, longest=2.5 if is_grey else 14)
    if not is_grey:  # white writing stands out of bright pink in its blue alone
        darkest = frame.min(axis=2)
        blue = darkest - ndimage.grey_opening(darkest, (size, size))
        strokes = (blue > 0.14) & (brightest > 0.4) & (chroma < 0.4)
        rows |= _lines(strokes, (blue > 0.08) & (chroma < 0.45), brightest, longest=14)
    text = rows | _beside_the_field(brightest, rows)
    if is_grey:
        text |= chroma > 0.15
        text |= (relief > 0.4) & (brightest > 0.9)
    margin = 1 if min(height, width) < 720 else 2
    grown: Mask = ndimage.binary_dilation(text, EVERYWHERE, iterations=margin)
    return grown


def _lines(strokes: Mask, fainter: Mask, brightest: Plane, longest: float) -> Mask:
    """Rows of glyphs, and the rest of their lines and the next lines in fainter strokes."""
    rows, tall, level = _glyph_rows(strokes, brightest, longest)
    if rows.any():
        fainter = fainter & (brightest > 0.8 * level)
        for _ in range(2):
            rows |= fainter & ndimage.maximum_filter(rows, (3 * tall, 7 * tall))
    return rows


def _glyph_rows(strokes: Mask, brightest: Plane, longest: float) -> tuple[Mask, int, float]:
    """Strokes in rows of at least three: neighbours of like height and brightness, on one line; height and brightness.

    Glyphs that run together count as several, up to `longest` times as wide as tall.
    """
    labels, _ = ndimage.label(strokes, EVERYWHERE)
    boxes = ndimage.find_objects(labels)
    kept, facts = [], []
    least, most = max(3, 0.008 * strokes.shape[0]), 0.07 * strokes.shape[0]
    for label, box in enumerate(boxes, start=1):
        top, bottom, left, right = box[0].start, box[0].stop, box[1].start, box[1].stop
        if least <= bottom - top <= most and right - left <= longest * (bottom - top):
            kept.append(label)
            level = float(np.percentile(brightest[box][labels[box] == label], 90))
            facts.append((top, bottom, left, right, level))
    if len(kept) < 2 or len(kept) > MOST_STROKES:
        return np.zeros_like(strokes), 1, 1.0
    top, bottom, left, right, level = np.array(facts).T
    tall = bottom - top
    shared = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
    gap = np.maximum(left[:, None], left) - np.minimum(right[:, None], right)
    smaller, larger = np.minimum(tall[:, None], tall), np.maximum(tall[:, None], tall)
    linked = (shared >= 0.7 * smaller) & (larger <= 1.5 * smaller) & (gap >= -1) & (gap <= 1.5 * larger)
    linked &= np.abs(level[:, None] - level) <= 0.12
    _, group = connected_components(csr_array(linked), directed=False)
    glyphs = np.maximum(1, np.round((right - left) / (0.8 * tall)))
    written = (np.bincount(group, glyphs)[group] >= GLYPHS) & (
        np.bincount(group)[group] >= (2 if longest > 3 else GLYPHS)
    )
    if not written.any():
        return np.zeros_like(strokes), 1, 1.0
    return np.isin(labels, np.array(kept)[written]), int(np.median(tall[written])), float(np.median(level[written]))


def _beside_the_field(brightest: Plane, rows: Mask) -> Mask:
    """What is bright and small and stands in the dark surround: captions, scales, traces, colour bars."""
    nothing = np.zeros(brightest.shape, bool)
    factor = max(1, -(-max(brightest.shape) // LONG_SIDE))
    surround = surround_level(brightest[::factor, ::factor])
    if surround is None:
        return nothing
    bright = brightest > surround + TOLERANCE
    blocks = ndimage.maximum_filter(bright & ~rows, factor)[::factor, ::factor]
    pictures = ndimage.binary_closing(np.pad(blocks, 16), EVERYWHERE, iterations=4)[16:-16, 16:-16]
    labels, count = ndimage.label(ndimage.binary_opening(pictures, EVERYWHERE, iterations=7))
    if not count:
        return nothing
    large = np.bincount(labels.ravel()) >= 0.03 * labels.size
    large[0] = False
    if not large.any():
        return nothing
    near = ndimage.binary_dilation(large[labels], EVERYWHERE, iterations=10)
    rows_of, columns_of = (
        np.minimum(np.arange(n) // factor, m - 1) for n, m in zip(brightest.shape, near.shape, strict=True)
    )
    beside: Mask = bright & ~near[rows_of[:, None], columns_of[None, :]]
    return beside
