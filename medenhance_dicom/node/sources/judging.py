"""From the first bytes of something to what it is: an instance with its facts, or left out for a reason."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from medenhance_dicom.errors import InputError, UnreadableInstanceError
from medenhance_dicom.headers import (
    ARCHIVE_FACTS,
    BLOCK,
    HEADER,
    LAST_FACT,
    TRANSFER_SYNTAX,
    Blocks,
    plausible,
    read_facts,
)
from medenhance_dicom.node.sources.source import DIRECTORY, NOT_DICOM, UNIQUE, UNREADABLE, Found, LeftOut

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_DIRECTORY_CLASS = "1.2.840.10008.1.3.10"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_ENOUGH = 8 << 20
"""Bytes in which the header of an instance that is not on a disk has to be, where the walk fails on it."""
_LONGEST = 128


def judge(blocks: Blocks, locator: str, size: int, stamp: str, path: Path | None = None) -> Found | LeftOut:
    """What the header says. A header that is not as it should be is given to pydicom, which forgives much.

    Args:
        blocks: The file.
        locator: Where it lies.
        size: Bytes.
        stamp: As `Found`.
        path: Where it lies on a disk; None: nowhere.

    Raises:
        OSError: It cannot be read.
    """
    if not plausible(blocks.head):
        words = (
            "a zip inside another source; name it as a source of its own" if is_zip(blocks.head) else "not a DICOM file"
        )
        return LeftOut(locator, f"{NOT_DICOM}: {words}")
    try:
        facts = read_facts(blocks, ARCHIVE_FACTS, LAST_FACT, bare=True, header=True)
        header, problem = facts.pop(HEADER), problem_of(facts)
    except UnreadableInstanceError:
        facts, header, problem = {}, "", "?"
    if problem is not None:
        header = hashlib.sha256(blocks.at(0, BLOCK)).hexdigest()[:32]
        try:
            facts = _facts_by_pydicom(blocks, path)
        except InputError as error:
            return LeftOut(locator, f"{UNREADABLE}: {error}")
        if facts.pop("MediaStorageSOPClassUID", "") == _DIRECTORY_CLASS:
            return LeftOut(locator, f"{DIRECTORY}: a directory of other files")
        problem = problem_of(facts)
    if problem is not None:
        return LeftOut(locator, f"{UNREADABLE}: {problem}")
    return Found(locator, size, stamp, {keyword: text[:_LONGEST] for keyword, text in facts.items()}, header)


def problem_of(facts: dict[str, str]) -> str | None:
    """What is wrong with the UIDs that the rest goes by (PS3.5 section 9.1), None: nothing."""
    for keyword in reversed(UNIQUE):
        uid = facts.get(keyword, "")
        if not uid:
            return f"{keyword}: missing"
        if len(uid) > 64 or not _UID.fullmatch(uid):
            return f"{keyword}: is not a UID"
    return None


def is_zip(head: bytes) -> bool:
    """Whether a file that starts so is a zip."""
    return head.startswith(_ZIP)


def _facts_by_pydicom(blocks: Blocks, path: Path | None) -> dict[str, str]:
    from medenhance_dicom.part10 import read_instance

    if path is not None:
        instance = read_instance(path)
    else:
        with tempfile.NamedTemporaryFile(prefix="header-", suffix=".dcm") as file:
            file.write(blocks.at(0, _ENOUGH))
            file.flush()
            instance = read_instance(Path(file.name))
    keywords = [fact.name for fact in ARCHIVE_FACTS.values()]
    found = {keyword: text_of(instance.get(keyword)) for keyword in keywords}
    for keyword in (TRANSFER_SYNTAX, "MediaStorageSOPClassUID"):
        found[keyword] = text_of(instance.file_meta.get(keyword))
    return {keyword: text for keyword, text in found.items() if text}


def text_of(value: object) -> str:
    """A value as a fact: what there is of several joined, nothing that does not print."""
    if value is None or isinstance(value, bytes):
        return ""
    if isinstance(value, Iterable) and not isinstance(value, str):
        value = "\\".join(map(str, value))
    text = str(value)
    text = text.strip("\0 ")
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
