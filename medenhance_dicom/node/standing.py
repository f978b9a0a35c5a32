"""What stands at a file's target already: the same object, a damaged copy of it, or another one. Nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pydicom import Dataset

from medenhance_dicom.attributes import IDENTITY
from medenhance_dicom.errors import InputError
from medenhance_dicom.identity import header_digest, object_digest, recorded_digests
from medenhance_dicom.part10 import looks_like_dicom, read_instance
from medenhance_dicom.signature import signature_of
from medenhance_dicom.sop_classes import is_own_derived
from medenhance_dicom.targets import is_encoded_as_ours
from medenhance_dicom.verify import pixel_digest

_BLOCK = 1 << 20


class Standing(NamedTuple):
    """What is at a target, held against the file that is to be there."""

    delivered: bool
    """It is this object, whole."""
    why: str | None = None
    """Why it must stay and the file cannot be there, in words that hold no value; None where it may be replaced."""


def standing(path: Path, target: Path) -> Standing:
    """Hold a target that exists against the file that is to be there. Both are read to their ends.

    The same bytes are the same object, as long as ours have the digests that they record. Two derived objects of ours
    of one SOP Instance UID may differ in when and by which version, engine and precision they were made, so theirs is
    this one if it is whole and everything that it took over from the source is the same. What a power cut, a full disk
    or a fault of the disk left of either may be replaced, and so may one without the site's signature that this one
    has. Whatever is whole and another object, of another patient above all, stays.

    Args:
        path: The file that is to be there.
        target: What is there.

    Raises:
        OSError: One of them cannot be read.
    """
    same, part_of_it = _bytes_of(path, target)
    try:
        instance = read_instance(path)
    except InputError as error:
        return Standing(False, f"what is to be stored is damaged: {error}")
    ours = is_own_derived(instance)
    if ours and not _is_whole(path, instance):
        return Standing(False, "what is to be stored is damaged: it has not the digests that it records")
    if same or part_of_it:
        return Standing(same)
    return _of_ours(instance, target) if ours else Standing(False, "another file of that name is there")


def _of_ours(instance: Dataset, target: Path) -> Standing:
    """Where a derived object of ours is to be, whose UID nobody else gives."""
    if not looks_like_dicom(target) and _says_something(target):
        return Standing(False, "another file of that name is there, which is not DICOM")
    try:
        there = read_instance(target)
    except InputError:  # cut off in its header, or overwritten
        return Standing(False)
    if "SOPInstanceUID" in there and not is_own_derived(there):
        return Standing(False, "another object of that name is there, which is not ours")
    complete = _has_its_pixels(target, there)
    other = sorted(
        keyword for keyword in IDENTITY
        if str(there.get(keyword) or "") != str(instance.get(keyword) or "") and (there.get(keyword) or complete)
    )  # fmt: skip
    if other:
        return Standing(False, f"another patient's or study's object of that name is there: {', '.join(other)}")
    whole = _is_signed(there, instance) and _is_whole(target, there)
    return Standing(whole and header_digest(there) == header_digest(instance))


def _is_signed(there: Dataset, instance: Dataset) -> bool:
    """Whether it has a signature where the object that is to be there has one, as far as that can be told without keys.

    The same key signs the same object in the same way.
    """
    mine, theirs = signature_of(instance), signature_of(there)
    if mine is None or theirs is None:
        return mine is None
    return theirs.key != mine.key or object_digest(there) != object_digest(instance) or theirs == mine


def _bytes_of(path: Path, target: Path) -> tuple[bool, bool]:
    """Whether a target has the same bytes, and whether it has the first of them and no others."""
    with path.open("rb") as wanted, target.open("rb") as there:
        while block := wanted.read(_BLOCK):
            found = there.read(len(block))
            if found != block:
                return False, block.startswith(found) and not there.read(1)
        return not there.read(1), False


def _says_something(path: Path) -> bool:
    """Whether a file that is not DICOM holds anything: a power cut leaves zeros, and a cut preamble is zeros too."""
    with path.open("rb") as file:
        return any(file.read(_BLOCK))


def _has_its_pixels(path: Path, instance: Dataset) -> bool:
    """Whether a derived object of ours is encoded as it was, and has the Pixel Data whose digest it records."""
    if not is_encoded_as_ours(instance):
        return False
    return pixel_digest(path, instance) == recorded_digests(instance).get("pixels", "")


def _is_whole(path: Path, instance: Dataset) -> bool:
    """Whether a derived object of ours is as it was written; one of rule 1 records no digest of its header."""
    said = recorded_digests(instance).get("object")
    return said in (None, object_digest(instance)) and _has_its_pixels(path, instance)
