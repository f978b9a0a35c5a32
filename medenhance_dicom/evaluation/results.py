"""Scores on disk, a JSON line for each picture and enhancer as they are done, so that nothing is done twice."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medenhance_dicom.errors import OutputError


@dataclass
class Row:
    """One picture under one enhancer."""

    name: str
    key: str
    """See `Entry.key`."""
    enhancer: str
    digest: str
    """See `Candidate.digest`."""
    scores: dict[str, float | None] = field(default_factory=dict)
    """By column; None where there is no number. Infinity is written as "inf"."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a score is None, by column."""
    predicted: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By predictor: `graded`, `found`, with the true `grade` and `point`."""
    seconds: float | None = None
    """That the enhancer took."""
    failed: str = ""
    """Why there is no picture to score; such a row is tried again by the next run."""


class Results:
    """The rows of an evaluation. Safe against being killed: a line that was cut short is dropped.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path, *, afresh: bool = False) -> None:
        """Args: path: results.jsonl; afresh: forget what it holds."""
        self.path = path
        self._rows: dict[tuple[str, str, str], Row] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._file = path.open("wb" if afresh else "ab+")
            self._file.seek(0)
            whole = 0
            for line in self._file if not afresh else ():
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self._take(line)
            self._file.truncate(whole)
            self._file.seek(whole)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}") from error

    def _take(self, line: bytes) -> None:
        try:
            row = Row(**json.loads(line))
            row.scores = {column: _number(value) for column, value in row.scores.items()}
        except (ValueError, TypeError, AttributeError):
            return
        if not row.failed:
            self._keep(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def find(self, key: str, enhancer: str, digest: str) -> Row | None:
        """What is known of a picture under an enhancer."""
        return self._rows.get((key, enhancer, digest))

    def add(self, row: Row) -> None:
        """Write a row, and keep it unless it failed; columns of an earlier row of the same picture stay.

        Raises:
            OutputError: The disk is full.
        """
        told = asdict(row) | {"scores": {column: _text(value) for column, value in row.scores.items()}}
        try:
            self._file.write(json.dumps(told, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error
        if not row.failed:
            self._keep(row)

    def _keep(self, row: Row) -> None:
        place = row.key, row.enhancer, row.digest
        earlier = self._rows.get(place)
        if earlier is not None:
            row.scores = earlier.scores | row.scores
            row.reasons = {c: r for c, r in (earlier.reasons | row.reasons).items() if row.scores.get(c) is None}
            row.predicted = earlier.predicted | row.predicted
            row.seconds = row.seconds if row.seconds is not None else earlier.seconds
        self._rows[place] = row


def _text(value: float | None) -> float | str | None:
    if value is None or math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
