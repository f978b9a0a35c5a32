"""The audit trail: one JSON line per event, each holding the digest of the line before it.

A line that was changed, removed or put in between breaks the chain from there on. Lines cut off the end show by an
anchor: the number and digest of the last line, in a file that is kept elsewhere. No fact may hold anything about a
patient, UIDs included: jobs and instances go by their keys.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from medenhance_dicom.errors import InputError, OutputError

_BLOCK = 8192
_ANCHOR_BYTES = 128
"""Of an anchor's line, filled up with blanks: one write over the one before, never longer and never shorter."""
_CLOSED = b"!\n"
"""After a torn line, so that it never parses."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Anchor:
    """How far a trail had come at some time."""

    n: int
    """Of the last line, from 1."""
    digest: str

    def line(self) -> str:
        """As it stands in an anchor file, without the newline."""
        return json.dumps({"n": self.n, "digest": self.digest})


State = Literal["whole", "none", "empty", "deleted", "cut", "rewritten", "broken", "torn"]


@dataclass(frozen=True)
class Trail:
    """What `examine` found."""

    state: State
    """whole; none: there is no file, and no anchor says that there was one; empty; deleted: an anchor says that there
    were lines, and there is no file; cut: it ends before an anchor; rewritten: the line of an anchor is another one;
    broken: the chain is; torn: the last line is not whole, by a crash or a cut, and no line after it vouches for it."""
    lines: int
    """Events up to the end, or up to where it is broken."""
    line: int | None = None
    """Number of the line in the file, from 1, that is broken, torn or rewritten."""
    end: Anchor | None = None
    """Its last line; None where it is not whole."""


class Audit:
    """An append-only file that several processes may write to at once."""

    def __init__(self, path: Path, *, anchor: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        """Args: path: its folder is made; anchor: file that gets its end; clock: seconds since the epoch."""
        self.path, self._anchor, self._clock = path, anchor, clock

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
        if durable and self._anchor is not None:
            try:
                write_anchor(self._anchor, Anchor(record["n"], record["digest"]))
            except OutputError as error:  # the line is on the disk; an anchor that stays behind accuses nobody
                log.warning("%s", error)
        return record


def write_anchor(file: Path, anchor: Anchor) -> None:
    """Put an anchor over the one before.

    It is not waited for the disk but at the first time: after a power cut an anchor may be behind its trail, which is
    no fault of the trail, and it is never ahead.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            first = os.fstat(handle).st_size != _ANCHOR_BYTES
            if first:
                os.ftruncate(handle, 0)
            os.pwrite(handle, anchor.line().ljust(_ANCHOR_BYTES - 1).encode() + b"\n", 0)
            if first:
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise OutputError(f"anchor of the audit trail: {error.strerror}") from error


def read_anchors(file: Path) -> list[Anchor]:
    """The anchors of a file, one in a line.

    Raises:
        InputError: It is not there, or holds something else.
    """
    try:
        lines = file.read_text("ascii").splitlines()
        found = [Anchor(int(said["n"]), str(said["digest"])) for said in map(json.loads, filter(str.strip, lines))]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        found = []
    if not found or not all(anchor.n > 0 and len(anchor.digest) == 64 for anchor in found):
        raise InputError(f"{file}: no anchor of an audit trail")
    return found


def examine(path: Path, anchors: Iterable[Anchor] | Path = ()) -> Trail:
    """Whether a trail is whole. Others may append to it meanwhile.

    Args:
        path: The trail.
        anchors: What is known of how far it had come, or the file that holds it.

    Raises:
        InputError: The file of the anchors holds none, or the trail cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        known = _anchors(anchors)
        return Trail("deleted" if known else "none", 0)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_SH)  # an append is a line and its anchor
        try:
            known, size = _anchors(anchors), os.fstat(file.fileno()).st_size
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
        return _examined(_up_to(file, size), {anchor.n: anchor.digest for anchor in known})


def _anchors(anchors: Iterable[Anchor] | Path) -> list[Anchor]:
    return read_anchors(anchors) if isinstance(anchors, Path) else list(anchors)


def _up_to(file: Iterable[bytes], size: int) -> Iterator[bytes]:
    for line in file:
        yield line[:size]
        size -= len(line)
        if size <= 0:
            return


def _examined(lines: Iterable[bytes], known: dict[int, str]) -> Trail:
    """The chain, line by line; `known` are digests that lines must have."""
    previous, n, torn, number = "", 0, b"", 0
    for number, line in enumerate(lines, 1):
        record = _parsed(line) if line.endswith(b"\n") else None
        if record is None:
            if torn:
                return Trail("broken", n, number - 1)
            torn = line.removesuffix(_CLOSED)
            continue
        vouched = hashlib.sha256(torn).hexdigest() if torn else None
        if record.get("torn") != vouched:
            return Trail("broken", n, number - 1 if torn else number)
        said = record.pop("digest")
        if record["n"] != n + 1 or record["previous"] != previous or said != _digest(record):
            return Trail("broken", n, number)
        previous, n, torn = said, record["n"], b""
        if known.get(n, said) != said:
            return Trail("rewritten", n, number)
    if known and n < max(known):
        return Trail("cut" if n else "empty", n)
    if torn:
        return Trail("torn", n, number)
    return Trail("whole", n, end=Anchor(n, previous)) if n else Trail("empty", 0)


def verify(path: Path) -> int | None:
    """Number of the first line, from 1, that breaks the chain; None where all is well or there is no file."""
    return examine(path).line


def _digest(record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not {"n", "event", "previous", "digest"} <= record.keys():
        return None
    chained = isinstance(record["n"], int) and all(isinstance(record[name], str) for name in ("previous", "digest"))
    return record if chained else None


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
