"""The files of a job's folder: small JSON files written whole, and journals that are only ever added to."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medenhance_dicom.errors import MedenhanceError

ARCHIVE = "archive"
"""Folder of the store for jobs of archives, which the node's reconciliation and retention leave alone."""

LEDGER = "derived"
"""Folder of the store that says what was derived of which instance, after jobs were removed, too (`ledger`)."""


def job_folder(store: Path, job: str) -> Path:
    """Where a job lies: one of an archive, whose originals lie elsewhere, or one that the node received."""
    folder = store / ARCHIVE / job
    return folder if folder.is_dir() else store / "jobs" / job


def read_whole(path: Path) -> dict[str, Any] | None:
    """A small JSON file; None where there is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return found


def write_whole(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write a JSON file, all or nothing, durable when this returns.

    Args:
        path: Of the file.
        value: What it is to hold.
        durable: False: the machine may end without it.

    Raises:
        OSError: It was not written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("w") as file:
            os.fchmod(file.fileno(), 0o600)
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if durable:
        flush(path.parent)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal; none where there is no file. One that a crash tore was never acted upon: left out."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for line in text.split(b"\n"):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "event" in found:
            lines.append(found)
    return lines


def write_lines(path: Path, lines: Iterable[dict[str, Any]], *, durable: bool = True) -> None:
    """Add lines; they are on the disk when this returns.

    Args:
        path: Of the journal.
        lines: Each has an "event".
        durable: False: other processes see them, but the machine may end without them, and without a journal that they
            began.

    Raises:
        OSError: They are not.
    """
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    if not text:
        return
    new = not path.exists()
    if new:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        # A line that was torn before would swallow the first of ours.
        text = b"\n" + text if os.fstat(handle).st_size else text
        while text:
            text = text[os.write(handle, text) :]
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)
    if new and durable:
        for folder in (path.parent, path.parent.parent):
            flush(folder)


def bytes_in(folder: Path) -> int:
    """What a folder takes on the disk."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it is replaced or removed meanwhile
            size += path.lstat().st_blocks * 512
    return size


def flush(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether the lock was free; then it is ours, until we or the kernel let go of it. With `wait` it always is."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def ledger_path(folder: Path, destination: str) -> Path:
    """Where the ledger of a destination lies in the folder of a job."""
    return folder / "sent" / f"{destination}.jsonl"


def said(error: Exception) -> str:
    """An error in words that hold nothing of a file: our own errors speak, others only name their place."""
    if isinstance(error, MedenhanceError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
