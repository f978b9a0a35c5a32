"""What DICOM peers and DICOMweb services have in common: they are asked level by level, studies, series, instances."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

from medenhance_dicom.errors import InputError
from medenhance_dicom.node.sources.judging import problem_of
from medenhance_dicom.node.sources.source import MISSING, UNIQUE, UNREADABLE, Found, Known, LeftOut, Rows, Wanted
from medenhance_dicom.uids import digest_of

STUDY, SERIES, INSTANCE = UNIQUE
STUDY_FACTS = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyDate")
"""Asked for to see corrections; a plan keeps a digest of them and not the values."""
SERIES_FACTS = ("Modality", "Manufacturer", "ManufacturerModelName")
INSTANCE_FACTS = ("SOPClassUID", "NumberOfFrames", "Rows", "Columns")
_FACTS = {*UNIQUE, *SERIES_FACTS, *INSTANCE_FACTS, "PatientID"}
_SAID = _FACTS | set(STUDY_FACTS)
_SERIES_KEYS = {
    *(SERIES, *SERIES_FACTS, "SeriesNumber", "SeriesDescription", "SeriesDate", "SeriesTime", "BodyPartExamined"),
    *("ProtocolName", "StationName", "InstitutionName", "PerformedProcedureStepStartDate", "Laterality"),
}
_INSTANCE_KEYS = {INSTANCE, *INSTANCE_FACTS, "InstanceNumber", "ContentDate", "ImageType"}

Facts = dict[str, str]


class Asked(NamedTuple):
    """What stands behind the question mark of a source."""

    keys: dict[str, str]
    """DICOM keyword -> what it has to match."""
    options: dict[str, str]


def asked_of(query: str, options: Iterable[str]) -> Asked:
    """Take KEY=VALUE&... apart.

    Raises:
        InputError: A key that is neither a DICOM keyword nor one of the options.
    """
    from pydicom.datadict import tag_for_keyword

    asked = Asked({}, {})
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in set(options):
            asked.options[key] = value
        elif tag_for_keyword(key) is not None:
            asked.keys[key] = value
        else:
            raise InputError(f"{key}: neither a DICOM keyword nor one of {', '.join(sorted(options))}")
    return asked


class QueriedSource(ABC):
    """A source that is asked. Implements `Source`."""

    def __init__(self, name: str, base: str, keys: Mapping[str, str]) -> None:
        """Args: name: as written; base: what its locators begin with; keys: what instances have to match."""
        self.name = name
        self.base = base
        self._rows: Rows = lambda: [{}]
        self._listed = False
        self._study = {k: v for k, v in keys.items() if k not in _SERIES_KEYS | _INSTANCE_KEYS}
        self._series = {k: v for k, v in keys.items() if k in _SERIES_KEYS}
        self._instance = {k: v for k, v in keys.items() if k in _INSTANCE_KEYS}
        if "Modality" in self._series:  # spares a query for every other study
            self._study.setdefault("ModalitiesInStudy", self._series["Modality"])

    def restrict(self, name: str, rows: Rows) -> None:
        """Scan only what rows of UIDs name; the source has another name then."""
        self.name, self._rows, self._listed = name, rows, True

    def scan(self, known: Known) -> Iterator[Found | LeftOut]:
        """As `Source.scan`. A query tells no sizes, and of changes those in its answers alone."""
        for row in self._rows():
            uids = {keyword: row[keyword] for keyword in UNIQUE if keyword in row}
            found = False
            for item in self._matches(uids, known):
                found = True
                if item is not None:
                    yield item
            if self._listed and not found:
                where = "/".join([self.base, *uids.values()])
                yield LeftOut(where, f"{MISSING}: the list names it, and the archive does not know it")

    def _matches(self, uids: Facts, known: Known) -> Iterator[Found | LeftOut | None]:
        """What there is below some UIDs; None for what is known already."""
        own = {keyword: {keyword: uids[keyword]} if keyword in uids else {} for keyword in UNIQUE}
        for study in _each(self.find_studies(self._study | own[STUDY]), STUDY, {}):
            if isinstance(study, str):
                yield LeftOut(self.base, study)
                continue
            for series in _each(self.find_series(study, self._series | own[SERIES]), SERIES, study):
                if isinstance(series, str):
                    yield LeftOut(f"{self.base}/{study[STUDY]}", series)
                elif _fits(series, self._series):
                    yield from self._instances(series, self._instance | own[INSTANCE], known)

    def _instances(self, series: Facts, keys: Facts, known: Known) -> Iterator[Found | LeftOut | None]:
        for instance in _each(self.find_instances(series, keys), INSTANCE, series):
            if isinstance(instance, str):
                yield LeftOut(f"{self.base}/{series[STUDY]}/{series[SERIES]}", instance)
                continue
            if not _fits(instance, self._instance):
                continue
            locator = self.locator_of(instance)
            problem = problem_of(instance)
            said = "q" + digest_of(*(f"{k}={v}" for k, v in sorted(instance.items()) if k in _SAID))[:32]
            if known(locator, 0, said):
                yield None
            elif problem is not None:
                yield LeftOut(locator, f"{UNREADABLE}: {problem}")
            else:
                yield Found(locator, 0, said, {k: v for k, v in instance.items() if k in _FACTS}, said)

    @abstractmethod
    def find_studies(self, keys: Facts) -> Iterator[Facts | None]:
        """Studies that match; None for an answer that does not decode. Raises PeerError."""

    @abstractmethod
    def find_series(self, study: Facts, keys: Facts) -> Iterator[Facts | None]:
        """Series of a study. Raises PeerError."""

    @abstractmethod
    def find_instances(self, series: Facts, keys: Facts) -> Iterator[Facts | None]:
        """Instances of a series. Raises PeerError."""

    @abstractmethod
    def locator_of(self, instance: Facts) -> str:
        """Where an instance is."""

    @abstractmethod
    def fetch(self, wanted: Sequence[Wanted], folder: Path) -> Iterator[str]:
        """As `Source.fetch`."""


def _each(answers: Iterable[Facts | None], uid: str, above: Facts) -> Iterator[Facts | str]:
    """Answers with what is known from above; a reason for one that cannot be used.

    An answer about another study or series than the one asked about is none, and of a study or series each UID counts
    once. Studies may repeat: there are too many to remember.
    """
    seen: set[str] = set()
    for answer in answers:
        if answer is None or not re.fullmatch(r"[0-9.]{1,64}", answer.get(uid, "")):
            yield f"{UNREADABLE}: an answer without a {uid} that can be read"
        elif answer[uid] not in seen and all(answer.get(k, above[k]) == above[k] for k in UNIQUE if k in above):
            if above:
                seen.add(answer[uid])
            yield answer | above


def _fits(facts: Facts, keys: Facts) -> bool:
    """False where an answer has a value that was not asked for: a peer ignores keys that it does not support."""
    for keyword, value in keys.items():
        plain = value and not set(value) & set("*?-\\,")
        if plain and keyword in facts and value.upper() not in facts[keyword].upper().split("\\"):
            return False
    return True
