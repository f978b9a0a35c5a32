"""The round field of a fundus camera, whatever its surround looks like: found by its edge, not by darkness.

Rays run inward from the frame's sides, or from straight bars along them. Where a ray's colour first steps, and where it
steps most, may be the field's edge. Circles and upright ellipses through random triples and quadruples of these points
are ranked by how many of the rays that ought to cross them do so. The best are drawn to the steepest change along their
own normals and fitted again, robustly. One is believed if most of its visible arc is a sharp step: vignetting is slow,
and lesions, vessels and flare do not lie on one large ellipse. Otherwise the whole frame is the field.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medenhance_dicom.masks.reduced import Reduced

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]
Points = NDArray[np.float64]
Ellipse = NDArray[np.float64]
"""Centre row, centre column, half height, half width, in reduced pixels."""

DARKEST = 0.01  # added before the square root: what a step in the dark counts beside one in the light
STEP = 0.03  # of sqrt(value + DARKEST) is an edge; more where the surround is noisy
RUN = 3  # reduced pixels on each side of an edge that are averaged
RAYS = 96  # from each side
EARLY = 0.12  # of the longer side from where its ray starts a point may be on one of four small arcs in the corners
ROUNDS = 400  # of random triples, and twice as many quadruples
ANGLES = np.arange(256) * (2 * np.pi / 256)
NEAR = 0.008  # of the longer side: a point this near lies on an ellipse
SMALLEST = 0.25  # half axes, of the shorter side
LEAST_SUPPORT = 0.6  # of the visible arc is a sharp step
MOST_EARLY = 0.5  # of the rays that start outside step before they reach the field: writing, noise
LEAST_ARC = 0.05  # of the whole ellipse is visible
CANDIDATES = 3
BAR = 0.3  # of a row's pixels step at once where a bar ends; a round edge's tangent does so in a fifth
WHOLE_SIDE = 0.9  # of a straight side steps, where there is no ellipse
CHORD = 0.7  # of an ellipse's chord steps at once where the field is cut
CLEAR = 4  # reduced pixels from the ellipse's edge: a step here is not that edge


@dataclass(frozen=True)
class RoundField:
    """An ellipse, cut by a rectangle."""

    ellipse: tuple[float, float, float, float] | None
    """Centre row, centre column, half height, half width, in pixels of the frame; None: the rectangle alone."""
    top: int
    bottom: int
    """Rows top..bottom - 1 belong to it."""
    left: int
    right: int

    def mask(self, shape: tuple[int, int]) -> Mask:
        """A bool (H, W); the ellipse is drawn one pixel smaller, since its edge pixels are half surround."""
        inside = np.zeros(shape, bool)
        inside[self.top : self.bottom, self.left : self.right] = True
        if self.ellipse is not None:
            row, column, a, b = self.ellipse
            y, x = np.ogrid[: shape[0], : shape[1]]
            inside &= ((y - row) / max(a - 1, 1)) ** 2 + ((x - column) / max(b - 1, 1)) ** 2 <= 1
        return inside


def find_round_field(frame: Unit) -> RoundField | None:
    """The round field of a frame (H, W, C) in [0, 1]; None where nothing tells a field from a surround."""
    reduced = Reduced.of(frame)
    sense = ndimage.gaussian_filter(np.sqrt(reduced.picture + np.float32(DARKEST)), (0.8, 0.8, 0), mode="nearest")
    box = _without_bars(sense)
    top, bottom, left, right = box
    inner = sense[top:bottom, left:right]
    points, rays, step = _edge_points(inner)
    best: tuple[float, Ellipse | None] = (0.0, None)
    for candidate in _candidates(points, rays, inner.shape[:2]):
        ellipse = candidate
        for reach in (8, 5, 3, 3):
            drawn = _drawn_to_the_edge(inner, ellipse, 0.8 * step, reach * max(inner.shape[:2]) / reduced.side)
            if drawn is None:
                break
            ellipse = drawn
        else:
            support, arc = _support(inner, ellipse, 0.8 * step)
            if _is_field(ellipse, inner.shape[:2], points, rays) and support >= LEAST_SUPPORT and arc >= LEAST_ARC:
                best = max(best, (support**3 * arc**0.5, ellipse), key=lambda scored: scored[0])
    found = best[1]
    if found is None:
        if not _is_framed(sense, box):
            return None
        return RoundField(None, *_full(box, sense.shape[:2], reduced.factor, frame.shape[:2]))
    found = found + np.array([top, left, 0, 0])
    box = _cut(sense, found, 0.8 * step)
    factor = reduced.factor
    row, column, a, b = (float(v) for v in found * factor + np.array([1, 1, 0, 0]) * (factor - 1) / 2)
    return RoundField((row, column, a, b), *_full(box, sense.shape[:2], factor, frame.shape[:2]))


def _full(
    box: tuple[int, int, int, int], small: tuple[int, ...], factor: int, shape: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """A box of the reduced frame in pixels of the frame."""
    top, bottom, left, right = (edge * factor for edge in box)
    return (
        top,
        shape[0] if box[1] == small[0] else bottom,
        left,
        shape[1] if box[3] == small[1] else right,
    )


def _steps(values: NDArray[np.float32], run: int) -> NDArray[np.float64]:
    """How much the means of `run` samples before and after a place differ, in the channel that differs most.

    Args:
        values: (..., n, C).
        run: samples.

    Returns:
        (..., n - 2 run + 1); the first lies between samples run - 1 and run.
    """
    sums = np.cumsum(values, axis=-2, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(sums[..., :1, :]), sums], axis=-2)
    before = sums[..., run:-run, :] - sums[..., : -2 * run, :]
    after = sums[..., 2 * run :, :] - sums[..., run:-run, :]
    steps: NDArray[np.float64] = np.abs(after - before).max(axis=-1) / run
    return steps


def _without_bars(sense: Unit) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the frame without flat bars along its sides that end in a straight step."""
    edges = []
    for turned in (sense, sense.transpose(1, 0, 2)):
        across = _steps(turned.transpose(1, 0, 2), 2).T  # (n - 3, m), step between rows k + 1 and k + 2
        along = _steps(turned, RUN)
        least = max(STEP, 4 * float(np.median(across)))
        flat = (along < 2 * least).mean(axis=1) > 0.98
        ends = []
        for backwards in (False, True):
            level = flat[::-1] if backwards else flat
            shares = (across > least).mean(axis=1)
            shares = shares[::-1] if backwards else shares
            run = len(level) if level.all() else int(level.argmin())  # rows from the side on that are flat
            reach = min(run + 4, len(shares) - 1, len(level) // 2)
            place = int(shares[:reach].argmax()) if reach > 0 else 0
            ends.append(place + 2 if reach > 0 and shares[place] >= BAR else 0)
        edges += [ends[0], turned.shape[0] - ends[1]]
    top, bottom, left, right = edges
    if bottom - top < sense.shape[0] // 4 or right - left < sense.shape[1] // 4:
        return 0, sense.shape[0], 0, sense.shape[1]
    return top, bottom, left, right


def _is_framed(sense: Unit, box: tuple[int, int, int, int]) -> bool:
    """Whether the picture ends along the whole of each side of the box that is not the frame's, and there is one."""
    top, bottom, left, right = box
    sides = []
    for lines, first, last in (
        (sense[:, left:right], top, bottom),
        (sense[top:bottom].transpose(1, 0, 2), left, right),
    ):
        steps = _steps(lines.transpose(1, 0, 2), 2).T
        sides += [steps[edge - 2] for edge in (first, last) if 2 <= edge <= len(steps) + 1]
    return bool(sides) and all((side > STEP).mean() > WHOLE_SIDE for side in sides)


def _edge_points(sense: Unit) -> tuple[Points, NDArray[np.intp], float]:
    """Points (n, 2) where rays from the sides to the middle step first and most, their rays; what counts as a step."""
    height, width = sense.shape[:2]
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    start = _starts((height, width))
    length = np.hypot(*(middle - start).T)
    travelled = np.arange(int(0.9 * length.max()) + 1) / length[:, None]
    places = start[:, None] + (middle - start)[:, None] * np.minimum(travelled, 0.9)[..., None]
    row, column = np.round(places).astype(int).transpose(2, 0, 1)
    steps = _steps(sense[row, column], RUN)
    noise = float(np.median(steps[:, : max(4, steps.shape[1] // 25)]))
    least = max(STEP, 4 * noise)
    peak = (steps >= ndimage.maximum_filter1d(steps, 2 * RUN + 1, axis=1)) & (steps > least)
    crossed = np.flatnonzero(peak.any(axis=1))
    at = np.concatenate([peak[crossed].argmax(axis=1), steps[crossed].argmax(axis=1)]) + RUN - 0.5
    rays = np.concatenate([crossed, crossed])
    points = start[rays] + (middle - start[rays]) * (at / length[rays])[:, None]
    return points, rays, least


def _candidates(points: Points, rays: NDArray[np.intp], shape: tuple[int, ...]) -> list[Ellipse]:
    """The ellipses that the largest part of the rays that start outside them cross, (n, 4); seeded."""
    if len(points) < 16:
        return []
    rng = np.random.default_rng(0)
    scale = max(shape)
    middle = np.array([shape[0] / 2, shape[1] / 2])
    y, x = ((points - middle) / scale).T
    found: list[Ellipse] = []
    everywhere = np.arange(len(points))
    early = np.flatnonzero(np.hypot(*(points - _starts(shape)[rays]).T) < EARLY * scale)
    for pool, squeezed, rounds in ((everywhere, False, ROUNDS), (early, False, ROUNDS), (everywhere, True, 2 * ROUNDS)):
        if len(pool) < 16:
            continue
        pick = pool[rng.integers(0, len(pool), (rounds, 4 if squeezed else 3))]
        ellipses = _through(y[pick], x[pick], squeezed)
        half = ellipses[:, 2:]
        sane = (half.min(axis=1) > SMALLEST * min(shape) / scale) & (half.max(axis=1) < 1.2)
        ellipses = ellipses[sane & (np.abs(ellipses[:, :2]) < 0.6).all(axis=1)]
        if not len(ellipses):
            continue
        near = np.abs(_distances(ellipses, y, x)) < NEAR
        ray_count = len(near[0]) // 2
        crossed = (near[:, :ray_count] | near[:, ray_count:]).sum(axis=1)
        outside = _starting_outside(ellipses, shape)
        rank = np.where(crossed >= 8, crossed**1.5 / np.maximum(outside, crossed), 0)
        for _ in range(CANDIDATES):
            best = int(rank.argmax())
            if rank[best] <= 0:
                break
            found.append(ellipses[best] * scale + np.array([*middle, 0, 0]))
            rank[np.abs(ellipses - ellipses[best]).max(axis=1) < 0.03] = 0
    return found


def _is_field(ellipse: Ellipse, shape: tuple[int, ...], points: Points, rays: NDArray[np.intp]) -> bool:
    """Whether it is large, and few rays step before they reach it: outside a disc there are vessels."""
    if min(ellipse[2:]) < SMALLEST * min(shape):
        return False
    count = len(rays) // 2
    early = _distances(ellipse[None], *points[:count].T)[0] > 2 * NEAR * max(shape)
    outside = _starts(shape)[rays[:count]]
    started = _distances(ellipse[None], *outside.T)[0] > 2 * NEAR * max(shape)
    return bool((early & started).sum() <= MOST_EARLY * max(started.sum(), 1))


def _starting_outside(ellipses: Points, shape: tuple[int, ...]) -> NDArray[np.intp]:
    """How many rays start outside each of (n, 4) ellipses; their unit is the longer side, their origin the middle."""
    y, x = ((_starts(shape) - np.array(shape) / 2) / max(shape)).T
    count: NDArray[np.intp] = (_distances(ellipses, y, x) > 0).sum(axis=1)
    return count


def _starts(shape: tuple[int, ...]) -> Points:
    """Where the rays start, (4 RAYS, 2): along the top, the bottom, the left and the right side."""
    height, width = shape
    share = (np.arange(RAYS) + 0.5) / RAYS
    zero, one = np.zeros(RAYS), np.ones(RAYS)
    sides = ((zero, share), (one, share), (share, zero), (share, one))
    return np.concatenate([np.stack([y * (height - 1), x * (width - 1)], axis=1) for y, x in sides])


def _through(y: Points, x: Points, squeezed: bool) -> Points:
    """Circles through (n, 3) or upright ellipses through (n, 4) points: (m, 4), those that are none left out.

    x^2 + y^2 + c0 x + c1 y + c2 + k y^2 = 0, and k = 0 for circles.
    """
    terms = [x, y, np.ones_like(x)] + ([y**2] if squeezed else [])
    matrix = np.stack(terms, axis=-1)
    sound = np.abs(np.linalg.det(matrix)) > 1e-9
    matrix, y, x = matrix[sound], y[sound], x[sound]
    solved = np.linalg.solve(matrix, -(x**2 + y**2)[..., None])[..., 0]
    k = solved[:, 3] if squeezed else np.zeros(len(solved))
    return _ellipses(k[(k > -0.5) & (k < 1.2)], *solved[(k > -0.5) & (k < 1.2), :3].T)


def _ellipses(k: Points, c0: Points, c1: Points, c2: Points) -> Points:
    """(n, 4) of the coefficients of `_through`; those without points left out."""
    column, row = -c0 / 2, -c1 / (2 * (1 + k))
    square = column**2 + (1 + k) * row**2 - c2
    real = square > 0
    half = np.sqrt(square[real])
    return np.stack([row[real], column[real], half / np.sqrt(1 + k[real]), half], axis=1)


def _distances(ellipses: Points, y: Points, x: Points) -> Points:
    """Signed distances of n points from m ellipses along rays from the centre, (m, n); outside positive."""
    row, column, a, b = (ellipses[:, i : i + 1] for i in range(4))
    distances: Points = (np.hypot((y - row) / a, (x - column) / b) - 1) * np.sqrt(a * b)
    return distances


def _along_normals(sense: Unit, ellipse: Ellipse, offsets: Points) -> tuple[NDArray[np.float32], Mask]:
    """Samples (angles, offsets, C) beside an ellipse, and whether they lie in the frame."""
    height, width = sense.shape[:2]
    row, column, a, b = ellipse
    y = row + (a + offsets) * np.sin(ANGLES)[:, None]
    x = column + (b + offsets) * np.cos(ANGLES)[:, None]
    seen = (y >= -0.5) & (y <= height - 0.5) & (x >= -0.5) & (x <= width - 0.5)
    y, x = np.clip(np.round(y), 0, height - 1).astype(int), np.clip(np.round(x), 0, width - 1).astype(int)
    return sense[y, x], seen


def _drawn_to_the_edge(sense: Unit, ellipse: Ellipse, least: float, reach: float) -> Ellipse | None:
    """The ellipse through the steepest places within `reach` of another; None where too few are steep."""
    run = 5
    offsets = np.arange(-reach - 3, reach + 3.01, 0.5)
    values, seen = _along_normals(sense, ellipse, offsets)
    steps = _steps(values, run)
    places = offsets[run - 1 : run - 1 + steps.shape[1]] + 0.25
    usable = seen[:, : steps.shape[1]] & seen[:, 2 * run - 1 :] & (np.abs(places) <= reach)
    steps = np.where(usable, steps, 0)
    at = steps.argmax(axis=1)
    angles = np.arange(len(ANGLES))
    steep = steps[angles, at] > least
    if steep.sum() < 12:
        return None
    middle = np.clip(at, 1, steps.shape[1] - 2)
    left, here, right = (steps[angles, middle + i] for i in (-1, 0, 1))
    bend = left - 2 * here + right
    part = np.divide(left - right, 2 * bend, out=np.zeros_like(bend), where=bend < -1e-9)
    moved = places[middle] + 0.5 * np.clip(part, -1, 1)
    y = ellipse[0] + (ellipse[2] + moved) * np.sin(ANGLES)
    x = ellipse[1] + (ellipse[3] + moved) * np.cos(ANGLES)
    return _fitted(y[steep], x[steep], sense.shape[:2])


def _fitted(y: Points, x: Points, shape: tuple[int, ...]) -> Ellipse | None:
    """An upright ellipse through points, near a circle where they leave it open; Tukey's weights, in rounds."""
    scale, middle = max(shape), np.array([shape[0] / 2, shape[1] / 2])
    y, x = (y - middle[0]) / scale, (x - middle[1]) / scale
    weight = np.ones(len(y))
    result = None
    for _ in range(8):
        root = np.sqrt(weight)
        terms = np.stack([y**2, x, y, np.ones_like(x)], axis=1) * root[:, None]
        ridge = np.array([[0.005 * np.sqrt(weight.sum()), 0, 0, 0]])
        target = np.append(-(x**2 + y**2) * root, 0.0)
        k, *rest = np.linalg.lstsq(np.concatenate([terms, ridge]), target, rcond=None)[0]
        if not -0.5 < k < 1.2:
            return None
        fits = _ellipses(np.array([k]), *(np.array([c]) for c in rest))
        if not len(fits):
            return None
        result = fits[0]
        distance = np.abs(_distances(fits, y, x)[0])
        spread = max(1.4826 * float(np.median(distance)), 0.3 / scale)
        weight = np.clip(1 - (distance / (4 * spread)) ** 2, 0, None) ** 2
        if (weight > 0).sum() < 10:
            return None
    return None if result is None else result * scale + np.array([*middle, 0, 0])


def _support(sense: Unit, ellipse: Ellipse, least: float) -> tuple[float, float]:
    """Share of the visible arc that is a sharp step, and share of the ellipse that is visible."""
    unit = max(2.0, 0.008 * max(sense.shape[:2]))
    values, seen = _along_normals(sense, ellipse, unit * np.array([-3, -1, 1, 3]))
    visible = seen[:, 2]
    if visible.sum() < 12:
        return 0.0, 0.0
    deep, inside, outside, far = values.transpose(1, 0, 2)
    step = np.abs(inside - outside)
    channel, angles = step.argmax(axis=1), np.arange(len(step))
    beyond = np.where(seen[:, 3, None], np.abs(outside - far), 0)
    slope = np.maximum(np.abs(inside - deep), beyond)[angles, channel]
    sharp = (step[angles, channel] > least) & (step[angles, channel] > 1.2 * slope)
    return float((sharp & visible).sum() / visible.sum()), float(visible.mean())


def _cut(sense: Unit, ellipse: Ellipse, least: float) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the straight cuts through an ellipse, else of the frame.

    A cut is a step along nearly a whole chord, too far from the ellipse's own edge to be it, with flat surround beyond.
    """
    y, x = np.ogrid[: sense.shape[0], : sense.shape[1]]
    row, column, a, b = ellipse
    deep = ((y - row) / (a - CLEAR)) ** 2 + ((x - column) / (b - CLEAR)) ** 2 <= 1
    edges = []
    for turned, within in ((sense, deep), (sense.transpose(1, 0, 2), deep.T)):
        across = _steps(turned.transpose(1, 0, 2), 2).T  # (n - 3, m), between rows k + 1 and k + 2
        chord = within[1:-2] & within[2:-1]
        length = chord.sum(axis=1)
        share = ((across > least) & chord).sum(axis=1) / np.maximum(length, 1)
        beside = np.pad(across, ((3, 3), (0, 0)), mode="edge")
        here, before, after = ((step * chord).sum(axis=1) for step in (across, beside[:-6], beside[6:]))
        share[here < 2 * np.maximum(before, after)] = 0  # a slope
        flat = ((_steps(turned, 2) < 2 * least) | ~within[:, 2:-1]).mean(axis=1) > 0.98
        cuts = []
        for backwards in (False, True):
            shares, lengths, level = (v[::-1] if backwards else v for v in (share, length, flat))
            third = len(shares) // 3
            places = np.flatnonzero((shares[:third] >= CHORD) & (lengths[:third] >= 20))
            sound = [int(k) for k in places if level[: max(0, k - 1)].all()]
            cuts.append(max(sound, key=lambda k: shares[k]) + 2 if sound else 0)
        edges += [cuts[0], turned.shape[0] - cuts[1]]
    return edges[0], edges[1], edges[2], edges[3]
