"""Recipes: which pictures get which enhancement, as data in pipelines/*.toml."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medenhance_dicom.enhancer import Look
from medenhance_dicom.errors import RecipeError
from medenhance_dicom.matching import Fact, Match, misfits
from medenhance_dicom.tables import checked, read_table

Parameter: TypeAlias = bool | int | float | str | tuple[float, ...]


class _Part(BaseModel):
    """A frozen table of a recipe; a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class IntensityRecipe(_Part):
    """How modality values become [0, 1]."""

    method: Literal["range", "window", "percentile"] = "range"
    """range: all legal values; window: the image's own, else percentile; percentile: of what `scope` says."""
    scope: Literal["auto", "image", "series"] = "auto"
    """What shares a map by percentile. image: no two instances; series: all; auto: the slices of a volume."""
    low: Annotated[float, Field(ge=0, lt=100)] = 0.5
    """Lower percentile."""
    high: Annotated[float, Field(gt=0, le=100)] = 99.5
    """Upper percentile."""
    n4: bool = False
    """Divide by the N4 bias field first (magnetic resonance)."""

    @model_validator(mode="after")
    def _ordered(self) -> IntensityRecipe:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class MaskRecipe(_Part):
    """Which pixels are left as they are."""

    field_of_view: Literal["none", "ellipse", "border"] = "none"
    """ellipse: the round field of a fundus camera; border: an endoscope's field without its black surround."""
    keep_text: bool = False
    """Leave burned-in text and calipers untouched."""


class EnhancerRecipe(_Part):
    """What is done to the unit frames."""

    method: Literal["network", "clahe", "retinex", "field-normalisation", "identity"]
    """network needs weights; the others need none."""
    weights: str | None = None
    """A key of models/manifest.toml."""
    guide: str = "auto"
    """A stored guide that fits these weights; auto: by modality and camera. Only networks led by a guide look at it."""
    strength: Annotated[float, Field(gt=0, le=2)] = 1.0
    """The network's change is multiplied by this; conventional methods have a parameter of their own."""
    look: Look = "natural"
    """Of the network "fields": as a good camera would have taken it, or of even light and colour; others have one."""
    parameters: dict[str, Parameter] = {}
    """The conventional method's own parameters, see conventional.py."""

    @model_validator(mode="after")
    def _weights_only_for_networks(self) -> EnhancerRecipe:
        if self.method == "network" and not self.weights:
            raise ValueError("method network needs weights")
        if self.method != "network" and (self.weights or self.guide != "auto"):
            raise ValueError(f"method {self.method} takes no weights and no guide")
        return self


class ResolutionRecipe(_Part):
    """At which size the enhancer works; the output always has the source's rows and columns."""

    way: Literal["whole", "pyramid"] = "whole"
    """whole: the frame at its own size; pyramid: at working_size, the source's fine levels kept."""
    working_size: Annotated[int, Field(ge=32, le=8192)] | None = None
    """Longest side that the enhancer sees."""
    padding: Literal["reflect", "black", "field"] = "reflect"
    """What fills the frame up to the enhancer's size multiple; black for pictures with a black surround; field: what
    the masks leave out is continued from the field's own edge before the enhancer sees it."""
    gain_bound: Annotated[float, Field(ge=1, le=8)] = 2.0
    """The source's fine levels are scaled by at most this factor, up or down."""

    @model_validator(mode="after")
    def _pyramid_has_a_size(self) -> ResolutionRecipe:
        if self.way == "pyramid" and self.working_size is None:
            raise ValueError("way pyramid needs working_size")
        return self


class GateRecipe(_Part):
    """When the structure counts as kept."""

    level: Annotated[int, Field(ge=0, le=5)] = 3
    """Level of the Laplacian pyramid."""
    minimum: Annotated[float, Field(ge=-1, le=1)] | None = None
    """LaSSIM below this keeps the original; None: the manifest's threshold of the weights."""


class DerivedRecipe(_Part):
    """What the derived series says of itself."""

    series_description: Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[ -\[\]-~]+$")] = "enhanced"
    """Suffix to the source's Series Description (LO, 64 characters in all)."""
    series_number_offset: Annotated[int, Field(ge=0, le=99)] = 1
    """The derived Series Number is 100 times the source's plus this; tells recipes apart."""
    steps: tuple[Literal["contrast", "denoise", "sharpen", "normalise", "ai"], ...] = ("contrast",)
    """Derivation codes, in the order of the steps."""


class Recipe(_Part):
    """One use: what it fits, and every decision on the way to the derived series."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=48)]
    """Also the file's name without .toml."""
    summary: str
    """One line for people."""
    version: Annotated[int, Field(ge=1)] = 1
    """Raised with every change of the recipe's meaning."""
    priority: int = 0
    """Of two recipes that fit, the higher one is taken."""
    match: Match
    """What it is for. The identity recipe, which changes nothing, may be named for everything else too."""
    intensity: IntensityRecipe = IntensityRecipe()
    mask: MaskRecipe = MaskRecipe()
    enhancer: EnhancerRecipe
    resolution: ResolutionRecipe = ResolutionRecipe()
    gate: GateRecipe = GateRecipe()
    derived: DerivedRecipe = DerivedRecipe()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the recipe as canonical JSON: sorted keys, no spaces, every default written out.

        But for keys that came after version 1 of this format, so that recipes without them keep their digests.
        """
        value = self.model_dump(mode="json")
        if self.intensity.scope == "auto":
            del value["intensity"]["scope"]
        if self.enhancer.look == "natural":
            del value["enhancer"]["look"]
        canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def parameters_in_words(self) -> str:
        """What was set of the method, as a derived object says it."""
        parameters: dict[str, object] = dict(self.enhancer.parameters)
        if self.enhancer.strength != 1:
            parameters["strength"] = self.enhancer.strength
        if self.enhancer.look != "natural":
            parameters["look"] = self.enhancer.look
        return ", ".join(f"{name} {value}" for name, value in parameters.items())

    def fits(self, facts: Mapping[str, Fact]) -> bool:
        """Whether every keyword of `match` fits. A multi-valued fact (Image Type) fits by any of its values."""
        return not misfits(self.match, facts)


def pipelines_folder() -> Path:
    """The recipes inside the installed package, else those beside it in a checkout."""
    package = Path(str(resources.files("medenhance_dicom")))
    installed = package / "_pipelines"
    return installed if installed.is_dir() else package.parent / "pipelines"


def load_recipe(path: Path) -> Recipe:
    """Read one recipe.

    Raises:
        RecipeError: not readable, not TOML, or a key or value is wrong; names the file and the key.
    """
    return checked(Recipe, read_table(path, RecipeError), path, RecipeError)


def load_recipes(folder: Path | None = None) -> list[Recipe]:
    """Read every recipe of `folder` (default: the shipped ones), sorted by name; subfolders are not looked at.

    Raises:
        RecipeError: a recipe is wrong, its name is not its file's name, or there is no such folder.
    """
    folder = folder or pipelines_folder()
    if not folder.is_dir():
        raise RecipeError(f"{folder.name}: no such folder of recipes")
    recipes = []
    for path in sorted(folder.glob("*.toml")):
        recipe = load_recipe(path)
        if recipe.name != path.stem:
            raise RecipeError(f"{path.name}: name: {recipe.name!r} is not the file's name")
        recipes.append(recipe)
    return sorted(recipes, key=lambda recipe: recipe.name)


def match_recipe(facts: Mapping[str, Fact], recipes: Iterable[Recipe]) -> Recipe:
    """Choose the recipe that fits: highest priority, then most keywords, then first by name.

    Args:
        facts: DICOM keyword -> value (or values) of the instance, e.g. Modality, SOPClassUID, ImageType,
            PhotometricInterpretation.
        recipes: the candidates, in any order.

    Raises:
        RecipeError: none fits.
    """
    fitting = [recipe for recipe in recipes if recipe.fits(facts)]
    if not fitting:
        raise RecipeError("no recipe fits this Modality, SOP class and photometric interpretation")
    return min(fitting, key=lambda recipe: (-recipe.priority, -len(recipe.match), recipe.name))
