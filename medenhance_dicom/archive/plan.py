"""A plan: what was found in an archive, what is to be done with it, and what has been done. One SQLite file.

PLAN/plan.sqlite is the only truth. Finding adds instances in batches; judging gives each series a method, or a reason
why it is left out; running takes what is open, and enters a result for each instance. Every step is one transaction, so
whoever is killed goes on where the last one ended.

Nothing here is named by paths. A series is a digest of its UIDs, and so is an instance; a method is a digest of recipe,
weights and guide. An instance that has a result under a method is never given out again under that method, wherever the
archive has moved to and however often it is found; unless its header says something else by then: that is a correction,
its result is put away, and the series is judged and done anew.

The file holds UIDs and paths, so it is for its owner alone. Any number of processes may read while one writes.
"""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from medenhance_dicom.errors import ConfigurationError, OutputError
from medenhance_dicom.uids import digest_of

if TYPE_CHECKING:
    from medenhance_dicom.node.sources import Found, LeftOut

FILE = "plan.sqlite"
VERSION = 2
"""2 knows instances by their headers too. A plan of version 1 becomes one of 2 when it is opened for writing."""
BATCH = 1000
"""Items of one transaction while finding."""
SeriesState = Literal["new", "chosen", "left out"]

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE source (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, options TEXT NOT NULL,
    scan INTEGER NOT NULL DEFAULT 0,    -- walks begun
    ended INTEGER NOT NULL DEFAULT 0,   -- the last walk that came to its end
    UNIQUE (name, options)
);
CREATE TABLE method (
    key TEXT PRIMARY KEY, recipe TEXT NOT NULL, recipe_digest TEXT NOT NULL, weights TEXT, weights_digest TEXT,
    guide TEXT, guide_digest TEXT
) WITHOUT ROWID;
CREATE TABLE series (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, study TEXT NOT NULL, series TEXT NOT NULL,
    modality TEXT NOT NULL, manufacturer TEXT NOT NULL, model TEXT NOT NULL,
    instances INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, frames INTEGER NOT NULL DEFAULT 0,
    pixels INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'new', reason TEXT, method TEXT,
    open INTEGER NOT NULL DEFAULT 0,    -- chosen, and has instances without a result under its method
    patient TEXT                        -- of the instance that was found first
);
CREATE INDEX series_new ON series (id) WHERE state = 'new';
CREATE INDEX series_open ON series (id) WHERE open = 1;
CREATE TABLE instance (
    id INTEGER PRIMARY KEY, source INTEGER NOT NULL, locator TEXT NOT NULL, size INTEGER NOT NULL, stamp TEXT NOT NULL,
    series INTEGER NOT NULL, key TEXT NOT NULL, sop_instance TEXT NOT NULL, sop_class TEXT NOT NULL,
    frames INTEGER NOT NULL, pixels INTEGER NOT NULL,
    scan INTEGER NOT NULL,              -- the walk that saw it last; older than source.ended: it is gone
    header TEXT,                        -- of `Found`; NULL: found by version 1, and not read since
    patient TEXT,                       -- digest of the Patient ID; NULL: not known
    UNIQUE (source, locator)
);
CREATE INDEX instance_series ON instance (series, key);
CREATE TABLE left_out (
    source INTEGER NOT NULL, locator TEXT NOT NULL, reason TEXT NOT NULL, scan INTEGER NOT NULL,
    PRIMARY KEY (source, locator)
) WITHOUT ROWID;
CREATE TABLE job (
    id TEXT PRIMARY KEY, series INTEGER NOT NULL, method TEXT NOT NULL, shadow INTEGER NOT NULL,
    state TEXT NOT NULL,                -- open, failed, ended
    why TEXT NOT NULL DEFAULT '', instances TEXT NOT NULL, made REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE done (
    key TEXT NOT NULL, method TEXT NOT NULL, shadow INTEGER NOT NULL,
    series INTEGER NOT NULL, result TEXT NOT NULL, reason TEXT, lassim REAL, mean_change REAL, seconds REAL,
    derived_bytes INTEGER, derived TEXT,
    again INTEGER NOT NULL,             -- it could not be fetched: the next run tries it again
    at REAL NOT NULL,
    header TEXT,                        -- of what was done; NULL: by version 1
    PRIMARY KEY (key, method, shadow)
) WITHOUT ROWID;
CREATE INDEX done_series ON done (series);
CREATE TABLE event (at REAL NOT NULL, event TEXT NOT NULL, facts TEXT NOT NULL);
"""
_CORRECTED = """
CREATE TABLE corrected (                -- results of instances whose headers said something else then
    key TEXT NOT NULL, method TEXT NOT NULL, shadow INTEGER NOT NULL, header TEXT, result TEXT NOT NULL, reason TEXT,
    derived TEXT, at REAL NOT NULL
);
CREATE INDEX corrected_key ON corrected (key);
"""

_OTHER = "header <> ? AND (substr(header, 1, 1) = 'q') = (substr(?, 1, 1) = 'q')"
"""That a header said something else; what a query says of one is not compared with the header itself."""


@dataclass(frozen=True)
class Method:
    """What makes an enhancement this one: as in the UIDs of derived objects, without the pixels."""

    recipe: str
    recipe_digest: str
    weights: str | None = None
    weights_digest: str | None = None
    guide: str | None = None
    guide_digest: str | None = None

    @property
    def key(self) -> str:
        """Digest over the three digests: names may change."""
        return digest_of("method", self.recipe_digest, self.weights_digest or "", self.guide_digest or "")[:32]


@dataclass(frozen=True)
class SourceRow:
    """A source as the user wrote it."""

    id: int
    name: str
    options: dict[str, Any]
    """Keyword arguments of `sources.open_source`."""
    ended: bool
    """A walk over all of it came to its end."""


@dataclass(frozen=True)
class SeriesRow:
    """A series; counts are of the instances that are there, each once."""

    id: int
    key: str
    study: str
    series: str
    modality: str
    manufacturer: str
    model: str
    instances: int
    bytes: int
    frames: int
    pixels: int
    state: SeriesState
    reason: str | None
    method: str | None


@dataclass(frozen=True)
class InstanceRow:
    """An instance and where it lies."""

    id: int
    source: int
    locator: str
    size: int
    study: str
    series: str
    key: str
    sop_instance: str
    sop_class: str
    header: str
    """As `Found.header`; empty where that is not known."""

    @property
    def name(self) -> str:
        """Another one for another instance, and for the same with another header."""
        return self.key + self.header


@dataclass(frozen=True)
class JobRow:
    """A job that is open, failed, or has ended and is being cleared away."""

    id: str
    series: int
    method: str
    shadow: bool
    state: Literal["open", "failed", "ended"]
    why: str
    instances: tuple[int, ...]
    """Rows of `instance`."""
    made: float


@dataclass(frozen=True)
class Done:
    """What became of one instance under a method."""

    key: str
    result: str
    reason: str | None = None
    lassim: float | None = None
    mean_change: float | None = None
    seconds: float | None = None
    derived_bytes: int | None = None
    derived: str | None = None
    """SOP Instance UID."""
    again: bool = False
    """It could not be fetched, and nothing was tried with it: the next run does."""
    header: str = ""
    """Of the instance when the job was made."""


def series_key(study: str, series: str) -> str:
    """The same wherever the series lies."""
    return digest_of("series", study, series)[:32]


def instance_key(study: str, series: str, sop_instance: str) -> str:
    """The same wherever the instance lies; with its series, since careless copies repeat SOP Instance UIDs."""
    return digest_of("instance", study, series, sop_instance)[:32]


def job_id(series: str, method: str, instances: Iterable[str], *, shadow: bool = False) -> str:
    """Of keys of series and method, and of the names of instances: the same work has the same id."""
    return digest_of("shadow" if shadow else "job", series, method, *sorted(instances))[:32]


class Plan:
    """One plan. Use as a context manager; its methods may be called from any thread."""

    def __init__(self, folder: Path, *, create: bool = False, readonly: bool = False) -> None:
        """Open PLAN.

        Args:
            folder: PLAN.
            create: Make it where it is missing.
            readonly: Only look.

        Raises:
            ConfigurationError: No plan, or one of another release.
            OutputError: It cannot be written.
        """
        self.folder = folder
        path = folder / FILE
        if not path.exists():
            if not create:
                raise ConfigurationError(f"{folder}: no plan; make one with `archive plan SOURCE --plan {folder}`")
            _make(folder, path)
        self._lock = threading.RLock()
        try:
            uri = f"{path.absolute().as_uri()}?mode={'ro' if readonly else 'rw'}"
            self._db = sqlite3.connect(uri, uri=True, timeout=60.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA cache_size=-16000")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found == 1 and not readonly:
                found = self._upgrade()
        except sqlite3.Error as error:
            raise ConfigurationError(f"{path}: {error}") from error
        if found != VERSION and not (readonly and found == 1):
            raise ConfigurationError(f"{path}: a plan of version {found}; this release knows {VERSION}")
        self._header = "COALESCE(i.header, '')" if found == VERSION else "''"
        self.has_headers = found == VERSION
        """False: of version 1, and opened only to look."""
        self._series_ids: dict[str, int] = {}

    def _upgrade(self) -> int:
        """From version 1. Returns: the version that it has now."""
        self._db.execute("BEGIN IMMEDIATE")
        if self._db.execute("PRAGMA user_version").fetchone()[0] == 1:  # no other process was faster
            for column in ("instance ADD COLUMN header", "instance ADD COLUMN patient", "done ADD COLUMN header",
                           "series ADD COLUMN patient"):  # fmt: skip
                self._db.execute(f"ALTER TABLE {column} TEXT")
            for statement in filter(str.strip, _CORRECTED.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={VERSION}")
        self._db.execute("COMMIT")
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------ facts of the plan

    def meta(self, key: str) -> Any:
        """A JSON value; None where there is none."""
        row = self._one("SELECT value FROM meta WHERE key = ?", key)
        return None if row is None else json.loads(row[0])

    def set_meta(self, **values: Any) -> None:
        """Write JSON values."""
        with self._transaction():
            for key, value in values.items():
                self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    @property
    def options(self) -> dict[str, Any]:
        """How series are judged and enhanced: recipe, guide, allow and the like; keys of `settings.Enhancing`."""
        return self.meta("options") or {}

    def set_options(self, options: Mapping[str, Any]) -> None:
        """Other options than before have every series judged anew."""
        if self.options == dict(options):
            return
        with self._transaction():
            self.set_meta(options=dict(options))
            self.judge_again()

    def judge_again(self) -> None:
        """Have every series judged anew. What is done stays done, under its method."""
        with self._transaction():
            self._db.execute("UPDATE series SET state = 'new', open = 0")

    def note(self, event: str, **facts: Any) -> None:
        """Enter what happened to the plan as a whole: begun, paused, ended."""
        with self._transaction():
            self._db.execute("INSERT INTO event VALUES (?, ?, ?)", (time.time(), event, json.dumps(facts)))

    def events(self) -> list[dict[str, Any]]:
        """What happened, oldest first: at, event and facts."""
        rows = self._all("SELECT at, event, facts FROM event ORDER BY rowid")
        return [{"at": at, "event": event, **json.loads(facts)} for at, event, facts in rows]

    # ------------------------------------------------------------ finding

    def add_source(self, name: str, **options: Any) -> SourceRow:
        """The source of that name and those options, which is added where it is new."""
        text = json.dumps(options, sort_keys=True)
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO source (name, options) VALUES (?, ?)", (name, text))
        return next(source for source in self.sources() if source.name == name and source.options == json.loads(text))

    def sources(self) -> list[SourceRow]:
        """In the order in which they were named first."""
        rows = self._all("SELECT id, name, options, ended FROM source ORDER BY id")
        return [SourceRow(number, name, json.loads(options), bool(ended)) for number, name, options, ended in rows]

    def begin_scan(self, source: int) -> Scan:
        """A walk over all of a source; one that was broken off before has its instances known."""
        with self._transaction():
            self._db.execute("UPDATE source SET scan = scan + 1 WHERE id = ?", (source,))
        row = self._one("SELECT scan FROM source WHERE id = ?", source)
        assert row is not None
        return Scan(self, source, row[0])

    # ------------------------------------------------------------ judging

    def new_series(self) -> Iterator[SeriesRow]:
        """Series that nobody has judged, a batch at a time: judge each before asking for the next."""
        yield from self._series("state = 'new'")

    def representatives(self, series: int) -> list[InstanceRow]:
        """One instance for each SOP class of a series, those that are there."""
        return self._instances("i.series = ? AND i.scan >= s.ended GROUP BY i.sop_class", series)

    def patients(self, series: int) -> int:
        """How many Patient IDs the instances of a series have that are there; one that is empty counts, too."""
        row = self._one(
            "SELECT COUNT(DISTINCT patient) FROM (SELECT MAX(i.id), i.patient FROM instance i "
            "JOIN source s ON s.id = i.source WHERE i.series = ? AND i.scan >= s.ended GROUP BY i.key)",
            series,
        )
        assert row is not None
        return int(row[0])

    def choose(self, series: int, method: Method) -> None:
        """Have a series enhanced by a method; what has a result under it is not done again."""
        with self._transaction():
            self.add_method(method)
            self._db.execute(
                "UPDATE series SET state = 'chosen', reason = NULL, method = ? WHERE id = ?", (method.key, series)
            )
            self._refresh_open(series)

    def add_method(self, method: Method) -> None:
        """Make a method known, so that results may name it."""
        with self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO method VALUES (:key, :recipe, :recipe_digest, :weights, :weights_digest, "
                ":guide, :guide_digest)",
                asdict(method) | {"key": method.key},
            )

    def leave_out(self, series: int, reason: str) -> None:
        """Leave a series out; the reason is a code, a colon and words without anything of a patient."""
        with self._transaction():
            self._db.execute(
                "UPDATE series SET state = 'left out', reason = ?, method = NULL, open = 0 WHERE id = ?",
                (reason, series),
            )

    def methods(self) -> dict[str, Method]:
        """Key -> method, of all that were ever chosen."""
        rows = self._all("SELECT recipe, recipe_digest, weights, weights_digest, guide, guide_digest FROM method")
        return {method.key: method for method in (Method(*row) for row in rows)}

    def methods_in_use(self) -> list[Method]:
        """Those of the series that are open."""
        known = self.methods()
        return [known[key] for (key,) in self._all("SELECT DISTINCT method FROM series WHERE open = 1")]

    # ------------------------------------------------------------ running

    def open_series(self, after: int = 0) -> Iterator[SeriesRow]:
        """Series with instances that have no result under their method, by id from `after` on; for `open_instances`."""
        yield from self._series("open = 1", after)

    def open_instances(self, series: SeriesRow) -> list[InstanceRow]:
        """Those of a series that are there and have no result under its method, each once, the newest place of each."""
        return self._instances(
            "i.series = ? AND i.scan >= s.ended AND NOT EXISTS (SELECT 1 FROM done d "
            "WHERE d.key = i.key AND d.method = ? AND d.shadow = 0 AND d.again = 0) GROUP BY i.key",
            series.id,
            series.method,
            newest=True,
        )

    def instances(self, ids: Sequence[int]) -> list[InstanceRow]:
        """Rows by their numbers."""
        found: list[InstanceRow] = []
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            found += self._instances(f"i.id IN ({','.join('?' * len(part))})", *part)
        return found

    def series(self, number: int) -> SeriesRow:
        """One series.

        Raises:
            KeyError: No such row.
        """
        for row in self._series("id = ?", number - 1, number):
            return row
        raise KeyError(number)

    def open_jobs(self, rows: Sequence[JobRow]) -> None:
        """Enter jobs, before anything of them is made."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO job VALUES (?, ?, ?, ?, 'open', '', ?, ?)",
                [(r.id, r.series, r.method, r.shadow, json.dumps(r.instances), r.made) for r in rows],
            )

    def jobs(self) -> list[JobRow]:
        """Jobs that are open, failed, or ended and not yet cleared away; oldest first."""
        rows = self._all("SELECT id, series, method, shadow, state, why, instances, made FROM job ORDER BY made, id")
        return [
            JobRow(number, series, method, bool(shadow), state, why, tuple(json.loads(instances)), made)
            for number, series, method, shadow, state, why, instances, made in rows
        ]

    def corrected(self, rows: Sequence[InstanceRow], method: str) -> Iterator[tuple[InstanceRow, str]]:
        """Those whose headers said something else before, and the SOP Instance UID of what was derived of them then."""
        statement = (
            "SELECT derived FROM corrected WHERE key = ? AND method = ? AND shadow = 0 AND derived IS NOT NULL "
            "ORDER BY rowid DESC LIMIT 1"
        )
        for row in rows:
            if (found := self._one(statement, row.key, method)) is not None:
                yield row, found[0]

    def has_job(self, series: int) -> bool:
        """Whether a series has one, a failed one too: until that is retried or forgotten, it gets no other."""
        return self._one("SELECT 1 FROM job WHERE series = ? AND shadow = 0", series) is not None

    def mark_job(self, job: str, state: Literal["open", "failed"], why: str = "") -> None:
        """Say that a job has failed, or goes on."""
        with self._transaction():
            self._db.execute("UPDATE job SET state = ?, why = ? WHERE id = ?", (state, why, job))

    def end_job(self, job: JobRow, results: Iterable[Done], *, at: float) -> None:
        """Enter the results of a job. Twice is the same as once."""
        columns = (
            "key, method, shadow, series, result, reason, lassim, mean_change, seconds, derived_bytes, derived, again, "
            "at, header"
        )
        found = list(results)
        with self._transaction():
            self._db.executemany(
                f"INSERT OR REPLACE INTO done ({columns}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608 - constant
                [
                    (d.key, job.method, job.shadow, job.series, d.result, d.reason, d.lassim, d.mean_change, d.seconds,
                     d.derived_bytes, d.derived, d.again, at, d.header or None)
                    for d in found
                ],
            )  # fmt: skip
            for d in found:  # it may have been corrected since the job was made
                last = "SELECT header FROM instance WHERE series = ? AND key = ? ORDER BY id DESC LIMIT 1"
                row = self._one(last, job.series, d.key)
                if row is not None and row[0] not in (None, "", d.header):
                    self._put_away(d.key, row[0])
            self._db.execute("UPDATE job SET state = 'ended', why = '' WHERE id = ?", (job.id,))
            self._refresh_open(job.series)

    def forget_job(self, job: str) -> None:
        """Its folder and its rows in the queue are gone. Without results its series is open as before."""
        with self._transaction():
            self._db.execute("DELETE FROM job WHERE id = ?", (job,))

    def together(self) -> AbstractContextManager[None]:
        """What is entered in this block is entered as one: all of it or nothing.

        Raises:
            OutputError: The disk is full.
        """
        return self._transaction()

    # ------------------------------------------------------------ looking

    def counts(self) -> dict[str, Any]:
        """What a person wants to know first.

        Returns:
            `series` by state, `instances`, `bytes`, `left_out` (files), `open_series`, `open_instances`, `jobs` by
            state, `results` (instances by result, under the series' methods as they are now) and `earlier` (under
            other methods).
        """
        series = {str(state): n for state, n in self._all("SELECT state, COUNT(*) FROM series GROUP BY state")}
        total = self._one("SELECT COALESCE(SUM(instances), 0), COALESCE(SUM(bytes), 0) FROM series")
        open_ = self._one("SELECT COUNT(*), COALESCE(SUM(instances), 0) FROM series WHERE open = 1")
        partly = self._one(
            "SELECT COUNT(*) FROM series s JOIN done d ON d.series = s.id AND d.method = s.method AND d.shadow = 0 "
            "AND d.again = 0 WHERE s.open = 1"
        )
        results = self._all(
            "SELECT d.result, d.method = s.method, COUNT(*) FROM done d JOIN series s ON s.id = d.series "
            "WHERE d.shadow = 0 GROUP BY 1, 2"
        )
        left_out = self._one("SELECT COUNT(*) FROM left_out l JOIN source s ON s.id = l.source WHERE l.scan >= s.ended")
        assert total is not None
        assert open_ is not None
        assert partly is not None
        assert left_out is not None
        return {
            "series": series,
            "instances": total[0],
            "bytes": total[1],
            "left_out": left_out[0],
            "open_series": open_[0],
            "open_instances": open_[1] - partly[0],
            "jobs": dict(self._all("SELECT state, COUNT(*) FROM job GROUP BY state")),
            "results": {result: n for result, now, n in results if now},
            "earlier": {result: n for result, now, n in results if not now},
        }

    def query(self, statement: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Rows of a SELECT, for reports. The tables are described at the top of this module."""
        with self._lock:
            cursor = self._db.execute(statement, values)
        while rows := cursor.fetchmany(BATCH):
            yield from rows

    # ------------------------------------------------------------ inside

    def _series(self, condition: str, after: int = 0, *values: Any) -> Iterator[SeriesRow]:
        columns = (
            "id, key, study, series, modality, manufacturer, model, instances, bytes, frames, pixels, state, reason, "
            "method"
        )
        statement = f"SELECT {columns} FROM series WHERE {condition} AND id > ? ORDER BY id LIMIT 256"  # noqa: S608
        while rows := self._all(statement, *values, after):
            yield from (SeriesRow(*row) for row in rows)
            after = rows[-1][0]

    def _instances(self, condition: str, *values: Any, newest: bool = False) -> list[InstanceRow]:
        rows = self._all(
            f"SELECT {'MAX(i.id)' if newest else 'i.id'}, i.source, i.locator, i.size, r.study, r.series, i.key, "  # noqa: S608
            f"i.sop_instance, i.sop_class, {self._header} FROM instance i JOIN source s ON s.id = i.source "
            f"JOIN series r ON r.id = i.series WHERE {condition}",
            *values,
        )
        return sorted((InstanceRow(*row) for row in rows), key=lambda row: row.id)

    def _refresh_open(self, series: int) -> None:
        """Whether a series has anything left to do."""
        self._db.execute(
            "UPDATE series SET open = (state = 'chosen' AND EXISTS (SELECT 1 FROM instance i "
            "JOIN source s ON s.id = i.source WHERE i.series = series.id AND i.scan >= s.ended AND NOT EXISTS "
            "(SELECT 1 FROM done d WHERE d.key = i.key AND d.method = series.method AND d.shadow = 0 AND d.again = 0)"
            ")) WHERE id = ?",
            (series,),
        )

    def _put_away(self, key: str, header: str) -> None:
        """Put the results of an instance away that were come to when its header said something else."""
        columns, condition = "key, method, shadow, header, result, reason, derived, at", f"key = ? AND {_OTHER}"
        values = (key, header, header)
        self._db.execute(f"INSERT INTO corrected SELECT {columns} FROM done WHERE {condition}", values)  # noqa: S608
        self._db.execute(f"DELETE FROM done WHERE {condition}", values)  # noqa: S608 - constants

    def _recount(self, series: int) -> None:
        """Counts of a series, of what is there."""
        self._db.execute(
            "UPDATE series SET (instances, bytes, frames, pixels) = (SELECT COUNT(*), COALESCE(SUM(size), 0), "
            "COALESCE(SUM(frames), 0), COALESCE(SUM(pixels), 0) FROM (SELECT MAX(i.id), i.size, i.frames, i.pixels "
            "FROM instance i JOIN source s ON s.id = i.source WHERE i.series = ? AND i.scan >= s.ended GROUP BY i.key))"
            " WHERE id = ?",
            (series, series),
        )

    def _series_id(self, study: str, series: str, facts: Mapping[str, str]) -> int:
        """The row of a series; the first instance of it tells its modality and device."""
        key = series_key(study, series)
        if key in self._series_ids:
            return self._series_ids[key]
        self._db.execute(
            "INSERT OR IGNORE INTO series (key, study, series, modality, manufacturer, model, patient) "
            "VALUES (?,?,?,?,?,?,?)",
            (
                key,
                study,
                series,
                *(facts.get(k, "") for k in ("Modality", "Manufacturer", "ManufacturerModelName")),
                _patient(facts.get("PatientID", "")),
            ),
        )
        row = self._db.execute("SELECT id FROM series WHERE key = ?", (key,)).fetchone()
        if len(self._series_ids) > 50_000:
            self._series_ids.clear()
        self._series_ids[key] = row[0]
        return int(row[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; one inside another is part of it."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as error:
                self._undo()
                raise OutputError(f"{self.folder / FILE}: {error}") from error
            except BaseException:
                self._undo()
                raise

    def _undo(self) -> None:
        self._series_ids.clear()  # a row that was rolled back has no number
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _all(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(statement, values).fetchall()

    def _one(self, statement: str, *values: Any) -> tuple[Any, ...] | None:
        with self._lock:
            row: tuple[Any, ...] | None = self._db.execute(statement, values).fetchone()
            return row


class Scan:
    """One walk over a source. Made by `Plan.begin_scan`; `end` only where the walk came to its end."""

    def __init__(self, plan: Plan, source: int, number: int) -> None:
        self._plan, self._source, self._number = plan, source, number
        self._seen: list[int] = []
        self._touched: set[int] = set()

    def known(self, locator: str, size: int, stamp: str) -> bool:
        """Whether it was read before as it is now; then it is seen again."""
        row = self._plan._one(
            "SELECT id FROM instance WHERE source = ? AND locator = ? AND size = ? AND stamp = ? "
            "AND header IS NOT NULL",
            self._source, locator, size, stamp,
        )  # fmt: skip
        if row is None:
            return False
        self._seen.append(row[0])
        if len(self._seen) >= BATCH:
            self._flush()
        return True

    def add(self, items: Iterable[Found | LeftOut]) -> None:
        """Enter what was found, in one transaction: `BATCH` at a time is a good number.

        Raises:
            OutputError: The disk is full.
        """
        with self._plan._transaction():
            self._flush()
            for item in items:
                if hasattr(item, "reason"):
                    self._leave_out(item.locator, item.reason)
                else:
                    self._add(item)
            self._settle(self._touched)
            self._touched = set()

    def end(self) -> int:
        """The walk is over: what it did not see is gone, and is not asked for any more.

        Returns:
            How many instances are gone.
        """
        plan, db = self._plan, self._plan._db
        with plan._transaction():
            self._flush()
            gone = db.execute(
                "SELECT DISTINCT series FROM instance WHERE source = ? AND scan < ?", (self._source, self._number)
            ).fetchall()
            count = db.execute(
                "SELECT COUNT(*) FROM instance WHERE source = ? AND scan < ?", (self._source, self._number)
            ).fetchone()[0]
            db.execute("DELETE FROM left_out WHERE source = ? AND scan < ?", (self._source, self._number))
            db.execute("UPDATE source SET ended = ? WHERE id = ?", (self._number, self._source))
            self._settle(series for (series,) in gone)
        return int(count)

    def _flush(self) -> None:
        """Enter which known instances were seen."""
        seen, self._seen = self._seen, []
        if not seen:
            return
        plan = self._plan
        with plan._transaction():
            back = plan._db.execute(
                "SELECT DISTINCT i.series FROM instance i JOIN source s ON s.id = i.source "  # noqa: S608 - numbers
                f"WHERE i.scan < s.ended AND i.id IN ({','.join(map(str, seen))})"
            ).fetchall()
            plan._db.executemany("UPDATE instance SET scan = ? WHERE id = ?", [(self._number, row) for row in seen])
            self._settle(series for (series,) in back)  # it was gone, and came back

    def _settle(self, touched: Iterable[int]) -> None:
        """Count anew what is in series of which not only new instances came."""
        for series in touched:
            self._plan._recount(series)
            self._plan._refresh_open(series)

    def _leave_out(self, locator: str, reason: str) -> None:
        db = self._plan._db
        row = db.execute(
            "DELETE FROM instance WHERE source = ? AND locator = ? RETURNING series", (self._source, locator)
        ).fetchone()
        if row is not None:  # it was an instance before
            self._touched.add(row[0])
        db.execute("INSERT OR REPLACE INTO left_out VALUES (?, ?, ?, ?)", (self._source, locator, reason, self._number))

    def _add(self, found: Found) -> None:
        plan, db, facts = self._plan, self._plan._db, found.facts
        uids = [facts.get(k, "") for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
        if "" in uids:
            missing = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")[uids.index("")]
            self._leave_out(found.locator, f"UNREADABLE: {missing}: missing")
            return
        db.execute("DELETE FROM left_out WHERE source = ? AND locator = ?", (self._source, found.locator))
        study, series_uid, sop_instance = uids
        series = plan._series_id(study, series_uid, facts)
        key = instance_key(study, series_uid, sop_instance)
        patient = _patient(facts.get("PatientID", ""))
        frames = _number(facts.get("NumberOfFrames"), 1)
        pixels = frames * _number(facts.get("Rows"), 0) * _number(facts.get("Columns"), 0)
        before = db.execute(
            "SELECT series, key, header, size = ? AND stamp IN (?, '') FROM instance WHERE source = ? AND locator = ?",
            (found.size, found.stamp, self._source, found.locator),
        ).fetchone()
        twice = db.execute("SELECT 1 FROM instance WHERE series = ? AND key = ?", (series, key)).fetchone() is not None
        if before is not None and before[1:3] != (key, found.header) and not before[3]:
            # Another one than before: it is the one that was found last.
            db.execute("DELETE FROM instance WHERE source = ? AND locator = ?", (self._source, found.locator))
        db.execute(
            "INSERT INTO instance (source, locator, size, stamp, series, key, sop_instance, sop_class, frames, pixels, "
            "scan, header, patient) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (source, locator) DO UPDATE SET "
            "size = excluded.size, stamp = excluded.stamp, series = excluded.series, key = excluded.key, "
            "sop_instance = excluded.sop_instance, sop_class = excluded.sop_class, frames = excluded.frames, "
            "pixels = excluded.pixels, scan = excluded.scan, header = excluded.header, "
            "patient = excluded.patient",
            (self._source, found.locator, found.size, found.stamp, series, key, sop_instance,
             facts.get("SOPClassUID", ""), frames, pixels, self._number, found.header, patient),
        )  # fmt: skip
        # One more, or another than before: there may now be something in it that can be enhanced, or somebody else.
        db.execute(
            "UPDATE series SET state = 'new', open = 0 WHERE id = ? AND (state = 'left out' OR patient <> ?)",
            (series, patient),
        )
        if before is not None and before[2] is None:  # by version 1, as is its series
            db.execute("UPDATE series SET patient = ? WHERE id = ? AND patient IS NULL", (patient, series))
        corrected = self._is_corrected(key, found.header, changed=before is not None and not before[3])
        if corrected:  # what it says now may ask for another method, and be no conflict any more
            db.execute("UPDATE series SET state = 'new', open = 0 WHERE id = ?", (series,))
            db.execute("DELETE FROM done WHERE series = ? AND reason LIKE 'CONFLICT%'", (series,))
        if before is None and not twice:
            db.execute(
                "UPDATE series SET instances = instances + 1, bytes = bytes + ?, frames = frames + ?, "
                "pixels = pixels + ? WHERE id = ?",
                (found.size, frames, pixels, series),
            )
            self._reopen(series, key)
            return
        self._touched |= {series} | ({before[0]} if before else set())

    def _is_corrected(self, key: str, header: str, *, changed: bool) -> bool:
        """Whether an instance has results of when its header said something else; these are put away.

        What version 1 has done is taken to be of this header, but where the file is another one than then.
        """
        db = self._plan._db
        condition = f"key = ? AND (header IS NULL OR {_OTHER})"
        seen = db.execute(f"SELECT header FROM done WHERE {condition}", (key, header, header)).fetchall()  # noqa: S608
        if not seen or not header:
            return False
        then = f"{header} not" if changed else header
        db.execute("UPDATE done SET header = ? WHERE key = ? AND header IS NULL", (then, key))
        self._plan._put_away(key, header)
        return changed or any(of is not None for (of,) in seen)

    def _reopen(self, series: int, key: str) -> None:
        """A new instance opens a series that was done, unless it has a result from before."""
        self._plan._db.execute(
            "UPDATE series SET open = 1 WHERE id = ? AND open = 0 AND state = 'chosen' AND NOT EXISTS "
            "(SELECT 1 FROM done d WHERE d.key = ? AND d.method = series.method AND d.shadow = 0 AND d.again = 0)",
            (series, key),
        )


def _make(folder: Path, path: Path) -> None:
    """An empty plan, put in its place whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.touch(mode=0o600)
        db = sqlite3.connect(part)
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(f"BEGIN; {_SCHEMA} {_CORRECTED} PRAGMA user_version={VERSION}; COMMIT;")
        db.close()
        part.replace(path)
    except (OSError, sqlite3.Error) as error:
        raise OutputError(f"{folder}: {error}") from error


@functools.lru_cache(1024)
def _patient(text: str) -> str | None:
    """A digest, so that a plan holds no Patient ID in the clear; None where two programs may read it in two ways."""
    return digest_of("patient", text)[:16] if text.isascii() else None


def _number(text: str | None, otherwise: int) -> int:
    """Of a header, which may hold anything."""
    try:
        return min(max(int(text or otherwise), 0), 1 << 31)
    except ValueError:
        return otherwise
