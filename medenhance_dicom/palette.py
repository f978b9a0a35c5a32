"""Red, Green and Blue Palette Color Lookup Tables as 8-bit RGB (PS3.3 C.7.6.3.1.5-6, C.7.9).

Descriptors lie about the entries in both directions: 8 bits over words scaled to 65535, 16 bits over words that hold
0..255. What the entries are is decided once, by the data of the three tables together: a channel that happens to be
dark must not be scaled otherwise than its neighbours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from medenhance_dicom.errors import UnreadableInstanceError

Array = npt.NDArray[Any]

_CHANNELS = ("Red", "Green", "Blue")
_MOST_SEGMENTS = 4 * 65536


@dataclass(frozen=True)
class Palette:
    """Entries uint8 (N, 3), and the stored value that the first of them stands for."""

    entries: npt.NDArray[np.uint8]
    first: int
    bits: int
    """Of an entry in the file, 8 or 16: by the entries."""
    declared: int
    """The same by the descriptors."""


def palette_of(instance: Dataset) -> Palette:
    """Read the three tables.

    Entries above 255 in any table make all of them 16-bit ones, whose high byte is kept; otherwise they are 8-bit
    entries, whatever the descriptors say.

    Raises:
        UnreadableInstanceError: A table or descriptor is missing or broken, or the three differ in size.
    """
    descriptors = [_descriptor(instance, f"{colour}PaletteColorLookupTableDescriptor") for colour in _CHANNELS]
    if len({descriptor[:2] for descriptor in descriptors}) != 1:
        keyword = "BluePaletteColorLookupTableDescriptor"
        sizes = ", ".join(f"{count} entries from {first}" for count, first, _ in descriptors)
        raise UnreadableInstanceError(f"the three lookup tables differ: {sizes}", keyword=keyword)
    count, first, _ = descriptors[0]
    if first >= 32768 and instance.get("PixelRepresentation") == 1:
        first -= 65536  # SS written as US
    elif first < 0 and instance.get("PixelRepresentation") == 0:
        first += 65536
    declared = max(bits for _, _, bits in descriptors)
    entries = np.stack(_tables(instance, count, declared), axis=-1)
    bits = 16 if entries.max() > 255 else 8
    return Palette((entries >> (bits - 8)).astype(np.uint8), first, bits, declared)


def look_up(palette: Palette, stored: Array) -> npt.NDArray[np.uint8]:
    """stored: (H, W). Returns uint8 (H, W, 3); values off the table take its first or last entry."""
    return palette.entries[np.clip(stored.astype(np.int32) - palette.first, 0, len(palette.entries) - 1)]


def _descriptor(instance: Dataset, keyword: str) -> tuple[int, int, int]:
    """Number of entries, first stored value mapped, bits of an entry."""
    value = instance.get(keyword)
    if not isinstance(value, Sequence) or len(value) != 3 or not all(isinstance(v, int) for v in value):
        raise UnreadableInstanceError("is not three whole numbers", keyword=keyword)
    count, first, bits = (int(v) for v in value)
    if bits not in (8, 16):
        raise UnreadableInstanceError("has neither 8 nor 16 bits", keyword=keyword)
    return count % 65536 or 65536, first, bits


def _tables(instance: Dataset, count: int, bits: int) -> list[Array]:
    """Three arrays of `count` entries."""
    keywords = [f"{colour}PaletteColorLookupTableData" for colour in _CHANNELS]
    segmented = any(f"Segmented{k}" in instance and k not in instance for k in keywords)
    if segmented:
        keywords = [f"Segmented{keyword}" for keyword in keywords]
    data: list[bytes] = []
    for keyword in keywords:
        value = instance.get(keyword)
        if not isinstance(value, bytes):
            raise UnreadableInstanceError("missing", keyword=keyword)
        data.append(value)
    if segmented:
        return _expanded(data, count, bits, keywords)
    wide = all(len(table) >= 2 * count for table in data)
    tables = [np.frombuffer(table[: 2 * count], "<u2") if wide else np.frombuffer(table, "u1") for table in data]
    for table, keyword in zip(tables, keywords, strict=True):
        if table.size < count:
            raise UnreadableInstanceError("has fewer entries than its descriptor says", keyword=keyword)
    return [table[:count].astype(np.uint16) for table in tables]


def _expanded(data: list[bytes], count: int, bits: int, keywords: list[str]) -> list[Array]:
    """Segments of the width that the descriptor says, or of the other one where only that gives whole tables."""
    try:
        return _expanded_as(data, count, bits, keywords)
    except UnreadableInstanceError as error:
        with contextlib.suppress(UnreadableInstanceError):
            return _expanded_as(data, count, 24 - bits, keywords)
        raise error


def _expanded_as(data: list[bytes], count: int, bits: int, keywords: list[str]) -> list[Array]:
    tables = []
    for table, keyword in zip(data, keywords, strict=True):
        words = np.frombuffer(table[: len(table) // (bits // 8) * (bits // 8)], "<u2" if bits == 16 else "u1")
        entries = _expand_segments(words.tolist(), count, bits, keyword)
        if len(entries) < count:
            raise UnreadableInstanceError("has fewer entries than its descriptor says", keyword=keyword)
        tables.append(np.array(entries[:count], dtype=np.uint16))
    return tables


def _expand_segments(words: list[int], count: int, bits: int, keyword: str) -> list[int]:
    """Expand discrete, linear and indirect segments (PS3.3 C.7.9.2) to at least `count` entries where there are."""
    entries: list[int] = []
    todo = [(0, len(words))]  # (position, segments still to read); the last one is the current one
    steps = 0
    while todo and len(entries) < count:
        at, left = todo.pop()
        steps += 1
        if left == 0:
            continue
        if at + 2 >= len(words):
            if todo:
                continue
            break
        if steps > _MOST_SEGMENTS or len(todo) > 1:
            raise UnreadableInstanceError("its segments do not end", keyword=keyword)
        opcode, length = words[at : at + 2]
        at += 2
        if opcode == 0:
            entries += words[at : at + length]
            todo.append((at + length, left - 1))
        elif opcode == 1 and entries:
            line = np.rint(np.linspace(entries[-1], words[at], length + 1)[1:])
            entries += line.astype(int).tolist()
            todo.append((at + 1, left - 1))
        elif opcode == 2 and entries and at + (2 if bits == 16 else 4) <= len(words):
            digits = 2 if bits == 16 else 4
            offset = sum(word << (bits * n) for n, word in enumerate(words[at : at + digits])) // (bits // 8)
            todo += [(at + digits, left - 1), (offset, length)]
        else:
            raise UnreadableInstanceError("has a segment of unknown kind", keyword=keyword)
    return entries
