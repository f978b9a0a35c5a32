"""Which fragments of encapsulated Pixel Data make which frame (PS3.5 A.4)."""

from __future__ import annotations

import itertools
import os
import struct
from typing import BinaryIO

from medenhance_dicom.codestream import STARTS
from medenhance_dicom.errors import UnreadableInstanceError
from medenhance_dicom.part10 import UNDEFINED_LENGTH

_ITEM = 0xFFFEE000
_SEQUENCE_END = 0xFFFEE0DD
_END_OF_IMAGE = b"\xff\xd9"

Fragment = tuple[int, int]
"""(offset, length) of the bytes of one item."""


def peek(stream: BinaryIO, offset: int, length: int) -> bytes:
    """Up to `length` bytes from `offset`."""
    stream.seek(offset)
    return stream.read(length)


def frames_of_fragments(
    stream: BinaryIO,
    offset: int,
    frames: int,
    *,
    extended_offsets: bytes = b"",
    codestreams: bool = True,
    frame_lengths: tuple[int, ...] = (),
) -> list[list[Fragment]]:
    """Say which fragments make which frame.

    An offset table counts only where it names as many frames as the header and each begins where a fragment does, with
    the start of a codestream where there are such. Else one fragment is one frame, or one frame has them all, or frames
    begin where codestreams do, end where they do, or are as long as the header says.

    Args:
        stream: The file.
        offset: Where the first item, the offset table, begins.
        frames: Number of Frames.
        extended_offsets: Value of Extended Offset Table, where there is one.
        codestreams: Whether frames are codestreams, which tell their beginning.
        frame_lengths: The lengths in bytes that a frame may have, where they are known.

    Returns:
        The fragments of each frame.

    Raises:
        UnreadableInstanceError: No row of fragments, cut short, or another number of frames than declared.
    """
    items = _items(stream, offset)
    if len(items) < 2:
        raise UnreadableInstanceError("has no fragments", keyword="PixelData")
    (table_at, table_length), *fragments = items
    table = peek(stream, table_at, table_length)
    numbers = {at: number for number, (at, _) in enumerate(fragments)}
    starts = [n for n, (at, _) in enumerate(fragments) if codestreams and peek(stream, at, 12).startswith(STARTS)]
    for offsets in (_unpacked(extended_offsets, "Q"), _unpacked(table, "L")):
        bounds = [numbers.get(table_at + table_length + 8 + offset, -1) for offset in offsets]
        if len(bounds) == frames and _ascend(bounds) and (not codestreams or set(bounds) <= set(starts)):
            return _cut(fragments, bounds)
    if len(fragments) == frames:
        return [[fragment] for fragment in fragments]
    if codestreams:
        guesses = [_cut(fragments, starts) if _ascend(starts) else [], _by_ends(stream, fragments)]
    else:
        guesses = [_by_lengths(fragments, length) for length in frame_lengths]
    if frames == 1 and not any(len(guess) > 1 for guess in guesses[:1]):
        return [fragments]
    for guess in guesses:
        if len(guess) == frames:
            return guess
    held = next((len(guess) for guess in guesses if guess), len(fragments))
    raise UnreadableInstanceError(f"the header says {frames}, Pixel Data holds {held}", keyword="NumberOfFrames")


def _unpacked(table: bytes, kind: str) -> tuple[int, ...]:
    width = struct.calcsize(f"<{kind}")
    return struct.unpack(f"<{len(table) // width}{kind}", table[: len(table) // width * width])


def _ascend(bounds: list[int]) -> bool:
    return bounds[:1] == [0] and all(a < b for a, b in itertools.pairwise(bounds))


def _cut(fragments: list[Fragment], bounds: list[int]) -> list[list[Fragment]]:
    return [fragments[a:b] for a, b in zip(bounds, [*bounds[1:], len(fragments)], strict=True)]


def _items(stream: BinaryIO, offset: int) -> list[Fragment]:
    """The items of encapsulated Pixel Data, the offset table first. A missing delimiter is forgiven.

    So is an odd length, with or without a pad byte behind it that it does not count.
    """
    size = stream.seek(0, os.SEEK_END)
    items: list[Fragment] = []
    while True:
        tag, length = _item_head(stream, offset)
        if tag not in (None, _ITEM, _SEQUENCE_END):
            offset += 1
            tag, length = _item_head(stream, offset)
        if tag in (None, _SEQUENCE_END):
            return items
        if tag != _ITEM or length == UNDEFINED_LENGTH:
            raise UnreadableInstanceError("is not a row of fragments", keyword="PixelData")
        if offset + 8 + length > size:
            raise UnreadableInstanceError("is truncated", keyword="PixelData")
        items.append((offset + 8, length))
        offset += 8 + length


def _item_head(stream: BinaryIO, offset: int) -> tuple[int | None, int]:
    """(tag, length) at an offset; the tag is None at the end of the file."""
    head = peek(stream, offset, 8)
    if len(head) < 8:
        return None, 0
    group, element, length = struct.unpack("<HHL", head)
    return group << 16 | element, length


def _by_ends(stream: BinaryIO, fragments: list[Fragment]) -> list[list[Fragment]]:
    found: list[list[Fragment]] = [[]]
    for at, length in fragments:
        found[-1].append((at, length))
        tail = min(length, 10)
        if _END_OF_IMAGE in peek(stream, at + length - tail, tail):
            found.append([])
    return [frame for frame in found if frame]


def _by_lengths(fragments: list[Fragment], length: int) -> list[list[Fragment]]:
    """Frames that are full once their fragments have so many bytes; empty where they do not come out even."""
    found: list[list[Fragment]] = [[]]
    held = 0
    for fragment in fragments:
        found[-1].append(fragment)
        held += fragment[1]
        if held in (length, length + length % 2):
            found.append([])
            held = 0
    return [] if found[-1] else found[:-1]
