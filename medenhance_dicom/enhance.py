"""The whole flow: DICOM in, derived DICOM out. Read `enhance_series` top to bottom for one instance's way.

Memory is flat in the number of instances and frames: headers are read when their turn comes, frames are decoded,
enhanced and written to a scratch file in batches.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medenhance_dicom import frames, intensity, masks
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.derive import PixelSummary, derive_instance
from medenhance_dicom.errors import (
    DerivationError,
    InputError,
    MedenhanceError,
    ModelError,
    OutputError,
    RecipeError,
    UnreadableInstanceError,
    UnsupportedInstanceError,
)
from medenhance_dicom.gate import Mode, score_frames, verdict_of
from medenhance_dicom.guides import (
    Guide,
    Influence,
    choose_guide,
    encode_guide,
    find_guides,
    influence,
    load_guide,
    read_picture,
)
from medenhance_dicom.manifest import Manifest, load_manifest
from medenhance_dicom.part10 import Limits, find_instances, looks_like_dicom, read_instance, write_instance
from medenhance_dicom.prepare import PreparedRecipe, prepare_recipe, runtime
from medenhance_dicom.recipe import EnhancerRecipe, Recipe, ResolutionRecipe, load_recipes, match_recipe
from medenhance_dicom.report import UNREADABLE, Outcome, Result
from medenhance_dicom.series import Member, Series, group_series, grouping_header
from medenhance_dicom.sop_classes import policy
from medenhance_dicom.verify import assert_derived, check_file

if TYPE_CHECKING:
    from pydicom import Dataset

Progress = Callable[..., None]
Region = Callable[[NDArray[np.float32], NDArray[np.bool_] | None], NDArray[np.bool_]]
"""(H, W, C) in [0, 1] and padding or None -> bool (H, W)."""

GUIDE_FACTS = {"Manufacturer", "ManufacturerModelName"}  # decide on a guide, besides Modality
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
SAMPLED_FRAMES = 8  # of a series, to fit its one intensity map


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do; the command line's options."""

    output: Path = Path("enhanced")
    recipe: str = "auto"
    weights: str | None = None
    guide: str | None = None
    """Key of a stored guide; None: as the recipe says, by default chosen by modality and camera."""
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    gate: Mode = "withhold"
    allow: frozenset[str] = frozenset()
    """Modalities that are off by default and opted in: CT, MG."""
    preview: bool = False
    overwrite: bool = False
    limits: Limits = field(default_factory=Limits)


# ----------------------------------------------------------------------------------------------- finding and choosing


def read_members(
    paths: Iterable[Path], scratch: Path, decoder: Decoder, settings: Settings, recipes: list[Recipe]
) -> Iterator[Member | Outcome]:
    """Slim headers of everything below `paths`; what is no DICOM, unreadable or refused comes as an Outcome.

    Raises:
        InputError: A path does not exist.
    """
    paths = list(paths)
    named = set(paths)
    keywords = {keyword for recipe in recipes for keyword in recipe.match} | GUIDE_FACTS
    for located in find_instances(paths, scratch):
        try:
            if located.path.exists() and not looks_like_dicom(located.path):
                if located.path in named:
                    raise UnreadableInstanceError("not a DICOM file")
                yield Outcome(located.name, "skipped", "NOT_DICOM: not a DICOM file")
                continue
            decoder.probe(located.path)
            instance = read_instance(located.path, limits=settings.limits)
        except InputError as error:
            yield Outcome(located.name, "failed", f"{UNREADABLE}: {error}")
            continue
        member = Member(located, grouping_header(instance, keywords))
        try:
            decision = policy(instance, settings.allow)
            if decision.action == "refuse":
                yield _outcome(member, "skipped", f"{decision.reason}: {decision.note}")
                continue
            for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
                _require_uid(instance, keyword)
            frames.pixel_format(instance)
        except UnsupportedInstanceError as error:
            yield _outcome(member, "skipped", str(error))
        except InputError as error:
            yield _outcome(member, "failed", f"{UNREADABLE}: {error}")
        else:
            yield member


def choose_recipes(
    found: Iterable[Member | Outcome], recipes: list[Recipe], settings: Settings
) -> Iterator[tuple[Series, Recipe] | Outcome]:
    """Group into series and give each its recipe; Outcomes pass through."""
    members: list[Member] = []
    for item in found:
        if isinstance(item, Outcome):
            yield item
        else:
            members.append(item)
    for series in group_series(members):
        try:
            named = settings.recipe != "auto"
            recipe = recipes[0] if named else match_recipe(_facts(series.members[0].instance), recipes)
        except RecipeError as error:
            for member in series.members:
                yield _outcome(member, "skipped", f"NO_RECIPE: {error}")
        else:
            yield series, recipe


def _recipes(settings: Settings) -> list[Recipe]:
    """The recipes that may be chosen: all, or the one that is named.

    Raises:
        RecipeError: No recipe of that name.
    """
    recipes = list(load_recipes())
    if settings.recipe != "auto":
        recipes = [r for r in recipes if r.name == settings.recipe]
        if not recipes:
            raise RecipeError(f"no recipe {settings.recipe!r}; see `medenhance-dicom recipes list`")
    if settings.weights:
        recipes = [
            r.model_copy(update={"enhancer": r.enhancer.model_copy(update={"weights": settings.weights})})
            if r.enhancer.method == "network"
            else r
            for r in recipes
        ]
    return recipes


def _facts(instance: Dataset) -> dict[str, Any]:
    return {element.keyword: element.value for element in instance}


# Registered roots only (ITU-T X.660: 0.0.1-26, 0.1-0.5, 0.9, 1.0-1.3, 2.*) and no leading zeros: what we write must be
# valid.
_UID = re.compile(r"(0\.0\.([1-9]|1[0-9]|2[0-6])|0\.[1-59]|1\.[0-3]|2\.(0|[1-9][0-9]*))(\.(0|[1-9][0-9]*))+")


def _require_uid(instance: Dataset, keyword: str) -> None:
    """A UID that a derived object can refer to (PS3.5 section 9.1), and that is safe as a folder's name."""
    uid = str(instance.get(keyword) or "")
    if not uid:
        raise UnreadableInstanceError("missing", keyword=keyword)
    if len(uid) > 64 or not _UID.fullmatch(uid):
        raise UnreadableInstanceError("is not a UID", keyword=keyword)


def _outcome(member: Member, result: Result, reason: str | None, **more: Any) -> Outcome:
    return Outcome(
        member.located.name,
        result,
        reason,
        sop_instance_uid=str(member.instance.get("SOPInstanceUID") or "") or None,
        series_instance_uid=str(member.instance.get("SeriesInstanceUID") or "") or None,
        **more,
    )


def plan(paths: Iterable[Path], settings: Settings) -> Iterator[dict[str, Any]]:
    """What a run would do, series by series, and what it would leave out and why. Decodes no pixels."""
    recipes = _recipes(settings)
    with tempfile.TemporaryDirectory(prefix="medenhance-") as scratch, Decoder(limits=settings.limits) as decoder:
        for item in choose_recipes(read_members(paths, Path(scratch), decoder, settings, recipes), recipes, settings):
            if isinstance(item, Outcome):
                yield {
                    "result": item.result, "instances": 1, "modality": None, "size": None, "recipe": None,
                    "source": item.source, "reason": item.reason,
                }  # fmt: skip
                continue
            series, recipe = item
            first = series.members[0].instance
            yield {
                "result": "enhanced",
                "instances": len(series.members),
                "modality": first.get("Modality"),
                "size": f"{first.Columns}x{first.Rows}",
                "recipe": recipe.name,
                "source": series.members[0].located.name,
                "reason": None,
            }


# ----------------------------------------------------------------------------------------------------------- the run


class Enhancement:
    """One run: the settings, and the enhancers it has loaded so far."""

    def __init__(self, settings: Settings, *, now: datetime) -> None:
        """Args: settings; now: aware time of the run, which the derived objects carry."""
        self.settings, self.now = settings, now
        self.recipes = _recipes(settings)
        self._prepared: dict[tuple[str, str], PreparedRecipe] = {}
        self.device, self.engine, self.precision = runtime(settings.device, settings.engine, settings.precision)

    def outcomes(self, paths: Iterable[Path], *, progress: Progress | None = None) -> Iterator[Outcome]:
        """Enhance everything below `paths`; one Outcome per instance, as they are done.

        Raises:
            InputError: A path does not exist.
            ModelError: Weights or a guide that a recipe needs are missing or altered.
            RecipeError: A guide is named, and no recipe chosen for a series takes one.
            OutputError: The output folder is not writable or full.
        """
        settings = self.settings
        with tempfile.TemporaryDirectory(prefix="medenhance-") as folder, Decoder(limits=settings.limits) as decoder:
            scratch = Path(folder)
            found = read_members(paths, scratch, decoder, settings, self.recipes)
            jobs: list[tuple[Series, Recipe, Guide | None]] = []
            done = 0
            for item in choose_recipes(found, self.recipes, settings):
                if isinstance(item, Outcome):
                    yield item
                else:
                    series, recipe = item
                    jobs.append((series, recipe, self._guide(recipe, series)))
            if settings.guide and jobs and not any(guide for _, _, guide in jobs):
                names = ", ".join(sorted({recipe.name for _, recipe, _ in jobs}))
                raise RecipeError(f"--guide {settings.guide}: no recipe chosen here takes a guide ({names})")
            total = sum(len(series.members) for series, _, _ in jobs)
            for series, recipe, guide in jobs:
                for outcome in self._enhance_series(series, self._prepare(recipe, guide), decoder, scratch):
                    done += 1
                    if progress:
                        progress(done, total)
                    yield outcome

    @cached_property
    def manifest(self) -> Manifest:
        """The weights that there are."""
        return load_manifest()

    def _guide(self, recipe: Recipe, series: Series) -> Guide | None:
        """The guide for a series; None where its recipe takes none."""
        if recipe.enhancer.method != "network":
            return None
        key = recipe.enhancer.weights or ""
        entry = self.manifest.entry(key)
        if not entry.takes_guide:
            return None
        return choose_guide(
            key, entry, self.settings.guide or recipe.enhancer.guide, _facts(series.members[0].instance)
        )

    def _prepare(self, recipe: Recipe, guide: Guide | None) -> PreparedRecipe:
        key = recipe.name, guide.digest if guide else ""
        if key not in self._prepared:
            self._prepared[key] = prepare_recipe(
                recipe, device=self.device, engine=self.engine, precision=self.settings.precision, guide=guide
            )
        return self._prepared[key]

    def _enhance_series(
        self, series: Series, prepared: PreparedRecipe, decoder: Decoder, scratch: Path
    ) -> Iterator[Outcome]:
        """Enhance a series: one intensity map for all its frames, batches across its instances."""
        line = SeriesIntensity(series, prepared.recipe, decoder)
        current: InstanceResult | None = None
        for item in prepared.enhance(_unit_frames(series, line, prepared)):
            if isinstance(item, Outcome):
                if current is not None:
                    current.discard()
                current = None
                yield item
                continue
            if current is None or current.member is not item.member:
                current = InstanceResult(item.member, item.instance, prepared, scratch, preview=self.settings.preview)
            current.add(item)
            if item.index + 1 == item.pixels.number_of_frames:
                yield self._finish(current)
                current = None

    def _finish(self, result: InstanceResult) -> Outcome:
        """Judge, derive, check and write one instance whose frames are all there."""
        member, source, prepared, settings = result.member, result.instance, result.prepared, self.settings
        started = time.monotonic()
        names: dict[str, Any] = _names(prepared)
        verdict = verdict_of(result.scores, prepared.thresholds, settings.gate, level=prepared.recipe.gate.level)
        names |= {"lassim": verdict.lassim, "verdict": verdict.details | {"passed": verdict.passed} | result.change()}
        try:
            if verdict.outcome == "withheld":
                return _outcome(member, "withheld", verdict.reason, seconds=result.seconds, **names)
            provenance = prepared.provenance(verdict, made=self.now)
            summary = PixelSummary(
                result.digest(), result.pixels, result.pixels.number_of_frames, member.located.path.stat().st_size
            )
            derived = derive_instance(source, summary, provenance)
            if problems := assert_derived(derived, source, pixel_digest=summary.digest):
                raise DerivationError("; ".join(problems))
            folder = settings.output / derived.StudyInstanceUID / derived.SeriesInstanceUID
            target = folder / f"{derived.SOPInstanceUID}.dcm"
            if settings.overwrite or not target.exists():
                _make_folder(folder)
                write_instance(derived, result.path, target)
            if settings.preview:
                result.write_preview(target.with_suffix(".png"))
            result.seconds["write"] = round(time.monotonic() - started, 4)
            return _outcome(
                member, verdict.outcome, verdict.reason, derived=str(target),
                derived_sop_instance_uid=str(derived.SOPInstanceUID), seconds=result.seconds, **names,
            )  # fmt: skip
        except (DerivationError, InputError, UnsupportedInstanceError) as error:
            return _outcome(member, "failed", f"NOT_DERIVED: {error}", seconds=result.seconds, **names)
        finally:
            result.discard()


def _names(prepared: PreparedRecipe) -> dict[str, Any]:
    return {"recipe": prepared.recipe.name, "weights": prepared.weights_key, "guide": prepared.guide_key}


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error


# ------------------------------------------------------------------------------------------------------ frame by frame


@dataclass(frozen=True)
class UnitFrame:
    """One frame on its way: `stored` as in the file, `unit` for the enhancer, `after` when it comes back."""

    member: Member
    instance: Dataset
    pixels: frames.PixelFormat
    index: int
    stored: frames.StoredFrame
    line: frames.ModalityLine
    map: intensity.IntensityMap
    unit: NDArray[np.float32]
    """(H, W, C) in [0, 1]."""
    enhance_here: NDArray[np.bool_]
    """(H, W): False where text, surround or padding must stay as it is."""
    after: NDArray[np.float32] | None = None


class SeriesIntensity:
    """The one intensity map of a series, fitted when the first frame asks for it."""

    def __init__(self, series: Series, recipe: Recipe, decoder: Decoder) -> None:
        self.series, self.recipe, self.decoder = series, recipe, decoder
        self._map: intensity.IntensityMap | None = None

    def map_for(self, instance: Dataset, pixels: frames.PixelFormat) -> intensity.IntensityMap:
        """The series' map; its method, limits and sampled frames come from the recipe and the first members."""
        if self._map is None:
            self._map = self._fit(instance, pixels)
        return self._map

    def _fit(self, instance: Dataset, pixels: frames.PixelFormat) -> intensity.IntensityMap:
        how = self.recipe.intensity
        line = frames.modality_line(instance, 0)
        legal = sorted(line.slope * v + line.intercept for v in (pixels.minimum, pixels.maximum))
        window = frames.voi_window(instance, 0)
        sample: list[tuple[NDArray[np.float32], NDArray[np.bool_] | None]] = []
        if how.method == "percentile" or (how.method == "window" and window is None):
            sample = list(self._sample())
        return intensity.fit_intensity(
            [values for values, _ in sample],
            how.method,
            paddings=[padding for _, padding in sample],
            window=window,
            legal_range=(legal[0], legal[1]),
            percentiles=(how.low, how.high),
            inverted=pixels.photometric_out == "MONOCHROME1",
        )

    def _sample(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_] | None]]:
        """Up to SAMPLED_FRAMES frames, spread evenly over the series; what does not decode is passed over."""
        members = self.series.members
        chosen = [members[i] for i in sorted({round(x) for x in np.linspace(0, len(members) - 1, SAMPLED_FRAMES)})]
        for member in chosen:
            try:
                instance = read_instance(member.located.path)
                count = frames.pixel_format(instance).number_of_frames
                share = max(SAMPLED_FRAMES // len(chosen), 1)
                for index in sorted({round(x) for x in np.linspace(0, count - 1, min(share, count))}):
                    stored = frames.stored_frame(instance, self.decoder.frame(member.located.path, index), index)
                    yield frames.to_modality(stored.stored, frames.modality_line(instance, index)), stored.padding
            except MedenhanceError:
                continue


def _unit_frame(
    member: Member, instance: Dataset, pixels: frames.PixelFormat, index: int, line: SeriesIntensity, region: Region
) -> UnitFrame:
    """One frame, decoded and brought to [0, 1]; `region` says where it may change."""
    stored = frames.stored_frame(instance, line.decoder.frame(member.located.path, index), index)
    to_modality = frames.modality_line(instance, index)
    unit_map = line.map_for(instance, pixels)
    unit = intensity.to_unit(frames.to_modality(stored.stored, to_modality), unit_map)
    return UnitFrame(member, instance, pixels, index, stored, to_modality, unit_map, unit, region(unit, stored.padding))


def _unit_frames(series: Series, line: SeriesIntensity, prepared: PreparedRecipe) -> Iterator[UnitFrame | Outcome]:
    """Frames of a series in [0, 1], one at a time; an instance that does not decode ends in an Outcome."""
    names = _names(prepared)
    for member in series.members:
        try:
            instance = read_instance(member.located.path)
            pixels = frames.pixel_format(instance)
            for index in range(pixels.number_of_frames):
                yield _unit_frame(member, instance, pixels, index, line, prepared.region)
        except InputError as error:
            yield _outcome(member, "failed", f"{UNREADABLE}: {error}", **names)
        except UnsupportedInstanceError as error:
            yield _outcome(member, "skipped", str(error), **names)


class InstanceResult:
    """The new pixels of one instance: written to a scratch file, hashed and scored as they come."""

    def __init__(
        self, member: Member, instance: Dataset, prepared: PreparedRecipe, scratch: Path, *, preview: bool
    ) -> None:
        self.member, self.instance, self.prepared, self.preview = member, instance, prepared, preview
        self.path = scratch / f"{secrets.token_hex(8)}.pixels"
        self.pixels = frames.pixel_format(instance)
        self.scores: list[float | None] = []
        self.seconds: dict[str, float] = {}
        self._hash = hashlib.sha256()
        self._file: IO[bytes] = self.path.open("wb")
        self._largest, self._sum, self._count = 0, 0.0, 0
        self._picture: NDArray[np.uint8] | None = None
        self._started = time.monotonic()

    def add(self, frame: UnitFrame) -> None:
        """Encode an enhanced frame as stored values; measure it."""
        assert frame.after is not None
        after = np.where(frame.enhance_here[..., None], frame.after, frame.unit).astype(np.float32)
        delta = intensity.delta_to_modality(
            frame.unit, after, frame.map, frames.to_modality(frame.stored.stored, frame.line)
        )
        stored = frames.encode_residual(frame.stored, delta, frame.line, frame.pixels)
        level = self.prepared.recipe.gate.level
        self.scores += score_frames(frame.unit[None], after[None], level=level)
        change = np.abs(stored.astype(np.int64) - frame.stored.stored)
        self._largest = max(self._largest, int(change.max()))
        self._sum, self._count = self._sum + float(change.sum()), self._count + change.size
        block = np.ascontiguousarray(stored.astype(stored.dtype.newbyteorder("<"))).tobytes()
        self._hash.update(block)
        try:
            self._file.write(block)
        except OSError as error:
            raise OutputError(f"scratch space: {error.strerror}") from error
        if self.preview and frame.index == 0:
            self._picture = (np.hstack([frame.unit, after]) * 255 + 0.5).astype(np.uint8)

    def digest(self) -> str:
        """SHA-256 of the pixel bytes, in hex; call when all frames are there."""
        self._file.close()
        self.seconds["enhance"] = round(time.monotonic() - self._started, 4)
        return self._hash.hexdigest()

    def change(self) -> dict[str, float]:
        """Largest and mean absolute change in stored values."""
        return {"max_change": self._largest, "mean_change": round(self._sum / max(self._count, 1), 4)}

    def write_preview(self, path: Path) -> None:
        """The first frame before and after, side by side, as PNG."""
        if self._picture is not None:
            part = path.with_name(f".{path.name}.part")
            Image.fromarray(self._picture.squeeze()).save(part, format="png")
            part.replace(path)

    def discard(self) -> None:
        """Remove the scratch file."""
        self._file.close()
        self.path.unlink(missing_ok=True)


# -------------------------------------------------------------------------------------------------------------- guides


@dataclass(frozen=True)
class Picture:
    """A picture that a guide is made of, or that guides are tried on; of a multi-frame instance the first frame."""

    name: str
    unit: NDArray[np.float32]
    """(H, W, C) in [0, 1]."""
    inside: NDArray[np.bool_]
    """(H, W), False in the surround and in padding."""
    modality: str | None = None
    recipe: Recipe | None = None
    """What `enhance` would take; None for a picture that is not DICOM."""


def read_pictures(paths: Iterable[Path], settings: Settings) -> Iterator[Picture | Outcome]:
    """Pictures and DICOM files below `paths`; DICOM goes the way that `enhance` takes, up to the network.

    Raises:
        InputError: A path does not exist, or a picture cannot be read.
    """
    paths = list(paths)
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    for file in files:
        if file.suffix.lower() in PICTURE_SUFFIXES and not file.is_dir():
            unit = read_picture(file)
            yield Picture(str(file), unit, np.ones(unit.shape[:2], bool))
    others = [path for path in paths if path.is_dir() or path.suffix.lower() not in PICTURE_SUFFIXES]
    recipes = _recipes(settings)
    with tempfile.TemporaryDirectory(prefix="medenhance-") as folder, Decoder(limits=settings.limits) as decoder:
        for item in choose_recipes(read_members(others, Path(folder), decoder, settings, recipes), recipes, settings):
            if isinstance(item, Outcome):
                if Path(item.source).suffix.lower() not in PICTURE_SUFFIXES:
                    yield item
                continue
            series, recipe = item
            line = SeriesIntensity(series, recipe, decoder)
            for member in series.members:
                try:
                    yield _picture(member, line, recipe)
                except InputError as error:
                    yield _outcome(member, "failed", f"{UNREADABLE}: {error}")
                except UnsupportedInstanceError as error:
                    yield _outcome(member, "skipped", str(error))


def _picture(member: Member, line: SeriesIntensity, recipe: Recipe) -> Picture:
    def region(unit: NDArray[np.float32], padding: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        inside = masks.field_of_view(unit, recipe.mask.field_of_view)
        return inside if padding is None else inside & ~padding

    instance = read_instance(member.located.path)
    frame = _unit_frame(member, instance, frames.pixel_format(instance), 0, line, region)
    return Picture(member.located.name, frame.unit, frame.enhance_here, instance.get("Modality"), recipe)


def make_guide(
    paths: Iterable[Path],
    key: str,
    *,
    weights: str,
    field: str | None = None,
    device_class: str = "any",
    created: datetime,
) -> Guide | None:
    """Encode the pictures and DICOM files below `paths` as one guide; what lies outside a field of view is black.

    Args:
        paths: Pictures, DICOM files, folders of them.
        key: Name of the guide.
        weights: Weights that it leads.
        field: Modality that it is for; None: the DICOM files'.
        device_class: Camera that it is for, or "any".
        created: Aware time.

    Returns:
        The guide, not yet saved; None where there is no picture to encode.

    Raises:
        InputError: A file cannot be read, and a guide of only some of the pictures would not be what was asked for.
        ModelError: See `guides.encode_guide`.
        RecipeError: The field is not given, and the files do not say one.
    """
    manifest = load_manifest()
    manifest.entry(weights)
    pictures = []
    for item in read_pictures(paths, Settings()):
        if isinstance(item, Picture):
            pictures.append(item)
        elif item.result == "failed":
            raise InputError(f"{item.source}: {item.reason}")
    if not pictures:
        return None
    fields = {field or picture.modality for picture in pictures}
    chosen = fields.pop()
    if fields or not chosen:
        raise RecipeError("name the modality that the guide is for with --field: the pictures do not say a single one")
    device = device_class.strip()
    device = "any" if device.casefold() in ("", "any") else device
    units = [np.where(picture.inside[..., None], picture.unit, np.float32(0)) for picture in pictures]
    return encode_guide(
        units, key, field=chosen.upper().replace(" ", ""), device_class=device, weights_key=weights, manifest=manifest,
        created=created.isoformat(timespec="seconds"),
    )  # fmt: skip


def guide_influence(path: Path, weights: str | None = None, *, device: str = "auto") -> tuple[str, Influence]:
    """The same picture under every guide that fits, in float32 PyTorch.

    Args:
        path: A picture or a DICOM file.
        weights: Weights that take a guide; None: those of the recipe that fits the DICOM file, or the only ones.
        device: As `inference.choose_device` takes it.

    Returns:
        Key of the weights, and what the choice of guide does.

    Raises:
        InputError: The file cannot be read.
        ModelError: No guide fits the weights, or one is altered.
        RecipeError: It is not clear which weights are meant, or they take no guide.
    """
    manifest = load_manifest()
    picture = next(iter(read_pictures([path], Settings())), None)
    if not isinstance(picture, Picture):
        raise InputError(f"{path}: {picture.reason if picture else 'no picture'}")
    guided = [key for key, entry in manifest.weights.items() if entry.takes_guide]
    if weights is None:
        of_recipe = picture.recipe.enhancer.weights if picture.recipe else None
        weights = of_recipe if of_recipe in guided else guided[0] if len(guided) == 1 else None
    if weights is None or not manifest.entry(weights).takes_guide:
        raise RecipeError(f"name weights that take a guide with --weights: {', '.join(guided) or 'there are none'}")
    entry = manifest.entry(weights)
    fitting = [guide for guide in map(load_guide, find_guides().values()) if guide.fits(entry)]
    if not fitting:
        raise ModelError(f"no guide fits {weights}; make one with `medenhance-dicom guides add`")
    recipe = _recipe_for(weights, entry.input.working_size, picture.recipe)
    outputs, inside = {}, picture.inside
    for guide in fitting:
        prepared = prepare_recipe(recipe, device=device, engine="torch", precision="fp32", guide=guide)
        outputs[guide.key] = prepared.enhance_picture(picture.unit)
        inside = picture.inside & prepared.region(picture.unit, None)
    return weights, influence(outputs, inside)


def _recipe_for(weights: str, working_size: int | None, fitting: Recipe | None) -> Recipe:
    """A recipe with these weights: the one that fits, else the first that names them, else their working size."""
    named = [r for r in (fitting, *load_recipes()) if r is not None and r.enhancer.weights == weights]
    if named:
        return named[0]
    way: Any = {"way": "pyramid", "working_size": working_size} if working_size else {}
    return Recipe(
        name="guided", summary="", match={"Modality": ("OT",)}, resolution=ResolutionRecipe(**way),
        enhancer=EnhancerRecipe(method="network", weights=weights),
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- verifying


def verify_files(path: Path, source: Path | None) -> Iterator[dict[str, Any]]:
    """Problems of each derived object of ours below `path`; other files are passed over.

    Args:
        path: A file or folder.
        source: Where the sources are; found by the UID that a derived object names. None: checked without them.
    """
    with tempfile.TemporaryDirectory(prefix="medenhance-") as scratch:
        sources: dict[str, Path] = {}
        for located in find_instances([source], Path(scratch)) if source else ():
            try:
                if looks_like_dicom(located.path):
                    sources[str(read_instance(located.path).get("SOPInstanceUID"))] = located.path
            except InputError:
                continue
        for located in find_instances([path], Path(scratch)):
            if not looks_like_dicom(located.path):
                continue
            problems = check_file(located.path, sources)
            if problems is not None:
                yield {"path": located.name, "problems": problems}
