"""What one destination has had of one job, and what is to be done about it next.

The ledger is a file of JSON lines, only ever added to, in `jobs/<job id>/sent/<destination>.jsonl`: what was sent,
refused, asked to be committed and committed. Its state is what the lines add up to, so a process may die after any of
them. `decide` knows no network and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from medenhance_dicom.node.jobfolder import read_lines
from medenhance_dicom.node.settings import Work

_FIRST_POLL, LONGEST_POLL = 1.0, 15.0
"""Seconds between looks for a commitment report."""


class Instance(NamedTuple):
    """An instance as it was sent."""

    sop_class: str
    sop_instance: str


@dataclass
class Ledger:
    """The sum of the lines."""

    sent: dict[str, Instance] = field(default_factory=dict)
    """By file, relative to the job's folder."""
    refused: dict[str, str] = field(default_factory=dict)
    """File -> why the destination will never take it."""
    committed: set[str] = field(default_factory=set)
    """SOP Instance UIDs."""
    transaction: str | None = None
    """Of the Storage Commitment that is asked for and not reported."""
    asked: float | None = None
    """When the request went through; None: the process that made it died, and nobody knows."""
    failures: int = 0
    """Failed attempts since something was sent last."""
    commit_failures: int = 0
    """Commitments that were refused, or not reported in time."""
    failed: float = 0.0
    why: str = ""
    """Of the last failure."""
    dead: bool = False
    """The destination refuses us altogether."""
    finished: bool = False

    def add(self, line: dict[str, Any]) -> None:
        """Account for one line."""
        match line["event"]:
            case "sent":
                self.sent[line["file"]] = Instance(line["class"], line["instance"])
                self.failures, self.finished = 0, False
            case "refused":
                self.refused[line["file"]] = self.why = line["why"]
            case "failed":
                self.failures += 1
                self.failed, self.why, self.dead = line["at"], line["why"], bool(line.get("permanent"))
            case "asking":
                self.transaction, self.asked = line["transaction"], None
            case "asked":
                self.asked = line["at"]
            case "committed":
                self.transaction = None
                self.committed |= set(line["instances"])
            case "uncommitted":
                self.transaction = None
                gone = set(line["instances"])
                self.sent = {name: item for name, item in self.sent.items() if item.sop_instance not in gone}
                self.commit_failures += 1
                self.failed, self.why = line["at"], line["why"]
            case "retried":
                self.refused, self.dead, self.failures, self.commit_failures = {}, False, 0, 0
                self.finished = False  # there may be more to send: whether there is, its next go finds out
            case "finished":
                self.finished = True

    def uncommitted(self) -> list[Instance]:
        """What was sent and not committed, each SOP Instance UID once."""
        return sorted({item for item in self.sent.values() if item.sop_instance not in self.committed})


class Send(NamedTuple):
    """Send these files."""

    files: list[str]


class Ask(NamedTuple):
    """Have these instances committed."""

    instances: list[Instance]


class Expire(NamedTuple):
    """Give up waiting for the report of a transaction."""

    transaction: str


class Wait(NamedTuple):
    """Nothing to do for that long."""

    seconds: float
    why: str


class Dead(NamedTuple):
    """Nothing more will be tried until a person says so."""

    why: str


class Done(NamedTuple):
    """Everything was sent, and committed where that was asked for."""


Decision = Send | Ask | Expire | Wait | Dead | Done


def decide(
    ledger: Ledger, files: Sequence[str], *, commit: bool, commit_seconds: float, work: Work, now: float
) -> Decision:
    """What to do next.

    Args:
        ledger: Of the destination.
        files: What it shall have, relative to the job's folder.
        commit: Ask for Storage Commitment.
        commit_seconds: How long a report may take.
        work: Attempts and pauses.
        now: Seconds since the epoch; a clock that jumps makes a pause end early, never late.
    """
    if ledger.dead:
        return Dead(ledger.why)
    failures = ledger.failures + ledger.commit_failures
    if ledger.failures >= work.attempts or ledger.commit_failures >= work.attempts:
        return Dead(f"{failures} attempts; the last one: {ledger.why}")
    left = pause_after(failures, work) - abs(now - ledger.failed)
    unsent = [name for name in files if name not in ledger.sent and name not in ledger.refused]
    if unsent:
        return Wait(left, ledger.why) if failures and left > 0 else Send(unsent)
    if commit and (open_ := ledger.uncommitted()):
        if ledger.transaction is not None and ledger.asked is not None:
            waited = abs(now - ledger.asked)
            if waited >= commit_seconds:
                return Expire(ledger.transaction)
            poll = min(max(_FIRST_POLL, waited / 4), LONGEST_POLL, commit_seconds - waited)
            return Wait(poll, "the commitment report has not come yet")
        return Wait(left, ledger.why) if ledger.commit_failures and left > 0 else Ask(open_)
    if ledger.refused:
        return Dead(f"{len(ledger.refused)} instances refused; the last one: {ledger.why}")
    return Done()


def pause_after(failures: int, work: Work) -> float:
    """Seconds to wait after so many failures in a row; 0 after none."""
    if failures == 0:
        return 0.0
    return min(work.first_pause * 2.0 ** min(failures - 1, 60), work.longest_pause)


def read_ledger(path: Path) -> Ledger:
    """What a ledger's lines add up to."""
    ledger = Ledger()
    for line in read_lines(path):
        ledger.add(line)
    return ledger
