"""A person releases what the gate withheld: the object says who, why, and what the gate had said."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset

from medenhance_dicom.errors import ConfigurationError, OutputError, TargetTakenError
from medenhance_dicom.identity import METHOD_VERSION, own_item, recorded_digests, replaced_uid, source_uid
from medenhance_dicom.ledger import NAME, Entry, Ledger
from medenhance_dicom.part10 import pixel_bytes, read_instance, write_instance
from medenhance_dicom.released import places, released
from medenhance_dicom.report import Outcome
from medenhance_dicom.signature import sign
from medenhance_dicom.site_keys import load_public_keys, load_signing_key
from medenhance_dicom.targets import kept_object, standing
from medenhance_dicom.withheld import said_of

__all__ = ["MOST_REASON", "release", "released"]

MOST_REASON = 256
"""Characters of a reason; the rest of a Derivation Description is for how the pixels were made."""
_MOST_NAME = 64  # PN, PS3.5 section 6.2


def release(
    kept: Path,
    output: Path,
    *,
    by: str,
    reason: str,
    now: datetime,
    sign_key: Path | None = None,
    ledger: Path | None = None,
) -> tuple[Outcome, dict[str, Any]]:
    """Make a derived object of a kept picture. The kept one stays until its time is over.

    Args:
        kept: As `withheld.keep` wrote it.
        output: Folder for the object: OUTPUT/STUDY/SERIES/INSTANCE.dcm.
        by: Who releases it, as a Person Name: Family^Given.
        reason: Why, at most `MOST_REASON` characters.
        now: Aware time.
        sign_key: Site key, or a folder of them, that signs the object; None: it is not signed.
        ledger: Folder of what was derived (`ledger`), where a correction will look for what it replaces; None: that of
            the output folder.

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
        derived, digest = kept_object(kept, whole)
        before, made = derived, released(derived, by=by, reason=reason, now=now)
        keys = None
        if sign_key is not None:
            keys = load_public_keys(sign_key)
            sign(made, load_signing_key(sign_key), digest)
        target = output / made.StudyInstanceUID / made.SeriesInstanceUID / f"{made.SOPInstanceUID}.dcm"
        found = standing(target, made, keys)
        another = found in ("intact", "unsigned") and _who_and_why(read_instance(target)) != _who_and_why(made)
        if found == "taken" or another:
            raise TargetTakenError(f"{target.name}: was released before, by somebody else or for another reason")
        if found != "intact":
            length = pixel_bytes(made)
            assert length is not None  # its pixels were digested
            _last_bytes(whole, pixels, length)
            write_instance(made, pixels, target)
    known = {field.name for field in fields(Outcome)}
    outcome = Outcome(**{name: value for name, value in said["outcome"].items() if name in known})
    outcome = replace(
        outcome, result="released", reason=f"RELEASED: by a person, although {outcome.reason}", derived=str(target),
        derived_sop_instance_uid=str(made.SOPInstanceUID), repeated=found == "intact", replaces=replaced_uid(made),
        kept=str(kept),
    )  # fmt: skip
    _write_down(outcome, before, made, ledger or output / NAME)
    return outcome, said


def _write_down(outcome: Outcome, before: Dataset, made: Dataset, folder: Path) -> None:
    """Tell the ledger of a released object, so that one of a corrected source names it; no run takes it for its own."""
    said = recorded_digests(before)
    ledger = Ledger(folder, outcome.series_instance_uid or "", said["recipe"], said.get("weights"), said.get("guide"))
    entry = Entry(
        source_uid(made), said="", pixels=said["source"], gate="", rule=METHOD_VERSION, result="released",
        reason=outcome.reason, derived=str(made.SOPInstanceUID), derived_series=str(made.SeriesInstanceUID),
        sop_class=str(made.SOPClassUID), header=said["header"], path=outcome.derived, replaces=outcome.replaces,
        kept=outcome.kept,
    )  # fmt: skip
    ledger.add(entry)


def _who_and_why(derived: Dataset) -> tuple[str, set[str]]:
    ours = own_item(derived)
    return str(ours.get("OperatorsName") if ours else ""), {str(p.DerivationDescription) for p in places(derived)}


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
