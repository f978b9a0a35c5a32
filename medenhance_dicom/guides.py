"""Stored guides: what a high-quality picture tells HQG-Net, as 64 numbers, never the picture itself.

A guide is one safetensors file `<key>.safetensors`: the tensor v_z (arXiv 2307.07829, section III-A) and text on how it
was made. It fits only the weights whose encoder made it. Its digest, which derived objects carry, is the SHA-256 of the
file; the same contents always give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from medenhance_dicom.conventional import luminance
from medenhance_dicom.errors import InputError, ModelError, OutputError
from medenhance_dicom.manifest import Manifest, WeightsEntry, load_guide_encoder, models_folder
from medenhance_dicom.masks import field_of_view
from medenhance_dicom.placement import reduced, squared

__all__ = [
    "Guide",
    "Influence",
    "Source",
    "average_gradient",
    "choose_guide",
    "encode_guide",
    "entropy",
    "find_guides",
    "guide_folders",
    "influence",
    "load_guide",
    "picture_quality",
    "quality_warnings",
    "read_picture",
    "save_guide",
    "unevenness",
    "verify_guide",
]

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]

ENVIRONMENT = "MEDENHANCE_GUIDES"
FORMAT = "medenhance-dicom/guide/1"
LENGTH = 64  # numbers of v_z
SUFFIX = ".safetensors"
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
"""Of picture files; `read_picture` reads them."""
KEY = re.compile(r"(?=.{1,48}$)[a-z0-9]+([.-][a-z0-9]+)*")

BLUR = 1 / 16  # of the longer side: the sigma over which light is looked at
MOST_UNEVENNESS = 0.4  # measured at 256 pixels: fundus and cornea up to 0.27, endoscopy 0.2 to 0.5
LEAST_GRADIENT = 1.5  # sharp fundus photographs 2.4, with dense cataract 1.7, cornea and endoscopy more
LEAST_ENTROPY = 5.0  # good and poor ones 5 to 7.5


@dataclass(frozen=True)
class Source:
    """What is kept of a picture that a guide was made of."""

    sha256: str
    """Of the unit picture's float32 bytes."""
    quality: dict[str, float]
    """See `picture_quality`."""


@dataclass(frozen=True, eq=False)
class Guide:
    """See the module.

    Raises:
        ModelError: The key is no key, or v_z is not 64 finite numbers.
    """

    key: str
    """Also the file's name without its suffix: at most 48 of a-z, 0-9, hyphen, dot."""
    v_z: Unit
    """(64,)."""
    weights: str
    """Key of the weights that it leads."""
    weights_sha256: str
    encoder_sha256: str
    field: str
    """Modality that it is for, such as OP; several with commas between."""
    device_class: str
    """Part of a camera's Manufacturer or Model Name, or "any"."""
    created: str
    """ISO 8601."""
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        """Refuse what could not lead a network."""
        if not KEY.fullmatch(self.key):
            raise ModelError("a guide's key has at most 48 characters of a-z, 0-9, hyphen and dot")
        if self.v_z.shape != (LENGTH,) or self.v_z.dtype != np.float32:
            raise ModelError(f"guide {self.key}: v_z is not float32 ({LENGTH},)")
        if not np.isfinite(self.v_z).all():
            raise ModelError(f"guide {self.key}: v_z holds non-finite values")

    @cached_property
    def content(self) -> bytes:
        """The file's bytes, a function of the contents alone (safetensors' own writer orders metadata by chance)."""
        vector = self.v_z.astype("<f4").tobytes()
        texts = {name: value for name, value in asdict(self).items() if isinstance(value, str)}
        texts |= {"format": FORMAT, "sources": _canonical([asdict(source) for source in self.sources])}
        texts["content_sha256"] = hashlib.sha256(_canonical(texts).encode() + vector).hexdigest()
        tensor = {"dtype": "F32", "shape": [LENGTH], "data_offsets": [0, len(vector)]}
        header = _canonical({"__metadata__": texts, "v_z": tensor}).encode()
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + vector

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the file."""
        return hashlib.sha256(self.content).hexdigest()

    def fits(self, entry: WeightsEntry) -> bool:
        """Whether it was encoded for these weights."""
        return self.weights_sha256 == entry.sha256

    def description(self) -> dict[str, Any]:
        """Everything but the vector, for people and scripts."""
        return {name: value for name, value in asdict(self).items() if name != "v_z"} | {"digest": self.digest}


# ------------------------------------------------------------------------------------------------ the picture's quality


def unevenness(picture: Unit) -> float:
    """Standard deviation over mean of the strongly blurred luminance inside the non-black field; 0 is even light.

    Args:
        picture: float32 (H, W, 1 or 3) in [0, 1].
    """
    inside = field_of_view(picture, "border")
    light = luminance(picture) * inside
    sigma = BLUR * max(light.shape)
    share = gaussian_filter(inside.astype(np.float32), sigma, mode="constant")
    level = gaussian_filter(light, sigma, mode="constant")[inside] / share[inside]
    mean = float(level.mean())
    return float(level.std()) / mean if mean > 0 else 0.0


def average_gradient(picture: Unit) -> float:
    """AG: mean of sqrt((dx^2 + dy^2) / 2) over forward differences of the luminance, 0 to 255.

    Args:
        picture: float32 (H, W, 1 or 3) in [0, 1].
    """
    grey = 255 * luminance(picture).astype(np.float64)
    dx, dy = np.diff(grey, axis=1)[:-1], np.diff(grey, axis=0)[:, :-1]
    return float(np.sqrt((dx**2 + dy**2) / 2).mean())


def entropy(picture: Unit) -> float:
    """EN: -sum p log2 p over the 256 grey levels of the luminance, in bits, at most 8.

    Args:
        picture: float32 (H, W, 1 or 3) in [0, 1].
    """
    levels = np.rint(255 * luminance(picture)).astype(np.int64)
    p = np.bincount(levels.ravel(), minlength=256) / levels.size
    return float(-np.sum(p[p > 0] * np.log2(p[p > 0]))) + 0.0


def picture_quality(picture: Unit) -> dict[str, float]:
    """`unevenness`, `average_gradient` and `entropy` of a picture (H, W, 1 or 3) in [0, 1], to four digits."""
    return {score.__name__: round(score(picture), 4) for score in (unevenness, average_gradient, entropy)}


def quality_warnings(guide: Guide) -> list[str]:
    """Why pictures of a guide are poor ones to lead by; empty where none is."""
    warnings = []
    for number, source in enumerate(guide.sources, start=1):
        scores = source.quality
        if scores["unevenness"] > MOST_UNEVENNESS:
            warnings.append(f"picture {number}: uneven light ({scores['unevenness']:.2f}, over {MOST_UNEVENNESS})")
        if scores["average_gradient"] < LEAST_GRADIENT:
            warnings.append(f"picture {number}: blurred or flat (AG {scores['average_gradient']:.2f})")
        if scores["entropy"] < LEAST_ENTROPY:
            warnings.append(f"picture {number}: few grey levels (entropy {scores['entropy']:.2f} bits)")
    return warnings


# ------------------------------------------------------------------------------------------------------- making a guide


def read_picture(path: Path) -> Unit:
    """A PNG, JPEG or the like as float32 (H, W, 1 or 3) in [0, 1].

    Raises:
        InputError: No picture that Pillow reads.
    """
    try:
        with Image.open(path) as opened:
            if opened.mode == "F":
                raise InputError(f"{path}: a picture of floating-point values, whose range nothing tells")
            if opened.mode.startswith("I"):
                return (np.asarray(opened, dtype=np.float32)[..., None] / np.float32(65535)).clip(0, 1)
            grey = opened.mode in ("1", "L", "LA")
            pixels = np.asarray(opened.convert("L" if grey else "RGB"), dtype=np.float32) / np.float32(255)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: no picture: {type(error).__name__}") from None
    return pixels[..., None] if grey else pixels


def encode_guide(
    pictures: Sequence[Unit],
    key: str,
    *,
    field: str,
    device_class: str,
    weights_key: str,
    manifest: Manifest,
    created: str,
) -> Guide:
    """Encode high-quality pictures: v_z = G(z), the mean over the pictures.

    Args:
        pictures: One or more, float32 (H, W, 1 or 3) in [0, 1]; any size.
        key: Name of the guide.
        field: Modality that it is for.
        device_class: Camera that it is for, or "any".
        weights_key: Weights that it leads.
        manifest: Where they are listed.
        created: ISO 8601.

    Raises:
        ModelError: The weights take no guide, their encoder is missing or altered, the key is no key, or the pictures
            are in colour and the weights for grey ones.
    """
    entry = manifest.entry(weights_key)
    if not entry.takes_guide:
        raise ModelError(f"{weights_key}: these weights take no guide")
    encoder = load_guide_encoder(weights_key, manifest)
    assert entry.guide_encoder is not None

    import torch

    size = entry.guide_encoder.size
    vectors, sources = [], []
    for picture in pictures:
        small = reduced(_with_channels(picture, entry.input.channels), size)
        batch = torch.from_numpy(squared(small, size)).permute(2, 0, 1)[None].contiguous()
        with torch.inference_mode():
            vectors.append(encoder(batch)[0].double().numpy())
        sha256 = hashlib.sha256(np.ascontiguousarray(picture, dtype=np.float32).tobytes()).hexdigest()
        sources.append(Source(sha256, picture_quality(small)))
    v_z = np.mean(vectors, axis=0).astype(np.float32)
    weights_sha256, encoder_sha256 = entry.sha256, entry.guide_encoder.sha256
    return Guide(
        key, v_z, weights_key, weights_sha256, encoder_sha256, field, device_class, created, tuple(sources)
    )  # fmt: skip


def _with_channels(picture: Unit, channels: int) -> Unit:
    if picture.shape[2] == channels:
        return picture
    if channels == 3:
        return np.repeat(picture, 3, axis=2)
    if np.ptp(picture, axis=2).max() == 0:  # grey, stored as colour
        return picture[..., :1]
    raise ModelError("a colour picture cannot lead weights for grey pictures")


# ---------------------------------------------------------------------------------------------------- files and folders


def guide_folders() -> list[Path]:
    """Where guides are looked for, in this order; an earlier folder hides the same key in a later one.

    $MEDENHANCE_GUIDES, or without it the user's folder; then `guides/` beside the manifest.

    Raises:
        ModelError: There is no manifest.
    """
    named = os.environ.get(ENVIRONMENT)
    home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    own = Path(named) if named else home / "medenhance-dicom" / "guides"
    return [own, models_folder() / "guides"]


def find_guides(folders: Iterable[Path] | None = None) -> dict[str, Path]:
    """Key -> file of every guide, sorted by key; opens none of them.

    Args:
        folders: By default `guide_folders()`.
    """
    found: dict[str, Path] = {}
    for folder in guide_folders() if folders is None else folders:
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            found.setdefault(path.name.removesuffix(SUFFIX), path)
    return dict(sorted(found.items()))


def save_guide(guide: Guide, folder: Path) -> Path:
    """Write `<key>.safetensors`.

    Raises:
        OutputError: The folder cannot be written, or another guide has that key there.
    """
    path = folder / f"{guide.key}{SUFFIX}"
    part = folder / f".{path.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_bytes() != guide.content:
            raise OutputError(f"{path}: there is a guide of that key; take another key or remove it")
        part.write_bytes(guide.content)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    return path


def load_guide(path: Path) -> Guide:
    """Read and check one guide; imports no torch.

    Raises:
        ModelError: Missing, not a guide, or altered since it was written.
    """
    import safetensors
    from safetensors.numpy import load

    name = path.name
    try:
        content = path.read_bytes()
        tensors = load(content)
    except OSError as error:
        raise ModelError(f"guide {name}: {error.strerror}") from error
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"guide {name}: not a safetensors file") from error
    texts = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    if texts.get("format") != FORMAT or tensors.keys() != {"v_z"}:
        raise ModelError(f"guide {name}: not a guide of format {FORMAT}")
    try:
        sources = tuple(Source(**source) for source in json.loads(texts.pop("sources")))
        del texts["format"], texts["content_sha256"]
        guide = Guide(v_z=tensors["v_z"], sources=sources, **texts)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"guide {name}: its text is not a guide's") from error
    if guide.content != content:
        raise ModelError(f"guide {name}: was altered since it was made")
    if name != f"{guide.key}{SUFFIX}":
        raise ModelError(f"guide {name}: its key is {guide.key}, not its file's name")
    return guide


def verify_guide(path: Path, manifest: Manifest) -> str | None:
    """What is wrong with a guide: altered, or made for weights that are not here; None where nothing is."""
    try:
        guide = load_guide(path)
        _require_fit(guide, guide.weights, manifest.entry(guide.weights))
    except ModelError as error:
        return str(error)
    return None


def choose_guide(
    weights_key: str, entry: WeightsEntry, name: str, facts: Mapping[str, Any], found: Mapping[str, Path] | None = None
) -> Guide:
    """The guide that leads some weights on a series.

    Args:
        weights_key: The weights.
        entry: Their entry of the manifest.
        name: Key of a guide; or "auto": of those encoded for the weights and of the series' modality, one whose device
            class is part of Manufacturer or Manufacturer's Model Name (upper or lower case, the longest first), else
            one for "any" device, else none; of equals the first by key.
        facts: DICOM keyword -> value of the series.
        found: Key -> file; by default `find_guides()`.

    Raises:
        ModelError: No such guide, none that fits, one that was encoded with other weights, or an altered file.
    """
    found = find_guides() if found is None else found
    if name != "auto":
        if name not in found:
            raise ModelError(f"no guide '{name}'; there are {', '.join(found) or 'none'}")
        guide = load_guide(found[name])
        _require_fit(guide, weights_key, entry)
        return guide
    modality = str(facts.get("Modality") or "")
    device = f"{facts.get('Manufacturer') or ''}\n{facts.get('ManufacturerModelName') or ''}".casefold()
    fitting = [guide for guide in map(load_guide, found.values()) if guide.fits(entry)]
    suited = [
        guide
        for guide in fitting
        if modality in guide.field.split(",")
        and (guide.device_class == "any" or guide.device_class.casefold() in device)
    ]
    if not suited:
        others = ", ".join(f"{g.key} ({g.field}, {g.device_class})" for g in fitting) or "none"
        raise ModelError(
            f"no guide fits {weights_key}, modality {modality or 'unknown'} and this device; for these weights there "
            f"are {others}; name one, or make one with `medenhance-dicom guides add`"
        )
    return min(suited, key=lambda g: (g.device_class == "any", -len(g.device_class), g.key))


def _require_fit(guide: Guide, weights_key: str, entry: WeightsEntry) -> None:
    if not guide.fits(entry):
        raise ModelError(
            f"guide {guide.key} was encoded with other weights: {guide.weights} {guide.weights_sha256[:12]}, "
            f"not {weights_key} {entry.sha256[:12]}"
        )


# ------------------------------------------------------------------------------------------- what a guide's choice does


@dataclass(frozen=True)
class Influence:
    """How much the choice of guide changes one picture, in grey levels of 0 to 255."""

    to_mean: dict[str, float]
    """Guide -> rms difference of its output to the mean output."""
    largest: float
    """Largest rms difference between two outputs."""
    pair: tuple[str, str] | None
    """The two guides of it; None where there are no two."""

    @property
    def verdict(self) -> str:
        """One line for people."""
        if self.pair is None:
            return "only one guide fits: nothing to compare"
        amount = f"{self.largest:.2f} grey levels between {self.pair[0]} and {self.pair[1]}"
        if self.largest < 1:
            return f"below one grey level: which guide leads hardly matters here ({amount})"
        return f"one grey level or more: which guide leads matters here ({amount})"


def influence(outputs: Mapping[str, Unit], inside: Mask) -> Influence:
    """Compare what one picture became under several guides.

    Args:
        outputs: Guide -> float32 (H, W, C) in [0, 1].
        inside: bool (H, W): the pixels that count.
    """
    picked = {key: 255 * output[inside].astype(np.float64) for key, output in outputs.items()}
    mean = np.mean(list(picked.values()), axis=0)
    to_mean = {key: round(_rms(values - mean), 4) for key, values in picked.items()}
    pairs = {(a, b): _rms(picked[a] - picked[b]) for a, b in combinations(picked, 2)}
    pair = max(pairs, key=lambda p: pairs[p], default=None)
    return Influence(to_mean, round(pairs[pair], 4) if pair else 0.0, pair)


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
