"""What a run is asked to do, what it finds, and which recipe each series gets."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydicom.datadict import dictionary_description, dictionary_has_tag
from pydicom.uid import UID

from medenhance_dicom import frames, withheld
from medenhance_dicom.conflicts import patient_of, without_conflicts
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import InputError, RecipeError, UnreadableInstanceError, UnsupportedInstanceError
from medenhance_dicom.guides import Guide, choose_guide
from medenhance_dicom.manifest import KINDS, Manifest, load_manifest
from medenhance_dicom.matching import misfits
from medenhance_dicom.part10 import Limits, find_instances, looks_like_dicom, read_instance
from medenhance_dicom.recipe import Recipe, load_recipes, match_recipe
from medenhance_dicom.report import UNREADABLE, Outcome, Result
from medenhance_dicom.series import Member, Series, group_series, grouping_header
from medenhance_dicom.site_keys import PublicKey, load_public_keys
from medenhance_dicom.sop_classes import policy
from medenhance_dicom.uids import is_uid

if TYPE_CHECKING:
    from pydicom import Dataset

GateMode = Literal["withhold", "warn", "off", "blend"]
"""What a failed structure check does. "blend": the source comes back where structure changed, and what fails all the
same is withheld."""

_KEPT = "a picture that the structure check withheld, see `compare` and `release`"

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
    keep_withheld: float = 30.0
    """Days for which what the gate withheld is kept, to be looked at; 0: it is not."""
    withheld: Path | None = None
    """Where; None: the folder `withheld` of the output."""
    overwrite: bool = False
    """Do everything anew, whatever stands there."""
    ledger: Path | None = None
    """Folder of what was derived before (`ledger`); None: inside the output folder."""
    sign_key: Path | None = None
    """Site key, or a folder whose last one signs the derived objects; None: they are not signed."""
    limits: Limits = field(default_factory=Limits)

    @property
    def withheld_folder(self) -> Path:
        """Where what the gate withheld is kept."""
        return self.withheld or self.output / withheld.FOLDER

    def signing_keys(self) -> dict[str, PublicKey] | None:
        """Key id -> key of those by which an object counts as signed; None: it need not be.

        Raises:
            ConfigurationError: There is none that can be used.
        """
        return load_public_keys(self.sign_key) if self.sign_key is not None else None


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
                what = _KEPT if withheld.is_kept(located.path) else "not a DICOM file"
                if located.path in named:
                    raise UnreadableInstanceError(what)
                yield Outcome(located.name, "skipped", f"NOT_DICOM: {what}")
                continue
            decoder.probe(located.path)
            instance = read_instance(located.path, limits=settings.limits)
        except InputError as error:
            yield Outcome(located.name, "failed", f"{UNREADABLE}: {error}")
            continue
        member = Member(located, grouping_header(instance, keywords), patient_of(instance))
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


def _gathered(found: Iterable[Member | Outcome], members: list[Member]) -> Iterator[Outcome]:
    """Outcomes as they come; what is still to be done is put into `members`."""
    for item in found:
        if isinstance(item, Outcome):
            yield item
        else:
            members.append(item)


def unambiguous(found: Iterable[Member | Outcome], decoder: Decoder, settings: Settings) -> Iterator[Member | Outcome]:
    """What was found without what contradicts each other, see `conflicts`; Outcomes pass through."""
    members: list[Member] = []
    yield from _gathered(found, members)
    for kept in without_conflicts(members, decoder, settings.limits):
        if isinstance(kept, Member):
            yield kept
        else:
            member, result, reason = kept
            yield outcome_of(member, result, reason)


def choose_recipes(
    found: Iterable[Member | Outcome], recipes: list[Recipe], settings: Settings, manifest: Manifest
) -> Iterator[tuple[Series, Recipe] | Outcome]:
    """Group into series and give each its recipe; what recipe or weights are not for, and Outcomes, pass through.

    Of several that fit, one that was made for the weights that are named is preferred.

    Raises:
        RecipeError: Weights are named, and no recipe chosen for a series takes any.
    """
    members: list[Member] = []
    yield from _gathered(found, members)
    chosen: list[tuple[Series, Recipe]] = []
    takes_weights = False
    own = {r.name for r in load_recipes() if r.enhancer.weights == settings.weights} if settings.weights else set()
    for series in group_series(members):
        facts = facts_of(series.members[0].instance)
        try:
            preferred = [recipe for recipe in recipes if recipe.name in own and recipe.fits(facts)]
            recipe = recipes[0] if settings.recipe != "auto" else match_recipe(facts, preferred or recipes)
        except RecipeError as error:
            for member in series.members:
                yield outcome_of(member, "skipped", f"NO_RECIPE: {error}")
            continue
        takes_weights = takes_weights or recipe.enhancer.method == "network"
        if reason := wrong_kind(recipe, facts, manifest):
            for member in series.members:
                yield outcome_of(member, "skipped", reason, recipe=recipe.name, weights=recipe.enhancer.weights)
        else:
            chosen.append((series, recipe))
    if settings.weights and chosen and not takes_weights:
        names = ", ".join(sorted({recipe.name for _, recipe in chosen}))
        raise RecipeError(f"--weights {settings.weights}: no recipe chosen here takes weights ({names})")
    yield from chosen


def choose_methods(
    found: Iterable[Member | Outcome], recipes: list[Recipe], settings: Settings, manifest: Manifest
) -> Iterator[tuple[Series, Recipe, Guide | None] | Outcome]:
    """As `choose_recipes`, with the stored guide that leads the network of each series.

    Raises:
        RecipeError: A guide or weights are named, and no recipe chosen for a series takes any.
        ModelError: Weights or a guide that a recipe needs are missing or altered.
    """
    chosen: list[tuple[Series, Recipe, Guide | None]] = []
    for item in choose_recipes(found, recipes, settings, manifest):
        if isinstance(item, Outcome):
            yield item
        else:
            series, recipe = item
            chosen.append((series, recipe, guide_for(recipe, series, settings, manifest)))
    if settings.guide and chosen and not any(guide for _, _, guide in chosen):
        names = ", ".join(sorted({recipe.name for _, recipe, _ in chosen}))
        raise RecipeError(f"--guide {settings.guide}: no recipe chosen here takes a guide ({names})")
    yield from chosen


def wrong_kind(recipe: Recipe, facts: dict[str, Any], manifest: Manifest) -> str | None:
    """Why a recipe, or the weights that it names, is not for a picture; None where it is.

    Args:
        recipe: Any; identity, which changes nothing, is for everything.
        facts: As `facts_of` gives them.
        manifest: Weights that it lacks are not judged.
    """
    if recipe.enhancer.method == "identity":
        return None
    if not_for := misfits(recipe.match, facts):
        return _wrong_kind(f"recipe {recipe.name} is", not_for, facts)
    return weights_wrong_kind(recipe.enhancer.weights, facts, manifest)


def weights_wrong_kind(key: str | None, facts: dict[str, Any], manifest: Manifest) -> str | None:
    """Why weights are not for a picture; see `wrong_kind`."""
    entry = manifest.weights.get(key or "")
    not_for = misfits(entry.match, facts) if entry else []
    return _wrong_kind(f"weights {key} are", not_for, facts) if not_for else None


def _wrong_kind(what: str, keywords: list[str], facts: dict[str, Any]) -> str:
    return f"WRONG_KIND: {what} not for {', '.join(_said(keyword, facts.get(keyword)) for keyword in keywords)}"


def _said(keyword: str, fact: Any) -> str:
    """An attribute in words, with its value where that can only be a defined term or a UID (PS3.5 section 6.2)."""
    name = dictionary_description(keyword) if dictionary_has_tag(keyword) else keyword
    if not fact:
        return f"a missing {name}"
    if keyword == "SOPClassUID":
        return f"{name} {UID(str(fact)).name}" if is_uid(str(fact)) else f"this {name}"
    return f"{name} {fact}" if keyword in KINDS and _TERM.fullmatch(str(fact)) else f"this {name}"


def recipes_of(settings: Settings) -> list[Recipe]:
    """The recipes that may be chosen: all, or the one that is named.

    Raises:
        RecipeError: No recipe of that name, or weights are named and it takes none.
        ModelError: No weights of that name.
    """
    recipes = list(load_recipes())
    if settings.recipe != "auto":
        recipes = [r for r in recipes if r.name == settings.recipe]
        if not recipes:
            raise RecipeError(f"no recipe {settings.recipe!r}; see `medenhance-dicom recipes list`")
    if settings.weights:
        load_manifest().entry(settings.weights)
        if all(r.enhancer.method != "network" for r in recipes):
            raise RecipeError(f"--weights {settings.weights}: recipe {settings.recipe} takes no weights")
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


_TERM = re.compile(r"[A-Z0-9_ ]{1,16}")  # CS


def _require_uid(instance: Dataset, keyword: str) -> None:
    """See `is_uid`."""
    uid = str(instance.get(keyword) or "")
    if not uid:
        raise UnreadableInstanceError("missing or empty", keyword=keyword)
    if not is_uid(uid):
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
        RecipeError: A recipe, guide or weights are named that are not there, or that nothing here takes.
    """
    recipes, manifest = recipes_of(settings), load_manifest()
    with tempfile.TemporaryDirectory(prefix="medenhance-") as scratch, Decoder(limits=settings.limits) as decoder:
        found = unambiguous(read_members(paths, Path(scratch), decoder, settings, recipes), decoder, settings)
        for item in choose_methods(found, recipes, settings, manifest):
            if isinstance(item, Outcome):
                yield {
                    "result": item.result, "instances": 1, "modality": None, "size": None, "recipe": item.recipe,
                    "weights": item.weights, "guide": None,
                    "source": item.source, "reason": item.reason,
                }  # fmt: skip
                continue
            series, recipe, guide = item
            first = series.members[0].instance
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
