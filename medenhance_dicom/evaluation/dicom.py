"""DICOM instances as pictures of an evaluation: chosen, decoded and brought to [0, 1] as `enhance` does it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.dicom_pictures import ALLOWED, Readable, readable
from medenhance_dicom.evaluation.pictures import Case, complete, settings
from medenhance_dicom.evaluation.recipe import Data
from medenhance_dicom.report import Outcome
from medenhance_dicom.selection import Settings
from medenhance_dicom.unit_frames import SeriesIntensity


def dicom_entries(
    data: Data, path: Path, scratch: Path, decoder: Decoder
) -> tuple[list[DicomPicture], list[dict[str, str]]]:
    """The instances below a path that a recipe fits, and {name, reason} of what cannot be taken.

    Args:
        data: Of the evaluation.
        path: A folder, file, zip or DICOMDIR.
        scratch: Folder for members of zips; has to stay while the pictures are read.
        decoder: Has to stay as well.

    Raises:
        InputError: The path does not exist.
    """
    entries: list[DicomPicture] = []
    left_out: list[dict[str, str]] = []
    shared: dict[int, _SharedSeries] = {}
    seen: set[str] = set()
    for item in readable([path], scratch, decoder, Settings(allow=ALLOWED, limits=decoder.limits)):
        if isinstance(item, Outcome):
            left_out.append({"name": item.sop_instance_uid or Path(item.source).name, "reason": item.reason or ""})
            continue
        picture = DicomPicture(data, item, shared.setdefault(id(item.maps), _SharedSeries(item.maps)))
        if picture.name in seen:
            left_out.append({"name": picture.name, "reason": "DUPLICATE: another file has the same UID"})
        else:
            seen.add(picture.name)
            entries.append(picture)
    return entries, left_out


class _SharedSeries:
    """The intensity maps of a series, as in `enhance`."""

    def __init__(self, maps: SeriesIntensity) -> None:
        self.maps = maps

    @cached_property
    def digest(self) -> str:
        """Of all files, since the map may depend on any of them, and of how it is made."""
        found = hashlib.sha256(self.maps.recipe.intensity.model_dump_json().encode())
        for member in self.maps.series.members:
            with member.located.path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        return found.hexdigest()


@dataclass(frozen=True)
class DicomPicture:
    """The first frame of an instance. Its name is the SOP Instance UID: a path may hold a patient's name."""

    data: Data
    instance: Readable
    shared: _SharedSeries

    @property
    def name(self) -> str:
        """The SOP Instance UID."""
        return str(self.instance.member.instance.SOPInstanceUID)

    @property
    def key(self) -> str:
        """See `Entry`."""
        return hashlib.sha256(f"{self.name}\n{settings(self.data)}\n{self.shared.digest}".encode()).hexdigest()

    def load(self) -> Case:
        """See `Entry`."""
        return complete(self.data, self.name, self.instance.first_frame().unit)
