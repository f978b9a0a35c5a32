"""Which SOP classes are enhanced, into which class, and why the others are refused (PS3.4 B.5).

The tables are those of the project's DICOM requirements: keep the class where the result is still an image of it,
convert Secondary Capture to its multi-frame classes, refuse whatever holds numbers rather than a picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydicom import Dataset
from pydicom.uid import UID

from medenhance_dicom.overlays import embedded_planes, own_planes
from medenhance_dicom.provenance import is_own_equipment
from medenhance_dicom.transfer_syntaxes import kind_of
from medenhance_dicom.uids import INSTANCE_CREATOR_UID

STORAGE = "1.2.840.10008.5.1.4.1.1."
OPT_INS = frozenset({"CT", "MG"})
"""What a user must allow: Hounsfield units change, and mammography is regulated apart."""

BYTE_SC, WORD_SC, COLOUR_SC = STORAGE + "7.2", STORAGE + "7.3", STORAGE + "7.4"
SINGLE_SC = STORAGE + "7"

Kind = Literal["OP", "OCT", "VL", "CR", "DX", "CT", "MR", "ENHANCED", "US", "XA", "SC"]
"""Families of IODs that share the rules of Image Type."""


@dataclass(frozen=True)
class SopClass:
    """A class we can write."""

    uid: str
    iod: str
    """Its name in attributes.toml."""
    kind: Kind
    colour: bool = True
    """The IOD allows RGB."""


@dataclass(frozen=True)
class Policy:
    """What to do with an instance."""

    action: Literal["same", "convert", "refuse"]
    reason: str = ""
    """Stable upper-case code of a refusal."""
    target: str = ""
    """SOP Class UID of the derived object; empty for a refusal."""
    note: str = ""
    """A sentence for people."""


def _writable() -> Iterator[SopClass]:
    sc = "secondary-capture"
    rows: list[tuple[str, str, Kind, bool]] = [
        ("1", "computed-radiography", "CR", False),
        ("1.1", "digital-x-ray", "DX", False),
        ("1.2", "digital-mammography-x-ray", "DX", False),
        ("1.3", "digital-intra-oral-x-ray", "DX", False),
        ("2", "ct", "CT", False),
        ("2.1", "enhanced-ct", "ENHANCED", False),
        ("4", "mr", "MR", False),
        ("4.1", "enhanced-mr", "ENHANCED", False),
        ("4.3", "enhanced-mr-color", "ENHANCED", True),
        ("3.1", "ultrasound-multi-frame", "US", True),
        ("6.1", "ultrasound", "US", True),
        ("6.2", "enhanced-us-volume", "ENHANCED", False),
        ("7", sc, "SC", True),
        ("7.2", f"multi-frame-grayscale-byte-{sc}", "SC", False),
        ("7.3", f"multi-frame-grayscale-word-{sc}", "SC", False),
        ("7.4", f"multi-frame-true-color-{sc}", "SC", True),
        ("12.1", "x-ray-angiographic", "XA", False),
        ("12.2", "x-ray-radiofluoroscopic", "XA", False),
        ("12.1.1", "enhanced-xa", "ENHANCED", False),
        ("12.2.1", "enhanced-xrf", "ENHANCED", False),
        ("77.1.1", "vl-endoscopic", "VL", True),
        ("77.1.2", "vl-microscopic", "VL", True),
        ("77.1.3", "vl-slide-coordinates-microscopic", "VL", True),
        ("77.1.4", "vl-photographic", "VL", True),
        ("77.1.7", "dermoscopic-photography", "VL", True),
        ("77.1.8", "confocal-microscopy", "ENHANCED", True),
        ("77.1.9", "confocal-microscopy-tiled-pyramidal", "ENHANCED", True),
        ("77.1.5.1", "ophthalmic-photography-8-bit", "OP", True),
        ("77.1.5.2", "ophthalmic-photography-16-bit", "OP", True),
        ("77.1.5.4", "ophthalmic-tomography", "OCT", False),
        ("77.1.5.5", "wide-field-ophthalmic-photography-stereographic-projection", "OP", True),
        ("77.1.5.6", "wide-field-ophthalmic-photography-3d-coordinates", "OP", True),
        ("77.1.5.7", "ophthalmic-optical-coherence-tomography-en-face", "OCT", False),
    ]
    for suffix, iod, kind, colour in rows:
        yield SopClass(STORAGE + suffix, iod, kind, colour)


VOLUMES = frozenset(STORAGE + suffix for suffix in ("2", "4"))
"""Classes whose single-frame instances may be slices of one volume (PS3.3 A.3, A.4)."""

_SINGLE_FRAME = ("CR", "DX", "CT", "MR", "VL")

WRITABLE = {sop_class.uid: sop_class for sop_class in _writable()}

_RENAMED = {STORAGE + "6": STORAGE + "6.1", STORAGE + "3": STORAGE + "3.1"}  # retired ultrasound classes

_NUMBERS = "its values are measurements, not a picture"
_VIDEO = "video streams are not re-encoded"
_REFUSED = {
    "1.1.1": ("FOR_PROCESSING", "a For Processing image is an input of the manufacturer's own processing"),
    "1.2.1": ("FOR_PROCESSING", "a For Processing image is an input of the manufacturer's own processing"),
    "1.3.1": ("FOR_PROCESSING", "a For Processing image is an input of the manufacturer's own processing"),
    "4.2": ("QUANTITATIVE", _NUMBERS),
    "7.1": ("BITS", "one bit stored is not a picture"),
    "13.1.1": ("TOMOSYNTHESIS", "reconstructed X-ray volumes are not handled"),
    "13.1.2": ("TOMOSYNTHESIS", "reconstructed X-ray volumes are not handled"),
    "13.1.3": ("TOMOSYNTHESIS", "reconstructed X-ray volumes are not handled"),
    "20": ("QUANTITATIVE", _NUMBERS),
    "30": ("QUANTITATIVE", _NUMBERS),
    "66.4": ("QUANTITATIVE", _NUMBERS),
    "66.7": ("QUANTITATIVE", _NUMBERS),
    "66.8": ("QUANTITATIVE", _NUMBERS),
    "67": ("QUANTITATIVE", _NUMBERS),
    "77.1.1.1": ("VIDEO", _VIDEO),
    "77.1.2.1": ("VIDEO", _VIDEO),
    "77.1.4.1": ("VIDEO", _VIDEO),
    "77.1.5.8": ("QUANTITATIVE", _NUMBERS),
    "77.1.6": ("WHOLE_SLIDE", "whole slide images are tiled pyramids, which are not handled"),
    "81.1": ("QUANTITATIVE", _NUMBERS),
    "82.1": ("QUANTITATIVE", _NUMBERS),
    "128": ("QUANTITATIVE", _NUMBERS),
    "128.1": ("QUANTITATIVE", _NUMBERS),
    "130": ("QUANTITATIVE", _NUMBERS),
    "481.1": ("RT_IMAGE", "radiotherapy images are used for dosimetry"),
    "481.2": ("QUANTITATIVE", _NUMBERS),
}

# Words of Image Type, Frame Type and Complex Image Component that mark computed values; "_" counts as a blank.
_MR_MAPS = re.compile(
    r"E?ADC|PHASE|VELOCITY|P|FA|FRACTIONAL ANISOTROPY|RELATIVE ANISOTROPY|R[12](\*| STAR)?|FMRI|QSM|FF|FAT FRACTION|"
    r".* MAP|R?CBF|R?CBV|MTT|TTP|TMAX|KTRANS|T-?TEST|DIFFUSION ANISO.*"
)
_CT_MAPS = re.compile(
    r"CBF|CBV|MTT|TTP|TMAX|PERFUSION|IODINE.*|VNC|VIRTUAL NON CONTRAST|MAT .*|EFF ATOMIC NUM|ELECTRON DENSITY|"
    r"Z EFF|EFFECTIVE Z|.* MAP|CALCIUM.*|CASCORE.*"
)
_CALCIUM = re.compile(r"ca[- _]?sc(ore)?\b|calcium|agatston", re.IGNORECASE)
_FLOW = re.compile(r"flow|thickness|depth encoded|angiograph|octa\b", re.IGNORECASE)
DOPPLER = "Doppler and elastography code measurements in colour"
_US_DOPPLER_MODES = 0x0004 | 0x0008 | 0x0010 | 0x0020 | 0x0100 | 0x0200  # Image Type value 4, PS3.3 C.8.5.6.1.1
_US_TISSUE_REGIONS = (0, 1, 0xA, 0xB, 0xC, 0xD)  # Region Data Type, C.8.5.5.1.2: tissue, ECG, pulse, sound, gray bar


def policy(instance: Dataset, allow: frozenset[str] = frozenset()) -> Policy:
    """Decide from the header whether an instance is enhanced, and into which SOP class.

    Args:
        instance: Header of the source; pixel data is not looked at.
        allow: Opt-ins, of `OPT_INS`.

    Returns:
        `same` or `convert` with the target class, or `refuse` with a reason code. Never raises for odd values.
    """
    uid = str(instance.get("SOPClassUID") or "")
    suffix = uid.removeprefix(STORAGE) if uid.startswith(STORAGE) else ""
    if suffix in _REFUSED:
        return Policy("refuse", _REFUSED[suffix][0], note=_REFUSED[suffix][1])
    if not uid:
        return Policy("refuse", "UNKNOWN_SOP_CLASS", note="the SOP Class UID is missing or empty")
    if _RENAMED.get(uid, uid) not in WRITABLE:
        if "Image Storage" in UID(uid).name:
            return Policy("refuse", "UNKNOWN_SOP_CLASS", note="an image of a SOP class that is not handled")
        if UID(uid).name == uid:
            return Policy("refuse", "UNKNOWN_SOP_CLASS", note="a private or unknown SOP class")
        return Policy("refuse", "NOT_AN_IMAGE", note="not an image")
    refusal = next(_refusals(instance, WRITABLE[_RENAMED.get(uid, uid)], allow), None)
    if refusal:
        return Policy("refuse", refusal[0], note=refusal[1])
    target = _target(instance, _RENAMED.get(uid, uid))
    note = "; ".join(_warnings(instance))
    return Policy("same" if target == uid else "convert", target=target, note=note)


def is_own_derived(instance: Dataset) -> bool:
    """Loop guard (requirement R33): whether we wrote this object, or one that it comes from."""
    if instance.get("InstanceCreatorUID") == INSTANCE_CREATOR_UID or is_own_equipment(instance):
        return True
    return any(is_own_equipment(item) for item in _items(instance, "ContributingEquipmentSequence"))


def derived_image_type(sop_class: SopClass, source: list[str], *, converted: bool = False) -> list[str]:
    """Image Type (0008,0008) of a derived object: no one value is legal everywhere (requirement R4).

    Args:
        sop_class: The class that is written.
        source: The source's values; may be empty.
        converted: The source was of another IOD, whose values 3 and beyond mean nothing here.
    """
    rest = [] if converted else source[2:]
    third, beyond = (rest[0] if rest else ""), rest[1:]
    match sop_class.kind:
        case "OP":  # C.8.17.2.1.4: value 2 is PRIMARY, value 3 must not be empty
            return ["DERIVED", "PRIMARY", third or "ENHANCED", *beyond]
        case "VL":  # C.8.12.1.1.6: value 3 is a stereo term or empty
            return ["DERIVED", "SECONDARY", third if third.startswith("STEREO") else "", "ENHANCED"]
        case "ENHANCED":  # C.8.16.1
            return ["DERIVED", "PRIMARY", *(rest if len(rest) > 1 else [third, "NONE"])]
        case "OCT":
            return ["DERIVED", "PRIMARY", *rest]
        case "CR":
            return ["DERIVED", "PRIMARY", *rest]
        case "DX":  # C.8.11.3: value 3 is enumerated empty, or a stereo term of mammography
            return ["DERIVED", "PRIMARY", third if third.startswith("STEREO") else "", *beyond]
        case "MR":
            return ["DERIVED", "SECONDARY", third or "OTHER", *beyond]
        case "CT" | "US" | "XA":
            return ["DERIVED", "SECONDARY", *rest]
        case "SC":
            return ["DERIVED", "SECONDARY"]


def image_type(instance: Dataset) -> list[str]:
    """Image Type as a list, whatever the file made of it."""
    value = instance.get("ImageType")
    return [value] if isinstance(value, str) else [str(v) for v in value or []]


def transfer_syntax(instance: Dataset) -> str:
    """Transfer Syntax UID of the file the instance came from; empty when unknown."""
    meta = getattr(instance, "file_meta", None)
    return str(meta.get("TransferSyntaxUID") or "") if meta is not None else ""


def _refusals(instance: Dataset, sop_class: SopClass, allow: frozenset[str]) -> Iterator[tuple[str, str]]:
    suffix = sop_class.uid.removeprefix(STORAGE)
    modality = instance.get("Modality")
    if is_own_derived(instance):
        yield "OWN_DERIVED", "it was made by this product"
    if suffix in ("2", "2.1") and "CT" not in allow:
        yield "CT_OFF_BY_DEFAULT", "CT is enhanced only when allowed: Hounsfield units change"
    if (suffix == "1.2" or modality == "MG") and "MG" not in allow:
        yield "MG_OFF_BY_DEFAULT", "mammography is enhanced only when allowed"
    if instance.get("PresentationIntentType") == "FOR PROCESSING":
        yield "FOR_PROCESSING", "a For Processing image is an input of the manufacturer's own processing"
    if _is_part_of_concatenation(instance):
        yield "CONCATENATION", "one part of a concatenation; reassemble it first"
    if kind_of(transfer_syntax(instance)) == "video":
        yield "VIDEO", _VIDEO
    if instance.get("BitsAllocated") in (1, 32, 64) or instance.get("BitsStored") == 1:
        yield "BITS", "only 8 and 16 bits allocated are handled"
    if "YES" in (instance.get("QualityControlSubject"), instance.get("QualityControlImage")):
        yield "QUALITY_CONTROL", "a quality control image measures the device"
    if suffix == "77.1.9" and _is_tiled(instance):
        yield "TILED", "a tile enhanced by itself does not fit its neighbours"
    yield from _quantitative(instance, sop_class, modality)


def _quantitative(instance: Dataset, sop_class: SopClass, modality: object) -> Iterator[tuple[str, str]]:
    suffix = sop_class.uid.removeprefix(STORAGE)
    if modality in ("BMD", "PT", "NM"):
        yield "QUANTITATIVE", _NUMBERS
    words = [word.strip().upper().replace("_", " ") for word in _type_words(instance)]
    if modality == "MR" and any(_MR_MAPS.fullmatch(word) for word in words):
        yield "MR_MAP", "a computed map, not a picture"
    if sop_class.kind == "MR" and (instance.get("SamplesPerPixel") or 1) != 1:
        yield "MR_MAP", "a colour-coded map, not a picture"
    if modality == "CT" and any(_CT_MAPS.fullmatch(word) for word in words):
        yield "QUANTITATIVE", _NUMBERS
    if suffix in ("2", "2.1"):
        named = " ".join(str(instance.get(keyword) or "") for keyword in ("SeriesDescription", "ProtocolName"))
        if _CALCIUM.search(named):
            yield "QUANTITATIVE", "a calcium scoring series"
    if suffix in ("77.1.5.4", "77.1.5.7"):
        named = " ".join(
            str(item.get("CodeMeaning") or "") for item in _items(instance, "OphthalmicImageTypeCodeSequence")
        )
        if _FLOW.search(f"{named} {instance.get('OphthalmicImageTypeDescription') or ''}"):
            yield "OCTA_FLOW", "a flow or thickness map, not a picture"
    if sop_class.kind == "US" or suffix == "6.2":
        yield from _doppler(instance)
    if sop_class.kind == "XA" and instance.get("MaskSubtractionSequence"):
        yield "DSA", "a subtraction needs its mask and contrast frames unchanged"


def is_ultrasound(instance: Dataset) -> bool:
    """Whether it may show measurements in colour, also as a Secondary Capture."""
    sop_class = WRITABLE.get(_RENAMED.get(uid := str(instance.get("SOPClassUID") or ""), uid))
    return instance.get("Modality") in ("US", "IVUS") or (sop_class is not None and sop_class.kind == "US")


def _doppler(instance: Dataset) -> Iterator[tuple[str, str]]:
    """Velocities that are coded in colour or drawn as a curve (PS3.3 C.8.5.5, C.8.5.6), where the header is sure of it.

    Ultrasound Color Data Present (0028,0014) is not: it is for the pixels to say, see `colour_flow`.
    """
    why = DOPPLER
    modes = image_type(instance)[3:4]
    try:
        if modes and int(modes[0], 16) & _US_DOPPLER_MODES:
            yield "DOPPLER", why
    except ValueError:
        pass
    regions = _items(instance, "SequenceOfUltrasoundRegions")
    if any(region.get("RegionDataType", 1) not in _US_TISSUE_REGIONS for region in regions):
        yield "DOPPLER", why


def _type_words(instance: Dataset) -> Iterator[str]:
    """Values 3 and beyond of Image Type and of every Frame Type, and Complex Image Component."""
    yield from image_type(instance)[2:]
    yield str(instance.get("ComplexImageComponent") or "")
    groups = _items(instance, "SharedFunctionalGroupsSequence") + _items(instance, "PerFrameFunctionalGroupsSequence")
    for group in groups:
        for element in group:
            for item in element.value if element.VR == "SQ" else []:
                frame_type = item.get("FrameType")
                yield from [] if frame_type is None or isinstance(frame_type, str) else list(frame_type)[2:]
                yield str(item.get("ComplexImageComponent") or "")


def _is_part_of_concatenation(instance: Dataset) -> bool:
    total = instance.get("InConcatenationTotalNumber")
    return total not in (None, "", 1) or ("ConcatenationUID" in instance and total != 1)


def _is_tiled(instance: Dataset) -> bool:
    rows, columns = (instance.get(f"TotalPixelMatrix{axis}") for axis in ("Rows", "Columns"))
    return bool((rows, columns) != (None, None) and (rows, columns) != (instance.get("Rows"), instance.get("Columns")))


def _target(instance: Dataset, uid: str) -> str:
    """The class to write. Pixels keep their format, so a class that cannot hold it is not a target."""
    colour = (instance.get("SamplesPerPixel") or 1) != 1 or instance.get("PhotometricInterpretation") == "PALETTE COLOR"
    if uid == STORAGE + "6.1" and _has_frames(instance):
        return STORAGE + "3.1"
    misfit = _has_frames(instance) and WRITABLE[uid].kind in _SINGLE_FRAME
    if uid != SINGLE_SC and not misfit:
        return COLOUR_SC if colour and not WRITABLE[uid].colour else uid
    bits = (instance.get("BitsAllocated"), instance.get("BitsStored"))
    if not _has_frames(instance) and (own_planes(instance) or embedded_planes(instance)):
        return uid  # the multi-frame classes forbid overlays, PS3.3 A.8.3 to A.8.5
    if colour:
        return COLOUR_SC if bits == (8, 8) or instance.get("PhotometricInterpretation") == "PALETTE COLOR" else uid
    plain = instance.get("PhotometricInterpretation") == "MONOCHROME2" and instance.get("PixelRepresentation") == 0
    if not plain or "ModalityLUTSequence" in instance or instance.get("PresentationLUTShape") == "INVERSE":
        return uid  # only the single-frame class has these, PS3.3 A.8.3.4
    line = (instance.get("RescaleSlope", 1), instance.get("RescaleIntercept", 0))
    if bits == (8, 8) and line == (1, 0):
        return BYTE_SC
    return WORD_SC if bits[0] == 16 and isinstance(bits[1], int) and 9 <= bits[1] <= 16 else uid


def _has_frames(instance: Dataset) -> bool:
    """Several frames, which the single-frame IODs have no attributes for although such objects exist."""
    frames = instance.get("NumberOfFrames")
    return isinstance(frames, int) and frames > 1


def _warnings(instance: Dataset) -> Iterator[str]:
    if instance.get("LossyImageCompression") == "01":
        yield "lossy compressed source"
    if instance.get("BurnedInAnnotation") == "YES":
        yield "burned-in annotation"
    if instance.get("SyntheticData") == "YES":
        yield "synthetic source"
    if image_type(instance)[:1] == ["DERIVED"]:
        yield "the source is itself derived"


def _items(instance: Dataset, keyword: str) -> list[Dataset]:
    value = instance.get(keyword)
    return [] if value is None or isinstance(value, str | bytes) else [v for v in value if isinstance(v, Dataset)]
