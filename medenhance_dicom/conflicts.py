"""Instances whose UIDs contradict what they say: two patients under one UID, two instances under one UID.

Which of them is right is not ours to guess, and neither may end in the other's series, so none of them is enhanced.
"""

from __future__ import annotations

import filecmp
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydicom import Dataset

from medenhance_dicom import frames
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import MedenhanceError
from medenhance_dicom.identity import differing, frames_digest
from medenhance_dicom.part10 import Limits, read_instance
from medenhance_dicom.series import Member
from medenhance_dicom.uids import digest_of

CONFLICT = "CONFLICT"
DUPLICATE = "DUPLICATE"
_COMPARED = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
_ALWAYS = frozenset({"PatientID"})
"""Compared where one has no value, too: an object without it belongs to nobody."""
_ENCODING = frozenset({"PhotometricInterpretation", "PlanarConfiguration"})
"""May differ between two encodings of the same pixels (PS3.5 section 8.2)."""
_MOST_NAMED = 8  # attributes in a reason
_LEVELS = {
    "SeriesInstanceUID": "Series Instance UID",
    "StudyInstanceUID": "Study Instance UID",
}  # the nearest first

Refusal = tuple[Member, Literal["failed", "skipped"], str]
"""An instance that must not be enhanced, the result and the reason."""


def patient_of(instance: Dataset) -> tuple[bytes, ...]:
    """Whose instance it is, in five digests of 8 bytes that do not tell who that is; b"" where there is no value.

    The name counts without case, and without blanks and carets that mean nothing (PS3.5 section 6.2.1), by its
    alphabetic group.
    """
    values = (" ".join(str(instance.get(keyword) or "").split()) for keyword in _COMPARED)
    said = dict(zip(_COMPARED, values, strict=True))
    name = said["PatientName"].split("=")[0] or said["PatientName"]
    said["PatientName"] = "^".join(part.strip() for part in name.casefold().split("^")).rstrip("^")
    return tuple(bytes.fromhex(digest_of(keyword, text)[:16]) if text else b"" for keyword, text in said.items())


def without_conflicts(members: Iterable[Member], decoder: Decoder, limits: Limits) -> Iterator[Member | Refusal]:
    """Pass on what is unambiguous; the copy of an instance is skipped, and where two contradict each other both fail.

    Args:
        members: All instances of a run, with their patients.
        decoder: Decodes the few that are copies of each other by their headers.
        limits: For reading them.
    """
    members = list(members)
    refused = _patients(members) | _instances(members, decoder, limits)
    for number, member in enumerate(members):
        if number in refused:
            yield (member, *refused[number])
        else:
            yield member


_Refused = dict[int, tuple[Literal["failed", "skipped"], str]]


def _patients(members: list[Member]) -> _Refused:
    """Those of a study or series that holds several patients, with the attributes that tell."""
    refused: _Refused = {}
    for keyword, level in _LEVELS.items():
        for numbers in _grouped(members, keyword):
            patients = [members[number].patient for number in numbers]
            names = [
                name
                for name, values in zip(_COMPARED, zip(*patients, strict=True), strict=False)
                if len(set(values) - (set() if name in _ALWAYS else {b""})) > 1
            ]
            for number in numbers if names else ():
                refused.setdefault(number, ("failed", _reason(names, level)))
    return refused


def _instances(members: list[Member], decoder: Decoder, limits: Limits) -> _Refused:
    """Those that share a SOP Instance UID: copies but the first, or all where they differ.

    A copy that cannot be read is passed on, to fail by itself.
    """
    refused: _Refused = {}
    for numbers in _grouped(members, "SOPInstanceUID"):
        paths = [members[number].located.path for number in numbers]
        names, contents = _contents(paths, decoder, limits)
        readable = [number for number, content in zip(numbers, contents, strict=True) if content is not None]
        if names:
            refused |= dict.fromkeys(readable, ("failed", _reason(names, "SOP Instance UID")))
        else:
            copy = f"{DUPLICATE}: the same instance was found before"
            refused |= dict.fromkeys(readable[1:], ("skipped", copy))
    return refused


def _contents(paths: list[Path], decoder: Decoder, limits: Limits) -> tuple[list[str], list[str | None]]:
    """Keywords of the attributes in which files of one UID differ, and a digest of each; None: it cannot be read."""
    first, *others = paths
    if all(_same_bytes(first, other) for other in others):
        return [], ["" for _ in paths]
    headers = [_header(path, limits) for path in paths]
    known = [header for header in headers if header is not None]
    names = [name for header in known[1:] for name in differing(known[0], header) if name not in _ENCODING]
    if names:
        return list(dict.fromkeys(names)), ["" if header is not None else None for header in headers]
    contents = [_pixels(path, header, decoder) for path, header in zip(paths, headers, strict=True)]
    return ["PixelData"] if len(set(contents) - {None}) > 1 else [], contents


def _same_bytes(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _header(path: Path, limits: Limits) -> Dataset | None:
    try:
        return read_instance(path, limits=limits)
    except MedenhanceError:
        return None


def _pixels(path: Path, header: Dataset | None, decoder: Decoder) -> str | None:
    if header is None:
        return None
    try:
        pixels = frames.pixel_format(header)
        stored = (frame.stored for frame in decoder.stored_frames(path, header))
        return f"{pixels.photometric_out} {frames_digest(stored)}"
    except MedenhanceError:
        return None


def _grouped(members: list[Member], keyword: str) -> Iterator[list[int]]:
    """Numbers of those that share a UID, two at least."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, member in enumerate(members):
        groups[str(member.instance.get(keyword) or "")].append(number)
    return (numbers for uid, numbers in groups.items() if uid and len(numbers) > 1)


def _reason(names: list[str], level: str) -> str:
    listed = ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED} more" if names[_MOST_NAMED:] else "")
    return f"{CONFLICT}: {listed} {'differs' if len(names) == 1 else 'differ'} between instances of one {level}"
