"""What the gate withheld, kept for a time: a person can look at it, and no DICOM program takes it for a picture.

One file, `<SOP Instance UID>.withheld`: a line that says what it is, a line of JSON, and behind these the derived
object as it would have been written, whose Derivation Description says that it was withheld. The prefix DICM is not
where PS3.10 section 7.1 has it, and the file does not begin as a data set does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydicom import Dataset

from medenhance_dicom.errors import InputError, OutputError
from medenhance_dicom.part10 import write_instance
from medenhance_dicom.report import Outcome

__all__ = ["FOLDER", "SUFFIX", "drop_expired", "is_kept", "keep", "said_of", "unpack"]

FOLDER = "withheld"
SUFFIX = ".withheld"
_SAYS = b"medenhance-dicom: a picture that the structure check withheld; not to be used. Format 1."
_FIRST = _SAYS.ljust(159) + b"\n"  # reaches beyond where the prefix DICM would be
_SAID = ("until", "device", "engine", "precision")
_MOST = 1 << 20
"""Bytes of the line of JSON."""


def keep(
    derived: Dataset, pixels: Path, target: Path, outcome: Outcome, *, made: datetime, days: float, run: dict[str, str]
) -> None:
    """Keep what would have been written, all or nothing.

    Args:
        derived: The object without Pixel Data.
        pixels: Its frames, as `part10.write_instance` takes them.
        target: The file to be, ending in `SUFFIX`.
        outcome: What became of the instance.
        made: Aware time from which it is kept.
        days: How long.
        run: device, engine and precision that it was made with.

    Raises:
        OutputError: The disk does not take it.
        DerivationError: A value that DICOM cannot carry.
    """
    until = (made + timedelta(days=days)).isoformat(timespec="seconds")
    line = json.dumps({"until": until, **run, "outcome": asdict(outcome)}).encode() + b"\n"
    write_instance(derived, pixels, target, before=_FIRST + line)


def is_kept(path: Path) -> bool:
    """Whether a file is what `keep` writes."""
    try:
        with path.open("rb") as file:
            return file.read(len(_FIRST)) == _FIRST
    except OSError:
        return False


def said_of(path: Path) -> dict[str, Any]:
    """What is said of a kept picture: `until`, `device`, `engine`, `precision`, `outcome` as in a run report.

    Raises:
        InputError: It is no kept picture, or is cut.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(_FIRST)) != _FIRST:
                raise InputError(f"{path}: not a picture that was kept by `enhance`")
            said = json.loads(file.readline(_MOST))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        said = None
    if not _is_said(said):
        raise InputError(f"{path}: cut or altered")
    return dict(said)


def _is_said(value: Any) -> bool:
    """Whether it is what `keep` says of a picture."""
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in _SAID):
        return False
    outcome = value.get("outcome")
    return isinstance(outcome, dict) and all(isinstance(outcome.get(name), str) for name in ("source", "result"))


def unpack(path: Path, target: Path) -> None:
    """Write the object of a kept picture as a DICOM file.

    Args:
        path: The kept picture.
        target: The file to be, for reading by this process; on no account where others look for pictures.

    Raises:
        InputError: It is no kept picture, or cannot be read.
        OutputError: The disk does not take it.
    """
    if not is_kept(path):
        raise InputError(f"{path}: not a picture that was kept by `enhance`")
    with path.open("rb") as file:
        file.seek(len(_FIRST))
        file.readline(_MOST)
        try:
            with target.open("wb") as sink:
                shutil.copyfileobj(file, sink, 1 << 20)
        except OSError as error:
            raise OutputError(f"{target}: {error.strerror}") from error


def drop_expired(folder: Path, *, now: datetime) -> list[Path]:
    """Remove kept pictures whose time is over, with the PNGs beside them. One that cannot be read stays.

    Args:
        folder: Where they lie.
        now: Aware time.

    Returns:
        Those that are gone.

    Raises:
        OutputError: One cannot be removed.
    """
    gone = [path for path in _kept_in(folder) if _is_over(path, now)]
    try:
        for path in gone:
            for picture in path.parent.glob(f"{path.stem}*.png"):
                picture.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error
    return gone


def _kept_in(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(folder.rglob(f"*{SUFFIX}"))


def _is_over(path: Path, now: datetime) -> bool:
    try:
        return datetime.fromisoformat(said_of(path)["until"]) <= now
    except (InputError, KeyError, TypeError, ValueError):
        return False
