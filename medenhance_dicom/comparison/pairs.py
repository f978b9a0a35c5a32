"""Pairs of files, before and after: which belong together, and their frames in [0, 1] on one scale."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medenhance_dicom import frames
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import InputError, UnreadableInstanceError
from medenhance_dicom.gate import LEVEL, Thresholds
from medenhance_dicom.guides import read_picture
from medenhance_dicom.identity import range_of_words, recorded_digests, source_uid
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.part10 import Located, find_instances, looks_like_dicom, read_instance
from medenhance_dicom.prepare import default_thresholds, region_of, thresholds_of, weights_thresholds
from medenhance_dicom.recipe import Recipe, load_recipes
from medenhance_dicom.report import Outcome
from medenhance_dicom.selection import (
    Settings,
    choose_recipes,
    facts_of,
    read_members,
    recipes_of,
    weights_wrong_kind,
)
from medenhance_dicom.series import Member, Series
from medenhance_dicom.sop_classes import OPT_INS
from medenhance_dicom.unit_frames import SeriesIntensity, unit_frames
from medenhance_dicom.withheld import FOLDER, is_kept, unpack

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["FramePair", "Pair", "Pairs", "open_pairs"]

Unit = NDArray[np.float32]


@dataclass(frozen=True)
class FramePair:
    """One frame before and after."""

    index: int
    before: Unit
    """(H, W, C) in [0, 1]."""
    after: Unit
    inside: NDArray[np.bool_] | None
    """(H, W), where the recipe lets it change; None: everywhere."""


@dataclass(frozen=True)
class Pair:
    """Two files that belong together, or why one has no other."""

    source: str | None
    """As a person is shown it."""
    derived: str
    thresholds: Thresholds
    level: int
    says: str
    """Modality and size, recipe: nothing about the patient."""
    problem: str | None = None
    """CODE: sentence; then there are no frames."""
    patient: str = ""
    """Name and identifier."""


@dataclass(frozen=True)
class _Source:
    member: Member
    series: Series
    recipe: Recipe


class Pairs:
    """All pairs of two files or folders; memory does not grow with the frames."""

    def __init__(self, source: Path, derived: Path, settings: Settings, scratch: Path, decoder: Decoder) -> None:
        self.settings, self.decoder = settings, decoder
        self._recipes = recipes_of(settings)
        self._derived = list(_derived(derived, scratch))
        located = list(find_instances([source], scratch))
        self._pictures = {Path(x.name).stem: x for x in located if _is_picture(x.path)}
        self._sources: dict[str, _Source] = {}
        self._refused: dict[str, str] = {}
        named = [x.path for x in located if looks_like_dicom(x.path)]
        found = read_members(named, scratch, decoder, settings, self._recipes)
        self._manifest = load_manifest()
        for item in choose_recipes(found, self._recipes, settings, self._manifest):
            if isinstance(item, Outcome):
                self._refused[item.sop_instance_uid or ""] = item.reason or ""
                continue
            for member in item[0].members:
                self._sources[str(member.instance.SOPInstanceUID)] = _Source(member, *item)
        self._maps: tuple[object, SeriesIntensity] | None = None

    def __iter__(self) -> Iterator[tuple[Pair, Iterator[FramePair]]]:
        """Every file of the derived side that is a picture or an image, with its frames still to be read."""
        alone = len([x for x in self._derived if _is_picture(x.path)]) == 1 and len(self._pictures) == 1
        for located in self._derived:
            if looks_like_dicom(located.path):
                found = self._instance(located)
                if found is not None:
                    yield found
            elif self._pictures and _is_picture(located.path):  # else they are previews beside DICOM
                yield self._picture(located, alone=alone)

    def _picture(self, located: Located, *, alone: bool) -> tuple[Pair, Iterator[FramePair]]:
        source = next(iter(self._pictures.values())) if alone else self._pictures.get(Path(located.name).stem)
        named = self._recipes[0] if self.settings.recipe != "auto" else None
        thresholds = thresholds_of(named) if named else _of_weights(self.settings.weights)
        level = named.gate.level if named else LEVEL
        if source is None:
            problem = "NO_SOURCE: no picture of this name among the sources"
            return Pair(None, located.name, thresholds, level, "picture", problem), iter(())
        return Pair(source.name, located.name, thresholds, level, "picture"), _picture_frames(source.path, located.path)

    def _instance(self, located: Located) -> tuple[Pair, Iterator[FramePair]] | None:
        """None for what is no image, such as a report."""
        derived = read_instance(located.path, limits=self.settings.limits)
        if "Rows" not in derived:
            return None
        uid = source_uid(derived)
        source = self._sources.get(uid) or self._same_name(located)
        if source is None:
            refused = self._refused.get(uid)
            problem = refused or "NO_SOURCE: the instance that it was made of is not among the sources"
            return Pair(None, located.name, default_thresholds(), LEVEL, _described(derived, None), problem), iter(())
        if wrong := weights_wrong_kind(self.settings.weights, facts_of(source.member.instance), self._manifest):
            said = source.member.located.name, located.name, default_thresholds(), LEVEL, _described(derived, None)
            return Pair(*said, wrong), iter(())
        recorded = recorded_digests(derived)
        recipe = self._recipe_of(recorded.get("recipe"), source.recipe)
        thresholds = thresholds_of(recipe)
        if self.settings.weights or (recorded.get("weights") and not recipe.enhancer.weights):
            thresholds = _of_weights(self.settings.weights, recorded.get("weights"))
        pair = Pair(
            source.member.located.name, located.name, thresholds, recipe.gate.level, _described(derived, recipe),
            patient=f"{derived.get('PatientName') or ''} {derived.get('PatientID') or ''}".strip(),
        )  # fmt: skip
        known = range_of_words(recorded.get("intensity", "")) if recipe.digest == recorded.get("recipe") else None
        return pair, self._frames(source, recipe, located.path, derived, masked=bool(recorded), known=known)

    def _same_name(self, located: Located) -> _Source | None:
        """By file name, for results of others that name no source; or the only one."""
        if len(self._sources) == 1 and len(self._derived) == 1:
            return next(iter(self._sources.values()))
        name = Path(located.name).name
        return next((s for s in self._sources.values() if Path(s.member.located.name).name == name), None)

    def _recipe_of(self, digest: str | None, fitting: Recipe) -> Recipe:
        """The recipe that is asked for, else the one that a derived object recorded, else the one that fits."""
        if self.settings.recipe != "auto":
            return fitting
        return next((r for r in load_recipes() if r.digest == digest), fitting)

    def _frames(
        self,
        source: _Source,
        recipe: Recipe,
        path: Path,
        derived: Dataset,
        *,
        masked: bool,
        known: tuple[float, float] | None,
    ) -> Iterator[FramePair]:
        before_path = source.member.located.path
        before = read_instance(before_path, limits=self.settings.limits)
        pixels, after_pixels = frames.pixel_format(before), frames.pixel_format(derived)
        shapes = [(p.rows, p.columns, p.samples, p.number_of_frames) for p in (pixels, after_pixels)]
        if shapes[0] != shapes[1]:
            raise UnreadableInstanceError("rows, columns, samples or frames differ from the source's")
        key = (id(source.series), recipe.name, known)
        if self._maps is None or self._maps[0] != key:
            self._maps = key, SeriesIntensity(source.series, recipe, self.decoder, self.settings.limits, known)

        def region(unit: Unit, padding: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
            return region_of(recipe, unit, padding) if masked else np.ones(unit.shape[:2], bool)

        for frame in unit_frames(source.member, self._maps[1], region):
            decoded = self.decoder.frame(path, frame.index)
            stored = frames.stored_frame(derived, decoded, frame.index).stored
            after = frame.shown(stored, frames.modality_line(derived, frame.index))
            yield FramePair(frame.index, frame.unit, after, frame.enhance_here if masked else None)


@contextmanager
def open_pairs(source: Path, derived: Path, *, recipe: str = "auto", weights: str | None = None) -> Iterator[Pairs]:
    """The pairs of two files or folders: DICOM by Source Image Sequence, else by name; pictures by name.

    Args:
        source: File or folder of the originals.
        derived: File or folder of the results.
        recipe: Whose intensity map, masks and limits apply; "auto": the one that a derived object recorded, else the
            one that fits its source. Pictures have the default limits.
        weights: Whose limits apply; None: the recipe's.

    Raises:
        InputError: A path does not exist.
        ModelError: No such weights.
        RecipeError: No such recipe.
    """
    settings = Settings(recipe=recipe, weights=weights, allow=OPT_INS)
    with tempfile.TemporaryDirectory(prefix="medenhance-") as folder, Decoder(limits=settings.limits) as decoder:
        yield Pairs(source, derived, settings, Path(folder), decoder)


def _derived(path: Path, scratch: Path) -> Iterator[Located]:
    """What is below a path; what the gate withheld, and was kept, only where a person names it or its folder."""
    for located in find_instances([path], scratch):
        if not is_kept(located.path):
            yield located
        elif path.is_file() or path.name == FOLDER:
            whole = scratch / f"{secrets.token_hex(8)}.kept"
            unpack(located.path, whole)
            yield Located(whole, located.name)


def _picture_frames(source: Path, derived: Path) -> Iterator[FramePair]:
    before, after = read_picture(source), read_picture(derived)
    if before.shape[:2] != after.shape[:2]:
        raise InputError(f"{derived.name}: another size than the source's")
    if before.shape != after.shape:  # a grey one beside a coloured one
        before, after = (np.repeat(x, 3, axis=2) if x.shape[2] == 1 else x for x in (before, after))
    yield FramePair(0, before, after, None)


def _of_weights(key: str | None, digest: str | None = None) -> Thresholds:
    """The limits of named weights, or of those with this SHA-256; the default ones without either."""
    weights = load_manifest().weights
    if key is None:
        key = next((k for k, entry in weights.items() if entry.sha256 == digest), None)
    return default_thresholds() if key is None else weights_thresholds(key)


def _described(instance: Dataset, recipe: Recipe | None) -> str:
    size = f"{instance.get('Columns')} x {instance.get('Rows')}"
    count = int(instance.get("NumberOfFrames") or 1)
    parts = [str(instance.get("Modality") or ""), size, f"{count} frames" if count > 1 else ""]
    return ", ".join(part for part in (*parts, recipe.name if recipe else "") if part)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in Image.registered_extensions() and not looks_like_dicom(path)
