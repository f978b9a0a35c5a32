"""What the spool holds, by the attributes that C-FIND asks for: a table in SQLite that can be thrown away.

It is brought up to date from the headers in `held/` whenever it is asked; only folders that changed are looked at.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword

from medenhance_dicom.errors import InputError
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.part10 import Limits, read_instance

LEVELS: dict[str, tuple[str, ...]] = {
    "STUDY": (
        "StudyInstanceUID",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "StudyID",
        "StudyDescription",
        "ReferringPhysicianName",
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "PatientBirthDate",
        "PatientSex",
    ),
    "SERIES": (
        "SeriesInstanceUID",
        "Modality",
        "SeriesNumber",
        "SeriesDescription",
        "SeriesDate",
        "SeriesTime",
        "BodyPartExamined",
        "ProtocolName",
        "StationName",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
    ),
    "IMAGE": (
        "SOPInstanceUID",
        "SOPClassUID",
        "InstanceNumber",
        "AcquisitionNumber",
        "ContentDate",
        "ContentTime",
        "Rows",
        "Columns",
        "BitsAllocated",
        "NumberOfFrames",
    ),
}
"""Keys by level, the unique key first (PS3.4 C.6.2.1)."""
COUNTS = {
    "ModalitiesInStudy": ("STUDY", "group_concat(DISTINCT Modality)"),
    "SOPClassesInStudy": ("STUDY", "group_concat(DISTINCT SOPClassUID)"),
    "NumberOfStudyRelatedSeries": ("STUDY", "count(DISTINCT SeriesInstanceUID)"),
    "NumberOfStudyRelatedInstances": ("STUDY", "count(*)"),
    "NumberOfSeriesRelatedInstances": ("SERIES", "count(*)"),
}
"""Keys that are worked out, and the level at which they have a meaning."""
COLUMNS = tuple(keyword for keywords in LEVELS.values() for keyword in keywords)
_LAST = max(tag_for_keyword(keyword) or 0 for keyword in COLUMNS)
_LIMITS = Limits(max_elements=20_000)
_VERSION = 2
_YOUNG = 2.0
"""Seconds for which the time of a folder does not tell whether it has changed since."""
_MOST_VALUES = 500


@dataclass(frozen=True)
class Held:
    """An instance that is held."""

    path: Path
    sop_class: str
    sop_instance: str


class Index:
    """The table of one store; threads and processes may use it at the same time."""

    def __init__(self, spool: Spool) -> None:
        self._held = spool.store / "held"
        self._path = spool.store / "index.sqlite"

    def refresh(self) -> None:
        """Take in what came and drop what went since the last time."""
        with self._opened() as database:
            self._refresh(database)

    def find(self, level: str, wanted: dict[str, list[str]]) -> Iterator[dict[str, str]]:
        """Rows of a level that match (PS3.4 C.2.2.2), one per study, series or instance.

        Args:
            level: STUDY, SERIES or IMAGE.
            wanted: Keyword to values, none for universal matching. Keywords that are not kept are ignored.

        Yields:
            The columns of the level and of those above it, several values joined by a backslash, and `COUNTS`.
        """
        levels = list(LEVELS)[: list(LEVELS).index(level) + 1]
        columns = [keyword for name in levels for keyword in LEVELS[name]]
        counts = {keyword: sql for keyword, (at, sql) in COUNTS.items() if at == level}
        where, values = _narrowed(wanted)
        select = ", ".join([*columns, *counts.values()])
        sql = f"SELECT {select} FROM instances{where} GROUP BY {LEVELS[level][0]}"  # noqa: S608 our own names
        if counts and where:  # counts are of the whole study or series, not of what the other keys leave of it
            key = LEVELS[level][0]
            inner = f"SELECT {key} FROM instances{where}"  # noqa: S608 as above
            sql = f"SELECT {select} FROM instances WHERE {key} IN ({inner}) GROUP BY {key}"  # noqa: S608 as above
        with self._opened() as database:
            self._refresh(database)
            rows = database.execute(sql, values).fetchall()
        for row in rows:
            found = dict(zip([*columns, *counts], row, strict=True))
            for keyword in ("ModalitiesInStudy", "SOPClassesInStudy"):
                if keyword in found:
                    found[keyword] = "\\".join(sorted((found[keyword] or "").split(",")))
            found = {keyword: str(value) for keyword, value in found.items()}
            if all(
                matches(keyword, patterns, found[keyword]) for keyword, patterns in wanted.items() if keyword in found
            ):
                yield found

    def instances(self, uids: dict[str, list[str]]) -> list[Held]:
        """Instances below the given studies, series or instances, in a stable order."""
        where, values = _narrowed(uids)
        order = "StudyInstanceUID, SeriesInstanceUID, length(InstanceNumber), InstanceNumber, name"
        with self._opened() as database:
            self._refresh(database)
            sql = f"SELECT name, SOPClassUID, SOPInstanceUID FROM instances{where} ORDER BY {order}"  # noqa: S608 as above
            rows = database.execute(sql, values).fetchall()
        return [Held(self._held / name[:2] / name, sop_class, uid) for name, sop_class, uid in rows]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            database = self._connected()
        except sqlite3.DatabaseError:  # damaged: it is only a copy of what the headers say
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            database = self._connected()
        try:
            yield database
        finally:
            database.close()

    def _connected(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        database = sqlite3.connect(self._path, timeout=60.0, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = OFF")
            if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                database.execute("BEGIN IMMEDIATE")
                for table in ("instances", "unreadable", "folders"):
                    database.execute(f"DROP TABLE IF EXISTS {table}")
                columns = ", ".join(f"{keyword} TEXT NOT NULL" for keyword in COLUMNS)
                database.execute(f"CREATE TABLE instances (name TEXT PRIMARY KEY, {columns})")
                for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
                    database.execute(f"CREATE INDEX by_{keyword} ON instances ({keyword})")
                database.execute("CREATE TABLE unreadable (name TEXT PRIMARY KEY)")
                database.execute("CREATE TABLE folders (name TEXT PRIMARY KEY, changed INTEGER NOT NULL)")
                database.execute(f"PRAGMA user_version = {_VERSION}")
                database.execute("COMMIT")
        except BaseException:
            database.close()
            raise
        return database

    def _refresh(self, database: sqlite3.Connection) -> None:
        known = dict(database.execute("SELECT name, changed FROM folders"))
        for entry in os.scandir(self._held):
            if not entry.is_dir():
                continue
            changed = entry.stat().st_mtime_ns
            if known.get(entry.name) == changed:
                continue
            if time.time() - changed / 1e9 < _YOUNG:
                changed = -1
            self._refresh_folder(database, Path(entry.path), changed)

    def _refresh_folder(self, database: sqlite3.Connection, folder: Path, changed: int) -> None:
        there = {path.name for path in folder.glob("*.dcm")}
        had: set[str] = set()
        for table in ("instances", "unreadable"):
            sql = f"SELECT name FROM {table} WHERE name LIKE ?"  # noqa: S608 our own names
            had |= {name for (name,) in database.execute(sql, (f"{folder.name}%",))}
        new = {name: _row(folder / name) for name in sorted(there - had)}
        if not new and not had - there and changed < 0:
            return
        rows = [row for row in new.values() if row is not None]
        unreadable = [(name,) for name, row in new.items() if row is None]
        database.execute("BEGIN IMMEDIATE")
        for table in ("instances", "unreadable"):
            gone = [(name,) for name in had - there]
            database.executemany(f"DELETE FROM {table} WHERE name = ?", gone)  # noqa: S608 our own names
        database.executemany("INSERT OR REPLACE INTO unreadable VALUES (?)", unreadable)
        marks = ", ".join("?" * (len(COLUMNS) + 1))
        database.executemany(f"INSERT OR REPLACE INTO instances VALUES ({marks})", rows)  # noqa: S608 as above
        database.execute("INSERT OR REPLACE INTO folders VALUES (?, ?)", (folder.name, changed))
        database.execute("COMMIT")


def _row(path: Path) -> tuple[str, ...] | None:
    """None where the header does not parse: such an instance is held, and cannot be asked for."""
    try:
        header = read_instance(path, limits=_LIMITS, last=_LAST)
    except InputError:
        return None
    return (path.name, *(text_of(header, keyword) for keyword in COLUMNS))


def text_of(header: Dataset, keyword: str) -> str:
    """A value as text, several ones joined by a backslash; empty where there is none."""
    value = header.get(keyword)
    if value is None:
        return ""
    values = value if isinstance(value, list | tuple) or type(value).__name__ == "MultiValue" else [value]
    return "\\".join(str(item).strip() for item in values)


def _narrowed(wanted: dict[str, list[str]]) -> tuple[str, list[str]]:
    """The WHERE clause for the UIDs, which SQLite has an index of."""
    clauses: list[str] = []
    values: list[str] = []
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        uids = [uid for uid in wanted.get(keyword, []) if uid]
        if uids and len(uids) <= _MOST_VALUES and not any("*" in uid or "?" in uid for uid in uids):
            clauses.append(f"{keyword} IN ({', '.join('?' * len(uids))})")
            values += uids
    return (" WHERE " + " AND ".join(clauses) if clauses else ""), values


# ---------------------------------------------------------------- matching


def matches(keyword: str, patterns: list[str], value: str) -> bool:
    """Whether a value fits a key of a query (PS3.4 C.2.2.2): single value, UID list, wildcards, ranges, universal.

    Names match whatever their case; of several values one has to fit.
    """
    patterns = [pattern.strip() for pattern in patterns]
    if all(pattern in ("", "*") for pattern in patterns):
        return True
    vr = dictionary_VR(keyword)
    return any(_fits(vr, pattern, item) for pattern in patterns for item in value.split("\\"))


def _fits(vr: str, pattern: str, value: str) -> bool:
    if vr == "UI":
        return pattern == value
    if vr in ("DA", "TM"):
        width = 8 if vr == "DA" else 6
        first, dash, last = (_digits(vr, part) for part in pattern.partition("-"))
        begin, end = first.ljust(width, "0"), (last if dash else first).ljust(width, "9")
        return bool(value) and begin <= _digits(vr, value).ljust(width, "0") <= end
    if vr in ("IS", "US", "DS"):
        try:
            return float(pattern) == float(value)
        except ValueError:
            return False
    if vr == "PN":
        groups = [group.rstrip("^ ") for group in value.casefold().split("=")]
        wanted = _wildcard(pattern.casefold().rstrip("^ "))
        return any(wanted.fullmatch(text) for text in (value.casefold(), *groups))
    return _wildcard(pattern).fullmatch(value) is not None


def _digits(vr: str, text: str) -> str:
    """A date or time without the separators that ACR-NEMA had (PS3.5 section 6.2), and without fractions."""
    return text.strip().replace(".", "") if vr == "DA" else text.strip().partition(".")[0].replace(":", "")


def _wildcard(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))


def keys_of(identifier: Dataset) -> dict[str, list[str]]:
    """Keyword to values of a query's keys; private ones, sequences and unknown ones are left out."""
    keys: dict[str, list[str]] = {}
    for element in identifier:
        if element.keyword in COLUMNS or element.keyword in COUNTS:
            value: Any = element.value
            several = isinstance(value, list | tuple) or type(value).__name__ == "MultiValue"
            keys[element.keyword] = [str(item) for item in (value if several else [value]) if item is not None]
    return keys
