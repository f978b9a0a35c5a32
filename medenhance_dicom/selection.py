"""What a run is asked to do, what it finds, and which recipe each series gets."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medenhance_dicom import frames
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import InputError, RecipeError, UnreadableInstanceError, UnsupportedInstanceError
from medenhance_dicom.guides import Guide, choose_guide
from medenhance_dicom.manifest import Manifest, load_manifest
from medenhance_dicom.part10 import Limits, find_instances, looks_like_dicom, read_instance
from medenhance_dicom.recipe import Recipe, load_recipes, match_recipe
from medenhance_dicom.report import UNREADABLE, Outcome, Result
from medenhance_dicom.series import Member, Series, group_series, grouping_header
from medenhance_dicom.sop_classes import policy

if TYPE_CHECKING:
    from pydicom import Dataset

GateMode = Literal["withhold", "warn", "off", "blend"]
"""What a failed structure check does. "blend": the source comes back where structure changed, and what fails all the
same is withheld."""

GUIDE_FACTS = {"Manufacturer", "ManufacturerModelName"}  # decide on a guide, besides Modality


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
    gate: GateMode = "withhold"
    allow: frozenset[str] = frozenset()
    """Modalities that are off by default and opted in: CT, MG."""
    preview: bool = False
    """PNGs beside each instance: before and after, and where the structure check objects."""
    structured_report: bool = False
    """A TID 1500 report on each derived instance."""
    overwrite: bool = False
    limits: Limits = field(default_factory=Limits)


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
                yield outcome_of(member, "skipped", f"{decision.reason}: {decision.note}")
                continue
            for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
                _require_uid(instance, keyword)
            frames.pixel_format(instance)
        except UnsupportedInstanceError as error:
            yield outcome_of(member, "skipped", str(error))
        except InputError as error:
            yield outcome_of(member, "failed", f"{UNREADABLE}: {error}")
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
            recipe = recipes[0] if named else match_recipe(facts_of(series.members[0].instance), recipes)
        except RecipeError as error:
            for member in series.members:
                yield outcome_of(member, "skipped", f"NO_RECIPE: {error}")
        else:
            yield series, recipe


def recipes_of(settings: Settings) -> list[Recipe]:
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


def guide_for(recipe: Recipe, series: Series, settings: Settings, manifest: Manifest) -> Guide | None:
    """The stored guide that leads a recipe's network on a series; None where it takes none.

    Raises:
        ModelError: No such weights, or no guide that fits.
    """
    if recipe.enhancer.method != "network":
        return None
    key = recipe.enhancer.weights or ""
    entry = manifest.entry(key)
    if not entry.takes_guide:
        return None
    name = settings.guide or recipe.enhancer.guide
    return choose_guide(key, entry, name, facts_of(series.members[0].instance))


def facts_of(instance: Dataset) -> dict[str, Any]:
    """Keyword -> value, as recipes and guides are chosen by."""
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


def outcome_of(member: Member, result: Result, reason: str | None, **more: Any) -> Outcome:
    """What became of an instance; `more` are further fields of `Outcome`."""
    return Outcome(
        member.located.name,
        result,
        reason,
        sop_instance_uid=str(member.instance.get("SOPInstanceUID") or "") or None,
        series_instance_uid=str(member.instance.get("SeriesInstanceUID") or "") or None,
        **more,
    )


def plan(paths: Iterable[Path], settings: Settings) -> Iterator[dict[str, Any]]:
    """What a run would do, series by series, and what it would leave out and why. Decodes no pixels.

    Raises:
        InputError: A path does not exist.
        ModelError: Weights or a guide that a recipe needs are missing or altered.
    """
    recipes, manifest = recipes_of(settings), load_manifest()
    with tempfile.TemporaryDirectory(prefix="medenhance-") as scratch, Decoder(limits=settings.limits) as decoder:
        for item in choose_recipes(read_members(paths, Path(scratch), decoder, settings, recipes), recipes, settings):
            if isinstance(item, Outcome):
                yield {
                    "result": item.result, "instances": 1, "modality": None, "size": None, "recipe": None,
                    "weights": None, "guide": None,
                    "source": item.source, "reason": item.reason,
                }  # fmt: skip
                continue
            series, recipe = item
            first, guide = series.members[0].instance, guide_for(recipe, series, settings, manifest)
            yield {
                "result": "enhanced",
                "instances": len(series.members),
                "modality": first.get("Modality"),
                "size": f"{first.Columns}x{first.Rows}",
                "recipe": recipe.name,
                "weights": recipe.enhancer.weights,
                "guide": guide.key if guide else None,
                "source": series.members[0].located.name,
                "reason": None,
            }
