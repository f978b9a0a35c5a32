"""Inputs, and how what is valid becomes invalid."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace

MARKER, MARKER_ID, ROOT = "FuZZ^Marker", "FuZZ-MRN-77", "1.2.826.0.1.3680043.8.498.78"
"""Patient's Name, Patient ID and the root of the UIDs in what is sent: nothing of it may be in a log."""
_NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFE, 0xFFFF, 0x10000,
            0xFFFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)  # fmt: skip


@dataclass(frozen=True)
class Input:
    """One connection's worth of bytes."""

    name: str
    to: str
    """dicom or http."""
    sends: tuple[bytes, ...]
    """Each goes out when the one before was answered, or a moment later."""
    end: str = "close"
    """close, reset, half (no more from us, and wait a moment), hold (until the end of the batch)."""
    piece: int = 0
    """Bytes of one write; 0: all at once."""
    refused: bool = False
    """HTTP success would be wrong."""

    def line(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self) | {"sends": [send.hex() for send in self.sends]})

    @classmethod
    def of_line(cls, line: str) -> Input:
        """What `line` wrote."""
        found = cls(**json.loads(line))
        return replace(found, sends=tuple(bytes.fromhex(str(send)) for send in found.sends))


class Chance(random.Random):
    """A seeded source of lies; `rate` is how often it tells one."""

    rate = 0.0

    def lies(self) -> bool:
        """Whether this is the moment."""
        return self.random() < self.rate

    def length(self, true: int, most: int) -> int:
        """A length field: mostly the true one."""
        if not self.lies():
            return min(true, most)
        return min(max(self.choice((*_NUMBERS, true - 1, true + 1, true * 2, true // 2)), 0), most)

    def number(self, true: int, most: int) -> int:
        """Any other field."""
        return self.choice((*_NUMBERS, self.randint(0, most))) & most if self.lies() else true

    def some(self, parts: list[bytes]) -> list[bytes]:
        """The parts: one of them twice, missing or elsewhere, or all of them upside down, if it lies."""
        parts = list(parts)
        if parts and self.lies():
            at = self.randrange(len(parts))
            match self.randrange(4):
                case 0:
                    del parts[at]
                case 1:
                    parts.insert(at, parts[at])
                case 2:
                    parts.insert(self.randrange(len(parts)), parts.pop(at))
                case _:
                    parts.reverse()
        return parts

    def scratch(self, data: bytes) -> bytes:
        """Bits turned over, bytes lost, put in or made up; or all as it was."""
        data_ = bytearray(data)
        while data_ and self.lies():
            at = self.randrange(len(data_))
            match self.randrange(5):
                case 0:
                    data_[at] ^= 1 << self.randrange(8)
                case 1:
                    del data_[at:]
                case 2:
                    del data_[at : at + self.randint(1, 8)]
                case 3:
                    data_[at:at] = self.randbytes(self.randint(1, 16))
                case _:
                    data_[at : at + 4] = self.choice(_NUMBERS).to_bytes(4, self.choice(("little", "big")))
        return bytes(data_)
