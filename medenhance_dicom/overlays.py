"""Overlay planes (60xx) of an image: those with Overlay Data of their own, and those in unused bits of the pixel cells.

The latter are retired (PS3.3 C.9.2, PS3.5 section 8.1.2), and old archives are full of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import DataElement

GROUPS = range(0x6000, 0x6020, 2)
DATA, BITS, POSITION = 0x3000, 0x0100, 0x0102
_ROWS, _COLUMNS, _FRAMES, _ORIGIN, _FIRST_FRAME = 0x0010, 0x0011, 0x0015, 0x0050, 0x0051


def own_planes(instance: Dataset) -> list[int]:
    """Groups of the planes that hold their own bits in Overlay Data (60xx,3000)."""
    return [group for group in GROUPS if _value(instance, group, DATA)]


def is_in_cells(instance: Dataset, group: int) -> bool:
    """Whether a plane has no Overlay Data, but a place in the pixel cells; bit 0 of a plane of single bits is none."""
    position = _value(instance, group, POSITION)
    stub = (position, _value(instance, group, BITS)) == (0, 1)
    return isinstance(position, int) and not stub and not _value(instance, group, DATA)


def embedded_planes(instance: Dataset) -> dict[int, int]:
    """Group -> bit of the pixel cell, of the planes that lie in it beside the sample.

    One whose bit belongs to the sample, or to no cell, is none: nobody could tell it from the picture.
    """
    cell = [instance.get(keyword) for keyword in ("BitsAllocated", "BitsStored", "HighBit")]
    if not all(isinstance(bits, int) for bits in cell):
        return {}
    allocated, stored, high = cell
    sample = range(high + 1 - stored, high + 1)
    found = {group: int(_value(instance, group, POSITION)) for group in GROUPS if is_in_cells(instance, group)}
    return {group: bit for group, bit in found.items() if 0 <= bit < allocated and bit not in sample}


def planes_in(cells: NDArray[Any], embedded: Mapping[int, int]) -> dict[int, NDArray[np.bool_]]:
    """Group -> plane, bool in the shape of `cells` (unsigned, as the file has them)."""
    return {
        group: (cells >> cells.dtype.type(bit) & cells.dtype.type(1)).astype(bool) for group, bit in embedded.items()
    }


def packed(planes: Iterable[NDArray[np.bool_]]) -> bytes:
    """Overlay Data of successive frames: one bit a pixel, the first in the lowest bit, even length (PS3.5 8.1.2)."""
    data = np.packbits(np.concatenate([plane.ravel() for plane in planes]), bitorder="little").tobytes()
    return data + bytes(len(data) % 2)


def set_layout(overlay: Dataset, group: int) -> None:
    """Overlay Data are a plane of single bits of its own (PS3.3 C.9.2)."""
    overlay[group, BITS] = DataElement((group, BITS), "US", 1)
    overlay[group, POSITION] = DataElement((group, POSITION), "US", 0)


def set_data(overlay: Dataset, group: int, data: bytes, *, rows: int, columns: int, frames: int) -> None:
    """Make a plane that lay in the pixel cells one with Overlay Data over the whole image (PS3.3 C.9.2, C.9.3).

    Args:
        overlay: Has the other elements of the plane, such as its origin, type and label.
        group: 0x6000 to 0x601E.
        data: As `packed` gives it.
        rows: Of the image.
        columns: Of the image.
        frames: Of the image.
    """
    origin = _value(overlay, group, _ORIGIN)
    if not isinstance(origin, Sequence) or len(origin) != 2:
        overlay[group, _ORIGIN] = DataElement((group, _ORIGIN), "SS", [1, 1])
    for element, vr, value in (
        (_ROWS, "US", rows),
        (_COLUMNS, "US", columns),
        (DATA, "OW", data),
    ):
        overlay[group, element] = DataElement((group, element), vr, value)
    if frames > 1:
        overlay[group, _FRAMES] = DataElement((group, _FRAMES), "IS", frames)
        overlay[group, _FIRST_FRAME] = DataElement((group, _FIRST_FRAME), "US", 1)


def _value(instance: Dataset, group: int, element: int) -> Any:
    found = instance.get((group, element))
    return None if found is None or found.VR == "UN" else found.value
