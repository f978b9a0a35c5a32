"""DICOM files as pictures to learn from, lead by and measure on: the first frame of each, as `enhance` sees it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import UnsupportedInstanceError
from medenhance_dicom.frames import pixel_format
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.part10 import read_instance
from medenhance_dicom.recipe import Recipe
from medenhance_dicom.report import Outcome
from medenhance_dicom.selection import Settings, choose_recipes, read_members, recipes_of
from medenhance_dicom.series import Member
from medenhance_dicom.unit_frames import Region, SeriesIntensity, UnitFrame, unit_frame

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]

ALLOWED = frozenset({"CT", "MG"})
"""Where nothing derived is written, what is off by default in a clinic may be looked at and learned from."""


@dataclass(frozen=True)
class Readable:
    """An instance that a recipe fits."""

    member: Member
    recipe: Recipe
    maps: SeriesIntensity
    """The series' own; one object for all its members."""

    def first_frame(self, region: Region | None = None) -> UnitFrame:
        """Decoded and brought to [0, 1]; raises as `unit_frame`."""
        instance = read_instance(self.member.located.path, limits=self.maps.limits)
        return unit_frame(self.member, instance, pixel_format(instance), 0, self.maps, region or _everywhere)


def readable(
    paths: Iterable[Path], scratch: Path, decoder: Decoder, settings: Settings
) -> Iterator[Readable | Outcome]:
    """The instances below `paths` that a recipe fits; what cannot be taken comes as an Outcome.

    Args:
        paths: Folders, files, zips or DICOMDIRs.
        scratch: Folder for members of zips; has to stay while frames are read.
        decoder: Has to stay as well.
        settings: What a run is asked to do.

    Raises:
        InputError: A path does not exist.
    """
    recipes = recipes_of(settings)
    found = read_members(paths, scratch, decoder, settings, recipes)
    for item in choose_recipes(found, recipes, settings, load_manifest()):
        if isinstance(item, Outcome):
            yield item
            continue
        series, recipe = item
        maps = SeriesIntensity(series, recipe, decoder, settings.limits)
        for member in series.members:
            yield Readable(member, recipe, maps)


class DicomPictures:
    """What training reads DICOM files by, see `training.choosing.DicomReader`."""

    def patients(self, files: Sequence[Path]) -> Mapping[Path, str]:
        """A digest of Patient ID and Issuer of Patient ID, where there is none of the Study Instance UID, by file."""
        with Decoder() as decoder:
            found = self._readable(files, decoder)
            return {one.member.located.path: _whose(one.member) for one in found}

    def first_frames(self, files: Sequence[Path]) -> Iterator[tuple[Path, Unit]]:
        """The first frame of each file, (H, W, 1 or 3) in [0, 1]; what is refused when it is seen is left out.

        Raises:
            InputError: One cannot be decoded.
            FrameError: NOT_FINITE.
        """
        with Decoder() as decoder:
            for one in self._readable(files, decoder):
                try:
                    yield one.member.located.path, one.first_frame().unit
                except UnsupportedInstanceError:
                    continue

    def _readable(self, files: Sequence[Path], decoder: Decoder) -> Iterator[Readable]:
        with tempfile.TemporaryDirectory(prefix="medenhance-") as scratch:
            settings = Settings(allow=ALLOWED, limits=decoder.limits)
            for one in readable(files, Path(scratch), decoder, settings):
                if isinstance(one, Readable):
                    yield one


def _whose(member: Member) -> str:
    whose = b"".join(member.patient[:2])
    return (whose or hashlib.sha256(str(member.instance.get("StudyInstanceUID")).encode()).digest()[:16]).hex()


def _everywhere(unit: Unit, padding: Mask | None) -> Mask:
    return np.ones(unit.shape[:2], bool)
