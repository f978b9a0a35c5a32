"""The audit trail: one JSON line per event, each holding the digest of the line before it.

A line that was changed, removed or put in between breaks the chain from there on. Cutting lines off the end does not
show; keep a copy of the last digest elsewhere where that matters. No fact may hold anything about a patient, UIDs
included: jobs and instances go by their keys.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medenhance_dicom.errors import OutputError

_BLOCK = 8192
_CLOSED = b"!\n"
"""After a torn line, so that it never parses."""


class Audit:
    """An append-only file that several processes may write to at once."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Args: path: its folder is made; clock: seconds since the epoch."""
        self.path, self._clock = path, clock

    def append(self, event: str, *, durable: bool = True, **facts: Any) -> dict[str, Any]:
        """Add a line; it is on the disk when this returns.

        Args:
            event: What happened, such as "sent".
            durable: False: it is once the next durable one is.
            facts: JSON values; not `n`, `time`, `event`, `previous`, `torn` or `digest`.

        Returns:
            The line.

        Raises:
            OutputError: The disk is full or not writable; the file is then as it was.
        """
        try:
            handle = self._open()
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                return self._append(handle, event, facts, durable=durable)
            finally:
                os.close(handle)
        except OSError as error:
            raise OutputError(f"audit trail: {error.strerror}") from error

    def events(self, job: str | None = None) -> Iterator[dict[str, Any]]:
        """The lines in order, of one job or of all; what does not parse is left out."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            for line in file:
                if job is not None and job.encode() not in line:
                    continue
                record = _parsed(line)
                if record is not None and (job is None or record.get("job") == job):
                    yield record

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
            return handle

    def _append(self, handle: int, event: str, facts: dict[str, Any], *, durable: bool) -> dict[str, Any]:
        size = os.fstat(handle).st_size
        last, torn = _tail(handle, size)
        before = _parsed(last)
        record: dict[str, Any] = {
            "n": 1 if before is None else before["n"] + 1,
            "time": datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds"),
            "event": event,
            **facts,
            "previous": "" if before is None else before["digest"],
        }
        if torn:  # a crash in the middle of a line: it stays, closed off and vouched for
            record["torn"] = hashlib.sha256(torn).hexdigest()
        record["digest"] = _digest(record)
        line = (_CLOSED if torn else b"") + json.dumps(record, ensure_ascii=False).encode() + b"\n"
        try:
            while line:
                line = line[os.write(handle, line) :]
            if durable:
                os.fsync(handle)
        except OSError:
            os.ftruncate(handle, size)
            raise
        return record


def verify(path: Path) -> int | None:
    """Number of the first line, from 1, that breaks the chain; None where all is well or there is no file."""
    previous, n, torn = "", 0, b""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        number = 0
        for number, line in enumerate(file, 1):
            record = _parsed(line) if line.endswith(b"\n") else None
            if record is None:
                if torn:
                    return number - 1
                torn = line.removesuffix(_CLOSED)
                continue
            vouched = hashlib.sha256(torn).hexdigest() if torn else None
            if record.get("torn") != vouched:
                return number - 1 if torn else number
            said = record.pop("digest")
            if record["n"] != n + 1 or record["previous"] != previous or said != _digest(record):
                return number
            previous, n, torn = said, record["n"], b""
    return number if torn else None


def _digest(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if isinstance(record, dict) and {"n", "event", "previous", "digest"} <= record.keys():
        return record
    return None


def _tail(handle: int, size: int) -> tuple[bytes, bytes]:
    """The last whole line that is one of ours, and what was torn off after it."""
    block, start = b"", size
    while True:
        step = min(_BLOCK, start)
        start -= step
        block = os.pread(handle, step, start) + block
        *lines, torn = block.split(b"\n")
        whole = lines if start == 0 else lines[1:]
        for line in reversed(whole):
            if _parsed(line) is not None:
                return line, torn
        if start == 0:
            return b"", torn
