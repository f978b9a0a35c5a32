"""models/manifest.toml: the only way in for weights. Verifies, builds, fills; light until weights are asked for."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medenhance_dicom.errors import ModelError
from medenhance_dicom.matching import Match
from medenhance_dicom.tables import checked, read_table

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "DetectorEntry",
    "GateEntry",
    "GateLimits",
    "GuideEncoderEntry",
    "InputContract",
    "Manifest",
    "WeightsEntry",
    "learned_pictures",
    "load_colour_detector",
    "load_detector",
    "load_guide_encoder",
    "load_limits",
    "load_manifest",
    "load_network",
    "models_folder",
    "verify_all",
]

ENVIRONMENT = "MEDENHANCE_MODELS"
FILE_NAME = "manifest.toml"
GUIDED_NETWORKS = ("hqgnet", "fields")
"""Led by a stored guide."""
KINDS = ("Modality", "SOPClassUID", "PhotometricInterpretation")
"""By which weights say what they are for."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputContract(_Entry):
    """What the network takes and gives."""

    channels: Literal[1, 3]
    range: tuple[float, float] = (-1.0, 1.0)
    """Range of the network's values; every network of this package works in [-1, 1]."""
    multiple_of: int = Field(1, ge=1)
    """Rows and columns have to be multiples of this."""
    working_size: int | None = Field(None, ge=1)
    """Side of the pictures it was trained on."""

    @model_validator(mode="after")
    def _check_range(self) -> InputContract:
        if self.range != (-1.0, 1.0):
            raise ValueError("range has to be [-1, 1]")
        return self


class GateEntry(_Entry):
    """The gate's limits: a calibration's file, or LaSSIM limits set by hand; see `gate.Thresholds`."""

    calibration: str | None = None
    """Path of the file that `calibrate` wrote, relative to the manifest."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Of that file."""
    minimum: float | None = Field(None, ge=-1, le=1)
    warn_below: float | None = Field(None, ge=-1, le=1)

    @model_validator(mode="after")
    def _check_one_way(self) -> GateEntry:
        calibrated, by_hand = (self.calibration, self.sha256), (self.minimum, self.warn_below)
        if not (all(calibrated) and by_hand == (None, None)) and not (
            calibrated == (None, None) and None not in by_hand
        ):
            raise ValueError("wanted calibration and sha256, or minimum and warn_below")
        if self.minimum is not None and self.warn_below is not None and self.warn_below < self.minimum:
            raise ValueError("warn_below is below minimum")
        return self


class CheckLimits(BaseModel):
    """Of one check, as a calibration has them."""

    model_config = ConfigDict(frozen=True)

    warn: float
    withhold: float


class PoorLimits(BaseModel):
    """Of really poor sources, as a calibration has them; see `gate.Poor`."""

    model_config = ConfigDict(frozen=True)

    below: float
    checks: dict[str, CheckLimits]


class EvidenceQuantiles(BaseModel):
    """Of excesses, as a calibration has them; see `gate.Evidence`."""

    model_config = ConfigDict(frozen=True)

    honest: tuple[float, ...] = Field(min_length=2)
    altered: tuple[float, ...] = Field(min_length=2)


class GateLimits(BaseModel):
    """What `calibrate` wrote, as far as verdicts need it."""

    model_config = ConfigDict(frozen=True)

    minimum: float = Field(ge=-1, le=1)
    warn_below: float = Field(ge=-1, le=1)
    checks: dict[str, CheckLimits] = {}
    poor: PoorLimits | None = None
    evidence: EvidenceQuantiles | None = None
    detector: str = ""
    """SHA-256 of the detector whose odds `checks` limits; empty: of none."""
    colour_detector: str = ""
    """The same of the check `colour`."""
    name: str = ""
    """The file's stem and the first 12 digits of its SHA-256; empty for limits set by hand."""


class GuideEncoderEntry(_Entry):
    """The cue extractor G, which makes guides; inference does not need it."""

    network: Literal["guide_encoder", "look_encoder"] = "guide_encoder"
    """HQG-Net's, or that of "fields"."""

    file: str
    """Path of the safetensors file, relative to the manifest."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    config: dict[str, Any] = {}
    """The encoder's keyword arguments."""
    size: int = Field(ge=64)
    """Side of the square that a picture is brought to before it is encoded."""


class DetectorEntry(_Entry):
    """[detector], [colour_detector]: a network by which the gate sees altered structure, or colour."""

    file: str
    """Path of the safetensors file, relative to the manifest; its metadata tells what it was learned from."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    config: dict[str, Any] = {}
    """The network's keyword arguments."""
    licence: str
    summary: str = ""


class WeightsEntry(_Entry):
    """One [weights.<key>] of the manifest."""

    file: str
    """Path of the safetensors file, relative to the manifest."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    network: str
    """A key of `networks.NETWORKS`."""
    config: dict[str, Any] = {}
    """The network's keyword arguments."""
    guide_encoder: GuideEncoderEntry | None = None
    """For the networks that a guide leads: "hqgnet", "fields"."""
    match: Match
    """The only pictures that they are for: values of Modality, SOPClassUID and PhotometricInterpretation."""
    input: InputContract
    gate: GateEntry
    device_uid: str = Field(pattern=r"^[0-9.]{1,64}$")
    """Changes with every training; goes into the derived instance."""
    trained: dict[str, Any] = {}
    """Recipe, commit, seed, data and its licences, steps."""
    licence: str
    research_only: bool
    """True where the licence of the data or the state of validation forbids clinical use."""
    summary: str = ""

    @field_validator("match")
    @classmethod
    def _check_match(cls, match: Match) -> Match:
        if set(match) != set(KINDS):
            raise ValueError(f"wanted {', '.join(KINDS)}, and nothing else")
        return match

    @model_validator(mode="after")
    def _check_guide_encoder(self) -> WeightsEntry:
        if self.guide_encoder is not None and self.network not in GUIDED_NETWORKS:
            raise ValueError(f"guide_encoder is for network {' or '.join(GUIDED_NETWORKS)}")
        return self

    @property
    def takes_guide(self) -> bool:
        """Whether the network needs a stored guide."""
        return self.method in GUIDED_NETWORKS

    @property
    def method(self) -> str:
        """What derived objects call it: the network, and of an HQG-Net without a guide also what stands for it."""
        guidance = self.config.get("guidance", "guided") if self.network == "hqgnet" else "guided"
        return self.network if guidance == "guided" else f"{self.network}-{guidance}"


class Manifest(_Entry):
    """The manifest and the folder it lies in."""

    root: Path
    weights: dict[str, WeightsEntry] = {}
    gate: dict[str, GateEntry] = {}
    """Limits of a recipe's own, by its name; "conventional": for all recipes without weights or limits."""
    detector: DetectorEntry | None = None
    """None: the gate has no checks `local` and `displacement`."""
    colour_detector: DetectorEntry | None = None
    """None: the gate has no check `colour`."""

    @property
    def detectors(self) -> dict[str, DetectorEntry]:
        """Those that there are, by their table's name."""
        found = {"detector": self.detector, "colour_detector": self.colour_detector}
        return {name: entry for name, entry in found.items() if entry is not None}

    def entry(self, key: str) -> WeightsEntry:
        """The entry of some weights.

        Raises:
            ModelError: No such key.
        """
        if key not in self.weights:
            raise ModelError(f"no weights '{key}' in {FILE_NAME}; it has {', '.join(sorted(self.weights)) or 'none'}")
        return self.weights[key]


def models_folder() -> Path:
    """$MEDENHANCE_MODELS, else the models shipped in the package, else those of the source tree.

    Raises:
        ModelError: None of them holds a manifest.
    """
    package = Path(__file__).resolve().parent
    named = os.environ.get(ENVIRONMENT)
    folders = [Path(named)] if named else [package / "_models", package.parent / "models"]
    for folder in folders:
        if (folder / FILE_NAME).is_file():
            return folder
    raise ModelError(f"no {FILE_NAME} in {' or '.join(str(folder) for folder in folders)}")


def load_manifest(folder: Path | None = None) -> Manifest:
    """Read manifest.toml; opens no weights and imports no torch.

    Args:
        folder: Where it lies; by default `models_folder()`.

    Raises:
        ModelError: Missing, not TOML, or an entry is wrong; names file and key.
    """
    folder = models_folder() if folder is None else folder
    path = folder / FILE_NAME
    return checked(Manifest, read_table(path, ModelError) | {"root": folder}, path, ModelError)


def load_network(key: str, manifest: Manifest | None = None) -> nn.Module:
    """Build a network and fill it with verified weights.

    Args:
        key: A [weights.<key>].
        manifest: By default `load_manifest()`.

    Returns:
        The network in eval mode, float32, on the CPU, without gradients; (B, C, H, W) in [-1, 1] to the same. One
        that a guide leads comes as its bare generator, of pictures in [0, 1] and v_z (B, 64).

    Raises:
        ModelError: Unknown key or network, missing or altered file, keys or shapes that do not fit, non-finite weights.
    """
    manifest = load_manifest() if manifest is None else manifest
    entry = manifest.entry(key)
    return _filled(key, manifest, entry, entry.network)


def load_guide_encoder(key: str, manifest: Manifest | None = None) -> nn.Module:
    """Build the guide encoder of some weights and fill it with its verified weights.

    Args:
        key: A [weights.<key>] of a network that a guide leads.
        manifest: By default `load_manifest()`.

    Returns:
        The encoder as `load_network` returns networks; (B, C, H, W) in [0, 1] to (B, 64).

    Raises:
        ModelError: These weights have no guide encoder; otherwise as `load_network`.
    """
    manifest = load_manifest() if manifest is None else manifest
    encoder = manifest.entry(key).guide_encoder
    if encoder is None:
        raise ModelError(f"{key}: {FILE_NAME} names no guide encoder for these weights")
    return _filled(key, manifest, encoder, encoder.network)


def load_detector(manifest: Manifest | None = None) -> nn.Module | None:
    """Build the gate's detector and fill it with its verified weights.

    Args:
        manifest: By default `load_manifest()`.

    Returns:
        The network as `load_network` returns networks, see `networks.AlterationDetector`; None where there is none.

    Raises:
        ModelError: As `load_network`.
    """
    manifest = load_manifest() if manifest is None else manifest
    return None if manifest.detector is None else _filled("detector", manifest, manifest.detector, "detector")


def load_colour_detector(manifest: Manifest | None = None) -> nn.Module | None:
    """Build what the gate sees changed colour by, as `load_detector` does; see `networks.ColourDetector`."""
    manifest = load_manifest() if manifest is None else manifest
    entry = manifest.colour_detector
    return None if entry is None else _filled("colour_detector", manifest, entry, "colour_detector")


def load_limits(key: str, entry: GateEntry, manifest: Manifest) -> GateLimits:
    """The gate's limits of an entry, from its verified calibration where it has one.

    Args:
        key: Whose they are, for messages.
        entry: In this manifest.
        manifest: The folder.

    Raises:
        ModelError: The calibration is missing, was altered, is none, or was made with another detector.
    """
    if entry.calibration is None or entry.sha256 is None:
        return GateLimits.model_validate(entry.model_dump(include={"minimum", "warn_below"}))
    content = _verified_bytes(key, manifest, entry.calibration, entry.sha256)
    name = f"{Path(entry.calibration).stem} {entry.sha256[:12]}"
    try:
        limits = GateLimits.model_validate_json(content).model_copy(update={"name": name})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"{key}: {entry.calibration}: {where}: {first['msg']}") from error
    for name, digest in (("detector", limits.detector), ("colour_detector", limits.colour_detector)):
        if digest and (name not in manifest.detectors or digest != manifest.detectors[name].sha256):
            raise ModelError(f"{key}: {entry.calibration} was made with another {name}; calibrate anew")
    return limits


def learned_pictures(manifest: Manifest | None = None) -> frozenset[str]:
    """First 16 digits of the SHA-256 of every picture that the detectors were learned from, as their weights tell.

    Args:
        manifest: By default `load_manifest()`.

    Raises:
        ModelError: A detector's weights are missing, altered, or do not tell.
    """
    manifest = load_manifest() if manifest is None else manifest
    learned: set[str] = set()
    for name, entry in manifest.detectors.items():
        content = _verified_bytes(name, manifest, entry.file, entry.sha256)
        try:
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            learned |= set(json.loads(header["__metadata__"]["pictures"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{name}: {entry.file} does not tell which pictures it was learned from") from error
    return frozenset(learned)


def verify_all(manifest: Manifest | None = None) -> dict[str, str | None]:
    """Check every weights file against its sha256, the guide encoders' and the gate's calibrations too.

    Returns:
        What is wrong by key, None where nothing is; a guide encoder's key is `<key> guide encoder`, a calibration's
        `<key> gate`.

    Raises:
        ModelError: The manifest itself does not load.
    """
    manifest = load_manifest() if manifest is None else manifest
    problems: dict[str, str | None] = {}
    files: dict[str, tuple[str, str]] = {}
    for key, entry in sorted(manifest.weights.items()):
        files[key] = entry.file, entry.sha256
        if entry.guide_encoder is not None:
            files[f"{key} guide encoder"] = entry.guide_encoder.file, entry.guide_encoder.sha256
    files |= {name: (found.file, found.sha256) for name, found in manifest.detectors.items()}
    for key, gate in sorted({**manifest.gate, **{k: e.gate for k, e in manifest.weights.items()}}.items()):
        if gate.calibration and gate.sha256:
            files[f"{key} gate"] = gate.calibration, gate.sha256
    for name, (file, sha256) in files.items():
        try:
            _verified_bytes(name, manifest, file, sha256)
            problems[name] = None
        except ModelError as error:
            problems[name] = str(error)
    return problems


def _filled(
    key: str, manifest: Manifest, entry: WeightsEntry | GuideEncoderEntry | DetectorEntry, name: str
) -> nn.Module:
    """Network `name` with the entry's config and weights, in eval mode."""
    content = _verified_bytes(key, manifest, entry.file, entry.sha256)

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from medenhance_dicom.networks import build_network

    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ModelError(f"{key}: {entry.file} is not a safetensors file") from error
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}  # stored as float16
    broken = sorted(name for name, t in tensors.items() if not torch.isfinite(t).all())
    if broken:
        raise ModelError(f"{key}: {entry.file} holds non-finite values in {broken[0]}")
    try:
        network = build_network(name, **entry.config)
    except KeyError as error:
        raise ModelError(f"{key}: no network '{name}'") from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{key}: config does not fit '{name}': {error}") from error
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ModelError(f"{key}: {entry.file} does not fit '{name}' with this config: {error}") from error
    return network.eval().requires_grad_(False)


def _verified_bytes(key: str, manifest: Manifest, file: str, sha256: str) -> bytes:
    """The file's bytes, read once: what was hashed is what gets loaded."""
    path = (manifest.root / file).resolve()
    if not path.is_relative_to(manifest.root.resolve()):
        raise ModelError(f"{key}: {file} lies outside the models folder")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{key}: {file}: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ModelError(f"{key}: {file} was altered: sha256 {digest[:12]}, manifest {sha256[:12]}")
    return content
