"""The one walk over the data elements of a Part 10 file (PS3.5 section 7, PS3.10 section 7.1) that converts nothing.

It reads block by block, no further than it has to, so that a file of any size and with any odd value costs the same,
be it on a disk, in a zip or behind HTTP. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from medenhance_dicom.errors import UnreadableInstanceError

BLOCK = 16384
"""Bytes that are read at once; nearly always all that is wanted is in the first."""
_PREFIX = 132
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_IMPLICIT = "1.2.840.10008.1.2"
_EXPLICIT = "1.2.840.10008.1.2.1"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_DEFLATED = ("1.2.840.10008.1.2.1.99",)
_MOST_ELEMENTS = 200_000
_DEEPEST = 32
_MOST_INFLATED = 16 << 20
_LONGEST_VALUE = 1024
_FIRST_VRS = (b"UL", b"UI", b"CS", b"LO", b"SH", b"OB", b"DA", b"TM", b"DT", b"SQ", b"ST")
_META_VRS = (b"UL", b"UI", b"OB", b"SH", b"AE", b"UR", b"LO", b"UN")

TRANSFER_SYNTAX = "TransferSyntaxUID"


class Fact(NamedTuple):
    """An element whose value is wanted."""

    name: str
    number: bool = False
    """Of VR US."""


ARCHIVE_FACTS: Mapping[int, Fact] = {
    0x00080016: Fact("SOPClassUID"),
    0x00080018: Fact("SOPInstanceUID"),
    0x00080060: Fact("Modality"),
    0x00080070: Fact("Manufacturer"),
    0x00081090: Fact("ManufacturerModelName"),
    0x00100020: Fact("PatientID"),
    0x0020000D: Fact("StudyInstanceUID"),
    0x0020000E: Fact("SeriesInstanceUID"),
    0x00280008: Fact("NumberOfFrames"),
    0x00280010: Fact("Rows", number=True),
    0x00280011: Fact("Columns", number=True),
}
"""What an archive is planned by."""
LAST_FACT = 0x00280011
HEADER = "header digest"
"""A fact of its own: another one where the header says something else, see `read_facts`."""
_NOT_HASHED = frozenset({0x00080012, 0x00080013})
"""Instance Creation Date and Time: a copy that an archive makes may have its own."""
_MOST_HASHED = 65536
"""Bytes of a value. Of a longer one the length counts: it may take another read."""


class Blocks:
    """The bytes of a file, read where they are needed."""

    def __init__(self, read_at: Callable[[int, int], bytes], size: int, *, block: int = BLOCK) -> None:
        """Args: read_at: bytes from a position, fewer only at the end; size: of the file; block: read at least so."""
        self._read_at = read_at
        self.size = size
        self.block = block
        self.head = read_at(0, block)
        """The first block."""

    @classmethod
    @contextlib.contextmanager
    def of_file(cls, path: Path | str) -> Iterator[Blocks]:
        """A file on disk.

        Raises:
            OSError: It cannot be read.
        """
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        try:
            yield cls(lambda position, count: os.pread(handle, count, position), os.fstat(handle).st_size)
        finally:
            os.close(handle)

    @classmethod
    def of_bytes(cls, data: bytes) -> Blocks:
        """Bytes in memory."""
        return cls(lambda position, count: data[position : position + count], len(data), block=len(data) or 1)

    def at(self, position: int, count: int) -> bytes:
        """So many bytes, fewer at the end."""
        if position + count <= len(self.head):
            return self.head[position : position + count]
        return self._read_at(position, count)

    def window(self, position: int) -> bytes:
        """The block that starts there."""
        return self._read_at(position, self.block) if position else self.head


class _Inflated(Blocks):
    """What a deflated data set holds, as far as somebody asks for it; its size is known once it was read to its end."""

    def __init__(self, deflated: Blocks, start: int) -> None:
        self._deflated, self._next = deflated, start
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._data = bytearray()
        super().__init__(self._inflate, 0)

    def _inflate(self, position: int, count: int) -> bytes:
        while len(self._data) < min(position + count, _MOST_INFLATED) and not self._inflater.eof:
            block = self._inflater.unconsumed_tail or self._deflated.at(self._next, self._deflated.block)
            if not block:
                break
            if not self._inflater.unconsumed_tail:
                self._next += len(block)
            try:
                self._data += self._inflater.decompress(block, 1 << 20)
            except zlib.error:
                raise UnreadableInstanceError("the deflated data set is broken") from None
        self.size = len(self._data)
        return bytes(self._data[position : position + count])


def plausible(head: bytes) -> bool:
    """Whether a file may be DICOM by its first bytes: the DICM prefix, or the start of a data set without one."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 16:
        return False
    group, element, length = struct.unpack("<HHL", head[:8])
    if group in (0x0002, 0x0008) and element <= 0x0100:
        return head[4:6] in _FIRST_VRS or length <= 512
    return head[:2] == b"\x00\x08" and head[4:6].isalpha() and head[4:6].isupper()


def read_meta(blocks: Blocks) -> tuple[str, int]:
    """Transfer Syntax UID, and where the data set starts (PS3.10 section 7.1: group 0002, explicit little endian).

    Raises:
        UnreadableInstanceError: Not a Part 10 file.
    """
    if blocks.head[128:132] != b"DICM":
        raise UnreadableInstanceError("not a DICOM file")
    syntax, start, _ = _meta_elements(blocks, _PREFIX)
    if not syntax:
        raise UnreadableInstanceError("no Transfer Syntax UID")
    return syntax, start


def _meta_elements(blocks: Blocks, here: int) -> tuple[str, int, bool]:
    """Transfer Syntax UID, where group 0002 ends, and whether all of it is as it should be."""
    syntax, end, sound = "", -1, True
    while True:
        head = blocks.at(here, 12)
        if len(head) < 8 or head[:2] != b"\x02\x00":
            return syntax, here, sound and end in (-1, here)
        if here == end:  # other readers would take it for meta information, and the data set for another one
            raise UnreadableInstanceError("the data set begins with file meta information")
        element, vr, length = struct.unpack_from("<2xH2sH", head)
        here += 8
        if vr in _LONG_VRS:
            length = int.from_bytes(head[8:12], "little")
            here += 4
        if length > 65536:
            raise UnreadableInstanceError("the file meta information is broken")
        sound = sound and vr in _META_VRS and (element != 0x0000 or length == 4)
        if element in (0x0000, 0x0010):
            value = blocks.at(here, length)
            if element == 0x0010:
                syntax = _text(value)
            elif length == 4:
                end = here + 4 + int.from_bytes(value, "little")
        here += length


def read_facts(
    blocks: Blocks, wanted: Mapping[int, Fact], last: int, *, bare: bool = False, header: bool = False
) -> dict[str, str]:
    """The wanted top-level values, up to the element `last` or the first group after its group.

    Args:
        blocks: The file.
        wanted: Tag -> fact. Values of more than 1 KiB are passed over.
        last: Tag of the last one.
        bare: Take a file without preamble or Transfer Syntax UID too; the encoding is guessed from its first element.
            File meta information that is there has to be sound then, or readers disagree about what follows.
        header: Walk to the end of the group of `last`, and add `HEADER`: a digest of tags and values of the standard's
            elements that were passed, which explicit or implicit VR does not change.

    Returns:
        Name -> text of those that are there, and the Transfer Syntax UID.

    Raises:
        UnreadableInstanceError: Not DICOM, cut off before `last`, or not what its transfer syntax says.
        OSError: As the blocks are read.
    """
    if bare:
        syntax, start, sound = _meta_elements(blocks, _PREFIX if blocks.head[128:132] == b"DICM" else 0)
        if not sound:
            raise UnreadableInstanceError("the file meta information is broken")
        syntax = syntax or _guess(blocks.at(start, 6))
    else:
        syntax, start = read_meta(blocks)
    found = {TRANSFER_SYNTAX: syntax}
    if syntax in _DEFLATED:
        blocks, start = _Inflated(blocks, start), 0
    big = syntax == _BIG_ENDIAN
    walk = _Walk(blocks, start, explicit=syntax != _IMPLICIT, big=big)
    group_after = (last >> 16) + 1 << 16
    following, skip = walk.next, walk.skip
    passed: list[bytes] = []
    while (tag := following()) is not None and tag < group_after:
        if tag in wanted and walk.length <= _LONGEST_VALUE:
            fact, value = wanted[tag], walk.value()
            text = _number(value, "big" if big else "little") if fact.number else _text(value)
            if text:
                found[fact.name] = text
            passed += (tag.to_bytes(4), value)
        elif header and not tag & 0x10000 and tag & 0xFFFF and tag not in _NOT_HASHED:
            passed += (tag.to_bytes(4), walk.passed())
        else:
            skip()
        if tag == last and not header:
            break
    if header:
        found[HEADER] = hashlib.sha256(b"".join(passed)).hexdigest()[:32]
    return found


def _guess(head: bytes) -> str:
    if not (head[4:6].isalpha() and head[4:6].isupper()):
        return _IMPLICIT
    return _BIG_ENDIAN if head[:1] == b"\0" else _EXPLICIT


def _text(value: bytes) -> str:
    """Without padding. Not ASCII only in attributes of devices: UTF-8, else Latin-1, whatever the data set says."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    text = text.strip("\0 ")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _number(value: bytes, order: str) -> str:
    return str(int.from_bytes(value[:2], "big" if order == "big" else "little")) if len(value) >= 2 else ""


class _Walk:
    """Data elements one after the other."""

    def __init__(self, blocks: Blocks, start: int, *, explicit: bool, big: bool) -> None:
        self._blocks = blocks
        self._explicit = explicit
        order = ">" if big else "<"
        self._with_vr = struct.Struct(order + "HH2sH").unpack_from
        self._without_vr = struct.Struct(order + "HHL").unpack_from
        self._long = struct.Struct(order + "L").unpack_from
        self._left = _MOST_ELEMENTS
        self._base, self._at = (0, start) if start < len(blocks.head) else (start, 0)
        self._window = blocks.window(self._base)
        self.length = 0
        self._vr = b""

    def next(self) -> int | None:
        """The tag of the next element, None at the end; then either `value` or `skip`."""
        at = self._at
        if at + 12 > len(self._window):
            if not self._refill():
                return None
            at = 0
        self._left -= 1
        if self._left < 0:
            raise UnreadableInstanceError("the header has no end")
        self._at = at + 8
        if not self._explicit:
            group, element, self.length = self._without_vr(self._window, at)
            return int(group << 16 | element)
        group, element, vr, length = self._with_vr(self._window, at)
        if group == 0xFFFE:
            (length,) = self._long(self._window, at + 4)
            vr = b""
        elif vr in _LONG_VRS:
            if at + 12 > len(self._window):
                raise UnreadableInstanceError("the header is cut off")
            (length,) = self._long(self._window, at + 8)
            self._at = at + 12
        elif not (vr.isalpha() and vr.isupper()):
            raise UnreadableInstanceError("the header is not what its transfer syntax says")
        self._vr = vr
        self.length = length
        return int(group << 16 | element)

    def value(self) -> bytes:
        """The current element's value, and pass over it."""
        at, self._at = self._at, self._at + self.length
        data = self._window[at : self._at]
        if len(data) < self.length:
            data = self._blocks.at(self._base + at, self.length)
            if len(data) < self.length:
                raise UnreadableInstanceError("the header is cut off")
        return data

    def passed(self) -> bytes:
        """Pass over the value; its bytes, or their number in words where they are many."""
        if self.length <= len(self._window) - self._at:
            return self.value()
        start = self._base + self._at
        self.skip()
        length = self._base + self._at - start
        return self._blocks.at(start, length) if length <= _MOST_HASHED else str(length).encode()

    def skip(self, depth: int = 0) -> None:
        """Pass over the value, items of undefined length included."""
        if self.length != _UNDEFINED:
            self._at += self.length
            return
        if depth > _DEEPEST:
            raise UnreadableInstanceError("the header is nested too deep")
        explicit = self._explicit
        if self._vr == b"UN":
            self._explicit = False  # PS3.5 section 6.2.2, note 2
        while (tag := self._inner()) != _SEQUENCE_END:
            if tag != _ITEM:
                raise UnreadableInstanceError("a sequence is broken")
            if self.length != _UNDEFINED:
                self.skip()
                continue
            while self._inner() != _ITEM_END:
                self.skip(depth + 1)
        self._explicit = explicit

    def _inner(self) -> int:
        tag = self.next()
        if tag is None:
            raise UnreadableInstanceError("the header is cut off")
        return tag

    def _refill(self) -> bool:
        """Read the block that starts at the next element; False where the file ends there."""
        self._base, self._at = self._base + self._at, 0
        self._window = self._blocks.window(self._base)
        if len(self._window) >= 8:
            return True
        if self._window or self._base > self._blocks.size:
            raise UnreadableInstanceError("the header is cut off")
        return False
