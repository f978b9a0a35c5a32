"""A worker: takes jobs off the queue and goes at their stages, beats its heart, and recovers the silent ones."""

from __future__ import annotations

import fcntl
import logging
import socket
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig
from dbos._serialization import DBOSPortableJSON

from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.heartbeat import Heartbeats, Watch
from medenhance_dicom.jobs import (
    APPLICATION,
    APPLICATION_VERSION,
    DELIVERING,
    ENHANCING,
    FETCHING,
    REENHANCING,
    WORKFLOW,
    Result,
    Work,
    enqueue_options,
    prepare_database,
)

POLLING_SECONDS = 0.1
UNHURRIED_SECONDS, ALONE_SECONDS = 0.4, 1.0
"""Between looks at the queues of work that nobody waits for, the second where `TAKEN_ALONE`; a look costs about 3 ms
of a core."""
SELDOM_SECONDS = 4.0
"""Between looks at queues that are only used where something went wrong."""
DELIVERIES = 4
"""Gos at one destination that a worker runs at once: a peer that stalls holds up nobody else."""
FETCHES = 2
"""Series that a worker fetches at once, while it enhances another."""
TAKEN = 2
"""Of work that nobody waits for: one that is enhanced, and one that stands ready, so that none is waited for."""
TAKEN_BY_FEW = 4
"""Likewise, in a store that has jobs of archives alone. Its workers are few, so that none keeps work from the others,
and its series may be small: none is waited for where one takes a quarter as long as it takes until the next look."""
TAKEN_ALONE = 32
"""Likewise, by the only worker, where some wait for each other (`Turns.gather`)."""
_BACK = 60.0
"""Seconds that clocks may differ before a pause is taken for one that began on another clock."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Surroundings:
    """What a worker may rely on, and so need not look for."""

    hurried: bool = True
    """Somebody may wait for the work; else live jobs are not looked for."""
    at_hand: bool = False
    """Nothing comes or goes over a network, so fetching and delivering are no stages of their own, but where something
    went wrong."""
    alone: bool = False
    """No other worker would go at what this one has taken and has not begun."""


class Worker:
    """A running worker; made by `launch`."""

    def __init__(
        self, executor: str, database: str, lock: IO[str], *, beat: float, silent: float, longest: float
    ) -> None:
        self.executor, self._lock, self._seconds, self._longest = executor, lock, beat, longest
        self._beats, self._watch = Heartbeats(database), Watch(silent)
        self._beats.beat(executor)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = 30.0) -> None:
        """Take no more work and let what runs end its step; after `seconds` it is left to be recovered.

        A step that is still running then keeps its thread, and Python waits for it at exit: end with `os._exit`.
        """
        _stopping.set()
        DBOS.destroy(workflow_completion_timeout_sec=max(1, round(seconds)))
        self._ended.set()
        self._thread.join()
        try:
            self._beats.give_up(self.executor)
        except sa.exc.SQLAlchemyError as error:
            log.warning("the database is away while stopping: %s", type(error).__name__)
        self._beats.close()
        self._lock.close()

    def _supervise(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                self._beats.beat(self.executor)
                self._recover_the_silent()
                _mend_delays(self._longest)
            except Exception as error:  # the database is away: it is tried for as long as the process lives
                self._watch.reset()
                if _stopping.is_set():
                    continue  # DBOS goes first
                log.warning("heartbeat: %s", type(error).__name__)

    def _recover_the_silent(self) -> None:
        running = DBOS.list_workflows(status="PENDING", name=WORKFLOW, load_input=False, load_output=False)
        counts = self._beats.counts()
        holders = {str(row.executor_id) for row in running} - {self.executor}
        for executor in self._watch.silent({name: counts.get(name) for name in holders}):
            log.warning("worker %s is silent; its jobs are taken over", executor)
            # Puts back only what still belongs to that worker, so two that do it at once do no harm.
            DBOS._recover_pending_workflows([executor])


def launch(
    work: Work,
    *,
    database: str,
    locks: Path,
    executor: str | None = None,
    beat: float = 5.0,
    silent: float = 60.0,
    surroundings: Surroundings | None = None,
    longest: float = 3600.0,
) -> Worker:
    """Start working in threads of this process, on one series and `DELIVERIES` deliveries to each peer at once.

    Work that this worker held when it died is taken up at once, and that of others once they are silent.

    Args:
        work: What is done.
        database: SQLAlchemy URL.
        locks: Folder for lock files, of this host alone or shared.
        executor: Name of the worker, the same after a restart; None: host name and the first number that no living
            process has.
        beat: Seconds between heartbeats.
        silent: Seconds without a heartbeat after which a worker is dead to the others.
        surroundings: What it may rely on; None: nothing.
        longest: Seconds that no pause of this work exceeds; a longer one was begun on a clock that has been set back.

    Raises:
        ConfigurationError: The database cannot be reached, or the name is another living process's.
    """
    global _work  # noqa: PLW0603 - DBOS knows workflows as functions
    surroundings = surroundings or Surroundings()
    hurried, at_hand, alone = surroundings.hurried, surroundings.at_hand, surroundings.alone
    executor, lock = _claim(locks, executor)
    try:
        prepare_database(database)
        _work = work
        _stopping.clear()
        DBOS(config=_config(database, executor))
        if not hurried:
            DBOS.listen_queues([FETCHING, REENHANCING, DELIVERING])
        DBOS.launch()
        # On every start: an earlier release may have registered other numbers.
        DBOS.register_queue(
            ENHANCING, worker_concurrency=1, polling_interval_sec=POLLING_SECONDS, on_conflict="always_update"
        )
        DBOS.register_queue(
            FETCHING,
            worker_concurrency=FETCHES,
            polling_interval_sec=SELDOM_SECONDS if at_hand else UNHURRIED_SECONDS,
            on_conflict="always_update",
        )
        DBOS.register_queue(
            REENHANCING,
            worker_concurrency=TAKEN_ALONE if alone else TAKEN if hurried else TAKEN_BY_FEW,
            polling_interval_sec=ALONE_SECONDS if alone else UNHURRIED_SECONDS,
            on_conflict="always_update",
        )
        DBOS.register_queue(
            DELIVERING,
            partition_worker_concurrency=DELIVERIES,
            polling_interval_sec=SELDOM_SECONDS if at_hand else POLLING_SECONDS if hurried else UNHURRIED_SECONDS,
            on_conflict="always_update",
        )
        return Worker(executor, database, lock, beat=beat, silent=silent, longest=longest)
    except Exception as error:
        DBOS.destroy()
        lock.close()
        raise ConfigurationError(f"database: {type(error).__name__}") from error


# ---------------------------------------------------------------- what DBOS runs

_work: Work | None = None
_stopping = threading.Event()


@DBOS.workflow(name=WORKFLOW)
def _task(job: str, stage: str, number: int) -> dict[str, Any]:
    """One go at a stage, and the enqueueing of what follows."""
    result = _go(job, stage)
    if not result["then"]:
        return result
    # Kept before any of it is enqueued: a repeat after a crash enqueues the same, whatever its own go came to.
    result = DBOS.run_step({"name": "go"}, lambda: result)
    for follow, pause, *more in result["then"]:  # of an earlier release without a priority
        options = enqueue_options(job, follow, number + 1, pause, *more)
        DBOS.enqueue_workflow_with_options(options, job, follow, number + 1)
    return result


def _go(job: str, stage: str) -> dict[str, Any]:
    assert _work is not None
    try:
        result = _work.go(job, stage, _stopping)
    except Exception as error:  # its text may quote a file
        last = traceback.extract_tb(error.__traceback__)[-1]
        result = Result("failed", f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}")
        log.error("job %s, %s: %s", job, stage, result.say)
    return {"state": result.state, "say": result.say, "then": [list(task) for task in result.then]}


def _config(database: str, executor: str) -> DBOSConfig:
    return DBOSConfig(
        name=APPLICATION,
        system_database_url=database,
        executor_id=executor,
        application_version=APPLICATION_VERSION,
        serializer=DBOSPortableJSON,
        log_level="WARNING",
        enable_otlp=False,
        sys_db_pool_size=8,
    )


def _claim(folder: Path, executor: str | None) -> tuple[str, IO[str]]:
    """The worker's name and its lock, which the kernel releases when the process dies."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    host = socket.gethostname()
    for name in [executor] if executor else [f"{host}.{n}" for n in range(1024)]:
        lock = (folder / f"{name}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        return name, lock
    raise ConfigurationError(f"worker {executor or host}: another process has that name")


def _mend_delays(longest: float) -> None:
    """End pauses that no clock of today would have made: it was set back, and they would last as much longer."""
    latest = (time.time() + longest + _BACK) * 1000
    for row in DBOS.list_workflows(status="DELAYED", name=WORKFLOW, load_input=False, load_output=False):
        if (row.delay_until_epoch_ms or 0) > latest:
            DBOS.set_workflow_delay(row.workflow_id, delay_seconds=0)
