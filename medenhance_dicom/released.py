"""The header of an object that a person released against the structure check: who, why, and a series of its own."""

from __future__ import annotations

import copy
import re
from datetime import datetime

from pydicom import Dataset

from medenhance_dicom.identity import (
    derived_instance_uid,
    header_digest,
    own_item,
    recorded_digests,
    released_series_uid,
    seal,
    source_uid,
)
from medenhance_dicom.image_modules import date_and_time
from medenhance_dicom.report import WITHHELD

OVERRULED = "was overruled (released by a person)"
"""Stands for `WITHHELD`."""
BECAUSE = " Released by a person: "
RELEASED = ", released by a person"
"""At the end of the marking."""

_MOST_DESCRIPTION, _MOST_LO = 1024, 64


def released(derived: Dataset, *, by: str, reason: str, now: datetime) -> Dataset:
    """The header of a released object, in a series of its own, of that of a withheld one, which is not changed.

    Operators' Name (0008,1070) of our Contributing Equipment item says who, Derivation Description why, beside the
    verdict; Series Description is marked, and our item records `released yes` (PS3.3 C.12.1).
    """
    derived = copy.deepcopy(derived)
    for place in places(derived):
        before = str(place.DerivationDescription).replace(WITHHELD, OVERRULED)
        because = f"{BECAUSE}{reason}{'' if reason.endswith('.') else '.'}"
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


def places(derived: Dataset) -> list[Dataset]:
    """Where the object says how it was derived: once, or in every frame."""
    groups = derived.get("PerFrameFunctionalGroupsSequence") or []
    items = [item for group in groups for item in group.get("DerivationImageSequence") or []]
    return [place for place in (derived, *items) if "DerivationDescription" in place]


def _marked(description: str) -> str:
    """A Series Description with its marking made longer, 64 characters at most."""
    before, _, marking = description.rpartition("[")
    marking = f"[{marking.rstrip(']')}{RELEASED}]"
    return f"{before.rstrip()[: _MOST_LO - 1 - len(marking)].rstrip()} {marking}".strip()
