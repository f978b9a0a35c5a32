"""What happened to each instance, and the report of a run: on disk as it comes, so that memory stays flat."""

from __future__ import annotations

import json
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from medenhance_dicom import __version__
from medenhance_dicom.errors import OutputError

Result = Literal["enhanced", "warned", "withheld", "released", "skipped", "failed"]
"""released: withheld, and then released by a person (`releasing`)."""

SCHEMA = "medenhance-dicom/run-report/3"
UNREADABLE = "UNREADABLE"
WITHHELD = "the picture was withheld"
"""In the verdict of a picture that is kept and not released."""
KEPT = "reports"
"""Folder of the reports of every run, beside the newest one."""
UNCHANGED = "UNCHANGED"
"""Reason of an instance whose enhancement would be its copy; nothing is written."""


@dataclass(frozen=True)
class Outcome:
    """What became of one instance."""

    source: str
    """Path of the source, or `archive.zip!member`."""
    result: Result
    reason: str | None = None
    """A stable upper-case code, a colon and a sentence; None where there is nothing to say."""
    sop_instance_uid: str | None = None
    series_instance_uid: str | None = None
    recipe: str | None = None
    weights: str | None = None
    guide: str | None = None
    lassim: float | None = None
    """Of the worst frame."""
    verdict: dict[str, Any] = field(default_factory=dict)
    """As `verdicts.values_of` gives it, with the change in stored values; empty where nothing was judged."""
    measures: dict[str, Any] = field(default_factory=dict)
    """Of a colour photograph of the eye (Modality OP): light, contrast and colour before and after, by the ids of
    `metrics.registry`, at 512 pixels at most, mean over the frames; empty for all others."""
    derived: str | None = None
    derived_sop_instance_uid: str | None = None
    structured_report: str | None = None
    """Path of the TID 1500 report on the derived instance."""
    repeated: bool = False
    """It was finished before: what stands at its target was verified, and nothing was written."""
    replaces: str | None = None
    """SOP Instance UID of the derived object that this one stands for now, since the source was corrected."""
    left_behind: list[str] = field(default_factory=list)
    """What the source has and the derived object lacks, in words; see `left_behind`."""
    kept: str | None = None
    """Path of the withheld picture, which no DICOM program reads; see `withheld`."""
    seconds: dict[str, float] = field(default_factory=dict)


def exit_code(counts: Mapping[str, int], *, unreadable: int = 0) -> int:
    """The exit code of a run (documented in the README).

    Args:
        counts: Outcomes by result.
        unreadable: How many of the failed ones could not be read at all.
    """
    done = sum(counts.get(result, 0) for result in ("enhanced", "warned", "released"))
    withheld, failed = counts.get("withheld", 0), counts.get("failed", 0)
    if failed:
        if done or withheld:
            return 4
        return 6 if unreadable == failed else 5
    if withheld:
        return 10 if done else 9
    return 0 if done else 3


class RunReport:
    """The report of one run, kept outcome by outcome; the schema is `schemas/run_report.schema.json`.

    While the run lasts it is JSON lines, in a file that no other run has: first what the run is, then every outcome as
    it comes. What ends without `close` (a kill, a power cut) leaves that file behind. `close` makes the report of it
    and puts that in place in one step: runs into one folder at once harm neither each other's reports nor a reader.
    """

    def __init__(
        self, path: Path, *, started: datetime, device: str, engine: str, precision: str, keep: bool = False
    ) -> None:
        """Begin a report.

        Args:
            path: Of the report; that of a run before is replaced when this one is closed.
            started: Aware time.
            device: What the run computes on.
            engine: What runs its networks.
            precision: What they compute in.
            keep: Keep this report for good, too: as `reports/<UTC time>-<random>.json` beside `path`.

        Raises:
            OutputError: The folder cannot be written to.
        """
        self.path, self.counts, self.unreadable = path, Counter[str](), 0
        token = secrets.token_hex(4)
        self._part = path.with_name(f".{path.name}.{token}.part")
        self._kept = path.parent / KEPT / f"{started.astimezone(UTC):%Y%m%dT%H%M%SZ}-{token}.json" if keep else None
        self._hidden = self._part.with_suffix(".copy")
        self._lines = self._kept.with_suffix(".jsonl") if self._kept else path.with_name(f"{path.stem}.{token}.jsonl")
        self._head = {
            "schema": SCHEMA,
            "version": __version__,
            "started": started.isoformat(timespec="seconds"),
            "device": device,
            "engine": engine,
            "precision": precision,
        }
        with _writing(self._lines.parent):
            self._lines.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._lines.open("x", encoding="utf-8", buffering=1)
        self._write(self._head)

    def add(self, outcome: Outcome) -> None:
        """Append one outcome.

        Raises:
            OutputError: The disk is full.
        """
        self.counts[outcome.result] += 1
        if outcome.result == "failed" and (outcome.reason or "").startswith(UNREADABLE):
            self.unreadable += 1
        self._write(asdict(outcome))

    def close(self, *, finished: datetime, interrupted: bool = False, also: IO[str] | None = None) -> None:
        """Add the counts and put the report in its place.

        Args:
            finished: Aware time.
            interrupted: The run ended before it had looked at everything.
            also: Where else the report is written to.

        Raises:
            OutputError: The disk is full.
        """
        tail = {
            "counts": dict(sorted(self.counts.items())),
            "finished": finished.isoformat(timespec="seconds"),
            "interrupted": interrupted,
        }
        try:
            self._put_in_place(tail, also)
        finally:
            for part in (self._part, self._hidden):  # there where the disk was full
                part.unlink(missing_ok=True)

    def _put_in_place(self, tail: dict[str, Any], also: IO[str] | None) -> None:
        with _writing(self.path):
            self._file.close()
            with self._lines.open(encoding="utf-8") as lines, self._part.open("w", encoding="utf-8") as whole:
                next(lines)
                whole.write(json.dumps(self._head)[:-1] + ', "outcomes": [')
                for number, line in enumerate(lines):
                    whole.write((",\n" if number else "\n") + line.rstrip("\n"))
                whole.write("\n], " + json.dumps(tail)[1:] + "\n")
            if self._kept:
                shutil.copyfile(self._part, self._hidden)
                self._hidden.replace(self._kept)
            with self._part.open(encoding="utf-8") as whole:
                self._part.replace(self.path)
                self._lines.unlink()
                report = whole.read() if also else ""
        if also:  # its errors are none of the report's
            also.write(report)

    def discard(self) -> None:
        """Leave nothing of this report, for a run whose beginning does not count."""
        self._file.close()
        self._lines.unlink(missing_ok=True)

    def _write(self, value: dict[str, Any]) -> None:
        with _writing(self.path):
            self._file.write(json.dumps(value) + "\n")

    @property
    def exit_code(self) -> int:
        """See `exit_code`."""
        return exit_code(self.counts, unreadable=self.unreadable)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What fails here is an OutputError that names the path."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
