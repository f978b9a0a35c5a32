"""What is compared: recipes, baselines, the outputs of other programs, and nothing at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.evaluation.pictures import Case, Unit
from medenhance_dicom.evaluation.recipe import ORIGINAL
from medenhance_dicom.pyramid import enhance_whole

BASELINE, DIRECTORY = "baseline:", "directory:"


@dataclass(frozen=True)
class Candidate:
    """One enhancer, ready to run."""

    id: str
    """As it was asked for."""
    about: str
    """One line: what runs, with which weights and guide."""
    digest: Callable[[str], str]
    """Picture's name -> a digest of everything but the picture that decides the result."""
    enhance: Callable[[Case], Unit]
    """(H, W, C) in [0, 1], as the case's source."""


@dataclass(frozen=True)
class Runtime:
    """Where networks run; words as `inference` takes them."""

    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"


def build_candidates(ids: Sequence[str], runtime: Runtime, root: Path) -> list[Candidate]:
    """Make enhancers ready.

    Args:
        ids: `original`, a recipe's name, `baseline:ID` or `directory:PATH`.
        runtime: For networks.
        root: Of relative paths.

    Raises:
        RecipeError: No such recipe, baseline or folder.
        ModelError: Weights or a guide are missing or altered.
    """
    return [_candidate(name, runtime, root) for name in ids]


def _candidate(name: str, runtime: Runtime, root: Path) -> Candidate:
    if name == ORIGINAL:
        return Candidate(name, "the picture as it is", lambda _: _digest(name), lambda case: case.source)
    if name.startswith(BASELINE):
        return _baseline(name)
    if name.startswith(DIRECTORY):
        return _directory(name, root)
    return _recipe(name, runtime)


def _baseline(name: str) -> Candidate:
    from medenhance_dicom.baselines import build_baseline

    enhancer = build_baseline(name.removeprefix(BASELINE))

    def enhance(case: Case) -> Unit:
        return enhance_whole(case.source, enhancer, inside=case.inside)

    values = ", ".join(f"{f.name}={getattr(enhancer, f.name)!r}" for f in fields(enhancer) if f.init)
    about = f"{type(enhancer).__name__}({values})"
    return Candidate(name, about, lambda _: _digest(name, about), enhance)


def _directory(name: str, root: Path) -> Candidate:
    from medenhance_dicom.baselines import Directory

    folder = root / name.removeprefix(DIRECTORY)
    if not folder.is_dir():
        raise RecipeError(f"{name}: no such folder")
    directory = Directory(folder)

    def digest(picture: str) -> str:
        files = sorted(p for p in folder.iterdir() if p.stem in (picture, Path(picture).stem) and p.is_file())
        return _digest(name, *(hashlib.sha256(p.read_bytes()).hexdigest() for p in files))

    return Candidate(name, "outputs of another program", digest, lambda case: directory.picture(case.name, case.source))


def _recipe(name: str, runtime: Runtime) -> Candidate:
    from medenhance_dicom.guides import choose_guide
    from medenhance_dicom.manifest import load_manifest
    from medenhance_dicom.prepare import prepare_recipe
    from medenhance_dicom.recipe import load_recipes

    found = {recipe.name: recipe for recipe in load_recipes()}
    if name not in found:
        raise RecipeError(
            f"no enhancer {name!r}: name original, a recipe (`medenhance-dicom recipes list`), baseline:ID or "
            "directory:PATH"
        )
    recipe, guide = found[name], None
    if recipe.enhancer.weights:
        entry = load_manifest().entry(recipe.enhancer.weights)
        if entry.takes_guide:
            facts = {"Modality": recipe.match.get("Modality", ("",))[0]}
            guide = choose_guide(recipe.enhancer.weights, entry, recipe.enhancer.guide, facts)
    prepared = prepare_recipe(
        recipe, device=runtime.device, engine=runtime.engine, precision=runtime.precision, guide=guide
    )
    facts_of_run = (
        recipe.digest, prepared.weights_digest, prepared.guide_digest, prepared.engine, prepared.precision,
    )  # fmt: skip
    parts = (
        prepared.method, prepared.weights_key, prepared.guide_key and f"guide {prepared.guide_key}",
        f"{prepared.engine} {prepared.precision}",
    )  # fmt: skip
    return Candidate(
        name,
        ", ".join(filter(None, parts)),
        lambda _: _digest(name, *map(str, facts_of_run)),
        lambda case: prepared.enhance_picture(case.source),
    )


def checked(candidate: Candidate, case: Case) -> Unit:
    """The enhanced picture, held to the contract of an enhancer.

    Raises:
        RecipeError: Another shape came back, or values that are no numbers.
        MedenhanceError: As the enhancer raises.
    """
    try:
        result = candidate.enhance(case)
    except ValueError as error:
        raise RecipeError(f"{candidate.id}: {error}") from error
    if result.shape != case.source.shape:
        raise RecipeError(f"{candidate.id}: gave {result.shape} for {case.source.shape}")
    if not np.isfinite(result).all():
        raise RecipeError(f"{candidate.id}: gave values that are no numbers")
    return np.clip(result, 0, 1).astype(np.float32)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
