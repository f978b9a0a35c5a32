"""Source instance + new pixels + provenance -> derived instance (requirements R1 to R13).

The result is built from nothing: allowed attributes are copied over (`attributes`), the rest is written module by
module under the standard's names. It has no Pixel Data; `part10.write_instance` streams that in.
"""

from __future__ import annotations

import re
import warnings
from datetime import timedelta, timezone
from typing import NamedTuple

from pydicom import Dataset
from pydicom.datadict import dictionary_VM
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from medenhance_dicom.attributes import (
    EQUIPMENT,
    LOSSY,
    PALETTE,
    POINTED_AT,
    SHOWN_GREY,
    SHUTTER,
    allowed,
    attributes_of,
    copied,
    copied_overlay,
    modules_of,
)
from medenhance_dicom.errors import DerivationError, UnsupportedInstanceError
from medenhance_dicom.functional_groups import derive_groups, evidence_item, referenced_series_item
from medenhance_dicom.identity import (
    METHOD_VERSION,
    derived_instance_uid,
    derived_series_uid,
    header_digest,
    range_in_words,
    seal,
)
from medenhance_dicom.image_modules import (
    Making,
    PixelSummary,
    date_and_time,
    frame_increment,
    image,
    image_pixel,
    lossy_history,
    multi_frame_secondary_capture,
    orientation,
)
from medenhance_dicom.left_behind import left_behind
from medenhance_dicom.overlays import own_planes, set_data, set_layout
from medenhance_dicom.provenance import (
    ACQUISITION,
    CODING_SCHEME,
    MANUFACTURER,
    MODEL_NAME,
    PROCESSING,
    Provenance,
    code_item,
    coding_scheme_item,
    contribution_description,
    derivation_codes,
    derivation_description,
    digests,
    own_equipment_item,
    source_image_item,
)
from medenhance_dicom.sop_classes import (
    BYTE_SC,
    COLOUR_SC,
    OPT_INS,
    WORD_SC,
    WRITABLE,
    SopClass,
    image_type,
    policy,
)
from medenhance_dicom.uids import INSTANCE_CREATOR_UID

__all__ = ["Derivation", "PixelSummary", "derivation", "derive_instance"]

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
)  # present in every composite object, if only empty (PS3.3 C.7.1.1, C.7.2.1)
_MULTI_FRAME_SC = (BYTE_SC, WORD_SC, COLOUR_SC)
_TOMOGRAPHY = "ophthalmic-tomography"
_EN_FACE = "ophthalmic-optical-coherence-tomography-en-face"
_LONGEST = {"LO": 64, "SH": 16, "ST": 1024, "UI": 64}  # characters, PS3.5 section 6.2
_MOST_SERIES_NUMBER = 2**31 - 1


def _uid(source: Dataset, keyword: str) -> str:
    value = source.get(keyword)
    if not isinstance(value, str) or not value:
        raise DerivationError(f"the source has no {keyword}")
    return str(value)


class Derivation(NamedTuple):
    """A derived object, and what its source has and it lacks."""

    instance: Dataset
    left_behind: list[str]
    """See `left_behind.left_behind`."""


def derive_instance(source: Dataset, pixels: PixelSummary, provenance: Provenance) -> Dataset:
    """The derived object alone, see `derivation`."""
    return derivation(source, pixels, provenance).instance


def derivation(source: Dataset, pixels: PixelSummary, provenance: Provenance) -> Derivation:
    """Build the derived object of one source instance.

    Opt-ins of the SOP class policy are the caller's business and taken as given here.

    Args:
        source: Header of the source as `part10.read_instance` gives it. It is not changed.
        pixels: The new Pixel Data: same rows, columns, samples and frames as the decoded source.
        provenance: How they were made.

    Returns:
        A data set without Pixel Data, with text in ISO_IR 192, and what stayed behind.

    Raises:
        UnsupportedInstanceError: The policy refuses the source.
        DerivationError: The source lacks an attribute that is needed, or holds a name that cannot be carried.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's quote the values that they complain about
        return _derived(source, pixels, provenance)


def _derived(source: Dataset, pixels: PixelSummary, provenance: Provenance) -> Derivation:
    decision = policy(source, OPT_INS)
    if decision.action == "refuse":
        raise UnsupportedInstanceError(decision.reason, decision.note)
    sop_class = WRITABLE[decision.target]
    hounsfield = source.get("Modality") == "CT"
    converted = decision.action == "convert"
    derived, lost = _taken_over(source, sop_class, pixels, converted=converted)
    making = Making(
        source=source,
        sop_class=sop_class,
        converted=converted,
        pixels=pixels,
        provenance=provenance,
        made=provenance.made.astimezone(_zone(source) or provenance.made.tzinfo),
        description=derivation_description(provenance, hounsfield=hounsfield, left_behind=lost),
    )
    _patient_and_study(derived)
    _sop_common(derived, making)
    _series(derived, making)
    _equipment(derived, making)
    image(derived, making)
    image_pixel(derived, making)
    lossy_history(derived, making)
    _reference(derived, making)
    if sop_class.uid in _MULTI_FRAME_SC:
        multi_frame_secondary_capture(derived, making)
    frame_increment(derived, making)
    orientation(derived, making)
    _identity(derived, making)
    return Derivation(derived, lost)


def _taken_over(
    source: Dataset, sop_class: SopClass, pixels: PixelSummary, *, converted: bool
) -> tuple[Dataset, list[str]]:
    """What is copied from the source, and what stays behind.

    What decides how the picture looks goes along as one, also where the IOD does not list it, which makes the object
    one of a Standard Extended SOP Class (PS3.2 section 7.3): a window without its rescale shows another picture.
    """
    modules, grey = modules_of(sop_class.iod), pixels.format.samples == 1
    keywords = allowed(sop_class.iod) | SHUTTER | (SHOWN_GREY if grey else frozenset())
    if "FrameIncrementPointer" in keywords:
        keywords |= POINTED_AT
    if not grey:
        keywords -= {"PixelPaddingValue", "PixelPaddingRangeLimit"}  # of grey pixels only, C.7.5.1.1.2
        if sop_class.uid == COLOUR_SC:
            keywords -= SHOWN_GREY  # "may not be present otherwise", C.8.6.1.2
    if not grey or "supplemental-palette-color-lookup-table" not in modules:
        keywords -= PALETTE  # what was a palette is RGB now
    required = {"ImagerPixelSpacing"} if sop_class.kind == "DX" else set()
    if "image-plane" in modules or sop_class.iod == _EN_FACE:
        required.add("PixelSpacing")
    nonsense = {k for k in _SPACINGS if k not in required and not _is_spacing(source.get(k))}
    derived = copied(source, keywords - nonsense)
    if "overlay-plane" in modules or not converted:  # some IODs forbid them, but then their source has them as well
        derived.update(_overlays(source, pixels))
    carried = Dataset()
    for part in (derived, _scanner(source), copied(source, LOSSY)):
        carried.update(part)
    grouped = _is_grouped(source, sop_class, converted=converted)
    return derived, left_behind(
        source, carried, keywords | EQUIPMENT | LOSSY, grouped=grouped, encoding=pixels.encoding
    )


def _overlays(source: Dataset, pixels: PixelSummary) -> Dataset:
    """Overlay planes with their own bits, also those that had them in the pixel cells."""
    result = Dataset()
    for group in (*own_planes(source), *pixels.overlays):
        result.update(copied_overlay(source, group))
        set_layout(result, group)
    for group, data in pixels.overlays.items():
        shape = pixels.format
        set_data(result, group, data, rows=shape.rows, columns=shape.columns, frames=pixels.number_of_frames)
    return result


def _is_grouped(source: Dataset, sop_class: SopClass, *, converted: bool) -> bool:
    """Whether the functional groups go along."""
    there = "PerFrameFunctionalGroupsSequence" in source and not converted
    return there and "multi-frame-functional-groups" in modules_of(sop_class.iod)


def _is_spacing(value: object) -> bool:
    """Two positive numbers; zeros and nonsense are worse than nothing."""
    if not isinstance(value, MultiValue) or len(value) != 2:
        return False
    return all(isinstance(v, float | int) and 0 < v < float("inf") for v in value)


def _patient_and_study(derived: Dataset) -> None:
    """PS3.3 C.7.1.1, C.7.2.1: copied; type 2 attributes are there, if only empty."""
    _uid(derived, "StudyInstanceUID")
    for keyword in _TYPE_2:
        if keyword not in derived:
            setattr(derived, keyword, None)


def _sop_common(derived: Dataset, making: Making) -> None:
    """PS3.3 C.12.1."""
    source, provenance = making.source, making.provenance
    derived.SpecificCharacterSet = "ISO_IR 192"
    derived.SOPClassUID = making.sop_class.uid
    _uid(source, "SOPInstanceUID")
    derived.InstanceCreatorUID = INSTANCE_CREATOR_UID
    derived.InstanceCreationDate, derived.InstanceCreationTime = date_and_time(making.made)
    schemes = list(derived.get("CodingSchemeIdentificationSequence") or [])
    if all(item.get("CodingSchemeDesignator") != CODING_SCHEME for item in schemes):
        derived.CodingSchemeIdentificationSequence = Sequence([*schemes, coding_scheme_item()])
    if provenance.synthetic or source.get("SyntheticData") == "YES":
        derived.SyntheticData = "YES"
    elif source.get("SyntheticData") == "NO":
        derived.SyntheticData = "NO"


def _series(derived: Dataset, making: Making) -> None:
    """PS3.3 C.7.3.1: a series of its own, in the source's study."""
    source, provenance = making.source, making.provenance
    derived.SeriesInstanceUID = derived_series_uid(source, digests(provenance, making.pixels.digest))
    derived.SeriesDate, derived.SeriesTime = date_and_time(making.made)
    derived.SeriesNumber = _series_number(source.get("SeriesNumber"), provenance.series_number_offset)
    derived.SeriesDescription = _series_description(source, provenance)


def _series_number(source: object, offset: int) -> int:
    """Sorts beside its source: 3 becomes 301, or 9001 where the source has no usable number."""
    number = int(source) if isinstance(source, int) and source > 0 else 0
    derived = number * 100 + offset
    return derived if number and derived <= _MOST_SERIES_NUMBER else 9000 + offset


def _series_description(source: Dataset, provenance: Provenance) -> str:
    """`<source, cut at 48> [suffix]`, at most 64 characters: the marking that every viewer shows."""
    disclaimer = ""
    if provenance.not_quantitative and source.get("Modality") == "CT":
        disclaimer = ", not for HU measurement"
    suffix = f"[{provenance.series_description}{disclaimer}]"
    if len(suffix) > 64:
        raise DerivationError("the suffix of the Series Description is longer than 64 characters")
    before = source.get("SeriesDescription")
    if not isinstance(before, str) or "\ufffd" in before:
        return suffix
    return f"{before.strip()[: max(0, min(48, 63 - len(suffix)))].rstrip()} {suffix}".strip()


def _equipment(derived: Dataset, making: Making) -> None:
    """PS3.3 C.7.5.1: we made it; who acquired it becomes Contributing Equipment (C.12.1.1.5)."""
    source = making.source
    scanner = _scanner(source)
    scanner.Manufacturer = scanner.get("Manufacturer") or "UNKNOWN"
    purpose = PROCESSING if image_type(source)[:1] == ["DERIVED"] else ACQUISITION
    scanner.PurposeOfReferenceCodeSequence = Sequence([code_item(purpose)])
    before = list(copied(source, {"ContributingEquipmentSequence"}).get("ContributingEquipmentSequence") or [])
    ours = own_equipment_item(making.provenance, making.pixels.digest, making.made)
    derived.ContributingEquipmentSequence = Sequence([*before, scanner, ours])
    derived.Manufacturer = MANUFACTURER
    derived.ManufacturerModelName = MODEL_NAME
    derived.DeviceSerialNumber = ours.DeviceSerialNumber
    derived.SoftwareVersions = making.provenance.version


def _scanner(source: Dataset) -> Dataset:
    return _valid(copied(source, EQUIPMENT))


def _reference(derived: Dataset, making: Making) -> None:
    """What it was made of, and how: frame by frame in functional groups, otherwise once (PS3.3 C.12.4)."""
    source, provenance, iod = making.source, making.provenance, making.sop_class.iod
    grouped = _is_grouped(source, making.sop_class, converted=making.converted)
    if grouped:
        derive_groups(derived, source, making.pixels.number_of_frames, making.description, derivation_codes(provenance))
    elif making.sop_class.kind == "ENHANCED" or iod == _TOMOGRAPHY:
        raise DerivationError("the source has no Per-Frame Functional Groups Sequence")
    if not grouped or "SourceImageSequence" in attributes_of(iod):
        reference = source_image_item(source.SOPClassUID, source.SOPInstanceUID)
        before = []
        if iod == _EN_FACE:  # names the volume that it was projected from, type 1
            before = list(copied(source, {"SourceImageSequence"}).get("SourceImageSequence") or [])
        derived.SourceImageSequence = Sequence([reference, *before])
    if not grouped or "DerivationDescription" in attributes_of(iod):
        derived.DerivationDescription = making.description
        derived.DerivationCodeSequence = derivation_codes(provenance)
    if "SourceImageEvidenceSequence" in attributes_of(iod) and grouped:
        derived.SourceImageEvidenceSequence = Sequence([evidence_item(source)])
    elif grouped or "ReferencedSeriesSequence" in derived:  # the Common Instance Reference module lists all, C.12.2
        listed = list(derived.get("ReferencedSeriesSequence") or [])
        derived.ReferencedSeriesSequence = Sequence([*listed, referenced_series_item(source)])


def _identity(derived: Dataset, making: Making) -> None:
    """The SOP Instance UID, and the digests that say which object this is. Nothing may be changed after it."""
    recorded = digests(making.provenance, making.pixels.digest)
    recorded |= {"source": making.pixels.source_digest, "header": header_digest(derived)}
    marks = {"rule": str(METHOD_VERSION)} | ({"blended": "yes"} if making.pixels.blended else {})
    if making.pixels.shared_range is not None:
        marks["intensity"] = range_in_words(making.pixels.shared_range)
    derived.SOPInstanceUID = derived_instance_uid(_uid(making.source, "SOPInstanceUID"), recorded | marks)
    ours = derived.ContributingEquipmentSequence[-1]
    ours.ContributionDescription = contribution_description(making.provenance, marks, recorded)
    seal(derived)


def _valid(item: Dataset) -> Dataset:
    """An item without the values that its attributes cannot have: a source's faults are not repeated elsewhere."""
    valid = Dataset()
    for element in item:
        longest = _LONGEST.get(element.VR)
        texts = element.value if isinstance(element.value, MultiValue) else [element.value]
        fits = longest is None or all(len(text or "") <= longest for text in texts)
        if fits and (element.VM <= 1 or element.VR == "SQ" or dictionary_VM(element.tag) != "1"):
            valid[element.tag] = element
    return valid


def _zone(source: Dataset) -> timezone | None:
    """The zone of all times of the object, from Timezone Offset From UTC (0008,0201)."""
    match = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", str(source.get("TimezoneOffsetFromUTC") or "").strip())
    if match is None:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return timezone(-offset if match[1] == "-" else offset) if offset < timedelta(hours=24) else None
