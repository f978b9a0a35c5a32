"""DICOM instances as pictures of an evaluation: chosen, decoded and brought to [0, 1] as `enhance` does it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.evaluation.pictures import Case, Mask, Unit, complete, settings
from medenhance_dicom.evaluation.recipe import Data
from medenhance_dicom.frames import pixel_format
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.part10 import read_instance
from medenhance_dicom.recipe import Recipe
from medenhance_dicom.report import Outcome
from medenhance_dicom.selection import Settings, choose_recipes, read_members, recipes_of
from medenhance_dicom.series import Member, Series
from medenhance_dicom.unit_frames import SeriesIntensity, unit_frame

ALLOWED = frozenset({"CT", "MG"})
"""Nothing derived is written here, so what is off by default in a clinic may be looked at."""


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
    run = Settings(allow=ALLOWED)
    recipes = recipes_of(run)
    entries: list[DicomPicture] = []
    left_out: list[dict[str, str]] = []
    seen: set[str] = set()
    found = read_members([path], scratch, decoder, run, recipes)
    for item in choose_recipes(found, recipes, run, load_manifest()):
        if isinstance(item, Outcome):
            left_out.append({"name": item.sop_instance_uid or Path(item.source).name, "reason": item.reason or ""})
            continue
        series, recipe = item
        shared = _SharedSeries(series, recipe, decoder)
        for picture in (DicomPicture(data, member, shared) for member in series.members):
            if picture.name in seen:
                left_out.append({"name": picture.name, "reason": "DUPLICATE: another file has the same UID"})
            else:
                seen.add(picture.name)
                entries.append(picture)
    return entries, left_out


class _SharedSeries:
    """The intensity maps of a series, as in `enhance`."""

    def __init__(self, series: Series, recipe: Recipe, decoder: Decoder) -> None:
        self.series, self.recipe = series, recipe
        self.maps = SeriesIntensity(series, recipe, decoder, decoder.limits)

    @cached_property
    def digest(self) -> str:
        """Of all files, since the map may depend on any of them, and of how it is made."""
        found = hashlib.sha256(self.recipe.intensity.model_dump_json().encode())
        for member in self.series.members:
            with member.located.path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        return found.hexdigest()


@dataclass(frozen=True)
class DicomPicture:
    """The first frame of an instance. Its name is the SOP Instance UID: a path may hold a patient's name."""

    data: Data
    member: Member
    shared: _SharedSeries

    @property
    def name(self) -> str:
        """The SOP Instance UID."""
        return str(self.member.instance.SOPInstanceUID)

    @property
    def key(self) -> str:
        """See `Entry`."""
        return hashlib.sha256(f"{self.name}\n{settings(self.data)}\n{self.shared.digest}".encode()).hexdigest()

    def load(self) -> Case:
        """See `Entry`."""
        instance = read_instance(self.member.located.path, limits=self.shared.maps.limits)
        frame = unit_frame(self.member, instance, pixel_format(instance), 0, self.shared.maps, _everywhere)
        return complete(self.data, self.name, frame.unit)


def _everywhere(unit: Unit, padding: Mask | None) -> Mask:
    return np.ones(unit.shape[:2], bool)
