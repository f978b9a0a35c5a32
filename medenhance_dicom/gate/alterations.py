"""Altered structure with a known place, to measure what the gate catches.

Each alteration takes an honest pair, the source before and the enhanced picture after, and gives an altered pair with
the mask of what was altered. Sizes are in pixels of a picture whose longer side has 384. Contrasts are shares of the
range: a lesion of contrast 0.2 changes luminance by 0.2 at its centre, one of colour alone a* and b* by 20 of the 100
that L* has (CIELAB, D65).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter, map_coordinates

from medenhance_dicom.lassim import GREY

__all__ = ["COLOUR_ONLY", "KINDS", "SIZES", "Altered", "alter"]

Unit = NDArray[np.float32]
Plane = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

SCALE = 384
LESION_CONTRAST = (0.10, 0.30)
VESSEL_CONTRAST = 0.05  # of the picture that loses it; a shallower segment is not taken
GLARE = 0.95  # luminance; what touches it is no vessel
SEGMENT = 2.5  # pixels to either side of its middle
COLOUR_CONTRAST = (0.10, 0.25)  # of a lesion of colour alone: distance in a*, b* over 100
EQUAL_LIGHT = 2.0  # in L*, on average: more is a lesion of luminance
HUES = {"red": 30.0, "yellow": 90.0, "bluish": 260.0, "pale": None}
"""Tint of a lesion of colour alone -> its angle in the a*, b* plane in degrees, give or take 15; None: towards grey."""
TEXTURE_CONTRAST = (0.03, 0.08)  # root mean square
VISIBLE = 0.03
"""Mean absolute change: a patch swapped for its like, or an evenly grey one inverted, alters nothing. As much has a
segment to stand out of the other picture."""
KEPT = 0.9  # of a lesion's contrast is left where black and white bound it
WARP_SMOOTHNESS = 24.0
TRIES = 60
NOTHING = 1e-4  # of a disk's weight
TINTS = {
    1: ((1.0, 1.0, 1.0), (1.0, 1.05, 0.45)),  # brighter: white, yellowish as exudates
    -1: ((1.0, 1.0, 1.0), (0.55, 1.15, 0.9)),  # darker: grey, reddish as haemorrhages
}


@dataclass(frozen=True)
class Altered:
    """An altered pair."""

    kind: str
    before: Unit
    """(H, W, C) in [0, 1]."""
    after: Unit
    truth: Mask
    """(H, W), what was altered."""
    size: float
    """Radius, length or shift in pixels at 384; see `SIZES`."""
    contrast: float
    """What was really changed, as a share of the range; 0 where it does not apply."""


@dataclass(frozen=True)
class _Scene:
    before: Unit
    after: Unit
    inside: Mask
    rng: np.random.Generator
    contrast: float | None = None

    @property
    def unit(self) -> float:
        """Pixels of this picture per pixel at 384."""
        return max(self.inside.shape) / SCALE

    def places(self, margin: float) -> NDArray[np.intp]:
        """(n, 2) centres, in random order, at least `margin` pixels inside."""
        depth = distance_transform_edt(np.pad(self.inside, 1))[1:-1, 1:-1]
        found = np.argwhere(depth > margin)
        return self.rng.permutation(found)[:TRIES] if len(found) else found

    def within(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high)) if self.contrast is None else self.contrast


def alter(
    kind: str,
    before: Unit,
    after: Unit,
    size: float,
    rng: np.random.Generator,
    *,
    inside: Mask | None = None,
    contrast: float | None = None,
) -> Altered | None:
    """Alter an honest pair at a random place.

    Args:
        kind: A key of `KINDS`.
        before: The source, (H, W, C) in [0, 1], C = 1 or 3 (RGB).
        after: What an honest enhancement made of it, the same shape.
        size: In pixels at 384, see `SIZES`.
        rng: Decides on place, sign, tint and contrast.
        inside: (H, W), where something may be altered; None: everywhere.
        contrast: Of lesions and textures; None: drawn evenly from the ranges above.

    Returns:
        None where no place fits: nothing to erase, or no room for the size or the contrast.

    Raises:
        KeyError: No such kind.
    """
    everywhere = np.ones(before.shape[:2], bool) if inside is None else inside
    return KINDS[kind](_Scene(before, after, everywhere, rng, contrast), float(size))


def invented_lesion(scene: _Scene, radius: float) -> Altered | None:
    """A soft-edged disk appears in the result."""
    found = _with_lesion(scene, scene.after, radius)
    return None if found is None else Altered("invented lesion", scene.before, found[0], found[1], radius, found[2])


def erased_lesion(scene: _Scene, radius: float) -> Altered | None:
    """The source has a lesion, and the result is the enhancement of the source without it."""
    found = _with_lesion(scene, scene.before, radius)
    return None if found is None else Altered("erased lesion", found[0], scene.after, found[1], radius, found[2])


def recoloured_lesion(scene: _Scene, radius: float) -> Altered | None:
    """A soft-edged disk of the result changes its colour (see `HUES`) and keeps its L*."""
    found = _with_colour(scene, scene.after, radius)
    return None if found is None else Altered("recoloured lesion", scene.before, found[0], found[1], radius, found[2])


def faded_lesion(scene: _Scene, radius: float) -> Altered | None:
    """The source has a disk of another colour, and the result is the enhancement of the source without it."""
    found = _with_colour(scene, scene.before, radius)
    return None if found is None else Altered("faded lesion", found[0], scene.after, found[1], radius, found[2])


def erased_vessel(scene: _Scene, length: float) -> Altered | None:
    """A segment of a vessel or nerve that both pictures show is filled from beside it in the result."""
    found = _without_segment(scene, scene.after, scene.before, length)
    return None if found is None else Altered("erased vessel", scene.before, found[0], found[1], length, found[2])


def added_vessel(scene: _Scene, length: float) -> Altered | None:
    """The result has a segment that the source lacks: it is filled from beside it there."""
    found = _without_segment(scene, scene.before, scene.after, length)
    return None if found is None else Altered("added vessel", found[0], scene.after, found[1], length, found[2])


def warp(scene: _Scene, shift: float) -> Altered:
    """A smooth random displacement of the result, `shift` pixels at most."""
    shape = scene.inside.shape
    fields = [gaussian_filter(scene.rng.standard_normal(shape), WARP_SMOOTHNESS * scene.unit) for _ in range(2)]
    longest = np.hypot(*fields)[scene.inside].max()
    moves = [field * (shift * scene.unit / longest) for field in fields]
    grid = np.mgrid[: shape[0], : shape[1]]
    where = [g + m for g, m in zip(grid, moves, strict=True)]
    planes = [map_coordinates(scene.after[..., c], where, order=3, mode="nearest") for c in range(scene.after.shape[2])]
    moved = np.clip(np.stack(planes, axis=-1), 0, 1)
    truth = scene.inside & (np.hypot(*moves) > 0.5 * shift * scene.unit)
    return Altered("warp", scene.before, _only(scene, moved), truth, shift, 0.0)


def inversion(scene: _Scene, _: float) -> Altered:
    """White for black in all of the result."""
    return Altered("inversion", scene.before, _only(scene, 1 - scene.after), scene.inside, 0.0, 0.0)


def inverted_region(scene: _Scene, radius: float) -> Altered | None:
    """Local contrast changes its sign in a disk; its mean tone stays."""
    disk = _disk_somewhere(scene, radius)
    if disk is None:
        return None
    sigma = (radius * scene.unit / 2,) * 2 + (0,)
    inverted = 2 * gaussian_filter(scene.after, sigma) - scene.after
    if np.abs(luminance(inverted) - luminance(scene.after))[disk > 0.5].mean() < VISIBLE:
        return None
    return _blended("inverted region", scene, inverted, disk, radius)


def swapped_patch(scene: _Scene, radius: float) -> Altered | None:
    """A disk of the result shows another part of the result."""
    places = scene.places(radius * scene.unit + 2)
    for there, here in zip(places[::2], places[1::2], strict=False):
        disk = _disk(scene, here, radius)
        moved = np.roll(scene.after, tuple(here - there), (0, 1))
        if np.abs(luminance(moved) - luminance(scene.after))[disk > 0.5].mean() > VISIBLE:
            return _blended("swapped patch", scene, moved, disk, radius)
    return None


def invented_texture(scene: _Scene, radius: float) -> Altered | None:
    """Fine texture appears in a disk of the result."""
    disk = _disk_somewhere(scene, radius)
    if disk is None:
        return None
    noise = scene.rng.standard_normal(disk.shape)
    sigma = scene.rng.uniform(0.8, 1.6) * scene.unit
    texture = gaussian_filter(noise, sigma) - gaussian_filter(noise, 3 * sigma)
    strength = scene.within(*TEXTURE_CONTRAST)
    changed = scene.after + (strength / texture.std() * texture)[..., None]
    return _blended("invented texture", scene, changed, disk, radius, strength)


COLOUR_ONLY = ("recoloured lesion", "faded lesion")
"""Kinds that leave luminance as it is, which grey frames cannot have."""
KINDS: dict[str, Callable[[_Scene, float], Altered | None]] = {
    "invented lesion": invented_lesion,
    "erased lesion": erased_lesion,
    "recoloured lesion": recoloured_lesion,
    "faded lesion": faded_lesion,
    "erased vessel": erased_vessel,
    "added vessel": added_vessel,
    "warp": warp,
    "inversion": inversion,
    "inverted region": inverted_region,
    "swapped patch": swapped_patch,
    "invented texture": invented_texture,
}
SIZES: dict[str, tuple[float, ...]] = {
    "invented lesion": (2, 3, 4, 6, 8, 12, 20),
    "erased lesion": (2, 3, 4, 6, 8, 12, 20),
    "recoloured lesion": (4, 6, 8, 12, 20),
    "faded lesion": (4, 6, 8, 12, 20),
    "erased vessel": (10, 20, 30, 40),
    "added vessel": (10, 20, 30, 40),
    "warp": (1, 1.5, 2, 3, 4),
    "inversion": (0,),
    "inverted region": (16, 24, 40),
    "swapped patch": (12, 20, 32),
    "invented texture": (12, 20, 32),
}
"""Kind -> radius of lesions, regions, patches and textures; length of segments; largest shift of warps."""


def luminance(picture: Plane) -> Plane:
    """(H, W, 1 or 3) in [0, 1] -> (H, W)."""
    return picture[..., 0] if picture.shape[2] == 1 else picture @ np.array(GREY, picture.dtype)


def _only(scene: _Scene, changed: Plane) -> Unit:
    """The result, changed where the enhancer was allowed to work."""
    return np.where(scene.inside[..., None], changed, scene.after).astype(np.float32)


def _disk(scene: _Scene, centre: NDArray[np.intp], radius: float, softness: float = 0.4) -> Unit:
    """(H, W) in [0, 1], falling from 1 to 0 over about four times `softness` pixels at 384."""
    y, x = np.ogrid[: scene.inside.shape[0], : scene.inside.shape[1]]
    away = np.hypot(y - centre[0], x - centre[1]) / scene.unit - radius
    return (1 / (1 + np.exp(np.clip(away / softness, -30, 30)))).astype(np.float32)


def _disk_somewhere(scene: _Scene, radius: float) -> Unit | None:
    places = scene.places(radius * scene.unit + 2)
    return _disk(scene, places[0], radius) if len(places) else None


def _blended(kind: str, scene: _Scene, changed: Plane, disk: Unit, size: float, contrast: float = 0.0) -> Altered:
    mixed = np.clip(scene.after + disk[..., None] * (changed - scene.after), 0, 1)
    return Altered(kind, scene.before, _only(scene, mixed), (disk > 0.5) & scene.inside, size, contrast)


def _with_lesion(scene: _Scene, picture: Unit, radius: float) -> tuple[Unit, Mask, float] | None:
    """The picture with a lesion, its mask, and the luminance that it changed on average."""
    contrast = scene.within(*LESION_CONTRAST)
    for centre in scene.places(radius * scene.unit + 2):
        sign = int(scene.rng.choice((-1, 1)))
        tint = np.ones(1) if picture.shape[2] == 1 else np.array(TINTS[sign][int(scene.rng.integers(2))])
        tint = tint / (tint @ np.array(GREY)) if len(tint) == 3 else tint
        disk = _disk(scene, centre, radius)
        changed = np.clip(picture + (sign * contrast) * disk[..., None] * tint, 0, 1).astype(np.float32)
        core = disk > 0.9
        got = float(np.abs(luminance(changed) - luminance(picture))[core].mean()) if core.any() else 0.0
        if got > KEPT * contrast * float(disk[core].mean() if core.any() else 1):
            return changed, (disk > 0.5) & scene.inside, got
    return None


def _with_colour(scene: _Scene, picture: Unit, radius: float) -> tuple[Unit, Mask, float] | None:
    """The picture with a lesion of colour alone, its mask, and how far its colour moved on average, over 100."""
    from skimage.color import lab2rgb, rgb2lab

    if picture.shape[2] == 1:
        return None
    contrast = scene.within(*COLOUR_CONTRAST)
    softness = float(scene.rng.uniform(0.3, 0.25 * radius))
    reach = int(np.ceil((radius + 12 * softness) * scene.unit))
    for centre in scene.places(radius * scene.unit + 2):
        near = tuple(slice(max(0, int(c) - reach), int(c) + reach + 1) for c in centre)
        disk = _disk(scene, centre, radius, softness)
        part, weight = picture[near].astype(np.float64), disk[near]
        lab = rgb2lab(part)
        hue = HUES[str(scene.rng.choice(list(HUES)))]
        core = weight > 0.8
        angle = np.radians(scene.rng.uniform(-15, 15) + (hue or 0))
        way = np.array((np.cos(angle), np.sin(angle))) if hue is not None else -lab[core][:, 1:].mean(0)
        if not core.any() or np.linalg.norm(way) < (0 if hue is not None else 100 * contrast):
            continue
        wanted = lab.copy()
        wanted[..., 1:] += 100 * contrast * way / np.linalg.norm(way) * weight[..., None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # some colours are none of sRGB's
            changed = lab2rgb(wanted).astype(np.float32)
        moved = (rgb2lab(changed) - lab)[core]
        got = float(np.linalg.norm(moved[:, 1:].mean(0))) / 100
        if (
            got >= max(COLOUR_CONTRAST[0], KEPT * contrast * weight[core].mean())
            and abs(moved[:, 0]).mean() <= EQUAL_LIGHT
        ):
            result = picture.copy()
            result[near] = np.where(weight[..., None] > NOTHING, changed, picture[near])
            return np.where(scene.inside[..., None], result, picture), (disk > 0.5) & scene.inside, got
    return None


def _without_segment(scene: _Scene, picture: Unit, other: Unit, length: float) -> tuple[Unit, Mask, float] | None:
    """The picture without a segment of a ridge, the segment, and how much luminance changed along its middle.

    A segment counts that the other picture shows, too: what an enhancer brought up out of nothing cannot be erased. One
    that touches glare in either is no vessel, but the rim of a reflection.
    """
    light = luminance(picture)
    sigma = 1.5 * scene.unit
    strength, across = _ridges(light, sigma, scene.inside)
    if not scene.inside.any():
        return None
    strong = np.argwhere(strength > np.quantile(strength[scene.inside], 0.95))
    for start in scene.rng.permutation(strong)[:TRIES]:
        path = _follow(strength, across, start, length * scene.unit)
        if path is None:
            continue
        middle = np.zeros_like(scene.inside)
        middle[path[:, 0], path[:, 1]] = True
        away = distance_transform_edt(~middle) / scene.unit
        near = away <= SEGMENT
        if max(float(luminance(x)[near].max()) for x in (picture, other)) > GLARE:
            continue
        changed = _filled(picture, away, scene.unit)
        depth = float(np.abs(luminance(changed) - light)[middle].mean())
        if depth < VESSEL_CONTRAST:
            continue
        if np.abs(luminance(_filled(other, away, scene.unit)) - luminance(other))[middle].mean() >= VISIBLE:
            return changed, near, depth
    return None


def _filled(picture: Unit, away: Plane, unit: float) -> Unit:
    """The picture with what lies within `SEGMENT` of a line filled from beside it; `away` (H, W) from it, at 384."""
    weight = (away > SEGMENT).astype(np.float32)
    blur = SEGMENT * unit
    total = gaussian_filter(picture * weight[..., None], (blur, blur, 0))
    filled = total / (gaussian_filter(weight, blur) + 1e-6)[..., None]
    share = np.clip(SEGMENT + 1 - away, 0, 1)[..., None]
    return (picture + share * (filled - picture)).astype(np.float32)


def _ridges(light: Plane, sigma: float, inside: Mask) -> tuple[Plane, NDArray[np.float64]]:
    """Strength of lines of the commoner sign, and the angle across them, (H, W) each; from the Hessian at `sigma`."""
    rr, rc, cc = (gaussian_filter(light, sigma, order=order) for order in ((2, 0), (1, 1), (0, 2)))
    root = np.hypot(rr - cc, 2 * rc)
    dark, bright = (rr + cc + root) / 2, -(rr + cc - root) / 2
    deep = binary_erosion(inside, iterations=max(1, round(4 * sigma)), border_value=0)
    sums = [float(np.square(np.maximum(x, 0))[deep].sum()) for x in (dark, bright)]
    angle = np.arctan2(2 * rc, rr - cc) / 2  # of the direction of the largest second derivative
    across = angle if sums[0] >= sums[1] else angle + np.pi / 2
    return np.where(deep, dark if sums[0] >= sums[1] else bright, 0), across


def _follow(strength: Plane, across: Plane, start: NDArray[np.intp], length: float) -> NDArray[np.intp] | None:
    """Pixels along a ridge from `start`, (n, 2); None where it is shorter than `length`."""
    place, path = start.astype(float), [start]
    angle = float(across[tuple(start)]) + np.pi / 2
    heading = np.array([np.cos(angle), np.sin(angle)])
    for _ in range(round(length)):
        best = None
        for turn in (-0.5, -0.25, 0, 0.25, 0.5):
            c, s = np.cos(turn), np.sin(turn)
            ahead = np.array([c * heading[0] - s * heading[1], s * heading[0] + c * heading[1]])
            at = np.rint(place + 2 * ahead).astype(np.intp)
            if ((at < 0) | (at >= strength.shape)).any():
                continue
            value = float(strength[tuple(at)])
            if best is None or value > best[0]:
                best = value, ahead
        if best is None or best[0] < 0.3 * strength[tuple(start)]:
            return None
        heading = best[1]
        place = place + heading
        path.append(np.rint(place).astype(np.intp))
    return np.clip(np.array(path), 0, np.array(strength.shape) - 1)
