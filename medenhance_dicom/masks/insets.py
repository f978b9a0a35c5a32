"""Pictures within the picture: position panels of endoscopes, other views, blotted-out boxes. They stay as they are.

Two rules, each of which adds to the mask. A corner of the picture that is set off by two straight edges, one upright
and one level, which meet; whatever it shows. And, anywhere, a full rectangle of colours that no body has: greener or
bluer than red, as the green panels that show an endoscope's course. Bluish light fills the whole field, and dye and
plastic have no four straight sides: those are no insets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medenhance_dicom.masks.reduced import Reduced

Unit = NDArray[np.float32]
Shares = NDArray[np.float64]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""First and last row (excluded), first and last column (excluded)."""

DARKEST = 0.01  # added before the square root, in which edges are measured
STEP = 0.07  # of sqrt(value + DARKEST) is an edge
STRAIGHT = 0.85  # of a side's pixels are an edge
APART = 5  # reduced pixels beside an edge
ALONE = 0.35  # more of an edge's pixels step than beside it
SHORTEST, LONGEST = 0.1, 0.6  # sides of a corner, of the picture's
COLD = 0.06  # more green or blue than red: no colour of a body
SIDES = 0.6  # of the sides of such a rectangle are edges
FULL = 0.8  # of a rectangle has such colours
LEAST, MOST = 0.004, 0.3  # area of a coloured rectangle, of the frame
SQUARE = np.ones((3, 3), bool)


def insets(frame: Unit) -> Mask:
    """Where the insets of a colour picture are.

    Args:
        frame: float32 (H, W, C) in [0, 1]; grey pictures have corners, but no coloured rectangles.

    Returns:
        bool (H, W), True in insets, with a margin of half a hundredth of the frame.
    """
    found = np.zeros(frame.shape[:2], bool)
    if min(frame.shape[:2]) < 64:
        return found
    reduced = Reduced.of(frame)
    f = reduced.factor
    for top, bottom, left, right in (*_corners(reduced.picture), *_cold_rectangles(reduced.picture)):
        found[max(0, top - 2) * f : (bottom + 2) * f, max(0, left - 2) * f : (right + 2) * f] = True
    return found


def _corners(picture: Unit) -> list[Box]:
    """Boxes that two straight edges set off in the corners of the lit part of the picture, out to the frame's sides."""
    top, bottom, left, right = _lit(picture)
    part = picture[top:bottom, left:right]
    height, width = part.shape[:2]
    if min(height, width) < 32:
        return []
    sense = np.sqrt(part + np.float32(DARKEST))
    upright = _edges(sense.transpose(1, 0, 2)).T
    level = _edges(sense)
    boxes = []
    for down in (False, True):
        for across in (False, True):
            turned = (slice(None, None, -1 if down else 1), slice(None, None, -1 if across else 1))
            size = _corner(upright[turned], level[turned])
            if size is not None:
                rows = (bottom - size[0], picture.shape[0]) if down else (0, top + size[0])
                columns = (right - size[1], picture.shape[1]) if across else (0, left + size[1])
                boxes.append((*rows, *columns))
    return boxes


def _corner(upright: Mask, level: Mask) -> tuple[int, int] | None:
    """Rows and columns of the box at the upper left whose right side is an upright and whose lower side a level edge.

    Args:
        upright: (h, w), True where an upright edge lies just before this column.
        level: (h, w), True where a level edge lies just before this row.
    """
    height, width = upright.shape
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    # The first `rows` pixels of an edge along a column, and the first `columns` pixels of one along a row.
    along_column = (np.cumsum(upright, axis=0) - upright) / np.maximum(rows, 1)
    along_row = (np.cumsum(level, axis=1) - level) / np.maximum(columns, 1)
    share = np.minimum(along_column - _beside(along_column, 1), along_row - _beside(along_row, 0))
    share[np.minimum(along_column, along_row) < STRAIGHT] = 0
    sound = (rows >= SHORTEST * height) & (rows <= LONGEST * height)
    sound = sound & (columns >= SHORTEST * width) & (columns <= LONGEST * width)
    share[~sound] = 0
    at = np.unravel_index(int(share.argmax()), share.shape)
    return (int(at[0]), int(at[1])) if share[at] >= ALONE else None


def _beside(share: Shares, axis: int) -> Shares:
    """The larger of what stands `APART` before and after each place along an axis: high where all is rough."""
    padded = np.pad(share, [(APART, APART) if n == axis else (0, 0) for n in (0, 1)])
    before, after = (padded[s:, :] if axis == 0 else padded[:, s:] for s in (0, 2 * APART))
    larger: Shares = np.maximum(before[: share.shape[0], : share.shape[1]], after)
    return larger


def _edges(sense: Unit) -> Mask:
    """(n, m), True where the colour steps between rows n - 1 and n, or within a row of there."""
    padded = np.pad(sense, ((2, 1), (0, 0), (0, 0)), mode="edge")
    before, after = (padded[:-3] + padded[1:-2]) / 2, (padded[2:-1] + padded[3:]) / 2
    steps = np.abs(after - before).max(axis=2) > STEP
    near: Mask = ndimage.maximum_filter1d(steps, 3, axis=0)
    return near


def _lit(picture: Unit) -> Box:
    """The bounding box of what is not black."""
    bright = picture.max(axis=2) > 0.12
    rows, columns = (np.flatnonzero(bright.mean(axis=axis) > 0.05) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return 0, picture.shape[0], 0, picture.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _cold_rectangles(picture: Unit) -> list[Box]:
    """Boxes that are filled with colours greener or bluer than red."""
    if picture.shape[2] < 3:
        return []
    cold = picture[..., 1:3].max(axis=2) - picture[..., 0] > COLD
    cold = ndimage.binary_closing(np.pad(cold, 4), SQUARE, iterations=2)
    cold = ndimage.binary_opening(cold, SQUARE, iterations=3)[4:-4, 4:-4]
    sense = np.sqrt(picture + np.float32(DARKEST))
    level, upright = _edges(sense), _edges(sense.transpose(1, 0, 2)).T
    labels, _ = ndimage.label(cold)
    boxes = []
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[box] == number
        size = inside.size / labels.size
        if LEAST <= size <= MOST and ndimage.binary_fill_holes(inside).mean() >= FULL:
            bounds = box[0].start, box[0].stop, box[1].start, box[1].stop
            if _has_sides(bounds, level, upright):
                boxes.append(bounds)
    return boxes


def _has_sides(box: Box, level: Mask, upright: Mask) -> bool:
    """Whether all sides of a box that are not at the frame's are edges."""
    top, bottom, left, right = box
    height, width = level.shape
    shares = [level[row, left:right].mean() for row in (top, bottom) if 3 < row < height - 3]
    shares += [upright[top:bottom, column].mean() for column in (left, right) if 3 < column < width - 3]
    return min(shares, default=0) >= SIDES
