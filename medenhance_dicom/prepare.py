"""A recipe made ready to run: its enhancer on a device, its masks, its resolution, its thresholds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom import intensity, masks, pyramid
from medenhance_dicom.conventional import build_conventional
from medenhance_dicom.enhancer import Enhancer, EnhancerSpec
from medenhance_dicom.gate import Evidence, Limit, Poor, Thresholds
from medenhance_dicom.guides import Guide
from medenhance_dicom.manifest import GateLimits, Manifest, load_limits, load_manifest
from medenhance_dicom.provenance import Provenance, steps_of
from medenhance_dicom.recipe import Recipe

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]

DEFAULT_THRESHOLDS = Thresholds(minimum=0.5, warn_below=0.6)
"""For conventional methods whose recipe says nothing: honest local contrast methods score around 0.75."""


def runtime(device: str, engine: str, precision: str) -> tuple[str, str, str]:
    """The device, engine and precision that the words `auto` stand for on this machine.

    Raises:
        ModelError: One of them is not available here.
    """
    from medenhance_dicom.inference import choose_device, choose_engine, choose_precision

    place = choose_device(device)
    chosen = choose_engine(engine, place)
    return str(place), chosen, choose_precision(precision, place, chosen)


@dataclass(frozen=True)
class PreparedRecipe:
    """See `prepare_recipe`."""

    recipe: Recipe
    enhancer: Enhancer
    thresholds: Thresholds
    engine: str
    precision: str
    method: str
    """The network's or the conventional method's name."""
    weights_key: str | None = None
    weights_digest: str | None = None
    guide_key: str | None = None
    guide_digest: str | None = None

    def region(self, unit: Unit, padding: Mask | None) -> Mask:
        """Where a frame may change: inside the field of view, off burned-in text, off padding.

        Args:
            unit: (H, W, C) in [0, 1].
            padding: (H, W), True for padding; None for none.
        """
        return region_of(self.recipe, unit, padding)

    def enhance_picture(self, unit: Unit, region: Mask | None = None) -> Unit:
        """One picture (H, W, C) in [0, 1], enhanced by itself, so that no other has a part in its pixels.

        Args:
            unit: (H, W, C) in [0, 1].
            region: (H, W), where it may change; None: as `region` says.

        Returns:
            The same shape.
        """
        region = self.region(unit, None) if region is None else region
        after = self._at_resolution(self._without_bias(unit, region)[None], region[None])[0]
        return np.where(region[..., None], after, unit).astype(np.float32)

    def _without_bias(self, unit: Unit, region: Mask) -> Unit:
        if not self.recipe.intensity.n4 or unit.shape[2] != 1:
            return unit
        field = intensity.bias_field_n4(unit[..., 0], region)
        return np.clip(unit / field[..., None], 0, 1).astype(np.float32)

    def _at_resolution(self, units: Unit, regions: Mask) -> Unit:
        resolution = self.recipe.resolution
        if resolution.way == "pyramid" and resolution.working_size is not None:
            return pyramid.enhance_pyramid(
                units,
                self.enhancer,
                resolution.working_size,
                gain_bound=resolution.gain_bound,
                inside=regions,
                padding=resolution.padding,
            )
        return pyramid.enhance_whole(units, self.enhancer, inside=regions, padding=resolution.padding)

    def provenance(self, verdict: str, *, made: datetime) -> Provenance:
        """What an instance enhanced this way says about its making; `verdict` as `verdicts.in_words` gives it."""
        recipe = self.recipe
        return Provenance(
            recipe=recipe.name,
            recipe_digest=recipe.digest,
            method=self.method,
            made=made,
            weights=self.weights_key,
            weights_digest=self.weights_digest,
            guide=self.guide_key,
            guide_digest=self.guide_digest,
            steps=steps_of(recipe.derived.steps),
            parameters=recipe.parameters_in_words(),
            verdict=verdict,
            engine=self.engine,
            precision=self.precision,
            series_description=recipe.derived.series_description,
            series_number_offset=recipe.derived.series_number_offset,
            not_quantitative=True,
        )


@dataclass(frozen=True)
class Strengthened:
    """An enhancer whose change is multiplied by a factor; what it leaves alone stays alone."""

    enhancer: Enhancer
    strength: float

    @property
    def spec(self) -> EnhancerSpec:
        """What the enhancer needs."""
        return self.enhancer.spec

    def __call__(self, frames: Unit) -> Unit:
        """`frames`: float32 (N, H, W, C) in [0, 1]. Returns the same shape and range."""
        change = self.enhancer(frames) - frames
        return np.clip(frames + np.float32(self.strength) * change, 0, 1)


def region_of(recipe: Recipe, unit: Unit, padding: Mask | None) -> Mask:
    """Where a recipe lets a frame change; see `PreparedRecipe.region`."""
    here = masks.field_of_view(unit, recipe.mask.field_of_view)
    if recipe.mask.keep_text:
        here = here & ~masks.burned_in_text(unit)
    return here if padding is None else here & ~padding


def prepare_recipe(
    recipe: Recipe, *, device: str, engine: str, precision: str, guide: Guide | None = None
) -> PreparedRecipe:
    """Load what a recipe needs.

    Args:
        recipe: The recipe.
        device: As `inference.choose_device` takes it.
        engine: As `inference.choose_engine` takes it.
        precision: As `inference.choose_precision` takes it.
        guide: What leads the network, see `guides.choose_guide`; None for recipes that take none.

    Raises:
        ModelError: Its weights are missing or altered, lack their guide, or do not run here.
    """
    if recipe.enhancer.method != "network":
        method = build_conventional(recipe.enhancer.method, recipe.enhancer.parameters)
        return PreparedRecipe(recipe, method, thresholds_of(recipe), "numpy", "fp32", recipe.enhancer.method)
    from medenhance_dicom.inference import load_enhancer

    manifest = load_manifest()
    key = recipe.enhancer.weights or ""
    entry = manifest.entry(key)
    v_z = guide.v_z if guide else None
    look = recipe.enhancer.look
    network = load_enhancer(
        key, manifest=manifest, device=device, engine=engine, precision=precision, v_z=v_z, look=look
    )
    enhancer: Enhancer = network
    if recipe.enhancer.strength != 1:
        enhancer = Strengthened(network, recipe.enhancer.strength)
    return PreparedRecipe(
        recipe,
        enhancer,
        thresholds_of(recipe),
        network.engine,
        network.precision,
        entry.method,
        weights_key=key,
        weights_digest=entry.sha256,
        guide_key=guide.key if guide else None,
        guide_digest=guide.digest if guide else None,
    )


def thresholds_of(recipe: Recipe) -> Thresholds:
    """The gate's limits for what a recipe makes, without loading its network.

    Raises:
        ModelError: No such weights.
    """
    if recipe.enhancer.method == "network":
        default = weights_thresholds(recipe.enhancer.weights or "", recipe=recipe.name)
    else:
        default = default_thresholds(recipe.name)
    if recipe.gate.minimum is None:
        return default
    return replace(default, minimum=recipe.gate.minimum, warn_below=max(default.warn_below, recipe.gate.minimum))


def weights_thresholds(key: str, manifest: Manifest | None = None, recipe: str = "") -> Thresholds:
    """The limits of weights, without loading them; in doubt where they are not calibrated, or without the detector.

    Args:
        key: Of the weights.
        manifest: By default `load_manifest()`.
        recipe: Its own limits are taken where the manifest has any: the same weights in another look, say.

    Raises:
        ModelError: No such weights, or their calibration is missing or altered.
    """
    manifest = load_manifest() if manifest is None else manifest
    entry = manifest.entry(key).gate
    limits = load_limits(key, manifest.gate.get(recipe, entry), manifest)
    doubt = ""
    if not limits.name:
        doubt = f"the limits of weights {key} were set by hand, see `calibrate`"
    elif not limits.detector or "local" not in limits.checks:
        doubt = f"the limits of weights {key} were calibrated without a detector of changed structure"
    return replace(_thresholds(limits), doubt=doubt, wanted=() if doubt else ("local",))


def default_thresholds(recipe: str = "") -> Thresholds:
    """The limits for what has no weights: a recipe's own, else those of all conventional methods.

    Raises:
        ModelError: Their calibration is missing or altered.
    """
    manifest = load_manifest()
    for key in (recipe, "conventional"):
        if key in manifest.gate:
            return _thresholds(load_limits(key, manifest.gate[key], manifest))
    return DEFAULT_THRESHOLDS


def _thresholds(limits: GateLimits) -> Thresholds:
    ordinary, poor = (
        {name: Limit(check.warn, check.withhold) for name, check in checks.items()}
        for checks in (limits.checks, limits.poor.checks if limits.poor else {})
    )
    return Thresholds(
        limits.minimum,
        limits.warn_below,
        ordinary,
        limits.name,
        poor=Poor(limits.poor.below, poor) if limits.poor else None,
        evidence=Evidence(limits.evidence.honest, limits.evidence.altered) if limits.evidence else None,
    )
