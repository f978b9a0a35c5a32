"""Whether an ultrasound picture shows measurements in colour (Doppler, elastography), by its pixels.

Header flags are often wrong either way: Ultrasound Color Data Present (0028,0014) is 1 in many grey pictures with a
coloured marker, and absent in many colour Doppler pictures.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["shows_flow"]

Mask = NDArray[np.bool_]

LIT = 32 / 255  # darker pixels have no colour worth the name
GREY = 20 / 255  # the largest channel is not further above the smallest in grey tissue, JPEG included
GREY_SHARE = 0.4  # of the lit pixels, in a picture that is grey but for what is drawn and measured
TINTED = 10 / 255  # a pixel that is nearer to its level's common colour has that colour
TINTED_SHARE = 0.8  # of the lit pixels, in a picture seen through one map of tints
STRONG = 48 / 255  # beyond grey, or beyond the tint
SATURATED = 0.55  # range of the channels over the largest; tinted tissue, skin and body marks have less
SMALLEST, FEWEST = 1e-3, 64  # of the frame, and pixels
EVEN, EVEN_SHARE, FLAT = 2 / 255, 0.8, 40 / 255  # steps from pixel to pixel, and the spread of a whole patch
LEVELS, COMMON = 16, 0.05  # of grey, and the share of lit pixels from which on a level tells its tint
RING, DARKEST, TISSUE_SHARE, SPECKLE = (
    8,
    10 / 255,
    0.6,
    4 / 255,
)  # pixels around a patch that are tissue, and their spread
TWO_WAYS = 0.15  # of a patch are red, and blue
RAINBOW_SHARE, HUE_SHARE = 0.3, 0.08  # of the lit pixels, and of these
EVERYWHERE = np.ones((3, 3), bool)


def shows_flow(picture: NDArray[np.float32]) -> bool:
    """Whether there is a patch of strong, uneven colour in a picture that is grey or of one tint otherwise.

    Text, calipers, box outlines and traces are too thin; headers and logos are even in a direction, not amid speckle,
    and not red and blue; sepia and other tints of grey levels are common to the picture. One that is coloured all over
    is no ultrasound of tissue, unless in the hues of a rainbow.

    Args:
        picture: (H, W, 3), RGB in [0, 1].
    """
    largest = picture.max(axis=2)
    range_ = largest - picture.min(axis=2)
    lit = largest >= LIT
    if not lit.any():
        return False
    beyond = range_
    if np.mean(range_[lit] <= GREY) < GREY_SHARE:
        if _is_rainbow(picture[lit & (range_ >= STRONG) & (range_ >= SATURATED * largest)], int(lit.sum())):
            return True
        beyond = _beyond_tint(picture, largest, lit)
        if np.mean(beyond[lit] <= TINTED) < TINTED_SHARE:
            return False
    coloured = lit & (beyond >= STRONG) & (range_ >= SATURATED * largest)
    side = min(largest.shape)
    thin = 3 if side < 200 else 5 if side < 700 else 7
    patches, _ = ndimage.label(ndimage.binary_opening(coloured, np.ones((thin, thin), bool)), EVERYWHERE)
    area = 0
    for label, box in enumerate(ndimage.find_objects(patches), start=1):
        wide = tuple(slice(max(part.start - RING, 0), part.stop + RING) for part in box)
        patch = patches[wide] == label
        if _in_tissue(largest[wide], patch, coloured[wide]) or not _is_drawn(picture[wide], patch):
            area += int(patch.sum())
    return area >= max(SMALLEST * largest.size, FEWEST)


def _is_rainbow(coloured: NDArray[np.float32], lit: int) -> bool:
    """Whether strongly coloured pixels (N, 3) of `lit` have hues from red to blue, as a map over all tissue has."""
    if len(coloured) < RAINBOW_SHARE * lit:
        return False
    strongest, weakest = coloured.argmax(axis=1), coloured.argmin(axis=1)
    hues = np.bincount(3 * strongest + weakest, minlength=9) / len(coloured)  # six sectors of the circle of hues
    return bool(
        np.bincount(strongest, minlength=3).min() >= HUE_SHARE * len(coloured) and (hues >= HUE_SHARE).sum() >= 4
    )


def _beyond_tint(picture: NDArray[np.float32], largest: NDArray[np.float32], lit: Mask) -> NDArray[np.float32]:
    """(H, W): how far a pixel's colour is from the tint of its grey level, that of most pixels of such a level."""
    opponents = np.stack([picture[..., 0] - picture[..., 1], picture[..., 2] - picture[..., 1]], axis=-1)
    share = opponents[lit] / largest[lit, None]
    level = np.minimum((largest[lit] * LEVELS).astype(np.intp), LEVELS - 1)
    common = [n for n in range(LEVELS) if np.mean(level == n) >= COMMON]
    tints = np.array([np.median(share[level == n], axis=0) for n in common])
    centres = (np.array(common) + 0.5) / LEVELS
    tint = np.stack([np.interp(largest, centres, tints[:, n]) for n in (0, 1)], axis=-1)
    beyond: NDArray[np.float32] = np.abs(opponents - tint * largest[..., None]).max(axis=2)
    return beyond


def _in_tissue(largest: NDArray[np.float32], patch: Mask, coloured: Mask) -> bool:
    """Whether a patch has speckle around it, as no header, logo or colour bar has."""
    near = ndimage.binary_dilation(patch, EVERYWHERE, iterations=2)
    around = ndimage.binary_dilation(near, EVERYWHERE, iterations=RING - 2) & ~near & ~coloured
    values = largest[around]
    return bool(values.size and np.mean(values >= DARKEST) >= TISSUE_SHARE and np.std(values) >= SPECKLE)


def _is_drawn(part: NDArray[np.float32], patch: Mask) -> bool:
    """Whether a patch is even as only graphics are: of one colour, or without a change along rows or columns.

    One of red and blue is a velocity map or its colour bar, however even.
    """
    strongest = part[patch].argmax(axis=1)
    if min(np.mean(strongest == 0), np.mean(strongest == 2)) >= TWO_WAYS:
        return False
    inner = ndimage.binary_erosion(patch, EVERYWHERE, iterations=2)
    low, high = np.percentile(part[inner if inner.any() else patch], (10, 90), axis=0)
    if (high - low).max() <= FLAT:
        return True
    for axis in (0, 1):
        step = np.abs(np.diff(part, axis=axis)).max(axis=2)
        both = patch[1:] & patch[:-1] if axis == 0 else patch[:, 1:] & patch[:, :-1]
        if both.any() and np.mean(step[both] <= EVEN) >= EVEN_SHARE:
            return True
    return False
