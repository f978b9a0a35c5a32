"""What happened to each instance, and the report of a run: streamed to disk, so memory does not grow with the run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from medenhance_dicom import __version__
from medenhance_dicom.errors import OutputError

Result = Literal["enhanced", "warned", "withheld", "skipped", "failed"]

SCHEMA = "medenhance-dicom/run-report/2"
UNREADABLE = "UNREADABLE"


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
    derived: str | None = None
    derived_sop_instance_uid: str | None = None
    structured_report: str | None = None
    """Path of the TID 1500 report on the derived instance."""
    seconds: dict[str, float] = field(default_factory=dict)


def exit_code(counts: Mapping[str, int], *, unreadable: int = 0) -> int:
    """The exit code of a run (documented in the README).

    Args:
        counts: Outcomes by result.
        unreadable: How many of the failed ones could not be read at all.
    """
    done = counts.get("enhanced", 0) + counts.get("warned", 0)
    withheld, failed = counts.get("withheld", 0), counts.get("failed", 0)
    if failed:
        if done or withheld:
            return 4
        return 6 if unreadable == failed else 5
    if withheld:
        return 10 if done else 9
    return 0 if done else 3


class RunReport:
    """Writes `run_report.json` outcome by outcome; the schema is `schemas/run_report.schema.json`."""

    def __init__(self, path: Path, *, started: datetime, device: str, engine: str, precision: str) -> None:
        self.path, self.counts, self.unreadable = path, Counter[str](), 0
        self._part = path.with_name(f".{path.name}.part")
        self._first = True
        head = {
            "schema": SCHEMA,
            "version": __version__,
            "started": started.isoformat(timespec="seconds"),
            "device": device,
            "engine": engine,
            "precision": precision,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("w", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path.parent}: {error.strerror}") from error
        self._write(json.dumps(head)[:-1] + ', "outcomes": [')

    def add(self, outcome: Outcome) -> None:
        """Append one outcome.

        Raises:
            OutputError: The disk is full.
        """
        self.counts[outcome.result] += 1
        if outcome.result == "failed" and (outcome.reason or "").startswith(UNREADABLE):
            self.unreadable += 1
        self._write(("\n" if self._first else ",\n") + json.dumps(asdict(outcome)))
        self._first = False

    def close(self, *, finished: datetime) -> None:
        """Add the counts and put the report in its place."""
        tail = {"counts": dict(sorted(self.counts.items())), "finished": finished.isoformat(timespec="seconds")}
        self._write("\n], " + json.dumps(tail)[1:] + "\n")
        try:
            self._file.close()
            self._part.replace(self.path)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error

    def _write(self, text: str) -> None:
        try:
            self._file.write(text)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error

    @property
    def exit_code(self) -> int:
        """See `exit_code`."""
        return exit_code(self.counts, unreadable=self.unreadable)
