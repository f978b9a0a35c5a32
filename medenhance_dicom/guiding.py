"""Making guides out of pictures and DICOM files, and trying out what the choice of guide does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom import masks
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.dicom_pictures import Readable, readable
from medenhance_dicom.errors import FrameError, InputError, ModelError, RecipeError, UnsupportedInstanceError
from medenhance_dicom.guides import (
    PICTURE_SUFFIXES,
    Guide,
    Influence,
    encode_guide,
    find_guides,
    influence,
    load_guide,
    read_picture,
)
from medenhance_dicom.manifest import Manifest, load_manifest
from medenhance_dicom.prepare import prepare_recipe
from medenhance_dicom.recipe import EnhancerRecipe, Recipe, ResolutionRecipe, load_recipes
from medenhance_dicom.report import UNREADABLE, Outcome
from medenhance_dicom.selection import (
    Settings,
    facts_of,
    outcome_of,
    weights_wrong_kind,
)


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
    facts: dict[str, Any] = field(default_factory=dict)
    """By which weights are for it or not; empty for a picture that is not DICOM."""


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
    with tempfile.TemporaryDirectory(prefix="medenhance-") as folder, Decoder(limits=settings.limits) as decoder:
        for item in readable(others, Path(folder), decoder, settings):
            if isinstance(item, Outcome):
                if Path(item.source).suffix.lower() not in PICTURE_SUFFIXES:
                    yield item
                continue
            try:
                yield _picture(item)
            except InputError as error:
                yield outcome_of(item.member, "failed", f"{UNREADABLE}: {error}")
            except UnsupportedInstanceError as error:
                yield outcome_of(item.member, "skipped", str(error))
            except FrameError as error:
                yield outcome_of(item.member, "failed", str(error))


def _picture(found: Readable) -> Picture:
    member, recipe = found.member, found.recipe

    def region(unit: NDArray[np.float32], padding: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        inside = masks.field_of_view(unit, recipe.mask.field_of_view)
        return inside if padding is None else inside & ~padding

    frame = found.first_frame(region)
    modality = frame.instance.get("Modality")
    return Picture(member.located.name, frame.unit, frame.enhance_here, modality, recipe, facts_of(member.instance))


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
        RecipeError: The field is not given, and the files do not say one; the weights are not for a DICOM file.
    """
    manifest = load_manifest()
    manifest.entry(weights)
    pictures = []
    for item in read_pictures(paths, Settings()):
        if isinstance(item, Picture):
            _require_kind(item, weights, manifest)
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
        RecipeError: It is not clear which weights are meant, they take no guide, or they are not for the DICOM file.
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
    _require_kind(picture, weights, manifest)
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


def _require_kind(picture: Picture, weights: str, manifest: Manifest) -> None:
    if picture.facts and (wrong := weights_wrong_kind(weights, picture.facts, manifest)):
        raise RecipeError(f"{picture.name}: {wrong}")


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
