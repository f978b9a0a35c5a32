"""Which object a derived object is: digests of what it says, and the UIDs that follow from them.

The SOP Instance UID is a function of the source's UID and pixels, of what is taken over from the source's header, and
of recipe, weights and guide (`derived_instance_uid`), and of nothing else: a repeat on another machine or engine is the
same object, and a corrected source is another one. docs/decisions/0008-identity.md says why.

Digests are over decoded values. Specific Character Set, transfer syntax, explicit or implicit VR, group lengths,
padding and the way in which a number is spelt do not change them.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

from medenhance_dicom.attributes import IDENTITY
from medenhance_dicom.errors import DerivationError
from medenhance_dicom.provenance import CODING_SCHEME, MODEL_NAME, is_own_equipment
from medenhance_dicom.uids import derived_uid

SIGNATURE_GROUP = 0x0099
"""Private group of the site's signature (`signature`), which is over the digests and so in none of them."""

METHOD_VERSION = 2
"""Raised when the same source, recipe, weights and guide are meant to give other pixels than before. Objects of rule 1
had the digest of their pixels in their UID instead of their header's and their source's."""

OURS = frozenset(
    {
        *("SpecificCharacterSet", "InstanceCreationDate", "InstanceCreationTime", "InstanceCreatorUID"),
        *("SOPInstanceUID", "SeriesDate", "SeriesTime", "ContentDate", "ContentTime"),
        *("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions"),
        *("SecondaryCaptureDeviceManufacturer", "SecondaryCaptureDeviceManufacturerModelName"),
        *("SecondaryCaptureDeviceSoftwareVersions", "DerivationDescription", "DerivationCodeSequence"),
        *("LossyImageCompressionRatio", "OriginalAttributesSequence"),
    }
)
"""Not taken over from the source, or (the ratio) said of one encoding of it, so not in the header's digest. The derived
Series Instance UID is in it: it stands for the source's."""

_MARKED = ("recipe", "weights", "guide", "pixels", "source", "header", "object")
_DIGEST = re.compile(rf"\b({'|'.join(_MARKED)}) sha256:([0-9a-f]{{64}})(?![0-9a-f])")
_MARK = re.compile(r"(?:^|; )(rule|blended|released|intensity) ([0-9.e+-]+|yes)(?=;|$)")
OBJECT_DIGEST = re.compile(r"; object sha256:[0-9a-f]{64}(?![0-9a-f])")
"""Where the object's own digest is recorded."""

_PIXELS = 0x7FE00000
_LEFT_OUT = object()
_FLOATS = {"FL": "<f", "FD": "<d"}
_NUMBERS = ("DS", "IS", "US", "SS", "UL", "SL", "UV", "SV")
_BEGINNING_COUNTS = ("LT", "ST", "UT")  # elsewhere leading spaces mean nothing, PS3.5 section 6.2

_View = Callable[[DataElement, int], Any]


def derived_series_uid(source: Dataset, digests: Mapping[str, str]) -> str:
    """One new series per source series, patient and study, recipe, weights and guide (requirement R2).

    Args:
        source: Has the source's Series Instance UID, and its attributes of patient and study.
        digests: Hex SHA-256 of `recipe`, and of `weights` and `guide` where used.

    Raises:
        DerivationError: The source has no Series Instance UID.
    """
    uid = source.get("SeriesInstanceUID")
    if not isinstance(uid, str) or not uid:
        raise DerivationError("the source has no SeriesInstanceUID")
    said = [
        canonical(source[keyword]) if keyword in source and source[keyword].value else b""
        for keyword in sorted(IDENTITY)
    ]
    method = (digests.get("recipe", ""), digests.get("weights", ""), digests.get("guide", ""))
    return derived_uid("series", str(METHOD_VERSION), str(uid), *method, *said)


def released_series_uid(derived_series: str) -> str:
    """Series Instance UID of what a person released against the structure check: nothing else is in that series.

    Args:
        derived_series: As `derived_series_uid` gives it.
    """
    return derived_uid("released", derived_series)


def old_series_uid(source_series: str, recipe: str, weights: str | None, guide: str | None) -> str:
    """Series Instance UID of a derived object of rule 1; digests are hex SHA-256."""
    return derived_uid("series", source_series, recipe, weights or "", guide or "")


def derived_instance_uid(source_uid: str, digests: Mapping[str, str]) -> str:
    """SOP Instance UID of a derived object.

    Args:
        source_uid: SOP Instance UID of the source.
        digests: What the object records (`recorded_digests`): `rule`; hex SHA-256 of `recipe`, of `weights` and `guide`
            where used, of the source's frames (`source`) and of what its header gave (`header`); `blended`. Without a
            rule it is an old object's UID, a function of the new `pixels`.
    """
    method = (digests.get("recipe", ""), digests.get("weights", ""), digests.get("guide", ""))
    rule = digests.get("rule", "1")
    if rule == "1":
        return derived_uid(source_uid, *method, digests.get("pixels", ""))
    what = (digests.get("source", ""), digests.get("header", ""), digests.get("blended", ""))
    return derived_uid("instance", rule, source_uid, *method, *what)


def header_digest(derived: Dataset) -> str:
    """Hex SHA-256 of what a derived object took over from its source's header.

    That is everything but Pixel Data and `OURS`, our item of Contributing Equipment and of Coding Scheme
    Identification Sequence, the marking at the end of Series Description, and Derivation Image Sequence of its frames.
    """
    own = own_item(derived)

    def view(element: DataElement, depth: int) -> Any:
        keyword = element.keyword
        if depth:
            return _LEFT_OUT if keyword == "DerivationImageSequence" else element.value
        if keyword in OURS:
            return _LEFT_OUT
        if keyword == "ContributingEquipmentSequence":
            return [item for item in element.value if item is not own]
        if keyword == "CodingSchemeIdentificationSequence":
            return [item for item in element.value if item.get("CodingSchemeDesignator") != CODING_SCHEME]
        if keyword == "SeriesDescription" and isinstance(element.value, str):
            return element.value.rpartition("[")[0]
        return element.value

    return _digest_of(derived, view)


def object_digest(derived: Dataset) -> str:
    """Hex SHA-256 of all that a derived object says, but for its Pixel Data, whose digest is recorded apart.

    Every element at every depth is in it, our times and texts too; only the place where it is recorded itself is not.
    """
    own = own_item(derived)
    place = own.get_item("ContributionDescription") if own is not None else None

    def view(element: DataElement, depth: int) -> Any:
        return OBJECT_DIGEST.sub("", element.value or "") if place is not None and element is place else element.value

    return _digest_of(derived, view)


def seal(derived: Dataset) -> None:
    """Record the object's digest in our Contributing Equipment item; to be called when nothing changes any more."""
    own = own_item(derived)
    assert own is not None
    said = OBJECT_DIGEST.sub("", own.ContributionDescription)
    own.ContributionDescription = said
    own.ContributionDescription = f"{said}; object sha256:{object_digest(derived)}"


def name_replaced(derived: Dataset, uid: str, series_uid: str) -> None:
    """Say which derived object this one replaces, since its source was corrected.

    Original Attributes Sequence (PS3.3 C.12.1.1.9), which every IOD has, with the UIDs that it had before, and nothing
    else of before. It is sealed anew.

    Args:
        derived: As `derive.derive_instance` gives it.
        uid: SOP Instance UID of the other.
        series_uid: Its Series Instance UID.
    """
    own = own_item(derived)
    assert own is not None
    before = Dataset()
    before.SOPInstanceUID = uid
    before.SeriesInstanceUID = series_uid
    item = Dataset()
    item.SourceOfPreviousValues = None
    item.AttributeModificationDateTime = own.ContributionDateTime
    item.ModifyingSystem = MODEL_NAME
    item.ReasonForTheAttributeModification = "CORRECT"
    item.ModifiedAttributesSequence = Sequence([before])
    derived.OriginalAttributesSequence = Sequence([item])
    seal(derived)


def replaced_uid(derived: Dataset) -> str | None:
    """SOP Instance UID of the object that a derived one replaces, if it says so as `name_replaced` does."""
    items = derived.get("OriginalAttributesSequence") or []
    if len(items) != 1 or items[0].get("ModifyingSystem") != MODEL_NAME:
        return None
    before = items[0].get("ModifiedAttributesSequence") or []
    if len(before) != 1 or {element.keyword for element in before[0]} != {"SOPInstanceUID", "SeriesInstanceUID"}:
        return None
    return str(before[0].SOPInstanceUID) or None


def source_digest(source: Dataset) -> str:
    """Hex SHA-256 of a source's whole header, but for Specific Character Set, Pixel Data and private attributes."""

    def view(element: DataElement, depth: int) -> Any:
        return _LEFT_OUT if element.tag.is_private or element.keyword == "SpecificCharacterSet" else element.value

    return _digest_of(source, view)


def differing(one: Dataset, other: Dataset) -> list[str]:
    """Keywords of the top-level attributes in which two sources differ, of those that `source_digest` covers."""
    views = [{element.tag: element for element in dataset} for dataset in (one, other)]
    tags = sorted({tag for view in views for tag in view if tag.element and not tag.is_private and tag < _PIXELS})
    names = {}
    for tag in tags:
        said = [b"".join(_element(view[tag], _everything, 0)) if tag in view else None for view in views]
        if said[0] != said[1]:
            names[tag] = keyword_for_tag(tag) or str(tag)
    return [name for name in names.values() if name != "SpecificCharacterSet"]


def frames_digest(frames: Iterable[NDArray[Any]]) -> str:
    """Hex SHA-256 of an instance's stored values, little endian, frame after frame.

    Args:
        frames: (H, W, C) as `frames.stored_frame` gives them.
    """
    sha = hashlib.sha256()
    for frame in frames:
        sha.update(little_endian(frame))
    return sha.hexdigest()


def little_endian(stored: NDArray[Any]) -> bytes:
    """The bytes of stored values as they stand in a file."""
    return np.ascontiguousarray(stored.astype(stored.dtype.newbyteorder("<"), copy=False)).tobytes()


def recorded_digests(derived: Dataset) -> dict[str, str]:
    """Name -> hex SHA-256, as our Contributing Equipment item records them; empty without such an item.

    `rule` is the version of the rule by which the UID was made, absent in objects of the first; `blended` is "yes"
    where the gate gave pixels back to the source, `released` where a person released what the gate withheld;
    `intensity` is the range of a map that several instances shared, see `range_of_words`.
    """
    item = own_item(derived)
    if item is None:
        return {}
    said = str(item.get("ContributionDescription") or "")
    return dict(_DIGEST.findall(said)) | dict(_MARK.findall(said))


def range_in_words(values: tuple[float, float]) -> str:
    """Two finite numbers as `recorded_digests` keeps them, exactly."""
    return "..".join(repr(float(value)) for value in values)


def range_of_words(words: str) -> tuple[float, float] | None:
    """The numbers of `range_in_words`; None where they are not two, the first below the second."""
    try:
        low, high = (float(word) for word in words.split(".."))
    except ValueError:
        return None
    return (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None


def own_item(derived: Dataset) -> Dataset | None:
    """Our item of Contributing Equipment Sequence: the last that names us."""
    ours = [item for item in derived.get("ContributingEquipmentSequence") or [] if is_own_equipment(item)]
    return ours[-1] if ours else None


def source_uid(derived: Dataset) -> str:
    """SOP Instance UID of the source that the object names first, itself or in its first frame; empty if none."""
    groups = derived.get("PerFrameFunctionalGroupsSequence") or []
    frames = [item for group in groups[:1] for item in (group.get("DerivationImageSequence") or [])[:1]]
    for place in [derived, *frames]:
        for item in place.get("SourceImageSequence") or []:
            return str(item.get("ReferencedSOPInstanceUID") or "")
    return ""


# ---------------------------------------------------------------- canonical form


def canonical(element: DataElement) -> bytes:
    """What goes into a digest of an element: equal for values that mean the same."""
    return b"".join(_element(element, _everything, 0))


def _everything(element: DataElement, _: int) -> Any:
    return element.value


def _digest_of(dataset: Dataset, view: _View) -> str:
    sha = hashlib.sha256()
    for part in _elements(dataset, view, 0):
        sha.update(part)
    return sha.hexdigest()


def _elements(dataset: Dataset, view: _View, depth: int) -> Iterator[bytes]:
    for element in dataset:
        apart = depth == 0 and (element.tag >= _PIXELS or element.tag.group == SIGNATURE_GROUP)
        if element.tag.element and not apart:
            yield from _element(element, view, depth)


def _element(element: DataElement, view: _View, depth: int) -> Iterator[bytes]:
    """Tag, VR, number of values, and every value with its length; items of a sequence are closed by a zero tag."""
    value = view(element, depth)
    if value is _LEFT_OUT:
        return
    vr = _vr(element)
    if vr == "SQ":
        items = list(value or [])
        yield struct.pack("<L2sL", element.tag, b"SQ", len(items))
        for item in items:
            yield from _elements(item, view, depth + 1)
            yield bytes(4)
        return
    words = _words(value) if " or " in vr else [_canonical(v, vr) for v in _values(value)]
    if words == [b""]:
        words = []
    yield struct.pack("<L", element.tag) + vr.encode()[:2] + struct.pack("<L", len(words))
    for word in words:
        yield struct.pack("<L", len(word)) + word


def _vr(element: DataElement) -> str:
    """The VR, or the dictionary's where the standard leaves a choice that implicit VR forgets ("US or SS")."""
    if element.tag.group & 0xFF01 == 0x6000 and element.tag.element == 0x3000:
        return "OB or OW"
    if element.VR in ("US", "SS", "OB", "OW") or " or " in element.VR:
        try:
            said = dictionary_VR(element.tag)
        except KeyError:
            return str(element.VR)
        return said if " or " in said else str(element.VR)
    return str(element.VR)


def _values(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | MultiValue) else [value]


def _words(value: Any) -> list[bytes]:
    """Values of an ambiguous VR as the 16-bit words that they are either way."""
    if isinstance(value, bytes | bytearray):
        return [bytes(value) + bytes(len(value) % 2)]
    return [b"".join(struct.pack("<H", int(v) & 0xFFFF) for v in _values(value))]


def _canonical(value: Any, vr: str) -> bytes:
    if isinstance(value, bytes | bytearray):
        return bytes(value) + bytes(len(value) % 2)
    if vr in _FLOATS:
        number = float(value)
        return b"nan" if math.isnan(number) else struct.pack(_FLOATS[vr], number)
    if vr in _NUMBERS and isinstance(value, int | float):
        number = float(value)
        return (repr(number) if not number.is_integer() else str(int(value))).encode()
    if vr == "AT":
        return f"{int(value):08x}".encode()
    text = str(value).rstrip(" \0")
    if vr == "PN":
        text = text.rstrip("=")
    return (text if vr in _BEGINNING_COUNTS else text.lstrip(" ")).encode("utf-8", "surrogatepass")
