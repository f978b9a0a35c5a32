"""Bits of a pixel cell above High Bit (PS3.5 section 8.1.1): nobody's, or the picture's own under a wrong Bits Stored.

The standard has readers ignore them: they held overlays once, and some devices leave junk in them. Every reader masks
them, DCMTK and pydicom too. Where Bits Stored is too small that wraps the picture: white becomes black, silently. The
two are told apart by what both mean for neighbours. Ignored are, in this order:

* overlay planes that a group 60xx places there, sign extension, padding, and bits that are the same in all pixels;
* bits that change where the picture does not: text and junk lie over it, so that masking leaves neighbours alike, and
  taking the bits along tears them apart.

The picture's own are bits that have to be taken along for neighbours to be alike: where they change, neighbours are
closer by half with them than without in a quarter of the places (or they change nearly everywhere, the stored bits
alone are noise, and the whole cells are not). For junk over noise that share is below 1 in 20. A few pixels decide
nothing; there the standard's reading holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from medenhance_dicom.errors import UnreadableInstanceError

Array = npt.NDArray[Any]

_ENOUGH_PAIRS = 64
_SHARE = 0.25
_NOISE, _PICTURE = 0.8, 0.5
"""Roughness (see `_roughness`) above which neighbours have nothing in common, and below which they have."""
_OVERSHOOT, _OVERSHOT_PIXELS = 1.25, 0.01
"""A lossy codec passes the largest stored value beside sharp edges, by up to a fifth, and in few pixels."""


def check_unused(
    cells: Array, *, stored: int, high_bit: int, signed: bool, overlay_bits: Iterable[int] = (), padding: int | None
) -> None:
    """Refuse a frame whose picture goes on above High Bit.

    Args:
        cells: (H, W, samples), unsigned, as the file has them.
        stored: Bits Stored.
        high_bit: High Bit.
        signed: Pixel Representation is 1.
        overlay_bits: Bits that overlay planes lie in.
        padding: The cell that means padding, None without.

    Raises:
        UnreadableInstanceError: By Bits Stored or Pixel Representation, with what the header says and what there is.
    """
    width = cells.dtype.itemsize * 8
    if _is_extended(cells, width - 1 - high_bit, signed):
        return
    overlays = sum(1 << bit for bit in set(overlay_bits) if bit > high_bit)
    shift = high_bit + 1 - stored
    whole = (cells & cells.dtype.type((1 << width) - 1 - overlays)) >> shift
    inside = cells != padding if padding is not None else np.ones(cells.shape, bool)
    above = whole >> stored
    if not inside.any() or _is_extended(cells[inside], width - 1 - high_bit, signed) or np.ptp(above[inside]) == 0:
        return
    kept = _with_sign((whole & cells.dtype.type((1 << stored) - 1)).astype(np.int32), stored, signed)
    for as_signed in (signed, not signed):
        values = _with_sign(whole.astype(np.int32), width - shift, as_signed)
        if not _belong(values, kept, inside):
            continue
        if as_signed and not signed:
            raise UnreadableInstanceError("the header says 0, the values have a sign", keyword="PixelRepresentation")
        top = int(np.abs(values[inside] + (values[inside] < 0)).max()).bit_length() + as_signed
        raise UnreadableInstanceError(f"the header says {stored}, the values need {top}", keyword="BitsStored")


def check_overshoot(values: Array, *, stored: int) -> None:
    """Refuse a frame of a lossy codec that passes the largest stored value by more than such codecs do.

    Args:
        values: Unsigned, any shape.
        stored: Bits Stored.

    Raises:
        UnreadableInstanceError: By Bits Stored, with both values.
    """
    full = (1 << stored) - 1
    if values.max() > full and (values > full * _OVERSHOOT).mean() > _OVERSHOT_PIXELS:
        need = int(values.max()).bit_length()
        raise UnreadableInstanceError(f"the header says {stored}, the values need {need}", keyword="BitsStored")


def _is_extended(cells: Array, free: int, signed: bool) -> bool:
    """Whether the `free` topmost bits are zero, or repeat the sign."""
    if not signed:
        return not (cells >> (cells.dtype.itemsize * 8 - free)).any()
    values = cells.view(f"i{cells.dtype.itemsize}")
    return bool((values << free >> free == values).all())


def _with_sign(values: Array, bits: int, signed: bool) -> Array:
    sign = 1 << (bits - 1)
    return (values ^ sign) - sign if signed else values


def _belong(whole: Array, kept: Array, inside: npt.NDArray[np.bool_]) -> bool:
    """Whether the values with the bits above make the picture, rather than those without."""
    lost = whole - kept
    pairs = change = closer = 0
    for one, other in _neighbours(whole.shape):
        valid = inside[one] & inside[other]
        changes = (lost[one] != lost[other]) & valid
        with_them, without = np.abs(whole[one] - whole[other]), np.abs(kept[one] - kept[other])
        pairs += int(valid.sum())
        change += int(changes.sum())
        closer += int((changes & (2 * with_them < without)).sum())
    if change < _ENOUGH_PAIRS:
        return False
    if closer > _SHARE * change:
        return True
    return 2 * change > pairs and _roughness(kept, inside) > _NOISE and _roughness(whole, inside) < _PICTURE


def _roughness(values: Array, inside: npt.NDArray[np.bool_]) -> float:
    """Mean difference of neighbours, over that of pixels anywhere: about 1 for noise, near 0 for a smooth picture."""
    near = [
        float(np.abs(values[one] - values[other])[inside[one] & inside[other]].mean())
        for one, other in _neighbours(values.shape)
        if (inside[one] & inside[other]).any()
    ]
    ranked = np.sort(values[inside].astype(np.float64))
    weights = 2 * np.arange(ranked.size) - ranked.size + 1
    anywhere = 2 * float((weights * ranked).sum()) / max(ranked.size * (ranked.size - 1), 1)  # Gini's mean difference
    return sum(near) / len(near) / anywhere if near and anywhere else 1.0


def _neighbours(shape: tuple[int, ...]) -> Iterator[tuple[Any, Any]]:
    if shape[1] > 1:
        yield np.s_[:, 1:], np.s_[:, :-1]
    if shape[0] > 1:
        yield np.s_[1:], np.s_[:-1]
