"""What is done for one series: enhance it, bring it to every destination, have it committed.

Implements `jobs.Work` over the folder of a job:

    job.json          what was sealed
    plan.json         where it goes, decided at the first go; of an archive's job, when it is made
    enhance.jsonl     starts and failures of the enhancement
    derived/          what came of it, with run_report.json beside
    enhanced.json     the enhancement has ended: which derived files may be sent
    sent/*.jsonl      one ledger for each destination (`delivery`)
    done.json         every destination has everything; from then on retention may remove the job, but for one that
                      no destination was to have: it is the only copy
    cancelled         a person gave the job up; `given_up/` has its source then, so that it may come again
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medenhance_dicom.errors import ConfigurationError, InputError, OutputError
from medenhance_dicom.jobs import ENHANCE, FETCH, Result, Task
from medenhance_dicom.node.delivering import TO, Commitment, Delivering, Peers
from medenhance_dicom.node.delivery import LONGEST_POLL, Instance, read_ledger
from medenhance_dicom.node.enhancing import Enhancing, Turns
from medenhance_dicom.node.fetching import Fetching, settings_of
from medenhance_dicom.node.jobfolder import ARCHIVE, job_folder, ledger_path, locked, read_whole, said, write_whole
from medenhance_dicom.node.settings import Destination, NodeSettings
from medenhance_dicom.node.trail import open_trail

if TYPE_CHECKING:
    from medenhance_dicom.node.forward import SendReport
    from medenhance_dicom.worker import Surroundings, Worker

_FEW = 16  # files of a live series that are put into a folder without a stage of its own
_BUSY = 5.0  # seconds until a stage that another worker is at is looked at again

log = logging.getLogger(__name__)


class SeriesWork:
    """The stages of a series. Gos may run in several threads; enhancing takes turns."""

    def __init__(
        self,
        settings: Callable[[], NodeSettings],
        peers: Peers,
        *,
        alone: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare.

        Args:
            settings: Read anew for each go.
            peers: The network.
            alone: This process has taken so many series of archives that some may wait for each other.
            clock: Seconds since the epoch.
        """
        self._settings, self._clock, self._alone = settings, clock, alone
        self._store = settings().store
        self.audit = open_trail(settings(), clock=clock)
        self._fetching = Fetching(clock)
        self._enhancing, self._turns = Enhancing(clock), Turns()
        self._delivering = Delivering(peers, self.audit, clock)

    def go(self, job: str, stage: str, stopping: threading.Event) -> Result:
        """One go at a stage; see `jobs.Work`."""
        folder = job_folder(self._store, job)
        result = self._tried(folder, stage, stopping)
        if not result.then:
            return result
        behind = 0
        with suppress(OSError):  # the folder has gone meanwhile
            behind = (read_whole(folder / "plan.json") or {}).get("priority", 0)
        # What follows in an archive's job stands behind the work of the day, too.
        return replace(result, then=tuple(task._replace(priority=behind) for task in result.then))

    def _tried(self, folder: Path, stage: str, stopping: threading.Event) -> Result:
        if not (folder / "source").is_dir():
            return Result("cancelled", "its folder is gone")
        if (folder / "cancelled").exists():
            return Result("cancelled", "given up by a person")
        if stopping.is_set():
            return Result("waiting", "the worker stopped", (Task(stage),))
        try:
            with locked(folder / f".{stage}.lock") as free:
                if not free:  # a worker that was taken for dead is at it
                    return Result("waiting", "another worker is at it", (Task(stage, _BUSY),))
                return self._go(folder, stage, stopping)
        except (OSError, OutputError) as error:  # it cannot be written down: tried until the disk takes it
            log.warning("job %s, %s: %s", folder.name, stage, said(error))
            return Result("waiting", f"the disk: {said(error)}", (Task(stage, self._settings().work.first_pause),))

    def _go(self, folder: Path, stage: str, stopping: threading.Event) -> Result:
        try:
            if stage == FETCH:
                return self._fetch(folder, stopping)
            if stage == ENHANCE:
                return self._enhance(folder, stopping)
            return self._deliver(folder, stage.removeprefix(TO), *self._plan_and_settings(folder), stopping)
        except (OSError, OutputError):
            raise
        except Exception as error:  # nobody thought of it: a person has to see it
            log.error("job %s, %s: %s", folder.name, stage, said(error))
            to: dict[str, Any] = {"destination": stage.removeprefix(TO)} if stage.startswith(TO) else {}
            self.audit.append("dead letter", job=folder.name, why=said(error), **to)
            return Result("failed", said(error))

    def _fetch(self, folder: Path, stopping: threading.Event) -> Result:
        result = self._fetching.go(folder, self._settings().work, stopping)
        if result.state == "failed":
            self.audit.append("dead letter", job=folder.name, why=result.say)
        return result

    def _enhance(self, folder: Path, stopping: threading.Event) -> Result:
        plan, settings = self._plan_and_settings(folder)
        ended = read_whole(folder / "enhanced.json")
        if ended is None:
            if plan["enhance"]:
                tried = self._brought_and_enhanced(folder, plan, settings, stopping)
                if isinstance(tried, Result):
                    return tried
                ended = tried
            else:
                ended = {"counts": {}, "derived": []}
            write_whole(folder / "enhanced.json", ended)  # first: what is in the trail is never enhanced again
            if self._alone and "archive" in plan:
                self._turns.gather(stopping)
            self._tell_enhanced(folder.name, ended)
        elif not any(event["event"] in ("enhanced", "not enhanced") for event in self.audit.events(folder.name)):
            self._tell_enhanced(folder.name, ended)  # a worker died in between
        then = tuple(Task(TO + name) for name in self._not_at_hand(folder, plan, settings, ended, stopping))
        if "failed" in ended:
            return Result("failed", ended["failed"], then)
        if not plan["destinations"]:
            self._mark_done(folder, plan)
        return Result("done", _counted(ended["counts"]) or "passed on as it came", then)

    def _brought_and_enhanced(
        self, folder: Path, plan: dict[str, Any], settings: NodeSettings, stopping: threading.Event
    ) -> dict[str, Any] | Result:
        """As `Enhancing.go`; only that takes turns, so that what is before and after goes on beside another series."""
        if (waits := self._fetching.at_once(folder, stopping)) is not None:
            return waits
        with self._turns.turn(behind=plan.get("priority", 0) > 0, stopping=stopping) as mine:
            if not mine:
                return Result("waiting", "the worker stopped", (Task(ENHANCE),))
            return self._enhancing.go(folder, plan["made"], settings, stopping)

    def _not_at_hand(
        self,
        folder: Path,
        plan: dict[str, Any],
        settings: NodeSettings,
        ended: dict[str, Any],
        stopping: threading.Event,
    ) -> list[str]:
        """The destinations that take a stage of their own: not folders, which are filled at once.

        Live work goes into them at once for a few files only: until it has, the worker takes no other series.
        """
        left = []
        for name in plan["destinations"]:
            there = next((d for d in settings.destinations if d.name == name), None)
            fills = there is not None and there.folder is not None and there.send == "derived"
            few = "archive" in plan or len(ended["derived"]) <= _FEW
            if fills and few and "failed" not in ended:
                with locked(folder / f".{TO}{name}.lock") as free:
                    if free and self._deliver(folder, name, plan, settings, stopping).state == "done":
                        continue
            left.append(name)
        return left

    def _tell_enhanced(self, job: str, ended: dict[str, Any]) -> None:
        self.audit.append("not enhanced" if "failed" in ended else "enhanced", job=job, **_facts(ended))

    def _deliver(
        self, folder: Path, name: str, plan: dict[str, Any], settings: NodeSettings, stopping: threading.Event
    ) -> Result:
        if name not in plan["destinations"]:
            return Result("done", "no longer asked for")
        # What an archive's job brings to a folder is found there if the machine ends and it is gone at again.
        shows = "archive" in plan and any(there.name == name and there.folder for there in settings.destinations)
        result = self._delivering.go(folder, name, settings, stopping, durable=not shows)
        if result.state == "done":
            self._mark_done(folder, plan)
        return result

    def _plan_and_settings(self, folder: Path) -> tuple[dict[str, Any], NodeSettings]:
        """The job's plan.json, and the settings as the job has them."""
        settings = self._settings()
        plan = self._plan(folder, settings)
        return plan, settings_of(plan, settings)

    def _plan(self, folder: Path, settings: NodeSettings) -> dict[str, Any]:
        """Where the series goes, and whether it is enhanced; decided once, and again after a retry."""
        plan = read_whole(folder / "plan.json") or {}
        if "destinations" not in plan:
            facts = read_whole(folder / "job.json") or {}
            rule = settings.rule_for(facts.get("calling_ae", ""), facts.get("Modality", ""))
            destinations = list(rule.destinations)
            if not settings.rules and _is_ours(folder / "source"):
                destinations = []  # loop guard: what we made goes on only where a rule says so
                plan["ours"] = True
            plan |= {"destinations": destinations, "enhance": rule.enhance, "made": plan.get("made", self._clock())}
            write_whole(folder / "plan.json", plan)
        return plan

    def _mark_done(self, folder: Path, plan: dict[str, Any]) -> None:
        """Once the last destination has everything; two may end at the same time."""
        alone = len(plan["destinations"]) < 2
        with nullcontext() if alone else locked(folder / ".done.lock", wait=True):
            ended = read_whole(folder / "enhanced.json")
            if (folder / "done.json").exists() or ended is None or "failed" in ended:
                return
            if not all(read_ledger(ledger_path(folder, name)).finished for name in plan["destinations"]):
                return
            self.audit.append("done", job=folder.name)
            only_copy = not plan["destinations"] and "ours" not in plan
            done = {"finished": self._clock(), "only_copy": only_copy}
            write_whole(folder / "done.json", done, durable="archive" not in plan)  # else `archive run` has it put back


def settings_reader(load: Callable[[], NodeSettings]) -> Callable[[], NodeSettings]:
    """A function that reads the configuration anew, and goes on with the last good one where it is broken.

    Raises:
        ConfigurationError: It is broken from the start.
    """
    last = load()

    def read() -> NodeSettings:
        nonlocal last
        try:
            last = load().model_copy(update={"store": last.store})
        except ConfigurationError as error:
            log.warning("the configuration before goes on: %s", error)
        return last

    return read


def network_peers(store: Path) -> Peers:
    """The real world: C-STORE, STOW-RS or a folder, and Storage Commitment."""
    from medenhance_dicom.node.commit import report_of, request_commitment
    from medenhance_dicom.node.forward import send_files
    from medenhance_dicom.node.stow import store_rs
    from medenhance_dicom.node.tofolder import store_in_folder

    archives = store / ARCHIVE  # whose derived files are gone as soon as they are delivered

    def send(paths: Sequence[Path], destination: Destination, calling_ae: str) -> SendReport:
        if destination.stow is not None:
            return store_rs(paths, destination)
        if destination.folder is not None:
            return store_in_folder(paths, destination, link=all(path.is_relative_to(archives) for path in paths))
        return send_files(paths, destination, calling_ae=calling_ae)

    def ask(instances: Sequence[Instance], destination: Destination, calling_ae: str, transaction: str) -> None:
        request_commitment(store, instances, destination, calling_ae=calling_ae, transaction_uid=transaction)

    def report(transaction: str) -> Commitment | None:
        found = report_of(store, transaction)
        return None if found is None else Commitment(found.committed, found.failed)

    return Peers(send, ask, report)


def launch_worker(load: Callable[[], NodeSettings], surroundings: Surroundings | None = None) -> Worker:
    """Start a worker on the node's jobs in this process. `load` reads the configuration, before each go.

    Args:
        load: See above.
        surroundings: As `worker.launch` takes it.

    Raises:
        ConfigurationError: The file is wrong, or the database cannot be reached.
    """
    from medenhance_dicom.node.control import database_of
    from medenhance_dicom.worker import launch

    read = settings_reader(load)
    settings = read()
    return launch(
        SeriesWork(read, network_peers(settings.store), alone=surroundings is not None and surroundings.alone),
        database=database_of(settings),
        locks=settings.store / "workers",
        beat=settings.work.heartbeat_seconds,
        silent=settings.work.silent_seconds,
        surroundings=surroundings,
        longest=max(settings.work.longest_pause, LONGEST_POLL),
    )


def _facts(ended: dict[str, Any]) -> dict[str, Any]:
    return {"why": ended["failed"]} if "failed" in ended else {"counts": ended["counts"]}


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))


def _is_ours(source: Path) -> bool:
    """Whether the first instance says that we made it; the others of its series are of the same equipment."""
    from medenhance_dicom.part10 import read_instance
    from medenhance_dicom.sop_classes import is_own_derived

    first = min((path for path in source.iterdir() if path.suffix == ".dcm"), default=None)
    if first is None:
        return False
    try:
        return is_own_derived(read_instance(first))
    except InputError:
        return False
