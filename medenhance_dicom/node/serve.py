"""`node run`: receivers and workers in processes of their own; completeness, sealing and HTTP in this one.

Whatever of it is killed, nothing acknowledged is lost: the store is the truth, and is put in order at the next start.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import uvicorn

from medenhance_dicom import __version__
from medenhance_dicom.errors import ConfigurationError, InputError, OutputError
from medenhance_dicom.jobs import Jobs
from medenhance_dicom.node.check import database_problem, model_problems
from medenhance_dicom.node.children import Children
from medenhance_dicom.node.commit import answer_requests
from medenhance_dicom.node.complete import Completeness
from medenhance_dicom.node.control import database_of
from medenhance_dicom.node.http import make_app, make_server
from medenhance_dicom.node.identity import read_identity
from medenhance_dicom.node.jobfolder import said
from medenhance_dicom.node.logs import LogFormat, place
from medenhance_dicom.node.metrics import Metrics, unfinished
from medenhance_dicom.node.mount import mount, on_report
from medenhance_dicom.node.query import count_instances
from medenhance_dicom.node.receivers import Receivers
from medenhance_dicom.node.retention import sweep
from medenhance_dicom.node.settings import NodeSettings, load_settings
from medenhance_dicom.node.spool import PendingSeries, SealedSeries, Spool
from medenhance_dicom.node.state import NodeState, put_in_force
from medenhance_dicom.node.trail import open_trail
from medenhance_dicom.node.upload import open_intake
from medenhance_dicom.node.worker import STEP_SECONDS, worker_main

T = TypeVar("T")

TICK_SECONDS = 0.5
WORKER_SECONDS = STEP_SECONDS + 15.0
"""Until a worker that is to stop is killed."""
_COUNT_SECONDS = 10.0
_ERRAND_SECONDS, _SWEEP_SECONDS, _REQUEUE_SECONDS = 5.0, 600.0, 600.0
_DATABASE_SECONDS, _MODELS_SECONDS = 5.0, 600.0
_STANDSTILL = 60.0
_FIXED = ("store", "listener.bind", "listener.port", "listener.tls", "listener.receivers", "http.bind", "http.port",
          "work.database", "work.workers")  # fmt: skip
"""What a reload does not change."""

log = logging.getLogger(__name__)


class NodeProcess:
    """One node on one store."""

    def __init__(self, config: Path, *, log_format: LogFormat = "text") -> None:
        """Read the configuration and take the store.

        Raises:
            ConfigurationError: It is wrong.
            OutputError: The store cannot be written, or another node runs on it.
        """
        self.config = config
        self.settings = load_settings(config)
        self._state = NodeState(self.settings.store)
        self.spool = Spool(self.settings.store)
        self.audit = open_trail(self.settings)
        self._completeness = Completeness(self.settings, self.spool, count=self._count_elsewhere)
        self._receivers = Receivers(self.settings, partial(mount, log_format=log_format))
        self._workers = Children(log_format)
        self._jobs: Jobs | None = None
        self._unqueued: list[str] = []
        self._reloads = 0
        self._since = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
        self._stop, self._reload = threading.Event(), threading.Event()
        self._draining = self.settings.store / "draining"
        self._ticked = self._watched = self._queued_all = time.monotonic()
        self._database = _Remembered(lambda: database_problem(database_of(self.settings)), _DATABASE_SECONDS)
        self._models = _Remembered(model_problems, _MODELS_SECONDS)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT.

        Returns:
            The exit code, 0.

        Raises:
            ConfigurationError: A port is taken, TLS files do not load, or receivers keep dying.
            OutputError, OSError: The store cannot be written.
        """
        for ending in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ending, lambda *_: self._stop.set())
        signal.signal(signal.SIGHUP, lambda *_: self._reload.set())
        self._say("starting")
        put_in_force(self.settings)
        self._reconcile()
        server, thread = self._start_http()
        try:
            self._receivers.start()
            for number in range(self.settings.work.workers):
                self._workers.add(f"worker {number + 1}", worker_main, self.settings.store, self.settings.work.workers)
            threading.Thread(target=self._run_errands, name="errands", daemon=True).start()
            self._say("running")
            self.audit.append("node started", version=__version__)
            log.info("running on %s", self.settings.store)
            while not self._stop.wait(TICK_SECONDS):
                self._tick()
        finally:
            self._drain(server, thread)
        return 0

    # ------------------------------------------------------------ work

    def _reconcile(self) -> None:
        """Put in order what the last run left: folders, the trail, the queue."""
        self._draining.unlink(missing_ok=True)
        self.spool.reconcile()
        known = {event["job"] for event in self.audit.events() if event["event"] == "sealed"}
        for job in self.spool.jobs():
            if job.job_id not in known:
                self._write_sealed(job, 0.0)
        self._unqueued = _oldest_first(unfinished(self.settings.store))

    def _tick(self) -> None:
        """Everything that is looked at about twice a second. A disk that is full stops none of it.

        Raises:
            ConfigurationError: Receivers keep dying.
        """
        self._ticked = time.monotonic()
        if self._ticked - self._watched >= 1.0:
            self._watched = self._ticked
            if died := self._receivers.watch():
                log.error("%d receivers died and are started anew", died)
        for errand in (self._heed_reload, self._tend_workers, self._seal, self._enqueue):
            try:
                errand()
            except Exception as error:  # one series, peer or file that nobody thought of stops no other
                log.error("%s", said(error))

    def _heed_reload(self) -> None:
        if self._reload.is_set():
            self._reload.clear()
            self.reload()

    def _tend_workers(self) -> None:
        before = self._workers.pids()
        self._workers.tend()
        if self._workers.pids() != before:
            self._say("running")

    def _seal(self) -> None:
        """Make jobs of the series that are complete."""
        due = self._completeness.due()
        if not due:
            return
        first_seen = {series.key: series.first_seen for series in self.spool.pending()}
        for key, is_partial in due:
            job = self.spool.seal(key, partial=is_partial)
            if job is not None:
                self._unqueued.append(job.job_id)
                self._write_sealed(job, max(0.0, time.time() - first_seen.get(key, time.time())))
                log.info("job %s: %d instances%s", job.job_id, job.facts["instances"], ", partial" * is_partial)

    def _count_elsewhere(self, series: PendingSeries) -> int | None:
        """How many instances of a series `completeness.count_at` knows."""
        first = next((path for path in series.folder.iterdir() if path.suffix == ".dcm"), None)
        name = self.settings.completeness.count_at
        if first is None or name is None:
            return None
        try:
            uids = read_identity(first, digest="")
        except (InputError, OSError):
            return None
        there = self.settings.destination(name)
        there = there.model_copy(update={"response_timeout": min(there.response_timeout, _COUNT_SECONDS)})
        return count_instances(there, uids.study, uids.series, calling_ae=self.settings.listener.ae_title)

    def _write_sealed(self, job: SealedSeries, waited: float) -> None:
        facts = {name: job.facts[name] for name in ("calling_ae", "instances", "partial", "Modality", "series_key")}
        self.audit.append("sealed", job=job.job_id, waited=round(waited, 3), **facts)

    def _enqueue(self) -> None:
        """Give jobs to the workers; while the database is away they wait here, and in the store.

        Now and then all that are not done are given again, which changes nothing for those that it knows: sealing may
        have failed after its rename, and a database may have been replaced.
        """
        if time.monotonic() - self._queued_all > _REQUEUE_SECONDS:
            self._queued_all = time.monotonic()
            self._unqueued = _oldest_first(unfinished(self.settings.store))
        while self._unqueued:
            try:
                if self._jobs is None:
                    self._jobs = Jobs(database_of(self.settings))
                self._jobs.enqueue(self._unqueued[0])
            except Exception as error:  # whatever the database's driver raises
                log.warning("%d jobs wait for the database (%s)", len(self._unqueued), type(error).__name__)
                return
            self._unqueued.pop(0)

    def _run_errands(self) -> None:
        """What takes its time: commitment reports to those who asked us, and the removal of finished jobs."""
        swept = time.monotonic()
        while not self._stop.wait(_ERRAND_SECONDS):
            try:
                answer_requests(self.spool, self.settings, now=time.time(), on_report=on_report(self.audit))
                if self._jobs is not None and time.monotonic() - swept > _SWEEP_SECONDS:
                    swept = time.monotonic()
                    gone = sweep(self.spool, self._jobs, self.audit, self.settings.retention, now=time.time())
                    log.info("%d finished jobs were removed", len(gone))
            except Exception as error:  # the disk, the database or a peer: tried again
                log.error("an errand failed (%s)", place(error))

    # ------------------------------------------------------------ processes

    def _start_http(self) -> tuple[uvicorn.Server | None, threading.Thread | None]:
        http = self.settings.http
        if http.port == 0:
            return None, None
        app = make_app(
            lambda: self.settings,
            incoming=self.spool.incoming,
            intake=partial(open_intake, self.spool, self.audit, lambda: self.settings),
            problems=self.problems,
            busy=self._busy,
            metrics=Metrics(self.spool).render,
        )
        server = make_server(app, acse_timeout=lambda: self.settings.listener.acse_timeout)
        try:
            listening = socket.create_server((http.bind, http.port), family=_family(http.bind))
        except OSError as error:
            raise ConfigurationError(f"http: {http.bind} port {http.port}: {error.strerror}") from error
        thread = threading.Thread(target=server.run, args=([listening],), name="http", daemon=True)
        thread.start()
        return server, thread

    def _drain(self, server: uvicorn.Server | None, thread: threading.Thread | None) -> None:
        """Take nothing more, let what runs end, go."""
        log.info("draining")
        with suppress(OSError, OutputError):  # a full disk is no reason to stop otherwise than in order
            self._draining.touch(mode=0o600)
            self._say("draining")
        self._workers.terminate()  # they end their steps while receives end
        self._receivers.stop()
        clean = self._workers.stop(WORKER_SECONDS)
        if server is not None and thread is not None:
            server.should_exit = True
            thread.join(15.0)
        if self._jobs is not None:
            self._jobs.close()
        with suppress(OSError, OutputError):
            self.audit.append("node stopped", clean=clean)
            self._draining.unlink(missing_ok=True)
            self._say("stopped")
        self._state.close()
        log.info("stopped")

    def reload(self) -> None:
        """Read the configuration anew; a wrong one changes nothing."""
        self._reloads += 1
        try:
            new = load_settings(self.config)
        except ConfigurationError as error:
            log.error("the configuration before goes on: %s", error)
            self.audit.append("reload refused", why=str(error))
            self._state.say(reload={"n": self._reloads, "refused": str(error), "at_the_next_start": []})
            return
        fixed = [name for name in _FIXED if _at(new, name) != _at(self.settings, name)]
        if fixed:
            log.warning("takes effect at the next start: %s", ", ".join(fixed))
        new = _kept(new, self.settings)
        put_in_force(new)
        self.settings = new
        self._completeness.settings = self.settings
        self._receivers.reload(self.settings)
        self.audit.append("reloaded", at_the_next_start=fixed)
        self._state.say(reload={"n": self._reloads, "refused": None, "at_the_next_start": fixed})
        log.info("the configuration was read anew")

    # ------------------------------------------------------------ state

    def problems(self) -> list[str]:
        """Why the node is not ready, in words; empty when it is."""
        found = [] if (busy := self._busy()) is None else [busy]
        if problem := self._database():
            found.append(f"database: {problem}")
        found += [f"models: {problem}" for problem in self._models()]
        found += self._workers.problems()
        if time.monotonic() - self._ticked > _STANDSTILL:
            found.append("the main loop stands still")
        return found

    def _busy(self) -> str | None:
        if self._stop.is_set():
            return "draining"
        free, reserve = self.spool.free_bytes(), self.settings.listener.reserve_bytes
        return f"disk: {free / 1e9:.1f} GB free, {reserve / 1e9:.1f} GB are kept back" if free < reserve else None

    def _say(self, state: str) -> None:
        listener, http = self.settings.listener, self.settings.http
        self._state.say(
            state=state,
            version=__version__,
            since=self._since,
            config=str(self.config),
            listener=f"{listener.ae_title}@{listener.bind}:{listener.port}",
            http=f"http://{http.bind}:{http.port}" if http.port else None,
            workers=self._workers.pids(),
        )


class _Remembered(Generic[T]):
    """A slow answer, asked for anew at most every so many seconds."""

    def __init__(self, ask: Callable[[], T], seconds: float) -> None:
        self._ask, self._seconds = ask, seconds
        self._lock = threading.Lock()
        self._asked = -float("inf")
        self._answer: T

    def __call__(self) -> T:
        with self._lock:
            if time.monotonic() - self._asked > self._seconds:
                self._answer = self._ask()
                self._asked = time.monotonic()
            return self._answer


def _oldest_first(jobs: dict[str, float]) -> list[str]:
    return sorted(jobs, key=jobs.__getitem__)


def _at(settings: NodeSettings, name: str) -> Any:
    value: Any = settings
    for key in name.split("."):
        value = getattr(value, key)
    return value


def _kept(new: NodeSettings, old: NodeSettings) -> NodeSettings:
    """The new settings, with the old ones' values of `_FIXED`."""
    tables: dict[str, dict[str, Any]] = {}
    for name in _FIXED:
        table, _, key = name.rpartition(".")
        tables.setdefault(table, {})[key] = _at(old, name)
    top = tables.pop("")
    return new.model_copy(update=top | {t: getattr(new, t).model_copy(update=kept) for t, kept in tables.items()})


def _family(bind: str) -> socket.AddressFamily:
    return socket.getaddrinfo(bind, None, type=socket.SOCK_STREAM)[0][0]
