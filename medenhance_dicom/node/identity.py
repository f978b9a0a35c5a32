"""What tells one received instance from another: its UIDs and the digest of its data set.

Reads no further than (0020,000E) and converts nothing else, so that a file of any size and any odd value costs the
same. Standard library only.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medenhance_dicom.errors import UnreadableInstanceError

_PREFIX = 132
_UNDEFINED = 0xFFFFFFFF
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_DEFLATED = ("1.2.840.10008.1.2.1.99",)
_WANTED = {
    0x00080016: "sop_class",
    0x00080018: "sop_instance",
    0x00080060: "modality",
    0x0020000D: "study",
    0x0020000E: "series",
}
_LAST = 0x0020000E
_MOST_ELEMENTS = 200_000
_DEEPEST = 32
_MOST_INFLATED = 16 << 20
_BLOCK = 1 << 20
_HEAD = 16384
"""Bytes that are read at first; nearly always the wanted elements are in them."""


@dataclass(frozen=True)
class Identity:
    """Of one instance, as its data set says; `digest` is the SHA-256 of the encoded data set, in hex."""

    sop_class: str
    sop_instance: str
    study: str
    series: str
    modality: str
    transfer_syntax: str
    digest: str


def read_identity(path: Path, *, digest: str | None = None) -> Identity:
    """Read the identity of a Part 10 file.

    Args:
        path: With preamble and file meta information.
        digest: SHA-256 of the data set where it is known already; else the file is read to its end.

    Raises:
        UnreadableInstanceError: Not a Part 10 file, cut off, or without the UIDs that make it one instance.
        OSError: It cannot be read at all.
    """
    with path.open("rb", buffering=0) as raw:
        head = raw.read(_HEAD)
        try:
            syntax, found = _read_uids(io.BytesIO(head))
        except UnreadableInstanceError:
            if len(head) < _HEAD:
                raise
            file = io.BufferedReader(raw)
            file.seek(0)
            syntax, found = _read_uids(file)
        if digest is None:
            digest = data_set_digest(path)
    return Identity(
        sop_class=found["sop_class"],
        sop_instance=found["sop_instance"],
        study=found["study"],
        series=found["series"],
        modality=found.get("modality", "")[:16],
        transfer_syntax=syntax,
        digest=digest,
    )


def _read_uids(file: BinaryIO) -> tuple[str, dict[str, str]]:
    """Transfer Syntax UID, and the wanted values of the data set; `file` may end anywhere behind them."""
    syntax, _ = _read_meta(file)
    found = _read_data_set(_data_set(file, syntax), syntax)
    for name in ("sop_class", "sop_instance", "study", "series"):
        if not found.get(name) or len(found[name]) > 64:
            raise UnreadableInstanceError(f"no {name.replace('_', ' ')} UID")
    return syntax, found


def data_set_digest(path: Path) -> str:
    """SHA-256 of the encoded data set of a Part 10 file, in hex.

    Raises:
        UnreadableInstanceError: Not a Part 10 file.
        OSError: It cannot be read at all.
    """
    with path.open("rb") as file:
        _, start = _read_meta(file)
        file.seek(start)
        sha = hashlib.sha256()
        while block := file.read(_BLOCK):
            sha.update(block)
        return sha.hexdigest()


def _read_meta(file: BinaryIO) -> tuple[str, int]:
    """Transfer Syntax UID, and where the data set starts (PS3.10 section 7.1: group 0002, explicit little endian)."""
    if file.read(_PREFIX)[128:] != b"DICM":
        raise UnreadableInstanceError("not a DICOM file")
    syntax, end = "", -1
    while True:
        here = file.tell()
        head = file.read(8)
        if len(head) < 8 or head[:2] != b"\x02\x00":
            break
        if here == end:  # other readers would take it for meta information, and the data set for another one
            raise UnreadableInstanceError("the data set begins with file meta information")
        element, vr, length = struct.unpack("<2xH2sH", head)
        if vr in _LONG_VRS:
            length = int.from_bytes(file.read(4), "little")
        if length > 65536:
            raise UnreadableInstanceError("the file meta information is broken")
        value = file.read(length)
        if element == 0x0000 and length == 4:
            end = file.tell() + int.from_bytes(value, "little")
        if element == 0x0010:
            syntax = _text(value)
    if not syntax:
        raise UnreadableInstanceError("no Transfer Syntax UID")
    file.seek(here)
    return syntax, here


def _data_set(file: BinaryIO, syntax: str) -> BinaryIO:
    if syntax not in _DEFLATED:
        return file
    try:
        return io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(_MOST_INFLATED), _MOST_INFLATED))
    except zlib.error:
        raise UnreadableInstanceError("the deflated data set is broken") from None


def _read_data_set(stream: BinaryIO, syntax: str) -> dict[str, str]:
    """The wanted top-level values, up to Series Instance UID or the first group after it."""
    reader = _Elements(stream, explicit=syntax != _IMPLICIT, big=syntax == _BIG_ENDIAN)
    found: dict[str, str] = {}
    while (tag := reader.next()) is not None and tag >> 16 <= _LAST >> 16:
        if tag in _WANTED and reader.length <= 1024:
            found[_WANTED[tag]] = _text(reader.value())
        else:
            reader.skip()
        if tag == _LAST:
            break
    return found


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip("\0 ")


class _Elements:
    """Walks the data elements of a stream one after the other (PS3.5 section 7)."""

    def __init__(self, stream: BinaryIO, *, explicit: bool, big: bool) -> None:
        self._stream = stream
        self._explicit = explicit
        order = ">" if big else "<"
        self._tag = struct.Struct(order + "HH").unpack
        self._short: Callable[[bytes], tuple[int]] = struct.Struct(order + "H").unpack
        self._long: Callable[[bytes], tuple[int]] = struct.Struct(order + "L").unpack
        self._left = _MOST_ELEMENTS
        here = stream.tell()
        self._end = stream.seek(0, io.SEEK_END)
        stream.seek(here)
        self.length = 0
        self._vr = b""

    def next(self) -> int | None:
        """The tag of the next element, None at the end; then either `value` or `skip`."""
        head = self._stream.read(8)
        if not head:
            return None
        self._left -= 1
        if len(head) < 8 or self._left < 0:
            raise UnreadableInstanceError("the header is cut off, or has no end")
        group, element = self._tag(head[:4])
        tag: int = group << 16 | element
        self._vr = head[4:6]
        if not self._explicit or group == 0xFFFE:
            self._vr = b""
            self.length = self._long(head[4:])[0]
        elif self._vr in _LONG_VRS:
            self.length = self._long(self._read(4))[0]
        elif self._vr.isalpha() and self._vr.isupper():
            self.length = self._short(head[6:])[0]
        else:
            raise UnreadableInstanceError("the header is not what its transfer syntax says")
        return tag

    def value(self) -> bytes:
        return self._read(self.length)

    def skip(self, depth: int = 0) -> None:
        """Pass over the value, items of undefined length included."""
        if self.length != _UNDEFINED:
            if self._stream.seek(self.length, io.SEEK_CUR) > self._end:
                raise UnreadableInstanceError("the header is cut off")
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

    def _read(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) < count:
            raise UnreadableInstanceError("the header is cut off")
        return data
