"""Check derived objects of ours: validators pass a DERIVED image that says nothing of its making, so we look ourselves.

Structured reports of ours are checked as well.

Problems come back as sentences that name attributes and never quote values, which may be a patient's.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medenhance_dicom.attributes import (
    IDENTITY,
    LOSSY,
    POINTED_AT,
    SHOWN_GREY,
    SHUTTER,
    attributes_of,
    copied,
    forbidden_in,
)
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import InputError, MedenhanceError
from medenhance_dicom.identity import (
    derived_instance_uid,
    frames_digest,
    header_digest,
    object_digest,
    own_item,
    recorded_digests,
    replaced_uid,
    source_uid,
)
from medenhance_dicom.part10 import Limits, PixelElement, open_instance, pixel_bytes, read_instance
from medenhance_dicom.provenance import (
    CODES,
    CODING_SCHEME,
    PROCESSING,
    SOURCE_PURPOSE,
    VERDICT,
    Step,
    is_own_equipment,
)
from medenhance_dicom.rederivation import differences
from medenhance_dicom.signature import signature_of, signature_state, unsigned
from medenhance_dicom.site_keys import PublicKey
from medenhance_dicom.sop_classes import WRITABLE, image_type, transfer_syntax
from medenhance_dicom.structured_report import COMPREHENSIVE_SR, report_uid
from medenhance_dicom.uids import INSTANCE_CREATOR_UID

_EVERYWHERE = {"NumberOfFrames", "SourceImageSequence", "DerivationDescription", "DerivationCodeSequence"}
_CHUNK = 1 << 20
_GUIDED = re.compile(r": recipe \S+, hqgnet\b(?!-)")

SOURCE_MISSING = "its source is not among the files given"
SOURCE_UNREADABLE = "its source cannot be read"
WHOLE = "it agrees with all that it records of itself: the source was corrected since, or the records are forged, too"
SIGNED_AS_IT_IS = "it is as the site signed it: the source is another since, as after a correction"
NOT_SIGNED = "signature: not signed"
UNKNOWN_KEY = "signature: by a key that is not among those given"
BAD_SIGNATURE = "signature: does not fit the object, or was not made by the key that it names"
_SIGNATURES = {
    "signed": [],
    "not signed": [NOT_SIGNED],
    "unknown key": [UNKNOWN_KEY],
    "bad signature": [BAD_SIGNATURE],
}
_KNOWN_CODES = {(step.value, step.scheme): step.meaning for steps in CODES.values() for step in steps}
_SAME_AS_SOURCE = (
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SliceThickness",
    "PixelSpacing",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "Rows",
    "Columns",
    "Modality",
)  # where the derived object has them


def assert_derived(derived: Dataset, source: Dataset | None = None, *, pixel_digest: str | None = None) -> list[str]:
    """What is wrong with a derived object's header.

    Args:
        derived: The object, with or without Pixel Data.
        source: The object that it was made of, where at hand.
        pixel_digest: Hex SHA-256 of the Pixel Data that go with it, to be compared with the one recorded.

    Returns:
        Problems; an empty list means good.
    """
    problems = [*_marking(derived), *_provenance(derived, pixel_digest), *_references(derived), *_contents(derived)]
    return problems + (list(_against(derived, source)) if source is not None else [])


def is_ours(instance: Dataset) -> bool:
    """Whether an object bears the marks of what we make."""
    return instance.get("InstanceCreatorUID") == INSTANCE_CREATOR_UID or is_own_equipment(instance)


def traces(instance: Dataset) -> str | None:
    """The attribute by which an object without our marks still shows that it was ours; None: nothing does.

    Our item of Contributing Equipment is one where it comes last: who makes something else of our object adds his own.
    """
    items = list(instance.get("ContributingEquipmentSequence") or [])
    if items and is_own_equipment(items[-1]):
        return "ContributingEquipmentSequence"
    for keyword in ("CodingSchemeIdentificationSequence", "DerivationCodeSequence"):
        if any(item.get("CodingSchemeDesignator") == CODING_SCHEME for item in instance.get(keyword) or []):
            return keyword
    return "private" if signature_of(instance) is not None else None


def check_file(
    path: Path,
    sources: Mapping[str, Sequence[Path]] | None = None,
    keys: Mapping[str, PublicKey] | None = None,
    decoder: Decoder | None = None,
) -> list[str] | None:
    """Check one file, its Pixel Data included. Memory does not grow with the pixels.

    Args:
        path: The file.
        sources: SOP Instance UID -> files of the possible sources, several where one was corrected. None: unknown.
        keys: Key id -> key; the object has to be signed by one of them. None: not looked at.
        decoder: For the source's frames, and for those of an object that somebody compressed; None: they are not looked
            at.

    Returns:
        Problems; None if the file is readable but no derived object of ours.

    Raises:
        InputError: The file is no readable DICOM.
    """
    with open_instance(path, Limits(), header_only=True) as (derived, _, pixels):
        pass
    if derived.get("SOPClassUID") == COMPREHENSIVE_SR:
        return check_report(derived, sources, keys)
    if not is_ours(derived):
        return None
    digest = _digest(path, derived, pixels, decoder)
    problems = list(_file(derived))
    if pixels is not None and not pixels.in_order:
        problems.append("an element that is there twice, or out of order")
    if pixels is None:
        problems.append("PixelData: missing, the file is cut")
    elif digest is None:
        problems.append("Pixel Data is not the last element, or not of the size that the header declares")
    problems += assert_derived(derived, pixel_digest=digest)
    whole = not problems and "header" in recorded_digests(derived)
    signature = signature_state(derived, keys, digest) if keys is not None else None
    if sources is not None:
        beside = _against_sources(derived, path, sources.get(source_uid(derived), ()), decoder)
        problems += beside
        about = [problem for problem in beside if not problem.startswith("PixelData")]
        if whole and about and about[0] not in (SOURCE_MISSING, SOURCE_UNREADABLE):
            problems.append(SIGNED_AS_IT_IS if signature == "signed" else WHOLE)
    return problems + (_SIGNATURES[signature] if signature is not None else [])


def _file(derived: Dataset) -> Iterator[str]:
    """File Meta Information names the object that is in the file (PS3.10 section 7.1)."""
    meta = derived.file_meta
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if meta.get(f"MediaStorage{keyword}", derived.get(keyword)) != derived.get(keyword):
            yield f"MediaStorage{keyword}: another one than {keyword}"


def _against_sources(derived: Dataset, path: Path, sources: Iterable[Path], decoder: Decoder | None) -> list[str]:
    """What is wrong beside the source; of several, beside the one that fits best."""
    found = []
    for source_path in sources:
        try:
            source = read_instance(source_path)
            problems = [*_against(derived, source), *differences(derived, source, path, source_path, decoder)]
        except InputError:
            problems = [SOURCE_UNREADABLE]
        found.append(list(dict.fromkeys(problems)))
    return min(found, key=len, default=[SOURCE_MISSING])


def check_report(
    document: Dataset,
    images: Mapping[str, Sequence[Path]] | None = None,
    keys: Mapping[str, PublicKey] | None = None,
) -> list[str] | None:
    """What is wrong with a structured report of ours.

    Args:
        document: The report.
        images: SOP Instance UID -> files of images that it may be about.
        keys: Key id -> key; the report has to be signed by one of them. None: not looked at.

    Returns:
        Problems; None if it is not ours.
    """
    if document.get("InstanceCreatorUID") != INSTANCE_CREATOR_UID:
        return None
    evidence = [
        str(item.get("ReferencedSOPInstanceUID"))
        for study in document.get("CurrentRequestedProcedureEvidenceSequence") or []
        for series in study.get("ReferencedSeriesSequence") or []
        for item in series.get("ReferencedSOPSequence") or []
    ]
    if len(evidence) != 2 or "ContentSequence" not in document:
        return ["CurrentRequestedProcedureEvidenceSequence: not the source and the derived image"]
    problems = set()
    if document.get("SOPInstanceUID") not in (report_uid(uid, document) for uid in evidence):
        problems.add("SOPInstanceUID: does not follow from the derived image and the content")
    for paths in [images[uid] for uid in evidence if images and uid in images]:
        unlike = [list(_differing(document, image)) for image in _readable(paths)]
        if not unlike:
            problems.add("an image that it is about cannot be read")
        for keyword in min(unlike, key=len, default=[]):
            problems.add(f"{keyword}: differs from the image")
    if keys is not None:
        problems.update(_SIGNATURES[signature_state(document, keys, "")])
    return sorted(problems)


def _readable(paths: Iterable[Path]) -> Iterator[Dataset]:
    """Headers of the files that can be read."""
    for path in paths:
        with contextlib.suppress(InputError):
            yield read_instance(path)


def pixel_digest(path: Path, derived: Dataset) -> str | None:
    """Hex SHA-256 of a file's Pixel Data without the pad byte, read in pieces; None if it is not where we write it.

    We write it uncompressed, Explicit VR Little Endian, and last, so its place follows from the size in the header.
    """
    length = pixel_bytes(derived)
    if length is None:
        return None
    padded = length + length % 2
    try:
        with path.open("rb") as file:
            start = file.seek(-(padded + 12), 2)
            group, element, vr, _, declared = struct.unpack("<HH2sHL", file.read(12))
    except (OSError, struct.error):
        return None
    if (group, element, declared) != (0x7FE0, 0x0010, padded) or vr not in (b"OB", b"OW"):
        return None
    return _hash(path, start + 12, length)


def _digest(path: Path, derived: Dataset, element: PixelElement | None, decoder: Decoder | None) -> str | None:
    """Hex SHA-256 of the Pixel Data, also where an archive keeps the object in another transfer syntax.

    None where they are not the last element, or not what the header declares.
    """
    syntax = UID(transfer_syntax(derived))
    length = pixel_bytes(derived)
    if element is None or element.keyword != "PixelData" or length is None:
        return None
    if syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        padded = length + length % 2
        is_last = element.length == padded and element.offset + padded == path.stat().st_size
        return _hash(path, element.offset, length) if is_last else None
    if decoder is None:
        return None
    try:
        decoder.probe(path)
        return frames_digest(frame.stored for frame in decoder.stored_frames(path, derived))
    except MedenhanceError:
        return None


def _hash(path: Path, offset: int, length: int) -> str | None:
    """Hex SHA-256 of a part of a file, read in pieces; None if it is too short."""
    sha, left = hashlib.sha256(), length
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while left:
                block = file.read(min(_CHUNK, left))
                if not block:
                    return None
                sha.update(block)
                left -= len(block)
    except OSError:
        return None
    return sha.hexdigest()


def _marking(derived: Dataset) -> Iterator[str]:
    """What makes it a derived object in the eyes of others."""
    if image_type(derived)[:1] != ["DERIVED"]:
        yield "ImageType: value 1 is not DERIVED"
    if any(frame_type[:1] != ["DERIVED"] for frame_type in _frame_types(derived)):
        yield "FrameType: value 1 is not DERIVED in every functional group"
    if derived.get("SpecificCharacterSet") != "ISO_IR 192":
        yield "SpecificCharacterSet: not ISO_IR 192"
    if not is_own_equipment(derived):
        yield "Manufacturer, ManufacturerModelName: not ours"
    if derived.get("InstanceCreatorUID") != INSTANCE_CREATOR_UID:
        yield "InstanceCreatorUID: not ours"
    if derived.get("SyntheticData", "NO") not in ("YES", "NO"):
        yield "SyntheticData: neither YES nor NO"
    if not str(derived.get("SeriesDescription") or "").endswith("]"):
        yield "SeriesDescription: carries no marking"


def _provenance(derived: Dataset, pixel_digest: str | None) -> Iterator[str]:
    """Who made it with what, and whether UID and digests agree."""
    item = own_item(derived)
    if item is None:
        yield "ContributingEquipmentSequence: no item of ours"
        return
    if not _is_code(item.get("PurposeOfReferenceCodeSequence"), PROCESSING):
        yield "ContributingEquipmentSequence: our item is not Processing Equipment"
    if any(not other.get("Manufacturer") for other in derived.ContributingEquipmentSequence):
        yield "ContributingEquipmentSequence: an item without Manufacturer"
    digests = recorded_digests(derived)
    old = "rule" not in digests
    if not {"recipe", "pixels"} | (set() if old else {"source", "header", "object"}) <= digests.keys():
        yield "ContributionDescription: digests are missing"
        return
    if "guide" not in digests and any(_GUIDED.search(said) for said in _descriptions(derived)):
        yield "ContributionDescription: the method is led by a guide, and no guide's digest is there"
    if pixel_digest is not None and digests["pixels"] != pixel_digest:
        yield "PixelData: not the pixels whose digest was recorded"
    if derived.get("SOPInstanceUID") != derived_instance_uid(source_uid(derived), digests):
        yield "SOPInstanceUID: does not follow from what is recorded of source, header, recipe, weights and guide"
    if not old and digests["header"] != header_digest(derived):
        yield "ContributionDescription: what the header takes over is not what was recorded"
    if not old and digests["object"] != object_digest(derived):
        yield "ContributionDescription: the object says something else than what was recorded"


def _references(derived: Dataset) -> Iterator[str]:
    """Source image and derivation, once or in every frame."""
    per_frame = "PerFrameFunctionalGroupsSequence" in derived
    places = _derivations(derived) if per_frame else [derived]
    if per_frame and len(places) != (derived.get("NumberOfFrames") or 1):
        yield "DerivationImageSequence: not one for every frame"
    found = {problem for place in places for problem in _one_reference(place, str(derived.get("SOPInstanceUID")))}
    yield from sorted(found)
    schemes = [item.get("CodingSchemeDesignator") for item in derived.get("CodingSchemeIdentificationSequence") or []]
    if CODING_SCHEME not in schemes:
        yield "CodingSchemeIdentificationSequence: our codes are not declared"


def _one_reference(place: Dataset, own_uid: str) -> Iterator[str]:
    references = place.get("SourceImageSequence") or []
    if not references:
        yield "SourceImageSequence: missing"
    elif not _is_code(references[0].get("PurposeOfReferenceCodeSequence"), SOURCE_PURPOSE):
        yield "SourceImageSequence: the purpose is not an image processing operation"
    if any(item.get("ReferencedSOPInstanceUID") == own_uid for item in references):
        yield "SourceImageSequence: refers to the object itself"
    description = place.get("DerivationDescription")
    if not isinstance(description, str) or not 0 < len(description) <= 1024:
        yield "DerivationDescription: missing or longer than 1024 characters"
    elif not VERDICT.search(description):
        yield "DerivationDescription: says nothing of the structure check"
    codes = place.get("DerivationCodeSequence") or []
    if not codes:
        yield "DerivationCodeSequence: missing"
    known = [_KNOWN_CODES.get((code.get("CodeValue"), code.get("CodingSchemeDesignator"))) for code in codes]
    if any(meaning is None or meaning != code.get("CodeMeaning") for meaning, code in zip(known, codes, strict=True)):
        yield "DerivationCodeSequence: a code or meaning that is not in our table"


def _contents(derived: Dataset) -> Iterator[str]:
    """Nothing of the drop list, and nothing that the IOD does not have."""
    forbidden = list(forbidden_in(unsigned(derived)))
    if replaced_uid(derived) is not None:
        forbidden.remove("OriginalAttributesSequence")  # ours, without anything of a patient
    for name in sorted(set(forbidden)):
        yield f"{name}: must not be in a derived object"
    sop_class = WRITABLE.get(str(derived.get("SOPClassUID") or ""))
    if sop_class is None:
        yield "SOPClassUID: not a class that we write"
        return
    present = {element.keyword for element in derived if element.tag.group < 0x6000 and not element.tag.is_private}
    for name in sorted(present - attributes_of(sop_class.iod) - _EVERYWHERE - SHUTTER - _shown(derived)):
        yield f"{name}: not an attribute of this IOD"


def _shown(derived: Dataset) -> frozenset[str]:
    """What may stand beside the attributes of any IOD, for the picture would look another without it."""
    return (SHOWN_GREY if derived.get("SamplesPerPixel") == 1 else frozenset()) | (
        POINTED_AT if "FrameIncrementPointer" in derived else frozenset()
    )


def _against(derived: Dataset, source: Dataset) -> Iterator[str]:
    """Another instance of another series, of the same patient and study, with the same geometry and history."""
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        if derived.get(keyword) == source.get(keyword):
            yield f"{keyword}: the source's"
    for keyword in _differing(derived, source):
        yield f"{keyword}: differs from the source"
    for keyword in _SAME_AS_SOURCE:
        value = derived.get(keyword)
        if (
            value not in (None, "")
            and source.get(keyword) not in (None, "")
            and not _same(value, source[keyword].value)
        ):
            yield f"{keyword}: differs from the source"
    if (derived.get("NumberOfFrames") or 1) != (source.get("NumberOfFrames") or 1):
        yield "NumberOfFrames: differs from the source"
    if source.get("SyntheticData") == "YES" and derived.get("SyntheticData") != "YES":
        yield "SyntheticData: YES of the source was lost"
    if any(not _continues(derived, source, keyword) for keyword in LOSSY):
        yield "LossyImageCompression: the source's history was lost"
    before = len(source.get("ContributingEquipmentSequence") or [])
    if len(derived.get("ContributingEquipmentSequence") or []) != before + 2:
        yield "ContributingEquipmentSequence: not the source's items, its equipment, and ours"
    if source_uid(derived) != source.get("SOPInstanceUID"):
        yield "SourceImageSequence: refers to another instance"


def _same(one: object, other: object) -> bool:
    """Equal values; NaN, which some write into a Decimal String, is equal to itself."""
    return one == other or repr(one) == repr(other)


def _differing(one: Dataset, other: Dataset) -> Iterator[str]:
    """Identifying attributes of which two objects have different values."""
    for keyword in IDENTITY:
        if str(one.get(keyword) or "") != str(other.get(keyword) or ""):
            yield keyword


def _continues(derived: Dataset, source: Dataset, keyword: str) -> bool:
    """Whether the source's compression history is the beginning of the derived object's; `00` may become `01`.

    Of what can be carried: a ratio of "10:1" cannot.
    """
    after, before = (
        list(value) if isinstance(value, list | MultiValue) else [value] if value not in (None, "") else []
        for value in (derived.get(keyword), copied(source, {keyword}).get(keyword))
    )
    return before in ([], ["00"]) or after[: len(before)] == before


def _is_code(sequence: list[Dataset] | None, step: Step) -> bool:
    item = sequence[0] if sequence else Dataset()
    found = (item.get("CodeValue"), item.get("CodingSchemeDesignator"), item.get("CodeMeaning"))
    return found == (step.value, step.scheme, step.meaning)


def _derivations(derived: Dataset) -> list[Dataset]:
    groups = derived.get("PerFrameFunctionalGroupsSequence") or []
    return [item for group in groups for item in (group.get("DerivationImageSequence") or [])[:1]]


def _descriptions(derived: Dataset) -> list[str]:
    """What the object, and its first frame, say of their derivation."""
    places = [derived, *_derivations(derived)[:1]]
    return [str(place.get("DerivationDescription") or "") for place in places]


def _frame_types(derived: Dataset) -> Iterator[list[str]]:
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in derived.get(keyword) or []:
            for element in group:
                for item in element.value if element.VR == "SQ" else []:
                    value = item.get("FrameType")
                    if value is not None:
                        yield [value] if isinstance(value, str) else list(value)
