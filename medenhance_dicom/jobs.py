"""Durable work on DBOS: a job is one series, and goes through its stages whatever is killed meanwhile.

A job begins with the stage "enhance", or "fetch" where its instances have to be brought first. What a stage says
leads to further ones, such as one for each destination. One DBOS workflow is one *go* at a stage. A stage that has to
wait, for a peer or for a commitment, ends its workflow and has the next go enqueued with a delay. So nothing that
waits holds a place or a process: it is a row in the database that any worker takes up. What a stage has done is kept
in the job's folder and each go reads it there, so a go that is killed and repeated does only the rest, and so does a
job whose database was lost.

Workflow ids are `<job id>:<number>:<stage>`, numbers rising along a job, so enqueueing twice runs once. What must be
worked on anew under the same series (other weights) needs another job id.

Values in the database are JSON, never pickles. Nothing here listens on a port or calls anybody but the database.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, EnqueueOptions, WorkflowStatus
from dbos._serialization import DBOSPortableJSON  # not exported at the top; the alternative is pickle

from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.heartbeat import Heartbeats

APPLICATION = "medenhance"
APPLICATION_VERSION = "1"
"""DBOS gives work only to workers of the version that enqueued it. This one stays the same across our releases, so an
upgrade strands nothing. Raise it only where `worker._task` calls its steps in another order or with other arguments,
and then keep workers of the old version until their work is done."""
ENHANCE = "enhance"
FETCH = "fetch"
WORKFLOW = "task"
ENHANCING, DELIVERING = "enhance", "deliver"
FETCHING, REENHANCING = "fetch", "reenhance"
"""The queues; the last two are of jobs with a priority above 0, which stand behind the work of the day."""

_AT_ONCE, _NUMBERS = 64, 8
"""Jobs, and gos of each, that are asked for in one statement."""

State = Literal["queued", "working", "waiting", "done", "failed", "cancelled"]


class Task(NamedTuple):
    """A stage that is to be gone at, `pause` seconds from now."""

    stage: str
    pause: float = 0.0
    priority: int = 0
    """Smaller goes first; 0 is the work of the day."""


@dataclass(frozen=True)
class Result:
    """What one go came to. `then`: what follows; nothing: the stage has ended."""

    state: Literal["done", "failed", "waiting", "cancelled"]
    say: str = ""
    """For people; nothing about a patient."""
    then: tuple[Task, ...] = ()


class Work(Protocol):
    """What is done at a stage. A go may be repeated at any time, so it keeps on disk what it has done."""

    def go(self, job: str, stage: str, stopping: threading.Event) -> Result:
        """Do what can be done now. Ends soon after `stopping` is set, with the same stage in `then`."""


@dataclass(frozen=True)
class StageState:
    """A stage as the database knows it. Times are seconds since the epoch."""

    stage: str
    state: State
    say: str
    number: int
    since: float
    until: float | None
    """Of a waiting one: its next go."""
    worker: str | None


@dataclass(frozen=True)
class JobState:
    """A job as the database knows it."""

    job: str
    stages: tuple[StageState, ...]
    created: float
    updated: float

    @property
    def state(self) -> State:
        """Failed as soon as a stage has: that is a dead letter, whatever else goes on."""
        states = {stage.state for stage in self.stages}
        order: tuple[State, ...] = ("failed", "working", "queued", "waiting", "cancelled")
        return next((state for state in order if state in states), "done")


def sqlite_url(path: Path) -> str:
    """SQLAlchemy URL of an SQLite file."""
    return f"sqlite:///{path}"


class Jobs:
    """The queue from outside: add, look, retry, cancel. Runs nothing itself."""

    def __init__(self, database: str) -> None:
        """Connect; the tables are made where they are missing.

        Args:
            database: SQLAlchemy URL, SQLite or PostgreSQL.

        Raises:
            ConfigurationError: It cannot be reached, or is not a database of ours.
        """
        try:
            prepare_database(database)
            self._client = DBOSClient(
                system_database_url=database, serializer=DBOSPortableJSON, application_name=APPLICATION
            )
            self._beats = Heartbeats(database)
        except Exception as error:
            raise ConfigurationError(f"database: {type(error).__name__}") from error

    def enqueue(self, job: str, *, stage: str = ENHANCE, number: int = 0, priority: int = 0) -> None:
        """Add a job. One that was added before is left as it is, whatever became of it."""
        self._client.enqueue(enqueue_options(job, stage, number, 0.0, priority), job, stage, number)

    def enqueue_all(self, jobs: Iterable[tuple[str, str]], *, priority: int = 0) -> None:
        """Add jobs as `enqueue` does, all or none.

        Args:
            jobs: Id, and the stage that it begins with.
            priority: Of all.
        """
        with self._client._sys_db.engine.begin() as connection:
            for job, stage in jobs:
                options = enqueue_options(job, stage, 0, 0.0, priority)
                self._client.enqueue_in_transaction(connection, options, job, stage, 0)

    def all(self) -> list[JobState]:
        """Every job, oldest first."""
        return _states(self._rows())

    def job(self, job: str) -> JobState:
        """One job.

        Raises:
            KeyError: No such job.
        """
        found = _states(self._rows(job))
        if not found:
            raise KeyError(job)
        return found[0]

    def some(self, jobs: Iterable[str], stages: Iterable[str]) -> list[JobState]:
        """Those of the jobs that there are, whose stages are known: costs the same however many others there are."""
        return _states(self._rows_of(list(jobs), list(stages)))

    def retry(self, job: str, *, always: str | None = None) -> list[str]:
        """Go at failed, cancelled and waiting stages now.

        Args:
            job: Its id.
            always: A stage that is gone at too if it is done.

        Returns:
            Their names; none where nothing has failed.

        Raises:
            KeyError: No such job.
        """
        rows = self._rows(job)
        stages = _states(rows)[0].stages if rows else self.job(job).stages
        priority = max((row.priority or 0 for row in rows), default=0)
        number = max(stage.number for stage in stages)
        again = []
        for stage in stages:
            if stage.state == "waiting":
                self._client.set_workflow_delay(_id(job, stage.stage, stage.number), delay_seconds=0)
            elif stage.state in ("failed", "cancelled") or (stage.state == "done" and stage.stage == always):
                self.enqueue(job, stage=stage.stage, number=number + 1, priority=priority)
            else:
                continue
            again.append(stage.stage)
        return again

    def cancel(self, job: str) -> bool:
        """Stop a job: what waits is not gone at, what runs ends after its step.

        A go that is just ending may still add its next one, so whoever cancels for good marks the job's folder too.

        Returns:
            False where nothing was left to cancel.

        Raises:
            KeyError: No such job.
        """
        open_stages = [s for s in self.job(job).stages if s.state in ("queued", "working", "waiting")]
        if open_stages:
            self._client.cancel_workflows([_id(job, stage.stage, stage.number) for stage in open_stages])
        return bool(open_stages)

    def recover(self, worker: str) -> None:
        """Declare a worker dead; a living one takes its jobs over within a heartbeat."""
        self._beats.give_up(worker)

    def workers(self) -> dict[str, int]:
        """Worker -> heartbeats so far; -1: stopped or declared dead."""
        return self._beats.counts()

    def forget(self, jobs: Iterable[str], stages: Iterable[str] = ()) -> None:
        """Remove jobs from the database, finished ones that is: their folders are gone.

        Args:
            jobs: Their ids.
            stages: All that they may have had. Unknown, the whole table is searched for each job.
        """
        asked, named = list(jobs), list(stages)
        found = self._rows_of(asked, named) if named else [row for job in asked for row in self._rows(job)]
        if found:
            self._client.delete_workflows([row.workflow_id for row in found])

    def close(self) -> None:
        """Close the connections."""
        self._client.destroy()
        self._beats.close()

    def _rows(self, job: str | None = None) -> list[WorkflowStatus]:
        prefix = None if job is None else f"{job}:"
        return self._client.list_workflows(name=WORKFLOW, workflow_id_prefix=prefix, load_input=False)

    def _rows_of(self, jobs: list[str], stages: list[str]) -> list[WorkflowStatus]:
        """By their ids, which a database finds by its index: numbers rise along a job without a gap."""
        found: list[WorkflowStatus] = []
        start = 0
        while jobs:
            rows: list[WorkflowStatus] = []
            for first in range(0, len(jobs), _AT_ONCE):
                part = jobs[first : first + _AT_ONCE]
                ids = [_id(j, s, n) for j in part for s in stages for n in range(start, start + _NUMBERS)]
                rows += self._client.list_workflows(workflow_ids=ids, load_input=False)
            found += rows
            start += _NUMBERS
            more = {job for row in rows for job, number in [row.workflow_id.split(":")[:2]] if int(number) == start - 1}
            jobs = [job for job in jobs if job in more]
        return found


def _id(job: str, stage: str, number: int) -> str:
    return f"{job}:{number}:{stage}"


def enqueue_options(job: str, stage: str, number: int, pause: float, priority: int = 0) -> EnqueueOptions:
    """How DBOS is to take a go in; one of the same number is taken in once."""
    options = EnqueueOptions(
        workflow_name=WORKFLOW,
        queue_name=_queue(stage, priority),
        workflow_id=_id(job, stage, number),
        app_version=APPLICATION_VERSION,
        application_name=APPLICATION,
    )
    if stage not in (ENHANCE, FETCH):
        options["queue_partition_key"] = stage
    if pause > 0:
        options["delay_seconds"] = pause
    if priority > 0:
        options["priority"] = priority
    return options


def _queue(stage: str, priority: int) -> str:
    if stage == FETCH:
        return FETCHING
    if stage == ENHANCE:
        return REENHANCING if priority else ENHANCING
    return DELIVERING


def prepare_database(database: str) -> None:
    """Make the tables where they are missing.

    SQLite gets a write-ahead log, so that readers and the writer do not wait for each other.
    """
    dbos_log = logging.getLogger("dbos")
    dbos_log.setLevel(logging.WARNING)
    if not dbos_log.handlers:  # or it would add one of its own that writes to stderr in its own way
        dbos_log.addHandler(logging.NullHandler())
    url = sa.make_url(database)
    if url.drivername.startswith("sqlite") and url.database:
        Path(url.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(url.database).touch(mode=0o600)
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            connection.execute(sa.text("PRAGMA journal_mode=WAL"))
        engine.dispose()
    DBOS.migrate(database)


_OPEN: dict[str, State] = {"ENQUEUED": "queued", "PENDING": "working", "DELAYED": "waiting", "CANCELLED": "cancelled"}


def _states(rows: Iterable[WorkflowStatus]) -> list[JobState]:
    """Rows grouped by job; of each stage the newest go counts, and what the last one that ended said."""
    grouped: dict[str, dict[str, dict[int, WorkflowStatus]]] = {}
    for row in rows:
        job, number, stage = row.workflow_id.split(":", 2)
        grouped.setdefault(job, {}).setdefault(stage, {})[int(number)] = row
    states = []
    for job, stages in grouped.items():
        gos = [row for stage in stages.values() for row in stage.values()]
        states.append(
            JobState(
                job,
                tuple(_stage_state(stage, numbered) for stage, numbered in sorted(stages.items())),
                created=min(row.created_at or 0 for row in gos) / 1000,
                updated=max(row.updated_at or 0 for row in gos) / 1000,
            )
        )
    return sorted(states, key=lambda state: state.created)


def _stage_state(stage: str, gos: dict[int, WorkflowStatus]) -> StageState:
    number = max(gos)
    newest = gos[number]
    outputs = [output for n in sorted(gos) if isinstance(output := gos[n].output, dict)]
    say: str = outputs[-1]["say"] if outputs else ""
    state: State
    if newest.status in _OPEN:
        state = _OPEN[newest.status]
    elif isinstance(newest.output, dict):
        state = newest.output["state"]
    else:
        state, say = "failed", f"the work was given up: {newest.status.lower().replace('_', ' ')}"
    return StageState(
        stage,
        state,
        say,
        number,
        since=(newest.updated_at or 0) / 1000,
        until=newest.delay_until_epoch_ms / 1000 if state == "waiting" and newest.delay_until_epoch_ms else None,
        worker=newest.executor_id if state == "working" else None,
    )
