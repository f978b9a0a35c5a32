"""A derived object derived anew from its source: whatever the source decides and the object says otherwise is found.

How the object was made is read from the object: what a recipe of ours decides is taken from that recipe, known by its
digest, and what nobody can know (`MAY_DIFFER`) is held to its form. The digests of the object cover that, and its
signature.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.uid import UID

from medenhance_dicom import __version__, frames
from medenhance_dicom.attributes import LOSSY
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.derive import PixelSummary, derivation
from medenhance_dicom.errors import InputError, MedenhanceError
from medenhance_dicom.identity import (
    OBJECT_DIGEST,
    OURS,
    canonical,
    little_endian,
    name_replaced,
    own_item,
    range_of_words,
    recorded_digests,
    replaced_uid,
)
from medenhance_dicom.lossy import Encoding
from medenhance_dicom.overlays import DATA, embedded_planes, packed
from medenhance_dicom.provenance import (
    CODES,
    MODEL_NAME,
    NO_VERDICT,
    VERDICT,
    Provenance,
    Step,
    steps_of,
)
from medenhance_dicom.recipe import Recipe, load_recipes
from medenhance_dicom.released import BECAUSE, OVERRULED, RELEASED, places, released
from medenhance_dicom.report import WITHHELD
from medenhance_dicom.signature import unsigned
from medenhance_dicom.sop_classes import transfer_syntax
from medenhance_dicom.uids import derived_uid

MAY_DIFFER = {
    "InstanceCreationDate, InstanceCreationTime, SeriesDate, SeriesTime, ContentDate, ContentTime, "
    "ContributionDateTime": "when it was made; all of them say the same time",
    "SoftwareVersions": "by which version of ours, by which engine and in which precision it was made; all places "
    "that say so say the same",
    "DerivationDescription": "what the structure check said; its wording is held to its form",
    "ContributionDescription": "digests of recipe, weights and guide; with a recipe that is not among the shipped ones "
    "its name, method, weights, guide, steps, parameters, marking and Series Number offset",
    "OriginalAttributesSequence": "which object it replaces, where its source was corrected",
    "OperatorsName": "who released it against the structure check, when (InstanceCreationDate) and why",
    "PixelData": "the new pixels; padding is the source's",
}
"""Of an object whose digests were all recomputed: what a source cannot decide, and why."""

_DESCRIPTION = re.compile(
    rf"Enhanced by {MODEL_NAME} (?P<version>\S+): recipe (?P<recipe>\S+), (?P<method>\S+)"
    r"(?: with weights (?P<weights>\S+?))?(?:, guide (?P<guide>\S+?))?\."
    r"(?P<disclaimer> Not for (?:HU|quantitative) measurement\.)?"
    r" (?P<verdict>.+?)(?P<synthetic> Contains content that was not acquired\.)?"
    r" Rows, columns and geometry are the source image's\."
    r"(?: Left behind: .+?\.)?(?: Parameters: (?P<parameters>.+)\.)?"
)
_VERDICT = re.compile(rf"{VERDICT.pattern}[^\\\x00-\x1f]*")
_ENGINE = re.compile(r"engine (\S+) (\S*)")
_MARKING = re.compile(rf"\[([^\[\]]+?)(, not for HU measurement)?({RELEASED})?\]$")
_CUT = "..."
_LONGEST = 1024
_PIXEL_DATA = 0x7FE00000
_OTHER = "differs from the source"
_OURS_BEFORE = (
    OURS
    | LOSSY
    | {
        *("ContributingEquipmentSequence", "CodingSchemeIdentificationSequence", "SeriesInstanceUID"),
        *("DerivationImageSequence", "SeriesNumber", "SeriesDescription", "FrameIncrementPointer"),
    }
)
"""Written by other rules in objects of rule 1, or of another version of ours."""


def differences(
    derived: Dataset, source: Dataset, path: Path, source_path: Path, decoder: Decoder | None = None
) -> Iterator[str]:
    """What a derived object says otherwise than its source decides, by attribute, without any value.

    Args:
        derived: Header of the object, of whom the rest is known to be well formed.
        source: Header of its source.
        path: File of the object.
        source_path: File of the source.
        decoder: Decodes the source's frames; None: they are not looked at.
    """
    derived = unsigned(derived)
    old = "rule" not in recorded_digests(derived)
    try:
        provenance = _provenance(derived)
    except _FormError as error:
        yield str(error)
        return
    strict = not old and provenance.version == __version__
    if decoder is None and UID(transfer_syntax(source)).is_compressed:
        strict = False  # whether its codestreams lost something is not known
    try:
        pixels = _pixels_of(source, source_path, derived, path, decoder) if decoder is not None else None
        expected = derivation(source, _summary(derived, source, pixels), provenance).instance
    except MedenhanceError as error:
        if strict or isinstance(error, InputError):
            yield f"its source does not give it: {error}"
        return
    if pixels is not None and not pixels.padding_kept:
        yield "PixelData: padding is not the source's"
    if pixels is not None and provenance.method == "identity" and recorded_digests(derived)["pixels"] != pixels.digest:
        yield "PixelData: not the source's, and the identity recipe changes none"
    expected = _completed(expected, derived)
    if strict:
        yield from dict.fromkeys(_unlike(derived, expected, ""))
    else:
        yield from dict.fromkeys(_unlike_both(_uncopied(derived, source), expected, ""))
        if pixels is not None and recorded_digests(derived).get("source", pixels.digest) != pixels.digest:
            yield f"ContributionDescription: {_OTHER}"
    if old and derived.get("SeriesInstanceUID") != _old_series_uid(source, provenance):
        yield f"SeriesInstanceUID: {_OTHER}"


def _summary(derived: Dataset, source: Dataset, pixels: _SourcePixels | None) -> PixelSummary:
    """Of the pixels that the object says it has, and of its source's; as it says where those were not looked at."""
    recorded = recorded_digests(derived)
    return PixelSummary(
        recorded.get("pixels", ""),
        frames.pixel_format(source),
        frames.pixel_format(source).number_of_frames,
        pixels.digest if pixels is not None else recorded.get("source", ""),
        blended=recorded.get("blended") == "yes",
        shared_range=range_of_words(recorded.get("intensity", "")),
        encoding=pixels.encoding if pixels is not None else None,
        overlays=pixels.overlays if pixels is not None else dict(_planes_as_said(derived, source)),
    )


def _planes_as_said(derived: Dataset, source: Dataset) -> Iterator[tuple[int, bytes]]:
    """Overlay planes of the object that lie in its source's pixel cells."""
    for group in embedded_planes(source):
        plane = derived.get((group, DATA))
        if plane is not None and isinstance(plane.value, bytes):
            yield group, plane.value


class _FormError(Exception):
    """An attribute that says how the object was made, in another form than we write; names it."""


# ---------------------------------------------------------------- how it was made


def _provenance(derived: Dataset) -> Provenance:
    """As the object says it; a shipped recipe, known by its digest, decides what is its own."""
    item = own_item(derived)
    if item is None:
        raise _FormError("ContributingEquipmentSequence: no item of ours")
    recorded = recorded_digests(derived)
    said = _description(derived)
    if release := _release(derived):
        said = said.removesuffix(release.because).replace(OVERRULED, WITHHELD)
    found = _DESCRIPTION.fullmatch(said) or (_DESCRIPTION.match(said) if _is_cut(derived) else None)
    if found is None or not _VERDICT.fullmatch(found["verdict"]):
        raise _FormError("DerivationDescription: not in the form that is written")
    try:
        made = datetime.strptime(str(item.get("ContributionDateTime")), "%Y%m%d%H%M%S.%f%z")
    except ValueError:
        raise _FormError("ContributionDateTime: not in the form that is written") from None
    versions = _texts(item, "SoftwareVersions")
    said_by = (derived.get("SoftwareVersions"), *versions[:1])
    if said_by != (found["version"], f"{MODEL_NAME} {found['version']}"):
        raise _FormError("SoftwareVersions: not the same in every place")
    engine = next(filter(None, map(_ENGINE.fullmatch, versions)), None)
    verdict = found["verdict"]
    marking = _MARKING.search(str(derived.get("SeriesDescription") or ""))
    number = derived.get("SeriesNumber")
    said_so = Provenance(
        recipe=found["recipe"],
        recipe_digest=recorded.get("recipe", ""),
        method=found["method"],
        made=made,
        weights=found["weights"],
        weights_digest=recorded.get("weights"),
        guide=found["guide"],
        guide_digest=recorded.get("guide"),
        steps=_steps(derived),
        parameters=found["parameters"] or "",
        verdict="" if verdict == NO_VERDICT else verdict,
        engine=engine[1] if engine else "",
        precision=engine[2] if engine else "",
        version=found["version"],
        synthetic=found["synthetic"] is not None,
        not_quantitative=found["disclaimer"] is not None,
        series_description=marking[1] if marking else "",
        series_number_offset=number % 100 if isinstance(number, int) else 0,
    )
    recipe = _shipped().get(said_so.recipe_digest)
    if recipe is None:
        return said_so
    return replace(
        said_so,
        recipe=recipe.name,
        method=said_so.method if recipe.enhancer.method == "network" else recipe.enhancer.method,
        weights=recipe.enhancer.weights,
        steps=steps_of(recipe.derived.steps),
        parameters=recipe.parameters_in_words(),
        synthetic=False,
        not_quantitative=True,
        series_description=recipe.derived.series_description,
        series_number_offset=recipe.derived.series_number_offset,
    )


@dataclass(frozen=True)
class _Release:
    """By a person, of what the gate withheld."""

    by: str
    reason: str
    now: datetime

    @property
    def because(self) -> str:
        """What ends the description."""
        return f"{BECAUSE}{self.reason}"


def _release(derived: Dataset) -> _Release | None:
    """As the object says it; None where it was not released, or does not say so in our form."""
    item = own_item(derived)
    _, because, reason = _description(derived).rpartition(BECAUSE)
    if item is None or recorded_digests(derived).get("released") != "yes" or not because:
        return None
    when = f"{derived.get('InstanceCreationDate')}{derived.get('InstanceCreationTime')}"
    try:
        now = datetime.strptime(when + str(item.get("ContributionDateTime"))[-5:], "%Y%m%d%H%M%S.%f%z")
    except ValueError:
        return None
    return _Release(str(item.get("OperatorsName") or ""), reason, now)


def _is_cut(derived: Dataset) -> bool:
    """Whether a description had no room for all that it was to say."""
    said = _description(derived)
    return said.endswith(_CUT) or len(said) == _LONGEST


@functools.cache
def _shipped() -> dict[str, Recipe]:
    return {recipe.digest: recipe for recipe in load_recipes()}


def _description(derived: Dataset) -> str:
    return next((str(place.get("DerivationDescription")) for place in places(derived)), "")


def _steps(derived: Dataset) -> tuple[Step, ...]:
    known = {(step.value, step.scheme): step for steps in CODES.values() for step in steps}
    codes = next((place.get("DerivationCodeSequence") or [] for place in places(derived)), [])
    found = [known.get((code.get("CodeValue"), code.get("CodingSchemeDesignator"))) for code in codes]
    return tuple(step for step in found if step is not None)


def _texts(item: Dataset, keyword: str) -> list[str]:
    value = item.get(keyword)
    return [value] if isinstance(value, str) else [str(text) for text in value or []]


# ---------------------------------------------------------------- pixels


@dataclass(frozen=True)
class _SourcePixels:
    digest: str
    """Hex SHA-256 of the stored values of all frames."""
    overlays: dict[int, bytes]
    """Group -> Overlay Data of the planes that lie in the pixel cells."""
    encoding: Encoding
    padding_kept: bool
    """The object's padding pixels are the source's."""


def _pixels_of(source: Dataset, source_path: Path, derived: Dataset, path: Path, decoder: Decoder) -> _SourcePixels:
    """The source's frames, and whether the object has their padding."""
    for file in (source_path, path):
        decoder.probe(file)
    sha, kept = hashlib.sha256(), True
    planes: dict[int, list[NDArray[np.bool_]]] = {}
    for index, frame in enumerate(decoder.stored_frames(source_path, source)):
        sha.update(little_endian(frame.stored))
        for group, plane in frame.overlays.items():
            planes.setdefault(group, []).append(plane)
        if frame.padding is not None and frame.padding.any():
            there = frames.stored_frame(derived, decoder.frame(path, index), index).stored
            kept = kept and there.shape == frame.stored.shape and bool((there == frame.stored)[frame.padding].all())
    overlays = {group: packed(found) for group, found in planes.items()}
    return _SourcePixels(sha.hexdigest(), overlays, decoder.encoding(source_path), kept)


# ---------------------------------------------------------------- attributes


def _completed(expected: Dataset, derived: Dataset) -> Dataset:
    """What is expected with what no source decides (`MAY_DIFFER`) and the object's provenance does not hold."""
    if replaced_uid(derived) is not None:
        before = derived.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
        name_replaced(expected, before.SOPInstanceUID, before.SeriesInstanceUID)
    if release := _release(derived):
        expected = released(expected, by=release.by, reason=release.reason, now=release.now)
    ours, theirs, said = own_item(expected), own_item(derived), _description(derived)
    assert ours is not None
    assert theirs is not None
    digest = recorded_digests(derived).get("object", "")  # of all the rest, which is compared
    ours.ContributionDescription = OBJECT_DIGEST.sub(f"; object sha256:{digest}", ours.ContributionDescription)
    if _is_cut(derived):
        ours.ContributionDescription = theirs.get("ContributionDescription")
        for place in places(expected):
            place.DerivationDescription = said
    return expected


def _unlike(derived: Dataset, expected: Dataset, where: str) -> Iterator[str]:
    """Attributes of which two data sets have different values, or that one of them lacks."""
    found, wanted = _elements(derived, where), _elements(expected, where)
    for tag in sorted(found.keys() | wanted.keys()):
        there, given = found.get(tag), wanted.get(tag)
        if there is None:
            yield f"{where}{_name(given)}: missing, and the source gives it"
        elif given is None:
            yield f"{where}{_name(there)}: not given by the source"
        else:
            yield from _unlike_element(there, given, where, _unlike)


def _unlike_both(derived: Dataset, expected: Dataset, where: str) -> Iterator[str]:
    """As `_unlike`, of what both have and rules of ours do not decide."""
    found, wanted = _elements(derived, where), _elements(expected, where)
    for tag in sorted(found.keys() & wanted.keys()):
        if found[tag].keyword not in _OURS_BEFORE:
            yield from _unlike_element(found[tag], wanted[tag], where, _unlike_both)


def _uncopied(derived: Dataset, source: Dataset) -> Dataset:
    """Without attributes that are the source's own, which other rules may have copied as they are."""
    result = Dataset()
    for element in derived:
        if element.tag not in source or canonical(source[element.tag]) != canonical(element):
            result.add(element)
    return result


def _unlike_element(
    there: DataElement, given: DataElement, where: str, compare: Callable[[Dataset, Dataset, str], Iterator[str]]
) -> Iterator[str]:
    name = f"{where}{_name(given)}"
    if given.VR == "SQ" and there.VR == "SQ" and len(there.value) == len(given.value):
        for one, other in zip(there.value, given.value, strict=True):
            yield from compare(one, other, f"{name} > ")
    elif canonical(there) != canonical(given):
        yield f"{name}: {_OTHER}"


def _elements(dataset: Dataset, where: str) -> dict[int, DataElement]:
    """By tag; of the object itself without Pixel Data."""
    return {
        int(element.tag): element for element in dataset if element.tag.element and (where or element.tag < _PIXEL_DATA)
    }


def _name(element: DataElement | None) -> str:
    assert element is not None
    return element.keyword or ("private" if element.tag.is_private else str(element.tag))


def _old_series_uid(source: Dataset, provenance: Provenance) -> str:
    """Of objects of rule 1."""
    method = (provenance.recipe_digest, provenance.weights_digest or "", provenance.guide_digest or "")
    return derived_uid("series", str(source.get("SeriesInstanceUID")), *method)
