"""A person releases what the gate withheld: the object says who, why, and what the gate had said."""

from __future__ import annotations

import copy
import os
import re
import shutil
import tempfile
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset

from medenhance_dicom.errors import ConfigurationError, InputError, OutputError, TargetTakenError
from medenhance_dicom.identity import (
    derived_instance_uid,
    header_digest,
    own_item,
    recorded_digests,
    released_series_uid,
    seal,
)
from medenhance_dicom.image_modules import date_and_time
from medenhance_dicom.part10 import read_instance, write_instance
from medenhance_dicom.report import Outcome
from medenhance_dicom.signature import sign
from medenhance_dicom.site_keys import load_signing_key
from medenhance_dicom.targets import standing
from medenhance_dicom.verdicts import WITHHELD
from medenhance_dicom.verify import assert_derived, pixel_digest, source_uid
from medenhance_dicom.withheld import said_of, unpack

__all__ = ["MOST_REASON", "release", "released"]

MOST_REASON = 256
"""Characters of a reason; the rest of a Derivation Description is for how the pixels were made."""
_MOST_NAME = 64  # PN, PS3.5 section 6.2
_MOST_DESCRIPTION, _MOST_LO = 1024, 64


def release(
    kept: Path, output: Path, *, by: str, reason: str, now: datetime, sign_key: Path | None = None
) -> tuple[Outcome, dict[str, Any]]:
    """Make a derived object of a kept picture. The kept one stays until its time is over.

    Args:
        kept: As `withheld.keep` wrote it.
        output: Folder for the object: OUTPUT/STUDY/SERIES/INSTANCE.dcm.
        by: Who releases it, as a Person Name: Family^Given.
        reason: Why, at most `MOST_REASON` characters.
        now: Aware time.
        sign_key: Site key, or a folder of them, that signs the object; None: it is not signed.

    Returns:
        The outcome, `released`, and what was said of the kept picture (`withheld.said_of`).

    Raises:
        ConfigurationError: Name or reason are missing, too long, or hold what DICOM reserves; no such key.
        InputError: It is no kept picture, or was altered.
        TargetTakenError: It was released before, by somebody else or for another reason.
        OutputError: The disk does not take it.
    """
    by, reason = _text(by, _MOST_NAME, "by"), _text(reason, MOST_REASON, "reason")
    if "=" in by:
        raise ConfigurationError("by: one name, without =")
    said = said_of(kept)
    with tempfile.TemporaryDirectory(prefix="medenhance-") as scratch:
        whole, pixels = Path(scratch, "object"), Path(scratch, "pixels")
        unpack(kept, whole)
        derived = read_instance(whole)
        digest = pixel_digest(whole, derived)
        problems = assert_derived(derived, pixel_digest=digest) if digest else ["PixelData: cut"]
        if problems:
            raise InputError(f"{kept}: altered: {'; '.join(problems)}")
        made = released(derived, by=by, reason=reason, now=now)
        target = output / made.StudyInstanceUID / made.SeriesInstanceUID / f"{made.SOPInstanceUID}.dcm"
        found = standing(target, made)
        if found == "taken" or (found == "intact" and _who_and_why(read_instance(target)) != _who_and_why(made)):
            raise TargetTakenError(f"{target.name}: was released before, by somebody else or for another reason")
        if found != "intact":
            if sign_key is not None:
                sign(made, load_signing_key(sign_key), digest or "")
            _last_bytes(whole, pixels, _length(made))
            write_instance(made, pixels, target)
    known = {field.name for field in fields(Outcome)}
    outcome = Outcome(**{name: value for name, value in said["outcome"].items() if name in known})
    uid, repeated = str(made.SOPInstanceUID), found == "intact"
    return replace(
        outcome, result="released", reason=f"RELEASED: by a person, although {outcome.reason}", derived=str(target),
        derived_sop_instance_uid=uid, repeated=repeated, kept=str(kept),
    ), said  # fmt: skip


def released(derived: Dataset, *, by: str, reason: str, now: datetime) -> Dataset:
    """The header of a released object, in a series of its own, of that of a withheld one, which is not changed.

    Operators' Name (0008,1070) of our Contributing Equipment item says who, Derivation Description why, beside the
    verdict; Series Description is marked, and our item records `released yes` (PS3.3 C.12.1).
    """
    derived = copy.deepcopy(derived)
    for place in _places(derived):
        before = str(place.DerivationDescription).replace(WITHHELD, "was overruled (released by a person)")
        because = f" Released by a person: {reason}{'' if reason.endswith('.') else '.'}"
        place.DerivationDescription = before[: _MOST_DESCRIPTION - len(because)].rstrip() + because
    derived.SeriesInstanceUID = released_series_uid(str(derived.SeriesInstanceUID))
    derived.SeriesDescription = _marked(str(derived.SeriesDescription))
    ours = own_item(derived)
    assert ours is not None
    zone = datetime.strptime(str(ours.ContributionDateTime)[-5:], "%z").tzinfo
    derived.InstanceCreationDate, derived.InstanceCreationTime = date_and_time(now.astimezone(zone))
    ours.OperatorsName = by
    recorded = recorded_digests(derived) | {"header": header_digest(derived)}
    derived.SOPInstanceUID = derived_instance_uid(source_uid(derived), recorded)
    text = re.sub(r"(; header sha256:)[0-9a-f]{64}", rf"\g<1>{recorded['header']}", ours.ContributionDescription)
    ours.ContributionDescription = re.sub(r"(^|; )(rule [0-9]+)", r"\1\2; released yes", text, count=1)
    seal(derived)
    return derived


def _places(derived: Dataset) -> list[Dataset]:
    """Where the object says how it was derived: once, or in every frame."""
    groups = derived.get("PerFrameFunctionalGroupsSequence") or []
    items = [item for group in groups for item in group.get("DerivationImageSequence") or []]
    return [place for place in (derived, *items) if "DerivationDescription" in place]


def _marked(description: str) -> str:
    """A Series Description with its marking made longer, 64 characters at most."""
    before, _, marking = description.rpartition("[")
    marking = f"[{marking.rstrip(']')}, released by a person]"
    return f"{before.rstrip()[: _MOST_LO - 1 - len(marking)].rstrip()} {marking}".strip()


def _who_and_why(derived: Dataset) -> tuple[str, set[str]]:
    ours = own_item(derived)
    return str(ours.get("OperatorsName") if ours else ""), {str(p.DerivationDescription) for p in _places(derived)}


def _length(derived: Dataset) -> int:
    """Bytes of the Pixel Data without the pad byte."""
    frames = int(derived.get("NumberOfFrames") or 1)
    return int(derived.Rows * derived.Columns * derived.SamplesPerPixel * derived.BitsAllocated // 8 * frames)


def _last_bytes(whole: Path, target: Path, length: int) -> None:
    """The Pixel Data of a file of ours, which has them last."""
    try:
        with whole.open("rb") as source, target.open("wb") as sink:
            source.seek(-(length + length % 2), 2)
            shutil.copyfileobj(source, sink, 1 << 20)
        os.truncate(target, length)
    except OSError as error:
        raise OutputError(f"scratch space: {error.strerror}") from error


def _text(value: str, most: int, name: str) -> str:
    value = " ".join(value.split())
    if not value or len(value) > most or "\\" in value or not value.isprintable():
        raise ConfigurationError(f"{name}: wanted 1 to {most} characters without backslash")
    return value
