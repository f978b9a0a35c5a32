"""Run a plan: keep a bounded number of its series in the queue, take in what becomes of them, tell how it goes.

The coordinator is one process for each plan, and holds PLAN/run.lock. It does no work on pictures: workers do, its own
children or the node's. Whatever is killed, starting again goes on: a job has its row in the plan before anything of it
is made, and keeps it until its results are in the plan and its folder and rows in the queue are gone.

    series open -> job row -> folder STORE/archive/<job> -> enqueued -> done.json -> results in the plan -> cleared away
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from medenhance_dicom.archive.pace import OffPeak, Pace
from medenhance_dicom.archive.plan import Done, JobRow, Method, Plan, SeriesRow, job_id
from medenhance_dicom.errors import ConfigurationError, OutputError
from medenhance_dicom.identity import old_series_uid
from medenhance_dicom.jobs import ENHANCE, FETCH, Jobs, JobState
from medenhance_dicom.ledger import Ledger, old_entry
from medenhance_dicom.node.children import Children
from medenhance_dicom.node.control import database_of
from medenhance_dicom.node.delivering import TO
from medenhance_dicom.node.fetching import groups_of, places_of
from medenhance_dicom.node.jobfolder import ARCHIVE, LEDGER, flush, read_whole, write_whole
from medenhance_dicom.node.retention import drop_withheld
from medenhance_dicom.node.settings import NodeSettings, load_settings
from medenhance_dicom.node.sources import on_disks
from medenhance_dicom.node.trail import open_trail
from medenhance_dicom.node.worker import STEP_SECONDS

if TYPE_CHECKING:
    from medenhance_dicom.archive.shadow import ShadowMethods

PRIORITY = 10
"""Behind the node's live work, which has 0."""
OUTPUT, KEPT_ASIDE = "archive-output", "archive-shadow"
"""Names of the destinations that `--output` and `--shadow-output` make."""
TICK_SECONDS = 0.5
_TOGETHER, _TOGETHER_SECONDS = 16, 2.0
"""Series that are taken in and begun together, so that transactions and flushes are shared; and how long one that is
done waits for others."""
_LOOK_SECONDS = 5.0
_LOOK_AT_FAILED_SECONDS = 30.0
_CANCEL_SECONDS = 60.0
_WORKER_SECONDS = STEP_SECONDS + 15.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shadow:
    """A second recipe on a share of the series."""

    methods: ShadowMethods
    share: float
    seed: int = 0
    output: Path | None = None
    """Where its pictures are kept; None: they are thrown away."""


@dataclass(frozen=True)
class Request:
    """What `archive run` is asked to do."""

    output: Path | None = None
    """A folder; or `to`."""
    to: str | None = None
    """A destination of the node's configuration."""
    ahead: int = 64
    """Most jobs that are open: bounds disk and memory."""
    workers: int = 1
    """Processes of our own; 0: the node's, and `worker` elsewhere."""
    max_per_hour: int | None = None
    """Series."""
    off_peak: OffPeak | None = None
    shadow: Shadow | None = None


@dataclass
class Progress:
    """How far a run has come."""

    series: int = 0
    """Done in this run."""
    left: int = 0
    """Open ones, those in the queue among them."""
    results: Counter[str] = field(default_factory=Counter)
    """Instances of this run."""
    shadows: int = 0
    """Series that a shadow was begun for."""
    failed_jobs: int = 0
    open_jobs: int = 0
    seconds: float = 0.0
    waits: str = ""
    """Why nothing new is begun; empty while it is."""

    @property
    def rate(self) -> float | None:
        """Series per second."""
        return self.series / self.seconds if self.series and self.seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """None: cannot be told."""
        return self.left / self.rate if self.rate else None


class Coordinator:
    """Runs a plan, while it is the only one that does."""

    def __init__(
        self,
        plan: Plan,
        settings: NodeSettings,
        request: Request,
        *,
        config: Path,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect.

        Args:
            plan: Opened for writing.
            settings: Of the store that the jobs go through.
            request: What is asked for.
            config: The file of `settings`, for workers of our own.
            clock: Seconds since the epoch.
            monotonic: Seconds.

        Raises:
            ConfigurationError: The database cannot be reached, or there is no such destination.
            OutputError: The store cannot be written.
        """
        self.plan, self.settings, self.request, self.config = plan, settings, request, config
        self.progress = Progress()
        self._clock, self._monotonic = clock, monotonic
        self._destinations, self._folders = _destinations(request, settings)
        self._store = settings.store / ARCHIVE
        try:
            self._store.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self._store}: {error.strerror}") from error
        self._jobs = Jobs(database_of(settings))
        self._audit = open_trail(settings, clock=clock)
        self._sources = {source.id: source for source in plan.sources()}
        self._on_disks = {source.name: on_disks(source.name) for source in plan.sources()}
        self._pace = Pace(request.max_per_hour, request.off_peak, clock=clock, monotonic=monotonic)
        self._workers: Children | None = None
        self._live = config.parent.absolute() != plan.folder.absolute()  # a node's store
        self._open: dict[str, JobRow] = {}
        self._failed: dict[str, JobRow] = {}
        self._unqueued: list[JobRow] = []
        self._astray: set[str] = set()
        self._cursor, self._exhausted = 0, False
        self._together = min(_TOGETHER, max(1, request.ahead // 4))
        self._taken_in = -float("inf")
        self._unlucky = 0
        self._full = ""
        self._sizes: dict[str, int] = {}
        self._looked = self._looked_at_failed = -float("inf")
        self._began = monotonic()

    # ------------------------------------------------------------ the loop

    def run(self, stop: threading.Event, *, tell: Callable[[Progress], None] = lambda _: None) -> Progress:
        """Go on until everything is done, or `stop` is set, or the plan was cancelled.

        Raises:
            OutputError: The disk does not take it.
            ConfigurationError: So many jobs have failed in a row that the rest would, too.
        """
        self._took_up()
        drop_withheld(self._store.parent, self._clock())
        self.plan.note("begun", host=socket.gethostname(), workers=self.request.workers)
        self._audit.append("archive run began", plan=str(self.plan.folder))
        try:
            while not stop.is_set():
                busy = self.step()
                tell(self.progress)
                if self.plan.meta("cancelled"):
                    self.cancel()
                    break
                if self._is_over():
                    break
                if not busy:
                    stop.wait(TICK_SECONDS)
        finally:
            self._send_home()
            with suppress(OSError, OutputError, SQLAlchemyError):
                self._take_in(all_of_them=True)  # what the workers ended meanwhile
            with suppress(OSError, OutputError):
                self.plan.note("ended", stopped=stop.is_set(), series=self.progress.series)
                self._audit.append("archive run ended", plan=str(self.plan.folder), series=self.progress.series)
        return self.progress

    def step(self) -> bool:
        """Look once at everything.

        Returns:
            Whether something was done, so that there may be more.
        """
        paused = "it is paused" if self.plan.meta("paused") else self._pace.closed()
        self._tend(working=not paused)
        try:
            self._queue()
            done = self._take_in()
            self._look()
            begun = 0 if paused else self._feed()
        except SQLAlchemyError as error:  # the database is away: what is open stays so
            log.warning("the database: %s", type(error).__name__)
            return False
        progress = self.progress
        progress.waits = paused or self._full
        progress.open_jobs, progress.failed_jobs = len(self._open), len(self._failed)
        progress.seconds = self._monotonic() - self._began
        return bool(done or begun)

    def _is_over(self) -> bool:
        return self._exhausted and not self._open and not self.plan.meta("paused")

    def _tend(self, *, working: bool) -> None:
        """Workers of our own: kept alive, sent home for the day or while the plan is paused."""
        if not self.request.workers:
            return
        if not working:
            self._send_home()
            return
        if self._workers is None:
            self._workers = Children()
            for number in range(self.request.workers):
                self._workers.add(
                    f"worker {number + 1}", own_worker, self.config, self.request.workers, self._live, self._at_hand()
                )
        self._workers.tend()

    def _at_hand(self) -> bool:
        """Whether nothing comes or goes over a network."""
        folders = {there.name for there in self.settings.destinations if there.folder} | self._folders.keys()
        return all(self._on_disks.values()) and folders.issuperset(self._destinations)

    def _send_home(self) -> None:
        if self._workers is not None:
            self._workers.stop(_WORKER_SECONDS)
            self._workers = None

    # ------------------------------------------------------------ into the queue

    def _took_up(self) -> None:
        """Go on with what a run before this one has left."""
        for row in self.plan.jobs():
            match row.state:
                case "ended":
                    self._clear([row])
                case "open":
                    self._open[row.id] = row
                    self._unqueued.append(row)
                case "failed":
                    self._failed[row.id] = row
            self._sizes[row.id] = self.plan.series(row.series).bytes
        self.progress.left = self.plan.counts()["open_series"]

    def _feed(self) -> int:
        """Make jobs of open series, some at a time, until enough are open. Returns: how many."""
        begun = 0
        while chosen := self._choose():
            self.plan.open_jobs(chosen)
            self._unqueued += chosen
            begun += sum(not row.shadow for row in chosen)
            self._queue()
        return begun

    def _choose(self) -> list[JobRow]:
        """The jobs of the next series."""
        chosen: list[JobRow] = []
        while len(chosen) < self._together and len(self._open) < self.request.ahead and self._pace.may_begin():
            series = next(islice(self.plan.open_series(self._cursor), 1), None)
            if series is None:
                self._exhausted, self._full = True, ""
                break
            self._exhausted, self._full = False, self._no_room(series)
            if self._full:
                break
            self._cursor = series.id
            rows = [] if self.plan.has_job(series.id) else self._job_rows(series)
            if not rows:
                continue
            self._pace.begun()
            for row in rows:
                self._open[row.id] = row
                self._sizes[row.id] = series.bytes
            self.progress.shadows += len(rows) - 1
            chosen += rows
        return chosen

    def _no_room(self, series: SeriesRow) -> str:
        """Why the store's disk does not take a series beside the open ones; empty if it does.

        A series takes its own size for what comes, what is made of it, and a copy of that under way.
        """
        found = os.statvfs(self._store)
        free, kept = found.f_bavail * found.f_frsize, self.settings.listener.reserve_bytes
        coming = series.bytes + sum(self._sizes[name] for name in self._open)
        if free - 3 * coming >= kept:
            return ""
        return f"disk: {free / 1e9:.1f} GB free, {kept / 1e9:.1f} GB are kept back"

    def _job_rows(self, series: SeriesRow) -> list[JobRow]:
        """The job of a series, and its shadow's."""
        instances = self.plan.open_instances(series)
        if not instances or series.method is None:
            return []
        now = self._clock()
        ids = tuple(row.id for row in instances)
        names = [row.name for row in instances]
        rows = [JobRow(job_id(series.key, series.method, names), series.id, series.method, False, "open", "", ids, now)]
        method = self._shadow_method(series)
        if method is not None:
            name = job_id(series.key, method.key, names, shadow=True)
            rows.append(JobRow(name, series.id, method.key, True, "open", "", ids, now))
        return rows

    def _shadow_method(self, series: SeriesRow) -> Method | None:
        from medenhance_dicom.archive.shadow import in_share

        shadow = self.request.shadow
        if shadow is None or not in_share(series.key, shadow.share, shadow.seed):
            return None
        classes = [row.sop_class for row in self.plan.representatives(series.id)]
        method = shadow.methods.of(series, classes)
        if method is None or method.key == series.method:
            return None
        self.plan.add_method(method)
        return method

    def _queue(self) -> None:
        """Make the folders of new jobs and enqueue them; while the disk or the database is away they wait here."""
        while self._unqueued:
            rows = self._unqueued[: self._together]
            self._make(rows)
            self._jobs.enqueue_all([(row.id, self._first(row)) for row in rows], priority=PRIORITY)
            del self._unqueued[: len(rows)]

    def _first(self, row: JobRow) -> str:
        """The stage that a job begins with: what lies on disks is brought when it is enhanced."""
        groups = groups_of(self._store / row.id)
        return ENHANCE if all(self._on_disks.get(group["source"]) for group in groups) else FETCH

    def _make(self, rows: Sequence[JobRow]) -> None:
        """The folders of jobs, on the disk when this returns; the same row makes the same folder."""
        try:
            for row in rows:
                if not (self._store / row.id).is_dir():
                    self._make_folder(row)
            flush(self._store)
        except OSError as error:
            raise OutputError(f"{self._store}: {error.strerror}") from error

    def _make_folder(self, row: JobRow) -> None:
        series = self.plan.series(row.series)
        plan = {"archive": True, "priority": PRIORITY, "enhance": True, "made": row.made, **self._way(row)}
        facts = {
            "archive": self.plan.folder.name,
            "series": series.key,
            "Modality": series.modality,
            "instances": len(row.instances),
            "calling_ae": "",
            "partial": False,
            "groups": self._groups(row.instances),
        }
        part = self._store / f".{row.id}.{secrets.token_hex(4)}.part"
        try:
            self._remember_old(row)
            (part / "source").mkdir(mode=0o700, parents=True)
            _write(part / "job.json", facts)
            _write(part / "plan.json", plan)
            flush(part)
            part.rename(self._store / row.id)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            raise

    def _remember_old(self, row: JobRow) -> None:
        """Enter what an earlier release derived of instances that are corrected now: it kept no ledger."""
        method = self.plan.methods()[row.method]
        said = method.recipe_digest, method.weights_digest, method.guide_digest
        for instance, derived in self.plan.corrected(self.plan.instances(row.instances), row.method):
            ledger = Ledger(self.settings.store / LEDGER, instance.series, *said)
            if not ledger.knows(instance.sop_instance):
                ledger.add(old_entry(instance.sop_instance, derived, old_series_uid(instance.series, *said)))

    def _groups(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """What is to be fetched from each source."""
        rows = sorted(self.plan.instances(numbers), key=lambda row: (row.source, row.id))
        groups = []
        for number, found in groupby(rows, key=lambda row: row.source):
            source, members = self._sources[number], list(found)
            wanted = [[r.locator, r.study, r.series, r.sop_instance, r.sop_class] for r in members]
            groups.append(
                {
                    "source": source.name,
                    "options": source.options,
                    "wanted": wanted,
                    "keys": [r.key for r in members],
                    "headers": [r.header for r in members],
                }
            )
        return groups

    def _way(self, row: JobRow) -> dict[str, Any]:
        """How a job is enhanced and where it goes."""
        options = self.plan.options
        if not row.shadow:
            return {"options": options, "destinations": self._destinations, "folders": self._folders}
        shadow = self.request.shadow
        recipe = self.plan.methods()[row.method].recipe
        way: dict[str, Any] = {"options": options | {"recipe": recipe, "guide": "auto"}, "destinations": []}
        if shadow is not None and shadow.output is not None:
            way |= {"destinations": [KEPT_ASIDE], "folders": {KEPT_ASIDE: str(shadow.output.absolute())}}
        return way

    # ------------------------------------------------------------ out of the queue

    @property
    def _stages(self) -> list[str]:
        return [FETCH, ENHANCE, *(TO + name for name in (*self._destinations, KEPT_ASIDE))]

    def _take_in(self, *, all_of_them: bool = False) -> int:
        """Enter the results of jobs that are done, once they are some, and clear them away. Returns: how many."""
        ready = [name for name in self._open if (self._store / name / "done.json").exists()]
        recently = self._monotonic() - self._taken_in < _TOGETHER_SECONDS
        few = recently and len(ready) < min(self._together, len(self._open))
        if not ready or (few and not all_of_them):
            return 0
        self._taken_in = self._monotonic()
        ended = {state.job for state in self._jobs.some(ready, self._stages) if state.state == "done"}
        rows = [self._open[name] for name in ready if name in ended]
        now = self._clock()
        found = [(row, list(results_of(self._store / row.id))) for row in rows]
        with self.plan.together():
            for row, results in found:
                self.plan.end_job(row, results, at=now)
        for row, results in found:
            if not row.shadow:
                self.progress.results.update(done.result for done in results)
                self.progress.series += 1
                self.progress.left = max(0, self.progress.left - 1)
            self._unlucky = 0
        self._clear(rows)
        return len(rows)

    def _clear(self, rows: Sequence[JobRow]) -> None:
        """Remove jobs from the queue and the disk, then from the plan."""
        if not rows:
            return
        self._jobs.forget([row.id for row in rows], self._stages)
        for row in rows:
            _remove(self._store / row.id)
        with self.plan.together():
            for row in rows:
                self.plan.forget_job(row.id)
        for row in rows:
            self._open.pop(row.id, None)
            self._failed.pop(row.id, None)
            self._sizes.pop(row.id, None)

    def _look(self) -> None:
        """Find out which jobs have failed, were retried, or have gone astray.

        Raises:
            ConfigurationError: As many in a row have failed as may be open.
        """
        now = self._monotonic()
        asked: list[str] = []
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            asked += self._open
        if now - self._looked_at_failed >= _LOOK_AT_FAILED_SECONDS:
            self._looked_at_failed = now
            asked += self._failed
        if not asked:
            return
        states = {state.job: state for state in self._jobs.some(asked, self._stages)}
        for name in asked:
            self._judge(name, states.get(name))
        if self._unlucky >= self.request.ahead:
            why = next(iter(self.plan_failures()), "")
            raise ConfigurationError(
                f"{self._unlucky} series in a row have failed; the last one: {why}. Mend that, `jobs retry --failed "
                f"-c {self.config}`, and run again"
            )

    def plan_failures(self) -> Iterator[str]:
        """Why jobs have failed, the latest first."""
        yield from (row.why for row in reversed(self.plan.jobs()) if row.state == "failed")

    def _judge(self, name: str, state: JobState | None) -> None:
        folder = self._store / name
        if name in self._failed:
            if state is not None and state.state not in ("failed", "cancelled"):  # a person had it retried
                self._open[name] = self._failed.pop(name)
                self.plan.mark_job(name, "open")
            return
        if state is None or (state.state in ("done", "cancelled") and not (folder / "cancelled").exists()):
            if (folder / "done.json").exists():
                return  # about to be taken in
            if name not in self._astray:  # it may just be on its way from one stage to the next
                self._astray.add(name)
                return
            self._astray.discard(name)
            log.warning("job %s had gone astray and is put back", name)
            self._make([self._open[name]])
            first = ENHANCE if (folder / "fetched.json").exists() else self._first(self._open[name])
            if state is None:
                self._jobs.enqueue(name, stage=first, priority=PRIORITY)
            else:
                self._jobs.retry(name, always=first)
            return
        self._astray.discard(name)
        if state.state in ("failed", "cancelled"):
            why = "; ".join(s.say for s in state.stages if s.state == state.state and s.say) or state.state
            self.plan.mark_job(name, "failed", why)
            self._failed[name] = self._open.pop(name)
            self._unlucky += state.state == "failed"

    # ------------------------------------------------------------ giving up

    def cancel(self) -> int:
        """Give up every job that is open or failed; what is done stays done. Returns: how many.

        Raises:
            OSError: The disk does not take it.
        """
        self._send_home()
        rows = [row for row in self.plan.jobs() if row.state != "ended"]
        for row in rows:
            folder = self._store / row.id
            if folder.is_dir() and not (folder / "done.json").exists():
                write_whole(folder / "cancelled", {"at": self._clock()})
            with suppress(KeyError):
                self._jobs.cancel(row.id)
        deadline = self._monotonic() + _CANCEL_SECONDS
        while self._monotonic() < deadline and any(
            stage.state == "working" for state in self._jobs.some([r.id for r in rows], self._stages)
            for stage in state.stages
        ):  # fmt: skip
            time.sleep(TICK_SECONDS)
        self._clear(rows)
        self.plan.set_meta(cancelled=False)
        self.plan.note("cancelled", jobs=len(rows))
        return len(rows)

    def close(self) -> None:
        """Close the connections."""
        self._jobs.close()


# ---------------------------------------------------------------- parts


def results_of(folder: Path) -> Iterator[Done]:
    """What became of each instance of a job that is done.

    Args:
        folder: Of the job.
    """
    groups = groups_of(folder)
    missing = (read_whole(folder / "fetched.json") or {"missing": {}})["missing"]
    report = read_whole(folder / "run_report.json") or {"outcomes": []}
    source = folder / "source"
    outcomes: dict[str, dict[str, Any]] = {}
    for outcome in report["outcomes"]:
        with suppress(ValueError):
            outcomes[str(Path(outcome["source"]).relative_to(source))] = outcome
    for number, group in enumerate(groups):
        keys = group["keys"]
        headers = group.get("headers", [""] * len(keys))  # of an earlier release without
        for place, key, header in zip(places_of(number, len(keys), len(groups)), keys, headers, strict=True):
            if place in outcomes:
                yield replace(_done(key, outcomes[place], folder), header=header)
            else:
                yield Done(key, "failed", missing.get(place, "MISSING: nothing became of it"), again=True)


def _done(key: str, outcome: dict[str, Any], folder: Path) -> Done:
    size = None
    if outcome["derived"]:
        with suppress(FileNotFoundError):
            size = (folder / "derived" / Path(*Path(outcome["derived"]).parts[-3:])).stat().st_size
    seconds = outcome["seconds"]
    return Done(
        key,
        outcome["result"],
        outcome["reason"],
        outcome["lassim"],
        outcome["verdict"].get("mean_change"),
        round(sum(seconds.values()), 4) if seconds else None,
        size,
        outcome["derived_sop_instance_uid"],
    )


def _destinations(request: Request, settings: NodeSettings) -> tuple[list[str], dict[str, str]]:
    """Names, and folders of those that the configuration lacks."""
    if request.output is not None:
        return [OUTPUT], {OUTPUT: str(request.output.absolute())}
    if request.to is None:
        raise ConfigurationError("say where to: --output DIR, or --to NAME of a node's configuration")
    try:
        settings.destination(request.to)
    except KeyError:
        names = ", ".join(there.name for there in settings.destinations) or "none"
        raise ConfigurationError(f"no destination {request.to!r}; there are {names}") from None
    return [request.to], {}


def _write(path: Path, value: Any) -> None:
    with path.open("w") as file:
        os.fchmod(file.fileno(), 0o600)
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())


def _remove(folder: Path) -> None:
    """The whole folder or nothing: what is half gone has another name."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(gone)
        shutil.rmtree(gone)


def own_worker(config: Path, of: int, live: bool, at_hand: bool) -> None:
    """One of `of` workers of a run, on a store that is a node's (`live`) or not; a target for `Children`."""
    from medenhance_dicom.node.worker import work_until_stopped
    from medenhance_dicom.worker import Surroundings

    os.nice(5)
    if of > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // of)))
    surroundings = Surroundings() if live else Surroundings(hurried=False, at_hand=at_hand, alone=of == 1)
    work_until_stopped(partial(load_settings, config), surroundings)


@contextmanager
def only_one(plan: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether no other process runs this plan; then none does while the block lasts. With `wait` it is waited for.

    Raises:
        OutputError: PLAN cannot be written.
    """
    try:
        lock: IO[str] = (plan / "run.lock").open("a")
    except OSError as error:
        raise OutputError(f"{plan}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def own_config(plan: Path) -> Path:
    """PLAN/node.toml: the store of a plan that no node is named for; `jobs` and `worker` take it, too.

    Written where it is missing, so it may be edited: another database lets workers on other hosts help.

    Raises:
        OutputError: PLAN cannot be written.
    """
    path = plan / "node.toml"
    if not path.exists():
        text = (
            "# The queue of this plan; `medenhance-dicom jobs list -c` and `medenhance-dicom worker` take this file.\n"
            'store = "store"\n\n[work]\nattempts = 5\nfirst_pause = 2.0\nlongest_pause = 60.0\n'
            '# database = "postgresql://user@host/name"  # for workers on other hosts that share this folder\n'
            "\n[retention]\nkeep_withheld_days = 0  # for what the gate withholds, in store/withheld; it takes room\n"
        )
        try:
            path.write_text(text)
            path.chmod(0o600)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from error
    return path
