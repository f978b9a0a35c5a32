"""Every enhancer on every picture, by every metric; what is there already is not done again."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from medenhance_dicom.errors import InputError, MedenhanceError, OutputError
from medenhance_dicom.evaluation.columns import Column
from medenhance_dicom.evaluation.enhancers import Candidate, checked
from medenhance_dicom.evaluation.pictures import Case, Entry, PictureSet, Unit
from medenhance_dicom.evaluation.results import Results, Row
from medenhance_dicom.metrics.registry import Sample

if TYPE_CHECKING:
    from medenhance_dicom.training.predictors import Predictor

Progress = Callable[[int, int, str], None]
Look = Callable[[Entry, Case, Candidate, Unit], None]

_SMALL = ("grade", "graded", "point", "found")
"""Fields of a sample that are kept with its scores."""
_MISSING = {
    "target": "no target",
    "truth_mask": "no mask",
    "segmented": "nothing was segmented",
    "inside": "no field of view",
    "grade": "no true grade",
    "graded": "no grade was given",
    "point": "no true place",
    "found": "no place was found",
}


@dataclass
class Scored:
    """What a run has found."""

    rows: dict[str, list[Row]]
    """By enhancer, in the order of the pictures."""
    sets: dict[str, dict[str, float | None]]
    """By enhancer: figures of all its pictures, by column."""
    failed: list[Row] = field(default_factory=list)
    """Pictures that could not be read (`enhancer` is empty), or not be enhanced."""
    unreadable: int = 0
    """How many could not be read."""


def score(
    pictures: PictureSet,
    candidates: Sequence[Candidate],
    columns: Sequence[Column],
    results: Results,
    *,
    progress: Progress | None = None,
    look: Look | None = None,
    looked_at: Callable[[Entry, Candidate, str], bool] = lambda entry, candidate, digest: True,
) -> Scored:
    """Score what `results` does not hold yet.

    Args:
        pictures: What to enhance.
        candidates: By what.
        columns: By which metrics; those that are unavailable are passed over.
        results: What is known; every row is added to it as soon as it is there.
        progress: Called with how many pictures are done, how many there are, and what is at hand.
        look: Called with every enhanced picture.
        looked_at: Whether `look` needs no picture (entry, candidate, digest of the candidate for it).

    Raises:
        OutputError: The results cannot be written.
    """
    found = Scored({candidate.id: [] for candidate in candidates}, {candidate.id: {} for candidate in candidates})
    single = [column for column in columns if not column.is_of_set and not column.unavailable]
    sets = [column for column in columns if column.is_of_set and not column.unavailable]
    predicting = list({c.predictor.id: c.predictor for c in sets if c.predictor is not None}.values())
    total = len(pictures.entries)
    for number, entry in enumerate(pictures.entries):
        case: Case | None = None
        try:
            key = entry.key
            for candidate in candidates:
                if progress:
                    progress(number, total, candidate.id)
                digest = candidate.digest(entry.name)
                row = results.find(key, candidate.id, digest)
                missing = [c for c in single if row is None or c.id not in row.scores]
                unpredicted = [p for p in predicting if row is None or p.id not in row.predicted]
                if row is None or missing or unpredicted or not looked_at(entry, candidate, digest):
                    case = case or entry.load()
                    row = _score_one(entry, key, case, candidate, digest, missing, unpredicted, results, look)
                (found.failed if row.failed else found.rows[candidate.id]).append(row)
        except OutputError:
            raise
        except MedenhanceError as error:
            found.unreadable += isinstance(error, InputError)
            row = Row(entry.name, "", "", "", failed=str(error))
            results.add(row)
            found.failed.append(row)
    if sets:
        _score_sets(found, pictures, candidates, sets, results, progress)
    if progress:
        progress(total, total, "")
    return found


def _score_one(
    entry: Entry,
    key: str,
    case: Case,
    candidate: Candidate,
    digest: str,
    columns: Sequence[Column],
    predictors: Sequence[Predictor],
    results: Results,
    look: Look | None,
) -> Row:
    row = Row(entry.name, key, candidate.id, digest)
    started = time.monotonic()
    try:
        result = checked(candidate, case)
    except OutputError:
        raise
    except MedenhanceError as error:
        row.failed = str(error)
        results.add(row)
        return row
    row.seconds = round(time.monotonic() - started, 4)
    if look:
        look(entry, case, candidate, result)
    samples: dict[str, Sample | str] = {}

    def through(predictor: Predictor | None) -> Sample | str:
        """The sample, or why there is none."""
        name = "" if predictor is None else predictor.id
        if name not in samples:
            try:
                samples[name] = sample_of(case, result, predictor)
            except (MedenhanceError, ValueError) as error:
                samples[name] = str(error)
        return samples[name]

    for column in columns:
        row.scores[column.id], why = _score(column, through(column.predictor))
        if why:
            row.reasons[column.id] = why
    for predictor in predictors:
        sample = through(predictor)
        kept = {name: None if isinstance(sample, str) else getattr(sample, name) for name in _SMALL}
        row.predicted[predictor.id] = kept
    results.add(row)
    return results.find(key, candidate.id, digest) or row


def sample_of(case: Case, result: Unit, predictor: Predictor | None = None) -> Sample:
    """What metrics take: a case under an enhancer, as a trained task sees it."""
    seen: dict[str, Any] = {}
    if predictor is not None and predictor.kind != "quality":
        prediction = predictor(result)
        seen = {"segmented": prediction.probability, "graded": prediction.grade, "found": prediction.point}
    return Sample(
        source=case.source, result=result, target=case.target, truth_mask=case.truth_mask, inside=case.inside,
        grade=case.grade, point=case.point, **seen,
    )  # fmt: skip


def _score(column: Column, sample: Sample | str) -> tuple[float | None, str]:
    """A figure, or None and why."""
    if isinstance(sample, str):
        return None, sample
    absent = sorted(name for name in column.metric.needs if getattr(sample, name) is None)
    if absent:
        return None, "; ".join(_MISSING[name] for name in absent)
    try:
        value = float(column.metric.score(sample))  # type: ignore[arg-type]
    except (MedenhanceError, ValueError, ArithmeticError) as error:
        return None, str(error) or type(error).__name__
    return (None, "not a number") if math.isnan(value) else (value, "")


# ---------------------------------------------------------------- figures of all pictures


def _score_sets(
    found: Scored,
    pictures: PictureSet,
    candidates: Sequence[Candidate],
    columns: Sequence[Column],
    results: Results,
    progress: Progress | None,
) -> None:
    entries = {entry.name: entry for entry in pictures.entries}
    for candidate in candidates:
        rows = found.rows[candidate.id]
        key = hashlib.sha256("\n".join(sorted(f"{row.key} {row.digest}" for row in rows)).encode()).hexdigest()
        known = results.find(key, candidate.id, "all")
        row = Row("all pictures", key, candidate.id, "all")
        for column in columns:
            if known is not None and any(_is_of(name, column) for name in known.scores):
                continue
            if progress:
                progress(len(entries), len(entries), f"{column.id} of {candidate.id}")
            for name, value, why in _set_scores(column, rows, entries, candidate):
                row.scores[name] = value
                if why:
                    row.reasons[name] = why
        if row.scores:
            results.add(row)
        kept = results.find(key, candidate.id, "all")
        found.sets[candidate.id] = {
            name: value
            for name, value in (kept.scores if kept else {}).items()
            if any(_is_of(name, column) for column in columns)
        }


def _is_of(name: str, column: Column) -> bool:
    return name == column.id or name.startswith(f"{column.id} / ")


def _set_scores(
    column: Column, rows: Sequence[Row], entries: dict[str, Entry], candidate: Candidate
) -> Iterator[tuple[str, float | None, str]]:
    """(column, figure, why there is none); a metric with several figures gives several columns."""
    samples: Sequence[Sample]
    if column.predictor is not None and column.metric.needs <= set(_SMALL):
        samples = [_small(row.predicted[column.predictor.id]) for row in rows]
    else:
        samples = _Enhanced([entries[row.name] for row in rows], candidate, column.predictor)
    try:
        value = column.metric.score(samples)  # type: ignore[arg-type]
    except (MedenhanceError, ValueError, ArithmeticError) as error:
        yield column.id, None, str(error) or type(error).__name__
        return
    figures = (
        {f"{column.id} / {part}": v for part, v in value.items()} if isinstance(value, dict) else {column.id: value}
    )
    for name, figure in figures.items():
        yield (name, None, "not a number") if math.isnan(figure) else (name, float(figure), "")


def _small(predicted: dict[str, Any]) -> Sample:
    """A sample without its picture."""
    dot = np.zeros((1, 1, 1), np.float32)

    def place(name: str) -> tuple[float, float] | None:
        at = predicted[name]
        return None if at is None else (at[0], at[1])

    return Sample(
        source=dot, result=dot, grade=predicted["grade"], graded=predicted["graded"], point=place("point"),
        found=place("found"),
    )  # fmt: skip


class _Enhanced(Sequence[Sample]):
    """Samples that are read and enhanced when they are asked for, so that one is in memory at a time."""

    def __init__(self, entries: Sequence[Entry], candidate: Candidate, predictor: Predictor | None) -> None:
        self.entries, self.candidate, self.predictor = entries, candidate, predictor

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return _Enhanced(self.entries[index], self.candidate, self.predictor)
        case = self.entries[index].load()
        return sample_of(case, checked(self.candidate, case), self.predictor)
