"""What was derived of which instance: a line for each result, kept beside the results.

With it a run goes on where one before it stopped, and an object made of a corrected source can say which it replaces.
There is a file of JSON lines for each series and method; lines are only ever appended. A line holds UIDs, digests and
verdicts, nothing of a patient.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from medenhance_dicom.errors import OutputError
from medenhance_dicom.report import Result
from medenhance_dicom.uids import digest_of, is_uid

NAME = ".derived"
"""Folder of the ledger inside an output folder. Its beginning with a dot hides it from whoever looks for instances."""


@dataclass(frozen=True)
class Entry:
    """What became of one instance. Digests are hex SHA-256."""

    source: str
    """SOP Instance UID of the source."""
    said: str
    """Digest of the source's whole header."""
    pixels: str
    """Digest of the source's decoded frames."""
    gate: str
    """Digest of the gate's mode and limits."""
    rule: int
    """Method version."""
    result: Result
    reason: str | None = None
    lassim: float | None = None
    verdict: dict[str, Any] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)
    derived: str | None = None
    """SOP Instance UID of what was derived; None where nothing was."""
    derived_series: str | None = None
    sop_class: str | None = None
    """SOP Class UID of what was derived."""
    header: str | None = None
    """Digest of what the derived object takes over from its source's header."""
    path: str | None = None
    """Where it was written."""
    replaces: str | None = None
    """SOP Instance UID of the derived object that it replaces."""
    left_behind: list[str] = field(default_factory=list)
    """What the derived object lacks, in words."""
    kept: str | None = None
    """Where what was withheld was kept."""


_TEXTS = ("source", "said", "pixels", "gate")
_WORDS = ("reason", "derived", "derived_series", "sop_class", "header", "path", "replaces", "kept")


def old_entry(source: str, derived: str, series: str) -> Entry:
    """What is known of an object of rule 1, of which no ledger was kept: enough to be named as replaced.

    Args:
        source: SOP Instance UID of the source.
        derived: SOP Instance UID of what was derived.
        series: Its Series Instance UID.
    """
    return Entry(source, said="", pixels="", gate="", rule=1, result="enhanced", derived=derived, derived_series=series)


@dataclass(frozen=True)
class _Made:
    """What is kept in memory of a line: where it stands, and of a derived object what decides on replacing."""

    offset: int
    derived: str | None
    derived_series: str | None
    content: tuple[str | None, str]
    """Digests of the header and of the source's pixels."""
    replaces: str | None


class Ledger:
    """The results of one series by one method. Memory grows by some words for each line."""

    def __init__(self, folder: Path, series: str, recipe: str, weights: str | None, guide: str | None) -> None:
        """Open it; nothing is written yet.

        Args:
            folder: Of all ledgers.
            series: Series Instance UID of the sources.
            recipe: Digest.
            weights: Digest, where any are used.
            guide: Digest, where one is used.

        Raises:
            OutputError: It cannot be read.
        """
        self.path = folder / f"{digest_of('ledger', series, recipe, weights or '', guide or '')[:32]}.jsonl"
        self._made: dict[str, list[_Made]] = defaultdict(list)
        with _said(self.path), contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            offset = 0
            for line in file:
                self._remember(_entry(line), offset)
                offset += len(line)

    def entries(self, source: str) -> Iterator[Entry]:
        """What became of an instance, the last result first; `source` is its SOP Instance UID."""
        known = list(reversed(self._made.get(source, ())))
        with _said(self.path), self.path.open("rb") if known else contextlib.nullcontext() as file:
            for made in known:
                assert file is not None
                file.seek(made.offset)
                if (entry := _entry(file.readline())) is not None:
                    yield entry

    def knows(self, source: str) -> bool:
        """Whether anything is known of an instance."""
        return source in self._made

    def last(self, source: str) -> str | None:
        """SOP Instance UID of what was derived of an instance last."""
        return next((made.derived for made in reversed(self._made.get(source, ())) if made.derived), None)

    def replaced(self, source: str, derived: str, content: tuple[str, str]) -> tuple[str, str] | None:
        """The object that a derived object replaces: the last one made of another header or other pixels.

        An object that was made before replaces what it replaced then, whatever came after it: there is no circle.

        Args:
            source: SOP Instance UID of the source.
            derived: SOP Instance UID of the derived object.
            content: Digests of its header and of the source's pixels.

        Returns:
            Its SOP and Series Instance UIDs; None where it replaces none.
        """
        made = [one for one in self._made.get(source, ()) if one.derived]
        first = next((one for one in made if one.derived == derived), None)
        if first is not None:
            before = [one for one in made if one.derived == first.replaces]
        else:
            before = [one for one in made if one.content != content]
        return (str(before[-1].derived), str(before[-1].derived_series)) if before else None

    def add(self, entry: Entry) -> None:
        """Append a line.

        Raises:
            OutputError: It cannot be written.
        """
        line = json.dumps(asdict(entry), separators=(",", ":")).encode() + b"\n"
        with _said(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                offset = file.seek(0, 2)
                if offset:
                    file.seek(offset - 1)
                    if file.read(1) != b"\n":  # torn by a crash
                        line = b"\n" + line
                        offset += 1
                file.write(line)
        self._remember(entry, offset)

    def _remember(self, entry: Entry | None, offset: int) -> None:
        if entry is not None:
            made = _Made(offset, entry.derived, entry.derived_series, (entry.header, entry.pixels), entry.replaces)
            self._made[entry.source].append(made)


def _entry(line: bytes) -> Entry | None:
    """A line's entry; None for a torn or foreign one. Fields that another version has are passed over."""
    try:
        values = json.loads(line)
        entry = Entry(**{one.name: values[one.name] for one in fields(Entry) if one.name in values})
    except (ValueError, TypeError, RecursionError):
        return None
    return entry if _is_sound(vars(entry)) else None


def _is_sound(values: dict[str, Any]) -> bool:
    """Whether every value is of its kind; another program, or a version to come, may have written anything."""
    return (
        all(_is_text(values[name]) for name in _TEXTS)
        and all(values[name] is None or _is_text(values[name]) for name in _WORDS)
        and isinstance(values["rule"], int)
        and values["result"] in get_args(Result)
        and isinstance(values["lassim"], float | int | None)
        and isinstance(values["verdict"], dict)
        and isinstance(values["measures"], dict)
        and isinstance(values["left_behind"], list)
        and all(_is_text(words) for words in values["left_behind"])
        and (values["derived"] is None or (is_uid(values["derived"]) and is_uid(values["derived_series"] or "")))
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
