"""What every kind of source finds, and how instances are asked for."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from medenhance_dicom.errors import InputError, OutputError
from medenhance_dicom.headers import ARCHIVE_FACTS, LAST_FACT, Blocks, read_facts

NOT_DICOM = "NOT_DICOM"
UNREADABLE = "UNREADABLE"
HIDDEN = "HIDDEN"
DIRECTORY = "DICOMDIR"
MISSING = "MISSING"
CHANGED = "CHANGED"
UNIQUE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")

Known = Callable[[str, int, str], bool]
"""Whether an instance at (locator, size, stamp) was read before, and need not be again."""

Rows = Callable[[], Iterable[dict[str, str]]]
"""Rows of a list, column -> value, read when they are asked for."""


@dataclass(frozen=True)
class Found:
    """An instance. The three UIDs are always among the facts."""

    locator: str
    """Where it lies, as `Wanted` gives it back: a path, ARCHIVE.zip!MEMBER, AET@HOST:PORT/STUDY/SERIES/INSTANCE, a URL
    or s3://BUCKET/KEY. Always encodable as UTF-8."""
    size: int
    """Bytes; 0 where the source does not say."""
    stamp: str
    """Changes when the bytes do: modification time in ns, CRC or ETag; of a query's answer when that says something
    else. Empty where the source does not say."""
    facts: dict[str, str]
    """Keyword -> text, those that are there. Of a query's answer the Transfer Syntax UID and much else is missing."""
    header: str = ""
    """Another one where the header says something else. Of a query's answer it begins with a q, and only others of such
    are to be compared with it. Empty where the source does not say."""


@dataclass(frozen=True)
class LeftOut:
    """Something that is not an instance that could be enhanced."""

    locator: str
    reason: str
    """CODE: words. NOT_DICOM, UNREADABLE, HIDDEN, DICOMDIR, MISSING. Nothing of a patient in the words."""


@dataclass(frozen=True)
class Wanted:
    """An instance to be fetched; UIDs as the plan holds them."""

    locator: str
    study: str
    series: str
    sop_instance: str
    sop_class: str = ""


class Source(Protocol):
    """Where instances come from. `open_source(source.name)` opens it again, in another process or on another host."""

    name: str
    """As the user wrote it."""

    def scan(self, known: Known) -> Iterator[Found | LeftOut]:
        """Everything that is there, lazily; what is `known` is passed over without being read.

        Raises:
            InputError: The source itself cannot be read. Something in it that cannot is a LeftOut.
            PeerError: The peer or server refuses, or is not there.
        """
        ...

    def fetch(self, wanted: Sequence[Wanted], folder: Path) -> Iterator[str]:
        """Bring instances of one series; `wanted[n]` becomes `folder/<n>.dcm`.

        A file on disk becomes an absolute symbolic link, anything else a copy of the bytes as they are stored. Each is
        checked to be the instance that was wanted. What is in the folder already, from an attempt that was cut short,
        is not fetched again.

        Args:
            wanted: Instances of one series of this source.
            folder: Exists; this source alone writes numbered files into it.

        Yields:
            CODE: words, for each that did not come and will not when asked again, in the order of `wanted`; such a one
            has no file.

        Raises:
            PeerError: The peer or server refuses (`permanent`), or fails for now.
            InputError: The source itself cannot be read.
            OutputError: `folder` cannot be written.
        """
        ...


def place_of(folder: Path, number: int) -> Path:
    """Where `fetch` puts `wanted[number]`."""
    return folder / f"{number}.dcm"


def still_wanted(path: Path, wanted: Wanted) -> str | None:
    """None where a file is the instance that was wanted, else the reason why not."""
    try:
        with Blocks.of_file(path) as blocks:
            facts = read_facts(blocks, ARCHIVE_FACTS, LAST_FACT)
    except FileNotFoundError:
        return f"{MISSING}: it is not there any more"
    except OSError as error:
        return f"{UNREADABLE}: cannot be opened: {error.strerror}"
    except InputError as error:
        return f"{UNREADABLE}: {error}"
    if tuple(facts.get(keyword, "") for keyword in UNIQUE) != (wanted.study, wanted.series, wanted.sop_instance):
        return f"{CHANGED}: another instance than the one that was planned"
    return None


@contextlib.contextmanager
def bringing(target: Path) -> Iterator[Callable[[bytes], None]]:
    """Write a file block by block, all or nothing, durable when this ends.

    Raises:
        OutputError: The disk does not take it.
    """
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        file = part.open("xb")
    except OSError as error:
        raise OutputError(f"cannot write into {target.parent}: {error.strerror}") from None

    def write(block: bytes) -> None:
        try:
            file.write(block)
        except OSError as error:
            raise OutputError(f"cannot write into {target.parent}: {error.strerror}") from None

    try:
        with file:
            yield write
            try:
                file.flush()
                os.fsync(file.fileno())
                part.replace(target)
            except OSError as error:
                raise OutputError(f"cannot write into {target.parent}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
