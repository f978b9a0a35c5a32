"""What stands at the place where a derived object is to be: nothing counts as done that was not read whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from medenhance_dicom.errors import InputError, OutputError
from medenhance_dicom.part10 import read_instance
from medenhance_dicom.signature import signature_state
from medenhance_dicom.site_keys import PublicKey
from medenhance_dicom.sop_classes import is_own_derived
from medenhance_dicom.verify import assert_derived, check_report, pixel_digest
from medenhance_dicom.withheld import said_of, unpack

Standing = Literal["absent", "intact", "unsigned", "damaged", "taken"]
"""Nothing there; the object, whole; the same, and not signed by a key that it is to be signed by; a cut, altered or
unreadable file; another object, or a folder, which must stay."""


def standing(target: Path, derived: Dataset, keys: Mapping[str, PublicKey] | None = None) -> Standing:
    """Hold what is at a place against the object that is to be there.

    An intact one may have been made at another time, by another engine or version of ours: its UID says that source,
    header and method are the same. It is there first, so it stays.

    Args:
        target: The place.
        derived: The header of the object that is to be there: a derived image or a structured report of ours.
        keys: Key id -> key; one of them has to have signed it. None: it need not be signed.

    Raises:
        OutputError: The place cannot be looked at.
    """
    try:
        if not target.exists():
            return "absent"
        if target.is_dir():
            return "taken"
        there = read_instance(target)
    except InputError:
        return "damaged"
    except OSError as error:
        raise OutputError(f"{target}: {error.strerror}") from error
    if not is_own_derived(there):
        return "taken"
    digest = whole_digest(target, there)
    if digest is None or not is_encoded_as_ours(there):
        return "damaged"
    if there.SOPInstanceUID != derived.SOPInstanceUID:
        return "taken"
    return "intact" if keys is None or signature_state(there, keys, digest) == "signed" else "unsigned"


def kept_object(kept: Path, whole: Path) -> tuple[Dataset, str]:
    """The object of a kept picture, see `withheld`; its header and the hex SHA-256 of its Pixel Data.

    Args:
        kept: The picture.
        whole: The file to be, for this process alone.

    Raises:
        InputError: It is no kept picture, or is not as it was written.
        OutputError: The disk does not take it.
    """
    said_of(kept)
    unpack(kept, whole)
    derived = read_instance(whole)
    digest = pixel_digest(whole, derived)
    problems = assert_derived(derived, pixel_digest=digest) if digest else ["PixelData: cut"]
    if problems:
        raise InputError(f"{kept}: altered: {'; '.join(problems)}")
    return derived, digest or ""


def whole_digest(path: Path, derived: Dataset) -> str | None:
    """Digest of the Pixel Data of a file of ours that is as it was written, by its UID and digests; else None.

    Args:
        path: The file, an image or a structured report.
        derived: Its header.

    Returns:
        Hex SHA-256; "" for a report, which has no pixels.
    """
    if "ContentSequence" in derived:
        return "" if check_report(derived) == [] else None
    digest = pixel_digest(path, derived)
    return digest if digest is not None and not assert_derived(derived, pixel_digest=digest) else None


def is_encoded_as_ours(instance: Dataset) -> bool:
    """Whether a file is in the transfer syntax that we write, and its File Meta Information names what is in it."""
    meta = instance.file_meta
    named = (meta.get("TransferSyntaxUID"), meta.get("MediaStorageSOPInstanceUID"))
    return named == (ExplicitVRLittleEndian, instance.get("SOPInstanceUID"))
