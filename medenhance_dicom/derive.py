"""Source instance + new pixels + provenance -> derived instance (requirements R1 to R13).

The result is built from nothing: allowed attributes are copied over (`attributes`), the rest is written below, module by
module under the standard's names. It has no Pixel Data; `part10.write_instance` streams that in.
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from medenhance_dicom import __version__
from medenhance_dicom.attributes import (
    EQUIPMENT,
    LOSSY,
    PALETTE,
    allowed,
    attributes_of,
    copied,
    copied_overlays,
    modules_of,
)
from medenhance_dicom.errors import DerivationError, UnsupportedInstanceError
from medenhance_dicom.functional_groups import derive_groups
from medenhance_dicom.provenance import (
    ACQUISITION,
    CODING_SCHEME,
    MANUFACTURER,
    MODEL_NAME,
    PROCESSING,
    Provenance,
    code_item,
    coding_scheme_item,
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
    derived_image_type,
    image_type,
    policy,
    transfer_syntax,
)
from medenhance_dicom.uids import INSTANCE_CREATOR_UID, derived_uid

if TYPE_CHECKING:
    from medenhance_dicom.frames import PixelFormat

_LOSSY_METHODS = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
    "1.2.840.10008.1.2.4.93": "ISO_15444_2",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
}  # transfer syntax -> Lossy Image Compression Method, PS3.3 C.7.6.1.1.5.1
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_TYPE_2 = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime AccessionNumber ReferringPhysicianName StudyID"
).split()  # present in every composite object, if only empty (PS3.3 C.7.1.1, C.7.2.1)
_MULTI_FRAME_SC = (BYTE_SC, WORD_SC, COLOUR_SC)
_EN_FACE = "ophthalmic-optical-coherence-tomography-en-face"
_MOST_SERIES_NUMBER = 2**31 - 1


@dataclass(frozen=True)
class PixelSummary:
    """What is known of the new Pixel Data."""

    digest: str
    """Hex SHA-256 of all frames as they will stand in the file, little endian, without the pad byte."""
    format: PixelFormat
    number_of_frames: int
    source_bytes: int | None = None
    """Length of the source's compressed Pixel Data, to state the compression ratio of a lossy source that does not."""


def derived_series_uid(source: Dataset, provenance: Provenance) -> str:
    """One new series per source series, recipe, weights and guide (requirement R2).

    Raises:
        DerivationError: The source has no Series Instance UID.
    """
    return derived_uid(
        "series",
        _uid(source, "SeriesInstanceUID"),
        provenance.recipe_digest,
        provenance.weights_digest or "",
        provenance.guide_digest or "",
    )


def _uid(source: Dataset, keyword: str) -> str:
    value = source.get(keyword)
    if not isinstance(value, str) or not value:
        raise DerivationError(f"the source has no {keyword}")
    return str(value)


def derived_instance_uid(source_uid: str, digests: dict[str, str]) -> str:
    """SOP Instance UID of the derived object, a function of its source and the digests that it records.

    Args:
        source_uid: SOP Instance UID of the source.
        digests: Hex SHA-256 of `recipe` and `pixels`, and of `weights` and `guide` where used.
    """
    return derived_uid(
        source_uid,
        digests.get("recipe", ""),
        digests.get("weights", ""),
        digests.get("guide", ""),
        digests.get("pixels", ""),
    )


@dataclass(frozen=True)
class _Making:
    """All that the modules below are written from."""

    source: Dataset
    sop_class: SopClass
    converted: bool
    """The SOP class changes."""
    pixels: PixelSummary
    provenance: Provenance
    made: datetime
    """In the zone of the object's times."""
    description: str
    """Derivation Description."""


def derive_instance(source: Dataset, pixels: PixelSummary, provenance: Provenance) -> Dataset:
    """Build the derived object of one source instance.

    Opt-ins of the SOP class policy are the caller's business and taken as given here.

    Args:
        source: Header of the source as `part10.read_instance` gives it. It is not changed.
        pixels: The new Pixel Data: same rows, columns, samples and frames as the decoded source.
        provenance: How they were made.

    Returns:
        A data set without Pixel Data, with text in ISO_IR 192.

    Raises:
        UnsupportedInstanceError: The policy refuses the source.
        DerivationError: The source lacks what a derived object cannot do without, or holds a name that cannot be carried.
    """
    decision = policy(source, OPT_INS)
    if decision.action == "refuse":
        raise UnsupportedInstanceError(decision.reason, decision.note)
    sop_class = WRITABLE[decision.target]
    hounsfield = source.get("Modality") == "CT"
    making = _Making(
        source=source,
        sop_class=sop_class,
        converted=decision.action == "convert",
        pixels=pixels,
        provenance=provenance,
        made=provenance.made.astimezone(_zone(source) or provenance.made.tzinfo),
        description=derivation_description(provenance, hounsfield=hounsfield),
    )
    derived = _copied_attributes(making)
    _patient_and_study(derived)
    _sop_common(derived, making)
    _series(derived, making)
    _equipment(derived, making)
    _image(derived, making)
    _image_pixel(derived, making)
    _lossy_history(derived, making)
    _reference(derived, making)
    if sop_class.uid in _MULTI_FRAME_SC:
        _multi_frame_secondary_capture(derived, making)
    _laterality(derived, making)
    return derived


def _copied_attributes(making: _Making) -> Dataset:
    source, modules = making.source, modules_of(making.sop_class.iod)
    keywords = allowed(making.sop_class.iod)
    if making.pixels.format.samples != 1:  # colour pixels have no padding, and what was a palette is RGB now
        keywords -= PALETTE | {"PixelPaddingValue", "PixelPaddingRangeLimit"}
    if "image-plane" not in modules:  # there, Pixel Spacing is required
        keywords -= {keyword for keyword in _SPACINGS if not _is_spacing(source.get(keyword))}
    derived = copied(source, keywords)
    if "overlay-plane" in modules:
        derived.update(copied_overlays(source))
    return derived


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


def _sop_common(derived: Dataset, making: _Making) -> None:
    """PS3.3 C.12.1."""
    source, provenance = making.source, making.provenance
    derived.SpecificCharacterSet = "ISO_IR 192"
    derived.SOPClassUID = making.sop_class.uid
    used = digests(provenance, making.pixels.digest)
    derived.SOPInstanceUID = derived_instance_uid(_uid(source, "SOPInstanceUID"), used)
    derived.InstanceCreatorUID = INSTANCE_CREATOR_UID
    derived.InstanceCreationDate, derived.InstanceCreationTime = _date_and_time(making.made)
    schemes = list(derived.get("CodingSchemeIdentificationSequence") or [])
    if all(item.get("CodingSchemeDesignator") != CODING_SCHEME for item in schemes):
        derived.CodingSchemeIdentificationSequence = Sequence([*schemes, coding_scheme_item()])
    if provenance.synthetic or source.get("SyntheticData") == "YES":
        derived.SyntheticData = "YES"
    elif source.get("SyntheticData") == "NO":
        derived.SyntheticData = "NO"


def _series(derived: Dataset, making: _Making) -> None:
    """PS3.3 C.7.3.1: a series of its own, in the source's study."""
    source, provenance = making.source, making.provenance
    derived.SeriesInstanceUID = derived_series_uid(source, provenance)
    derived.SeriesDate, derived.SeriesTime = _date_and_time(making.made)
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
    if provenance.not_quantitative:
        disclaimer = ", not for HU measurement" if source.get("Modality") == "CT" else ", not for measurement"
    suffix = f"[{provenance.series_description}{disclaimer}]"
    if len(suffix) > 64:
        raise DerivationError("the suffix of the Series Description is longer than 64 characters")
    before = source.get("SeriesDescription")
    if not isinstance(before, str) or "\ufffd" in before:
        return suffix
    return f"{before.strip()[: max(0, min(48, 63 - len(suffix)))].rstrip()} {suffix}".strip()


def _equipment(derived: Dataset, making: _Making) -> None:
    """PS3.3 C.7.5.1: we made it; who acquired it and who worked on it before us are Contributing Equipment (C.12.1.1.5)."""
    source = making.source
    scanner = copied(source, EQUIPMENT)
    scanner.Manufacturer = scanner.get("Manufacturer") or "UNKNOWN"
    purpose = PROCESSING if image_type(source)[:1] == ["DERIVED"] else ACQUISITION
    scanner.PurposeOfReferenceCodeSequence = Sequence([code_item(purpose)])
    before = list(copied(source, {"ContributingEquipmentSequence"}).get("ContributingEquipmentSequence") or [])
    ours = own_equipment_item(making.provenance, making.pixels.digest, making.made)
    derived.ContributingEquipmentSequence = Sequence([*before, scanner, ours])
    derived.Manufacturer = MANUFACTURER
    derived.ManufacturerModelName = MODEL_NAME
    derived.DeviceSerialNumber = ours.DeviceSerialNumber
    derived.SoftwareVersions = __version__


def _image(derived: Dataset, making: _Making) -> None:
    """PS3.3 C.7.6.1, and the multi-frame module's count (C.7.6.6)."""
    derived.ContentDate, derived.ContentTime = _date_and_time(making.made)
    values = derived_image_type(making.sop_class, image_type(making.source), converted=making.converted)
    derived.ImageType = values
    if "InstanceNumber" not in derived:
        derived.InstanceNumber = None
    frames = making.pixels.number_of_frames
    if frames > 1 or "multi-frame" in modules_of(making.sop_class.iod) or "NumberOfFrames" in making.source:
        derived.NumberOfFrames = frames


def _image_pixel(derived: Dataset, making: _Making) -> None:
    """PS3.3 C.7.6.3, and a colour space for colour photographs that name none (C.11.15)."""
    pixels = making.pixels.format
    derived.SamplesPerPixel = pixels.samples
    derived.PhotometricInterpretation = pixels.photometric_out
    derived.Rows, derived.Columns = pixels.rows, pixels.columns
    derived.BitsAllocated, derived.BitsStored = pixels.bits_allocated, pixels.bits_stored
    derived.HighBit = pixels.bits_stored - 1
    derived.PixelRepresentation = int(pixels.signed)
    if pixels.samples == 3:
        derived.PlanarConfiguration = 0
        if making.sop_class.kind in ("OP", "VL") and "ICCProfile" not in derived:
            derived.ICCProfile = srgb_profile()
            derived.ColorSpace = "SRGB"


@functools.cache
def srgb_profile() -> bytes:
    """An sRGB input profile of even length (PS3.3 C.11.15.1.1), the same bytes whenever it is made.

    Little CMS stamps the time and calls it a display profile; DICOM wants an input device, and repeats must be equal.
    """
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[12:16] = b"scnr"
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    profile[84:100] = bytes(16)  # profile id, a digest of the above: zero means not computed
    return bytes(profile) + bytes(len(profile) % 2)


def _lossy_history(derived: Dataset, making: _Making) -> None:
    """PS3.3 C.7.6.1.1.5: once lossy, always lossy; methods and ratios add up (requirement R9)."""
    history = copied(making.source, LOSSY)
    method = _LOSSY_METHODS.get(transfer_syntax(making.source))
    if method and history.get("LossyImageCompression") != "01":
        history.LossyImageCompression = "01"
        history.LossyImageCompressionMethod = _values(history.get("LossyImageCompressionMethod")) + [method]
        if making.pixels.source_bytes:
            pixels = making.pixels.format
            size = pixels.rows * pixels.columns * pixels.samples * pixels.bits_allocated // 8
            ratio = max(1.0, size * making.pixels.number_of_frames / making.pixels.source_bytes)
            ratios = _values(history.get("LossyImageCompressionRatio"))
            history.LossyImageCompressionRatio = [*ratios, f"{ratio:.2f}"]
    elif making.sop_class.kind == "VL" and "LossyImageCompression" not in history:
        history.LossyImageCompression = None  # type 2, and nobody knows
    derived.update(history)


def _values(value: object) -> list[str]:
    if value is None or value == "":
        return []
    return [str(v) for v in value] if isinstance(value, MultiValue) else [str(value)]


def _reference(derived: Dataset, making: _Making) -> None:
    """What it was made of, and how: frame by frame in functional groups, otherwise once (PS3.3 C.12.4)."""
    source, provenance = making.source, making.provenance
    grouped = "multi-frame-functional-groups" in modules_of(making.sop_class.iod)
    if grouped and "PerFrameFunctionalGroupsSequence" in source and not making.converted:
        hounsfield = source.get("Modality") == "CT"
        derive_groups(derived, source, making.pixels.number_of_frames, provenance, hounsfield=hounsfield)
    elif grouped and making.sop_class.kind in ("ENHANCED", "OCT"):
        raise DerivationError("the source has no Per-Frame Functional Groups Sequence")
    if "SourceImageSequence" in attributes_of(making.sop_class.iod):
        reference = source_image_item(source.SOPClassUID, source.SOPInstanceUID)
        before = []
        if making.sop_class.iod == _EN_FACE:  # names the volume that it was projected from, type 1
            before = list(copied(source, {"SourceImageSequence"}).get("SourceImageSequence") or [])
        derived.SourceImageSequence = Sequence([reference, *before])
    if "DerivationDescription" in attributes_of(making.sop_class.iod):
        derived.DerivationDescription = making.description
        derived.DerivationCodeSequence = derivation_codes(provenance)


def _multi_frame_secondary_capture(derived: Dataset, making: _Making) -> None:
    """PS3.3 C.8.6.1, C.8.6.3 and the content constraints of A.8.3.4, A.8.4.4 and A.8.5.4."""
    if making.converted:
        derived.ConversionType = "WSD"
    elif not derived.get("ConversionType"):
        derived.ConversionType = "WSD"
    derived.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    derived.SecondaryCaptureDeviceManufacturerModelName = MODEL_NAME
    derived.SecondaryCaptureDeviceSoftwareVersions = __version__
    derived.BurnedInAnnotation = making.source.get("BurnedInAnnotation") or "YES"
    if making.pixels.number_of_frames > 1 and not derived.get("FrameIncrementPointer"):
        derived.FrameTime = making.source.get("FrameTime") or "1000"
        derived.FrameIncrementPointer = tag_for_keyword("FrameTime")
    if making.pixels.format.samples == 1:
        derived.PresentationLUTShape = "IDENTITY"
        derived.RescaleSlope = making.source.get("RescaleSlope") or "1"
        derived.RescaleIntercept = making.source.get("RescaleIntercept") or "0"
        derived.RescaleType = making.source.get("RescaleType") or "US"


def _laterality(derived: Dataset, making: _Making) -> None:
    """Series Laterality is type 2C: empty where nothing else says which side (PS3.3 C.7.3.1)."""
    said = ("Laterality", "BodyPartExamined", "ImageLaterality", "AnatomicRegionSequence")
    if making.sop_class.kind not in ("ENHANCED", "OCT") and not any(keyword in derived for keyword in said):
        derived.Laterality = None


def _zone(source: Dataset) -> timezone | None:
    """The zone of all times of the object, from Timezone Offset From UTC (0008,0201)."""
    match = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", str(source.get("TimezoneOffsetFromUTC") or "").strip())
    if match is None:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return timezone(-offset if match[1] == "-" else offset) if offset < timedelta(hours=24) else None


def _date_and_time(moment: datetime) -> tuple[str, str]:
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")
