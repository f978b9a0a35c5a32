"""Group instances into series that can be enhanced as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydicom import Dataset

from medenhance_dicom.part10 import Located

_SAME_ORIENTATION = 1e-3  # direction cosines; scanners round them differently from slice to slice

_HOMOGENEOUS = (
    "SOPClassUID",
    "Modality",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
)
_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_ORDERING = ("ImageOrientationPatient", "ImagePositionPatient", "InstanceNumber")
_SCALE = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction")


@dataclass
class Member:
    """One instance of a series: where it lies, and its header (or what `grouping_header` keeps of it)."""

    located: Located
    instance: Dataset
    patient: tuple[bytes, ...] = ()
    """As `conflicts.patient_of` gives it."""


@dataclass
class Series:
    """Instances that share a Series Instance UID and everything that decides how pixels are handled, in order."""

    study_instance_uid: str
    series_instance_uid: str
    members: list[Member] = field(default_factory=list)


def group_series(members: Iterable[Member]) -> list[Series]:
    """Group members by Study and Series Instance UID, and by what makes their pixels comparable.

    A Series Instance UID whose members differ in SOP class, modality, size, samples, photometric interpretation or bits
    gives several series. An instance without a Series Instance UID is a series of its own, since nothing says that it
    belongs to another.

    Returns:
        Series in the order of their first member. Their members are sorted by position along the slice normal where
        every one has the same orientation and a position, else by Instance Number, else by name.
    """
    groups: dict[tuple[str, ...], Series] = {}
    for number, member in enumerate(members):
        study, series = (_text(member.instance, k) for k in ("StudyInstanceUID", "SeriesInstanceUID"))
        alone = "" if series else str(number)
        key = (study, series, alone, *(_text(member.instance, keyword) for keyword in _HOMOGENEOUS))
        groups.setdefault(key, Series(study, series)).members.append(member)
    for group in groups.values():
        group.members = _in_order(group.members)
    return list(groups.values())


def parallel_slices(members: Sequence[Member]) -> bool:
    """Whether all members have a position and the same orientation (PS3.3 C.7.6.2.1.1): slices of one stack."""
    return _positions(members) is not None


def grouping_header(instance: Dataset, keywords: Iterable[str] = ()) -> Dataset:
    """What grouping, ordering and a common intensity map need of a header, and the given keywords.

    Small enough to keep for every instance.
    """
    slim = Dataset()
    for keyword in (*_HOMOGENEOUS, *_UIDS, *_ORDERING, *_SCALE, *keywords):
        if keyword in instance:
            slim[keyword] = instance[keyword]
    return slim


def _text(instance: Dataset, keyword: str) -> str:
    value = instance.get(keyword)
    return "" if value is None else str(value)


def _in_order(members: list[Member]) -> list[Member]:
    positions = _positions(members) or [0.0] * len(members)

    def order(pair: tuple[float, Member]) -> tuple[float, bool, int, str]:
        position, member = pair
        number = member.instance.get("InstanceNumber")
        known = isinstance(number, int)
        return position, not known, int(number) if known else 0, member.located.name

    return [member for _, member in sorted(zip(positions, members, strict=True), key=order)]


def _positions(members: Sequence[Member]) -> list[float] | None:
    """Distance of every member along the common slice normal in mm (PS3.3 C.7.6.2.1.1); None where there is none."""
    orientations = [_vector(m.instance, "ImageOrientationPatient", 6) for m in members]
    positions = [_vector(m.instance, "ImagePositionPatient", 3) for m in members]
    if any(v is None for v in (*orientations, *positions)):
        return None
    directions = np.array(orientations, dtype=float)
    if np.abs(directions - directions[0]).max() > _SAME_ORIENTATION:
        return None
    normal = np.cross(directions[0, :3], directions[0, 3:])
    if not 0.9 < float(np.linalg.norm(normal)) < 1.1:
        return None
    return [round(float(d), 4) for d in np.array(positions, dtype=float) @ normal]


def _vector(instance: Dataset, keyword: str, length: int) -> list[float] | None:
    value = instance.get(keyword)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) != length:
        return None
    if not all(isinstance(v, int | float) for v in value):
        return None
    numbers = [float(v) for v in value]
    return numbers if np.isfinite(numbers).all() else None
