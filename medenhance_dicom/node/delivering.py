"""Bring a job to one destination: send, have it committed, and write down each step before the next."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medenhance_dicom.audit import Audit
from medenhance_dicom.errors import MedenhanceError, OutputError, PeerError
from medenhance_dicom.jobs import Result, Task
from medenhance_dicom.node.delivery import Ask, Dead, Done, Expire, Instance, Ledger, Send, Wait, decide, read_ledger
from medenhance_dicom.node.jobfolder import ledger_path, read_whole, write_lines
from medenhance_dicom.node.settings import Destination, NodeSettings

if TYPE_CHECKING:
    from medenhance_dicom.node.forward import SendReport

TO = "to."
"""Stages of destinations are called `to.<name>`."""
BATCH = 256
"""Instances of one C-STORE association; what a killed worker sends twice is at most that many."""


@dataclass(frozen=True)
class Commitment:
    """What a destination reported about a transaction. Keys are SOP Instance UIDs."""

    committed: frozenset[str]
    failed: Mapping[str, str]
    """With the reason."""


@dataclass(frozen=True)
class Peers:
    """The network, as this module needs it."""

    send: Callable[[Sequence[Path], Destination, str], SendReport]
    """Files, destination, our AE title. Raises PeerError where nothing could be tried."""
    ask: Callable[[Sequence[Instance], Destination, str, str], None]
    """Instances, destination, our AE title, Transaction UID. Raises PeerError; the answer comes as a report."""
    report: Callable[[str], Commitment | None]
    """Of a Transaction UID, once there is one."""


class Delivering:
    """The stages of destinations; gos may run in several threads."""

    def __init__(self, peers: Peers, audit: Audit, clock: Callable[[], float]) -> None:
        """Args: peers: the network; audit: the trail; clock: seconds since the epoch."""
        self._peers, self._audit, self._clock = peers, audit, clock

    def go(
        self, folder: Path, name: str, settings: NodeSettings, stopping: threading.Event, *, durable: bool = True
    ) -> Result:
        """One go. "done" means that the destination has everything.

        Args:
            folder: Of the job.
            name: Of the destination.
            settings: Of the node, as the job has them.
            stopping: The worker is to stop.
            durable: False: the machine may end without what is written down of a success, until the next durable line
                of the trail.

        Raises:
            OSError: What was done cannot be written down.
        """
        path = ledger_path(folder, name)
        try:
            destination = settings.destination(name)
        except KeyError:
            why = "the configuration has no destination of that name any more"
            self._audit.append("dead letter", job=folder.name, destination=name, why=why)
            return Result("failed", why)
        files = wanted_files(folder, destination)
        ledger = read_ledger(path)
        while True:
            if stopping.is_set():
                return Result("waiting", "the worker stopped", (Task(TO + name),))
            self._take_report(path, ledger, folder.name, name)
            decision = decide(
                ledger,
                files,
                commit=destination.commit and destination.stow is None and destination.folder is None,
                commit_seconds=destination.commit_seconds,
                work=settings.work,
                now=self._clock(),
            )
            match decision:
                case Send(unsent):
                    self._send(folder, path, ledger, unsent, settings, destination, stopping, durable=durable)
                case Ask(instances):
                    self._ask(path, ledger, folder.name, instances, settings, destination)
                case Expire(_):
                    self._note(path, ledger, {"event": "uncommitted", "instances": [], "why": "no report in time"})
                    self._audit.append("not committed", job=folder.name, destination=name, why="no report in time")
                case Wait(seconds, why):
                    return Result("waiting", why, (Task(TO + name, seconds),))
                case Dead(why):
                    self._audit.append("dead letter", job=folder.name, destination=name, why=why)
                    return Result("failed", why)
                case Done():
                    return self._finish(folder, path, ledger, name, durable=durable)

    def _send(
        self,
        folder: Path,
        path: Path,
        ledger: Ledger,
        files: list[str],
        settings: NodeSettings,
        destination: Destination,
        stopping: threading.Event,
        *,
        durable: bool,
    ) -> None:
        """Send batch by batch, each written down when it is over; ends early where one fails."""
        for start in range(0, len(files), BATCH):
            batch = files[start : start + BATCH]
            try:
                report = self._peers.send([folder / name for name in batch], destination, settings.listener.ae_title)
            except MedenhanceError as error:
                self._failed(path, ledger, folder.name, destination.name, error)
                return
            relative = {folder / name: name for name in batch}
            lines: list[dict[str, Any]] = [
                {
                    "event": "sent",
                    "file": relative[item.path],
                    "class": item.sop_class,
                    "instance": item.sop_instance,
                    "status": item.status,
                }
                for item in report.sent
            ]
            lines += [
                {"event": "refused", "file": relative[item.path], "status": item.status, "why": item.why}
                for item in report.failed
                if item.permanent
            ]
            transient = next((item for item in report.failed if not item.permanent), None)
            if transient is not None:
                lines.append({"event": "failed", "why": transient.why})
            self._note(path, ledger, *lines, durable=durable)
            if report.sent:
                warned = sum(item.status != 0 for item in report.sent)
                facts = {"instances": len(report.sent)} | ({"with_warnings": warned} if warned else {})
                self._audit.append("sent", durable=durable, job=folder.name, destination=destination.name, **facts)
            if report.failed:
                why = sorted({item.why for item in report.failed})
                self._audit.append(
                    "not sent", job=folder.name, destination=destination.name, instances=len(report.failed), why=why
                )
            if transient is not None or stopping.is_set():
                return

    def _ask(
        self,
        path: Path,
        ledger: Ledger,
        job: str,
        instances: list[Instance],
        settings: NodeSettings,
        destination: Destination,
    ) -> None:
        transaction = f"2.25.{uuid.uuid4().int}"
        self._note(path, ledger, {"event": "asking", "transaction": transaction})
        try:
            self._peers.ask(instances, destination, settings.listener.ae_title, transaction)
        except PeerError as error:
            if error.permanent:
                self._failed(path, ledger, job, destination.name, error)
            else:
                self._note(path, ledger, {"event": "uncommitted", "instances": [], "why": str(error)})
                self._audit.append("not committed", job=job, destination=destination.name, why=str(error))
        except MedenhanceError as error:
            self._failed(path, ledger, job, destination.name, error)
        else:
            self._note(path, ledger, {"event": "asked"})
            self._audit.append("commitment asked", job=job, destination=destination.name, instances=len(instances))

    def _take_report(self, path: Path, ledger: Ledger, job: str, name: str) -> None:
        """Enter what the destination reported, if it did."""
        if ledger.transaction is None:
            return
        report = self._peers.report(ledger.transaction)
        if report is None:
            return
        asked = {item.sop_instance for item in ledger.uncommitted()}
        committed = sorted(asked & report.committed)
        missing = sorted(asked - report.committed)  # failed, or left out of the report
        lines: list[dict[str, Any]] = [{"event": "committed", "instances": committed}]
        if missing:
            why = sorted({report.failed.get(uid, "not in the report") for uid in missing})
            lines.append({"event": "uncommitted", "instances": missing, "why": f"not committed: {', '.join(why)}"})
            self._audit.append("not committed", job=job, destination=name, instances=len(missing), why=why)
        self._note(path, ledger, *lines)
        if committed:
            self._audit.append("committed", job=job, destination=name, instances=len(committed))

    def _failed(self, path: Path, ledger: Ledger, job: str, name: str, error: MedenhanceError) -> None:
        permanent = error.permanent if isinstance(error, PeerError) else not isinstance(error, OutputError)
        self._note(path, ledger, {"event": "failed", "why": str(error), "permanent": permanent})
        self._audit.append("not sent", job=job, destination=name, why=str(error))

    def _finish(self, folder: Path, path: Path, ledger: Ledger, name: str, *, durable: bool) -> Result:
        if not ledger.finished:
            facts = {"instances": len(ledger.sent), "committed": len(ledger.committed)}
            self._audit.append("delivered", durable=durable, job=folder.name, destination=name, **facts)
            self._note(path, ledger, {"event": "finished"}, durable=durable)
        committed = f", {len(ledger.committed)} committed" if ledger.committed else ""
        return Result("done", f"{len(ledger.sent)} instances sent{committed}")

    def _note(self, path: Path, ledger: Ledger, *lines: dict[str, Any], durable: bool = True) -> None:
        """Write lines to a ledger, and account for them."""
        dated = [{"at": self._clock(), **line} for line in lines]
        write_lines(path, dated, durable=durable)
        for line in dated:
            ledger.add(line)


def wanted_files(folder: Path, destination: Destination) -> list[str]:
    """What a destination shall have: originals, and derived files only where the gate let them pass."""
    files: list[str] = []
    if destination.send in ("originals", "both"):
        files += sorted(str(path.relative_to(folder)) for path in (folder / "source").rglob("*.dcm"))
    if destination.send in ("derived", "both"):
        files += (read_whole(folder / "enhanced.json") or {}).get("derived", [])
    return files
