"""Which pixels of a picture may be changed: the field of view, and burned-in text that stays as it is."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

Unit = NDArray[np.float32]
Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]
Kind = Literal["none", "ellipse", "border"]

LONG_SIDE = 384  # fields of view are looked for at about this size
DARK = 32 / 255  # a surround is not brighter than this
TOLERANCE = 8 / 255  # a surround varies by no more than this
SMALLEST_FIELD = 0.1  # of the frame; less is no field of view, and the whole frame counts
GLYPHS = 3  # make a row of text
MOST_STROKES = 3000  # more is texture
EVERYWHERE = np.ones((3, 3), bool)


def field_of_view(frame: Unit, kind: Kind) -> Mask:
    """Where the picture is, without its dark surround.

    Args:
        frame: float32 (H, W, C) in [0, 1].
        kind: "none": everywhere; "ellipse": the round or lens-shaped field of a fundus camera, its dark parts included;
            "border": an endoscope's field of any shape, without black corners, inset and everything written beside it.

    Returns:
        bool (H, W), True inside. All True where no surround is found.
    """
    height, width = frame.shape[:2]
    everything = np.ones((height, width), bool)
    if kind == "none" or min(height, width) < 16:
        return everything
    factor = max(1, -(-max(height, width) // LONG_SIDE))
    brightest = frame.max(axis=2)[::factor, ::factor]
    surround = _surround_level(brightest)
    if surround is None:
        return everything
    field = _largest_field(brightest, surround)
    if field.mean() < SMALLEST_FIELD:
        return everything
    if kind == "ellipse":
        ellipse = _fit_ellipse(field)
        if ellipse is not None and _overlap(_draw_ellipse(ellipse, field, field.shape, 1), field) > 0.8:
            return _draw_ellipse(ellipse, field, (height, width), factor)
    field = ndimage.binary_erosion(field, EVERYWHERE, border_value=1)
    rows, columns = (
        np.minimum(np.arange(n) // factor, m - 1) for n, m in zip((height, width), field.shape, strict=True)
    )
    full: Mask = field[rows[:, None], columns[None, :]]
    return full


def burned_in_text(frame: Unit) -> Mask:
    """Pixels of burned-in text, calipers, scales and traces in ultrasound and endoscopy, with a small margin.

    Four rules, each of which adds to the mask: rows of at least three glyphs (thin, much brighter than beside them, of
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
    size = 2 * max(3, round(min(height, width) / 64)) + 1
    relief = brightest - ndimage.grey_opening(brightest, (size, size))
    is_grey = float((chroma[brightest > 0.15] > 0.1).mean()) < 0.2 if (brightest > 0.15).any() else True
    rows, tall, level = _glyph_rows(
        (relief > 0.2) & (brightest > 0.4) & (chroma < 0.25), brightest, longest=2.5 if is_grey else 14
    )
    fainter = (relief > 0.12) & (chroma < 0.3) & (brightest > 0.8 * level)
    for _ in range(2):  # the rest of the line, and the next lines
        rows |= fainter & ndimage.maximum_filter(rows, (3 * tall, 7 * tall))
    text = rows | _beside_the_field(brightest, rows)
    if is_grey:
        text |= chroma > 0.15
        text |= (relief > 0.4) & (brightest > 0.9)
    margin = 1 if min(height, width) < 720 else 2
    grown: Mask = ndimage.binary_dilation(text, EVERYWHERE, iterations=margin)
    return grown


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
    surround = _surround_level(brightest[::factor, ::factor])
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


def _surround_level(brightest: Plane) -> float | None:
    """Grey level of the dark surround, from the frame's corners; None if fewer than two of them are dark and even."""
    size = max(4, min(brightest.shape) // 32)
    near, far = slice(None, size), slice(-size, None)
    corners = [brightest[rows, columns] for rows in (near, far) for columns in (near, far)]
    levels = [float(np.median(c)) for c in corners if np.median(c) <= DARK and np.ptp(c) <= 2 * TOLERANCE]
    return max(levels) if len(levels) >= 2 else None


def _largest_field(brightest: Plane, surround: float) -> Mask:
    """The largest thing that is not surround, thin writing cut off, dark parts inside it included."""
    dark = brightest <= surround + TOLERANCE
    labels, _ = ndimage.label(np.pad(dark, 1, constant_values=True))
    bright = (labels != labels[0, 0])[1:-1, 1:-1]  # not connected to the outside by dark pixels
    core = ndimage.binary_opening(bright, EVERYWHERE, iterations=3)
    labels, count = ndimage.label(core)
    if not count:
        return np.zeros_like(core)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    field = labels == sizes.argmax()
    field = ndimage.binary_dilation(field, EVERYWHERE, iterations=2) & bright
    field = np.pad(field, 8)
    field = ndimage.binary_closing(field, EVERYWHERE, iterations=6)[8:-8, 8:-8]
    filled: Mask = ndimage.binary_fill_holes(field)
    return filled


def _fit_ellipse(field: Mask) -> NDArray[np.float64] | None:
    """Centre and half axes (row, column, a, b) of the upright ellipse through the field's own edge, robustly.

    The edge where the picture ends is not the field's. Points that lie off the ellipse (a notch, a straight cut, a dark
    part of the rim) are dropped in rounds.
    """
    inner = np.pad(field, 1)
    edge = inner & ~ndimage.binary_erosion(inner)
    rows, columns = (axis - 1 for axis in np.nonzero(edge))
    height, width = field.shape
    own = (rows > 1) & (rows < height - 2) & (columns > 1) & (columns < width - 2)
    y, x = rows[own].astype(float), columns[own].astype(float)
    if len(y) < 40:
        return None
    scale = max(height, width)
    y, x = y / scale - 0.5, x / scale - 0.5
    keep = np.ones(len(y), bool)
    result = None
    for _ in range(8):
        # A circle that may be squeezed a little, x^2 + y^2 + k y^2 + cx x + cy y + c0 = 0; the ridge holds k near 0.
        terms = np.stack([y**2, x, y, np.ones_like(x)], axis=1)[keep]
        ridge = np.array([[0.005 * np.sqrt(keep.sum()), 0, 0, 0]])
        target = np.append(-(x**2 + y**2)[keep], 0.0)
        k, cx, cy, c0 = np.linalg.lstsq(np.concatenate([terms, ridge]), target, rcond=None)[0]
        if k <= -0.5 or k > 1:
            return None
        centre_x, centre_y = -cx / 2, -cy / (2 * (1 + k))
        square = centre_x**2 + (1 + k) * centre_y**2 - c0
        if square <= 0:
            return None
        radius = np.sqrt(square)
        result = np.array([centre_y, centre_x, radius / np.sqrt(1 + k), radius])
        distance = np.abs(np.sqrt((x - centre_x) ** 2 + (1 + k) * (y - centre_y) ** 2) - radius)
        tight = distance <= max(2.5 * float(np.median(distance[keep])), 1.5 / scale)
        if tight.sum() < 40 or (tight == keep).all():
            break
        keep = tight
    return None if result is None else (result + np.array([0.5, 0.5, 0, 0])) * scale


def _draw_ellipse(ellipse: NDArray[np.float64], field: Mask, shape: tuple[int, ...], factor: int) -> Mask:
    """The ellipse at full size, cut to the rows and columns that the field reaches (lens shapes), one pixel smaller."""
    row, column, a, b = ellipse * factor
    y, x = np.ogrid[: shape[0], : shape[1]]
    inside: Mask = ((y - row) / max(a - 1, 1)) ** 2 + ((x - column) / max(b - 1, 1)) ** 2 <= 1
    for axis, size in enumerate(shape):
        reached = np.flatnonzero(field.any(axis=1 - axis))
        first, last = int(reached[0]) * factor, (int(reached[-1]) + 1) * factor
        first, last = 0 if reached[0] <= 1 else first, size if reached[-1] >= field.shape[axis] - 2 else last
        index = np.expand_dims(np.arange(size), 1 - axis)
        inside &= (index >= first) & (index < last)
    return inside


def _overlap(one: Mask, other: Mask) -> float:
    """Intersection over union."""
    return float((one & other).sum() / max((one | other).sum(), 1))
