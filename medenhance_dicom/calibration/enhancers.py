"""Whose honest results: weights through a shipped recipe, a recipe, or the conventional methods."""

from __future__ import annotations

from medenhance_dicom.calibration.measuring import Conventional, Honest, Prepared
from medenhance_dicom.errors import RecipeError
from medenhance_dicom.guides import choose_guide
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.prepare import prepare_recipe
from medenhance_dicom.recipe import Recipe, load_recipes

__all__ = ["CONVENTIONAL", "honest_of"]

CONVENTIONAL = "conventional"


def honest_of(weights: str | None, recipe: str | None) -> tuple[str, Honest]:
    """The key of a calibration, and what makes its honest pairs.

    Args:
        weights: A key of the manifest; of the shipped recipes with them that of the highest priority decides on masks,
            resolution and look.
        recipe: A shipped recipe's name, in place of weights; None for both: conventional methods.

    Raises:
        RecipeError: No such recipe, or no recipe has these weights.
        ModelError: No such weights, or they are missing or altered.
    """
    if weights is None and recipe is None:
        return CONVENTIONAL, Conventional()
    fitting = [r for r in load_recipes() if recipe in (None, r.name) and weights in (None, r.enhancer.weights)]
    if not fitting:
        raise RecipeError(f"no recipe {recipe}" if recipe else f"no recipe has the weights {weights}")
    first = max(fitting, key=lambda recipe: recipe.priority)
    return weights or first.name, prepared(first)


def prepared(recipe: Recipe) -> Prepared:
    """A recipe on the CPU, with the guide that its modality takes."""
    guide, channels = None, None
    if key := recipe.enhancer.weights:
        entry = load_manifest().entry(key)
        channels = entry.input.channels
        if entry.takes_guide:
            modality = str(recipe.match.get("Modality", ("",))[0])
            guide = choose_guide(key, entry, recipe.enhancer.guide, {"Modality": modality})
    return Prepared(prepare_recipe(recipe, device="cpu", engine="auto", precision="auto", guide=guide), channels)
