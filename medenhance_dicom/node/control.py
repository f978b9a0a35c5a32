"""What a person sees of the jobs and does about them: list, show, why, retry, cancel, recover."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medenhance_dicom.jobs import ENHANCE, FETCH, Jobs, JobState, StageState, sqlite_url
from medenhance_dicom.node.delivering import TO
from medenhance_dicom.node.delivery import read_ledger
from medenhance_dicom.node.jobfolder import (
    ARCHIVE,
    flush,
    job_folder,
    ledger_path,
    locked,
    read_whole,
    write_lines,
    write_whole,
)
from medenhance_dicom.node.settings import NodeSettings
from medenhance_dicom.node.spool import SealedSeries, Spool
from medenhance_dicom.node.trail import open_trail

_GIVEN_UP = "given_up"
"""Folder of a cancelled job that its `source` is moved into. What is in `source` the node holds, or makes it so at its
start: then a sender's next try would be answered with success and make no job."""
_STEP_SECONDS = 5.0
_MOST_WITHHELD = 8
"""That `why` names one by one."""


def database_of(settings: NodeSettings) -> str:
    """SQLAlchemy URL of the durable work's database."""
    return settings.work.database or sqlite_url(settings.store / "node.sqlite")


class Control:
    """The jobs of one node, from outside the processes that work on them."""

    def __init__(self, settings: NodeSettings, *, clock: Callable[[], float] = time.time) -> None:
        """Connect.

        Raises:
            ConfigurationError: The database cannot be reached.
        """
        self._store, self._clock = settings.store, clock
        self._audit = open_trail(settings, clock=clock)
        self.jobs = Jobs(database_of(settings))

    def all(self) -> list[dict[str, Any]]:
        """Every job, oldest first: job, state, say, calling_ae, Modality, instances, partial, created, updated."""
        return [self._summary(state) for state in self.jobs.all()]

    def show(self, job: str) -> dict[str, Any]:
        """One job with its stages, and for each destination what it has had.

        Raises:
            KeyError: No such job.
        """
        state, folder = self.jobs.job(self.full_id(job)), self._folder(job)
        plan = read_whole(folder / "plan.json") or {}
        ended = read_whole(folder / "enhanced.json") or {}
        stages = [
            {
                "stage": stage.stage, "state": stage.state, "say": stage.say, "worker": stage.worker,
                "next": _iso(stage.until) if stage.until else None,
            }
            for stage in state.stages
        ]  # fmt: skip
        destinations = {}
        for name in plan.get("destinations", []):
            ledger = read_ledger(ledger_path(folder, name))
            destinations[name] = {
                "sent": len(ledger.sent), "refused": len(ledger.refused), "committed": len(ledger.committed),
                "failures": ledger.failures + ledger.commit_failures, "finished": ledger.finished,
            }  # fmt: skip
        return self._summary(state) | {
            "stages": stages, "counts": ended.get("counts", {}), "destinations": destinations, "folder": str(folder),
            "withheld": _withheld(folder),
        }  # fmt: skip

    def why(self, job: str) -> list[str]:
        """What happened, what is being waited for and what a person can do, in sentences.

        Raises:
            KeyError: No such job.
        """
        job, folder = self.full_id(job), self._folder(job)
        sentences = [_received(read_whole(folder / "job.json") or {})]
        try:
            state = self.jobs.job(job)
        except KeyError:
            return [
                *sentences,
                f"It is not queued. The node does that when it starts, and so does `jobs retry {job[:8]}`.",
            ]
        plan = read_whole(folder / "plan.json")
        if plan is not None and not plan["destinations"]:
            sentences.append("No rule sends it anywhere.")
        events = self._audit.events(state.job)
        sentences += [said for event in events if (said := _happened(event)) is not None]
        sentences += _why_withheld(_withheld(folder), state.job)
        if conflicts := self._conflicts(folder):
            sentences.append(
                f"{conflicts} instances came again with other bytes; those are in conflicts/, and not sent."
            )
        sentences += [_now(stage) for stage in state.stages if stage.state != "done"]
        if again := self._came_again(folder):
            return [*sentences, f"{again} of its instances were sent again, and go on in a job of their own."]
        return sentences + _advice(state, folder)

    def _conflicts(self, folder: Path) -> int:
        """Files that were set aside because a job has others of the same SOP Instance UIDs."""
        held = {path.name.split(".")[0] for path in _originals(folder)}
        return sum(path.name.split(".")[0] in held for path in (self._store / "conflicts").glob("*.dcm"))

    def retry(self, job: str) -> list[str]:
        """Go at what failed, waits or was cancelled, now, with fresh attempts and by the rules as they are now.

        Returns:
            The stages; none where nothing has failed, or where instances of a cancelled job were sent again.

        Raises:
            KeyError: No such job.
            OSError: The job's folder cannot be written.
        """
        job, folder = self.full_id(job), self._folder(job)
        if (done := read_whole(folder / "done.json")) is not None:
            if not done.get("only_copy"):
                return []
            (folder / "done.json").unlink()  # the rules may send it somewhere now
        try:
            stages = self.jobs.job(job).stages
        except KeyError:  # the database was lost
            stages = ()
        if stages and all(stage.state in ("queued", "working") for stage in stages):
            return []
        if not self._take_up(folder):
            return []
        (folder / "cancelled").unlink(missing_ok=True)
        again = [{"event": "retried", "at": self._clock()}]
        for ledger in (folder / "sent").glob("*.jsonl"):
            write_lines(ledger, again)
        for name in ("fetch.jsonl", "enhance.jsonl"):
            if (journal := folder / name).exists():
                write_lines(journal, again)
        if "failed" in (read_whole(folder / "enhanced.json") or {}):
            (folder / "enhanced.json").unlink()
        plan = read_whole(folder / "plan.json")
        if plan is not None and "archive" not in plan:
            write_whole(folder / "plan.json", {"made": plan["made"]})  # the rules decide anew
        self._audit.append("retried", job=job)
        if not stages:
            self.jobs.enqueue(job, stage=ENHANCE, priority=(plan or {}).get("priority", 0))
            return [ENHANCE]
        # "enhance" first: it is over at once where it was done, and starts every destination of the new plan.
        if any(stage.stage == FETCH and stage.state != "done" for stage in stages):
            return self.jobs.retry(job)  # it has not come to that
        return self.jobs.retry(job, always=ENHANCE)

    def cancel(self, job: str) -> bool:
        """Give a job up; what is running ends its step. Its files stay.

        The same instances may come again then, and make another job: see `may_come_again`. Cancelling once more does
        what a step that was running prevented.

        Returns:
            False where it is done already.

        Raises:
            KeyError: No such job.
            OSError: The job's folder cannot be written.
        """
        job, folder = self.full_id(job), self._folder(job)
        if (folder / "done.json").exists():
            return False
        write_whole(folder / "cancelled", {"at": self._clock()})
        self._audit.append("cancelled", job=job)
        with contextlib.suppress(KeyError):  # it was never queued, or the database was lost
            self.jobs.cancel(job)
        self._give_up(folder)
        return True

    def may_come_again(self, job: str) -> bool:
        """Whether the same instances, sent again, make another job: not while a step of a cancelled one still runs.

        Raises:
            KeyError: No such job.
        """
        folder = self._folder(job)
        return _of_archive(folder) or not (folder / "source").is_dir()

    def _give_up(self, folder: Path) -> None:
        """Move the instances out of `source` and out of `held/`, unless a step works on them for seconds yet."""
        if _of_archive(folder):
            return
        with contextlib.ExitStack() as locks:
            until = time.monotonic() + _STEP_SECONDS
            for path in sorted(folder.glob(".*.lock")):
                while not locks.enter_context(locked(path)):
                    if time.monotonic() > until:
                        return
                    time.sleep(0.1)
            given_up = folder / _GIVEN_UP
            if (folder / "source").is_dir() and not (folder / "done.json").exists():
                given_up.mkdir(mode=0o700, exist_ok=True)
                flush(folder)
                (folder / "source").rename(given_up / "source")
                flush(given_up)
                flush(folder)
            if (given_up / "source").is_dir():
                Spool(self._store).forget(SealedSeries(folder.name, given_up, {}))

    def _take_up(self, folder: Path) -> bool:
        """Hold the instances of a cancelled job again; False where another job has one of them by now."""
        given_up = folder / _GIVEN_UP
        if not (given_up / "source").is_dir():
            return True
        try:
            for path in _originals(folder):
                held = self._held(path)
                if not (held.exists() and held.samefile(path)):
                    held.hardlink_to(path)
        except FileExistsError:
            Spool(self._store).forget(SealedSeries(folder.name, given_up, {}))
            return False
        (given_up / "source").rename(folder / "source")
        given_up.rmdir()
        flush(folder)
        return True

    def _came_again(self, folder: Path) -> int:
        """Instances of a cancelled job that another job has, or a series that still comes in."""
        if not (folder / _GIVEN_UP).is_dir():
            return 0
        return sum(not self._held(path).samefile(path) for path in _originals(folder) if self._held(path).exists())

    def _held(self, path: Path) -> Path:
        key = path.name.split(".")[0]
        return self._store / "held" / key[:2] / f"{key}.dcm"

    def recover(self, worker: str) -> None:
        """Declare a worker dead, so that a living one takes its jobs over at once."""
        self._audit.append("declared dead", worker=worker)
        self.jobs.recover(worker)

    def full_id(self, job: str) -> str:
        """The job id that begins so, as people type it.

        Raises:
            KeyError: None does, or several do.
        """
        if (job_folder(self._store, job) / "job.json").exists():
            return job
        folders = (self._store / "jobs", self._store / ARCHIVE)
        found = [path.name for folder in folders for path in folder.glob(f"{job}*")] if job.isalnum() else []
        if len(found) != 1:
            raise KeyError(job)
        return found[0]

    def close(self) -> None:
        """Close the connections."""
        self.jobs.close()

    def _folder(self, job: str) -> Path:
        return job_folder(self._store, self.full_id(job))

    def _summary(self, state: JobState) -> dict[str, Any]:
        facts = read_whole(job_folder(self._store, state.job) / "job.json") or {}
        troubled = [stage for stage in state.stages if stage.state == state.state and stage.say]
        return {
            "job": state.job,
            "state": state.state,
            "say": "; ".join(f"{stage.stage}: {stage.say}" for stage in troubled),
            **{name: facts.get(name) for name in ("calling_ae", "Modality", "instances", "partial")},
            "created": _iso(state.created),
            "updated": _iso(state.updated),
        }


def _of_archive(folder: Path) -> bool:
    """Whether nobody sent its instances: they lie in an archive, and `held/` has none of them."""
    return folder.parent.name == ARCHIVE


def _originals(folder: Path) -> list[Path]:
    """The instances of a job, cancelled or not."""
    return [*(folder / "source").glob("*.dcm"), *(folder / _GIVEN_UP / "source").glob("*.dcm")]


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _withheld(folder: Path) -> list[dict[str, Any]]:
    """What the gate withheld: `source`, `reason`, and `kept`, a file; None: not kept, or no longer."""
    report = read_whole(folder / "run_report.json") or {"outcomes": []}
    found = [outcome for outcome in report["outcomes"] if outcome["result"] == "withheld"]
    files = [outcome.get("kept") for outcome in found]
    there = [file if file and Path(file).exists() else None for file in files]
    return [{"source": o["source"], "kept": file, "reason": o["reason"]} for o, file in zip(found, there, strict=True)]


def _why_withheld(withheld: list[dict[str, Any]], job: str) -> list[str]:
    said = [f"{Path(one['source']).name} was withheld: {one['reason']}." for one in withheld[:_MOST_WITHHELD]]
    if len(withheld) > _MOST_WITHHELD:
        said.append(f"{len(withheld) - _MOST_WITHHELD} more were withheld; `jobs show {job[:8]}` names all.")
    if look := next((one for one in withheld if one["kept"]), None):
        said.append(f"Look at it: `medenhance-dicom compare {look['source']} {look['kept']} --html PAGE`.")
    return said


def _received(facts: dict[str, Any]) -> str:
    what = f"{facts.get('instances', '?')} instances of {facts.get('Modality') or 'no modality'}"
    end = "; the series had not come to its end when its time was up" if facts.get("partial") else ""
    if "archive" in facts:
        return f"The archive plan {facts['archive']} has {what}."
    return f"{facts.get('calling_ae', 'Somebody')} sent {what}{end}."


def _happened(event: dict[str, Any]) -> str | None:
    """An event of the audit trail as a sentence; None for one that tells a person nothing."""
    to = event.get("destination", "")
    count, why = event.get("instances"), event.get("why", "")
    why = ", ".join(why) if isinstance(why, list) else why
    match event["event"]:
        case "enhanced":
            counts = ", ".join(f"{n} {result}" for result, n in event["counts"].items())
            words = f"Enhanced: {counts}" if counts else "It was not to be enhanced"
        case "not enhanced":
            words = f"The enhancement was given up: {why}"
        case "sent":
            warned = f", {event['with_warnings']} with warnings" if "with_warnings" in event else ""
            words = f"{count} instances were stored by {to}{warned}"
        case "not sent":
            words = f"{to} did not take {f'{count} instances' if count else 'anything'}: {why}"
        case "commitment asked":
            words = f"{to} was asked to commit {count} instances"
        case "committed":
            words = f"{to} committed {count} instances"
        case "not committed":
            words = f"{to} did not commit {f'{count} instances' if count else ''}: {why}".replace("  ", " ")
        case "dead letter":
            words = f"Nothing more was tried{f' with {to}' if to else ''}: {why}"
        case "delivered":
            words = f"{to} has all {count} instances"
        case "retried":
            words = "A person asked for another try"
        case "cancelled":
            words = "A person gave it up"
        case "done":
            words = "It is done"
        case _:
            return None
    return f"{event['time'][:19]}Z {words}."


def _now(stage: StageState) -> str:
    name = f"Delivery to {stage.stage.removeprefix(TO)}" if stage.stage.startswith(TO) else "Enhancement"
    name = "Fetching" if stage.stage == FETCH else name
    match stage.state:
        case "queued":
            words = "waits for a worker that is free"
        case "working":
            words = f"is being worked on by {stage.worker}"
        case "waiting":
            when = f" until {_iso(stage.until)}" if stage.until else ""
            words = f"waits{when}: {stage.say}"
        case "failed":
            words = f"has failed: {stage.say}"
        case _:
            words = "was cancelled"
    return f"{name} {words}."


def _advice(state: JobState, folder: Path) -> list[str]:
    if (done := read_whole(folder / "done.json")) is not None:
        if done.get("only_copy"):
            return [f"Its files stay here. Where a rule is to send it, mend that, then `jobs retry {state.job[:8]}`."]
        return ["Its files stay here until retention removes them."]
    match state.state:
        case "failed":
            advice = f"Mend what is named above, then `jobs retry {state.job[:8]}`: it does what is left to do."
            if any(stage.stage == ENHANCE and stage.state == "failed" for stage in state.stages):
                advice = f"Originals are sent on all the same. {advice}"
            return [advice, "Until then its files stay here."]
        case "cancelled":
            again = "The same instances, sent again, make another job."
            if (folder / "source").is_dir():
                again = "A step of it was running: until you cancel it once more, the same instances make no other job."
            return [again, f"`jobs retry {state.job[:8]}` takes it up again. Until then its files stay here."]
        case "queued":
            return ["If that lasts, see `node status`: no worker may be running."]
        case "waiting":
            return [f"`jobs retry {state.job[:8]}` tries at once; `jobs cancel {state.job[:8]}` gives it up."]
        case _:
            return []
