"""Open associations, told to the other processes: one file each, locked for as long as its association is open.

The kernel lets go of the lock when the process dies, so a marker that nobody holds is a dead one's.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OpenAssociation:
    """What the marker of an open association says."""

    calling_ae: str
    series_keys: frozenset[str]
    receiving: bool
    """In the middle of an instance whose series is not known yet."""


class Marker:
    """The file that tells other processes what an open association has carried; gone when its process is."""

    def __init__(self, path: Path, calling_ae: str) -> None:
        self._path = path
        self._keys: set[str] = set()
        self._receiving = False
        while True:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            if is_at(self._handle, path):
                break
            os.close(self._handle)  # somebody took it for a dead one's
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"- {calling_ae}\n".encode(), 0)

    def carried(self, series_key: str) -> None:
        """Say that an instance of the series is about to be accepted."""
        if series_key not in self._keys:
            self._keys.add(series_key)
            os.lseek(self._handle, 0, os.SEEK_END)
            os.write(self._handle, f"{series_key}\n".encode())

    def receiving(self, now: bool) -> None:
        """Say that an instance is coming in."""
        if now is not self._receiving:
            self._receiving = now
            os.pwrite(self._handle, b"+" if now else b"-", 0)

    def close(self) -> None:
        """The association is over."""
        self._path.unlink(missing_ok=True)
        os.close(self._handle)


def open_associations(folder: Path) -> Iterator[OpenAssociation]:
    """Those whose markers lie in a folder; markers of dead processes are removed."""
    for path in list(folder.iterdir()):
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)  # its process did not hold it
        except BlockingIOError:
            head, *keys = os.pread(handle, 1 << 24, 0).decode().split("\n")
            yield OpenAssociation(head[2:], frozenset(keys) - {""}, head[:1] == "+")
        finally:
            os.close(handle)


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at that path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
