"""What a derived instance says about its making: derivation codes, descriptions and Contributing Equipment items."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from pydicom import Dataset
from pydicom.sequence import Sequence

from medenhance_dicom import __version__
from medenhance_dicom.uids import device_uid

MANUFACTURER = "medenhance-dicom"
MODEL_NAME = "medenhance-dicom"
CODING_SCHEME = "99MEDENH"

NO_VERDICT = "Structure check not made."
VERDICT = re.compile(r"\bStructure check (passed with a warning|passed|failed|not possible|not made)\b")
"""What every Derivation Description says, one way or another."""

_NAMED = 5  # of what was left behind; the outcome has all
_LO, _ST = 64, 1024  # the most characters of a Long String and a Short Text, PS3.5 section 6.2


@dataclass(frozen=True)
class Step:
    """One code of Derivation Code Sequence (0008,9215)."""

    value: str
    scheme: str
    meaning: str


CODES: dict[str, tuple[Step, ...]] = {
    "contrast": (Step("CONTRAST", CODING_SCHEME, "Contrast enhancement"),),
    "denoise": (Step("113087", "DCM", "Smoothing"), Step("DENOISE", CODING_SCHEME, "Noise reduction")),
    "sharpen": (Step("113086", "DCM", "Edge enhancement"), Step("SHARPEN", CODING_SCHEME, "Sharpening")),
    "normalise": (Step("INTNORM", CODING_SCHEME, "Intensity normalisation"),),
    "ai": (Step("123110", "DCM", "Artificial Intelligence"),),
}
"""What a recipe may name. CID 7203 is extensible and has no code for contrast or noise, so a private one is added."""

SOURCE_PURPOSE = Step("121322", "DCM", "Source image for image processing operation")
ACQUISITION = Step("109101", "DCM", "Acquisition Equipment")
PROCESSING = Step("109102", "DCM", "Processing Equipment")


@dataclass(frozen=True)
class Provenance:
    """How the new pixels came about. No field may hold anything about the patient."""

    recipe: str
    recipe_digest: str
    """Hex SHA-256 of the recipe's canonical JSON."""
    method: str
    """Network or conventional method."""
    made: datetime
    """Aware."""
    weights: str | None = None
    weights_digest: str | None = None
    guide: str | None = None
    guide_digest: str | None = None
    steps: tuple[Step, ...] = ()
    parameters: str = ""
    """Plain text."""
    verdict: str = ""
    """What the structure check said, in sentences (`verdicts.in_words`); empty: it was not made."""
    engine: str = ""
    precision: str = ""
    version: str = __version__
    """Of this package."""
    synthetic: bool = False
    """The model invents content: Synthetic Data (0008,001C) becomes YES (requirement R12)."""
    not_quantitative: bool = False
    """Say in words that the values must not be measured."""
    series_description: str = "enhanced"
    """Suffix of the source's Series Description, without its brackets."""
    series_number_offset: int = 1
    """1 to 99: tells the recipes of one source series apart."""

    def __post_init__(self) -> None:
        """Raise ValueError where a field cannot be used."""
        if self.made.tzinfo is None:
            raise ValueError("made must carry a time zone")
        if not 0 <= self.series_number_offset <= 99:
            raise ValueError("series_number_offset must be 0 to 99")

    @property
    def algorithm_digest(self) -> str:
        """What makes the algorithm this one: its weights, or without any its recipe."""
        return self.weights_digest or self.recipe_digest


def steps_of(names: Iterable[str]) -> tuple[Step, ...]:
    """The codes of a recipe's step names, in order, each once.

    Raises:
        KeyError: A name that is not in `CODES`.
    """
    return tuple(dict.fromkeys(step for name in names for step in CODES[name]))


def code_item(step: Step) -> Dataset:
    """Code Sequence macro, PS3.3 section 8.8."""
    item = Dataset()
    item.CodeValue = step.value
    item.CodingSchemeDesignator = step.scheme
    item.CodeMeaning = step.meaning
    return item


def coding_scheme_item() -> Dataset:
    """Our item of Coding Scheme Identification Sequence (0008,0110), which declares the private designator."""
    item = Dataset()
    item.CodingSchemeDesignator = CODING_SCHEME
    item.CodingSchemeName = "medenhance-dicom derivation codes"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def derivation_codes(provenance: Provenance) -> Sequence:
    """Derivation Code Sequence: at least one item, successive steps in order (requirement R6)."""
    return Sequence([code_item(step) for step in provenance.steps or CODES["contrast"]])


def derivation_description(
    provenance: Provenance, *, hounsfield: bool = False, left_behind: Collection[str] = ()
) -> str:
    """Derivation Description (0008,2111): for people, at most 1024 characters, nothing about the patient.

    Args:
        provenance: How the pixels came about.
        hounsfield: The values were Hounsfield units, and the disclaimer names them.
        left_behind: What the source has and the derived object lacks.
    """
    method = provenance.method
    if provenance.weights:
        method += f" with weights {provenance.weights}"
    if provenance.guide:
        method += f", guide {provenance.guide}"
    sentences = [f"Enhanced by {MODEL_NAME} {provenance.version}: recipe {provenance.recipe}, {method}."]
    if provenance.not_quantitative:
        sentences.append(f"{'Not for HU measurement' if hounsfield else 'Not for quantitative measurement'}.")
    sentences.append(provenance.verdict or NO_VERDICT)
    if provenance.synthetic:
        sentences.append("Contains content that was not acquired.")
    sentences.append("Rows, columns and geometry are the source image's.")
    if left_behind:
        named = list(left_behind)[:_NAMED] + ["and others"] * (len(left_behind) > _NAMED)
        sentences.append(f"Left behind: {'; '.join(named)}.")
    if provenance.parameters:
        sentences.append(f"Parameters: {provenance.parameters}.")
    return _plain(" ".join(sentences), _ST)


def source_image_item(sop_class_uid: str, sop_instance_uid: str, frame: int | None = None) -> Dataset:
    """Item of Source Image Sequence (0008,2112): which image, to what end, and that every pixel kept its place.

    Args:
        sop_class_uid: Of the source.
        sop_instance_uid: Of the source.
        frame: Number of the one frame referred to, from 1; None for all of them.
    """
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    if frame is not None:
        item.ReferencedFrameNumber = frame
    item.SpatialLocationsPreserved = "YES"
    item.PurposeOfReferenceCodeSequence = Sequence([code_item(SOURCE_PURPOSE)])
    return item


def own_equipment_item(provenance: Provenance, pixel_digest: str, zone_time: datetime) -> Dataset:
    """Our item of Contributing Equipment Sequence (0018,A001), with everything that says which algorithm ran.

    Software Versions has room for 64 characters a value, so it names the first 128 bits of each SHA-256; Contribution
    Description (`contribution_description`) has the digests in full.

    Args:
        provenance: How the pixels came about.
        pixel_digest: Hex SHA-256 of the new Pixel Data, without its pad byte.
        zone_time: `provenance.made` in the zone of the object's times.
    """
    full = digests(provenance, pixel_digest)
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = Sequence([code_item(PROCESSING)])
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = MODEL_NAME
    item.DeviceSerialNumber = provenance.algorithm_digest[:16]
    versions = [f"{MODEL_NAME} {provenance.version}"]
    if provenance.weights:
        versions.append(f"weights {provenance.weights}")
    if provenance.guide:
        versions.append(f"guide {provenance.guide}")
    if provenance.engine:
        versions.append(f"engine {provenance.engine} {provenance.precision}")
    versions += [f"{name} sha256:{digest[:32]}" for name, digest in full.items()]
    item.SoftwareVersions = [_plain(version, _LO) for version in versions]
    item.DeviceUID = device_uid(provenance.algorithm_digest)
    item.ContributionDateTime = zone_time.strftime("%Y%m%d%H%M%S.%f%z")
    return item


def contribution_description(provenance: Provenance, marks: dict[str, str], recorded: dict[str, str]) -> str:
    """Contribution Description (0018,A003) of our item, at most 1024 characters with the object's digest behind it.

    Args:
        provenance: How the pixels came about.
        marks: Name -> word that is to be recorded.
        recorded: Name -> hex SHA-256 of all that is to be recorded.
    """
    words = [f"{name} {word}" for name, word in marks.items()]
    listed = "; ".join(words + [f"{name} sha256:{digest}" for name, digest in recorded.items()])
    room = _ST - len(listed) - 2 - len(f"; released yes; object sha256:{'0' * 64}")
    return f"{_plain(provenance.parameters or f'recipe {provenance.recipe}', room)}; {listed}"


def digests(provenance: Provenance, pixel_digest: str) -> dict[str, str]:
    """Name -> hex SHA-256 of what ran, and of what came out."""
    named = {
        "recipe": provenance.recipe_digest,
        "weights": provenance.weights_digest,
        "guide": provenance.guide_digest,
        "pixels": pixel_digest,
    }
    return {name: digest for name, digest in named.items() if digest}


def is_own_equipment(item: Dataset) -> bool:
    """Whether an equipment module or Contributing Equipment item names us (loop guard, requirement R33)."""
    return item.get("Manufacturer") == MANUFACTURER and item.get("ManufacturerModelName") == MODEL_NAME


def _plain(text: str, most: int) -> str:
    """Text without what DICOM reserves (backslash, control characters), cut to `most` characters."""
    kept = " ".join("".join(c if c.isprintable() and c != "\\" else " " for c in text).split())
    return kept if len(kept) <= most else kept[: most - 3].rstrip() + "..."
