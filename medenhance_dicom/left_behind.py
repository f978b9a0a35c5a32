"""What a source shows or says and its derived object does not, in words: for the outcome and for the object itself.

Listed is what a reader would miss: overlay planes, curves and audio (50xx), graphic annotations, a display shutter,
transforms of single frames, attributes that a derived object of this class has but whose value cannot be carried, and
what the header says of palettes and codestreams that contradict it: a reader that believes it shows something else.
Not listed is what no longer holds beside new pixels (`attributes.NEVER`), what is private, and what the class does not
have. No value is ever quoted, for it may be a patient's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue

from medenhance_dicom.attributes import NEVER, SHOWN_GREY
from medenhance_dicom.lossy import Encoding
from medenhance_dicom.overlays import DATA, is_in_cells
from medenhance_dicom.palette import palette_of

_OVERLAYS, _CURVES = range(0x6000, 0x6100, 2), range(0x5000, 0x5100, 2)
_CURVE_DATA, _AUDIO_DATA = 0x3000, 0x200C
_GRAPHICS = {
    "GraphicAnnotationSequence": "graphic annotations",
    "CompoundGraphicSequence": "graphic annotations",
    "WaveformSequence": "waveforms",
}
_OF_OTHERS = {"SpecificCharacterSet", "WindowCenterWidthExplanation"}  # they go with what they explain
_FRAME_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def left_behind(
    source: Dataset, carried: Dataset, keywords: Collection[str], *, grouped: bool, encoding: Encoding | None = None
) -> list[str]:
    """What stays behind, each in a few words.

    Args:
        source: Header of the source.
        carried: What the derived object takes over.
        keywords: Those that a derived object of this class takes over where their value can be carried.
        grouped: The derived object has the functional groups of the source.
        encoding: Of the source's Pixel Data, where known.
    """
    found = [*_planes(source, carried), *_curves(source)]
    found += dict.fromkeys(
        words for keyword, words in _GRAPHICS.items() if source.get(keyword) and keyword not in carried
    )
    if not grouped and any(source.get(keyword) for keyword in _FRAME_GROUPS):
        found.append("functional groups of single frames")
    found += _overruled_palette(source)
    overruled = getattr(source, "overruled", {})
    if unknown := sorted(keyword for keyword in SHOWN_GREY & frozenset(keywords) if overruled.get(keyword) == "UN"):
        found.append(f"the VR UN of {', '.join(unknown)}: a reader that leaves it alone shows another picture")
    if "PixelRepresentation" in overruled and source.get("PixelRepresentation"):
        found.append("what PixelRepresentation says: unsigned, while the codestream is signed")
    if encoding is not None:
        found += _overruled_header(source, encoding)
    for keyword in dict.fromkeys(_uncarried(source, carried, keywords)):
        found.append(f"{keyword}: a value that cannot be carried")
    return found


def _planes(source: Dataset, carried: Dataset) -> Iterator[str]:
    for group in _OVERLAYS:
        if _has(source, group, DATA):
            where = ""
        elif is_in_cells(source, group):
            where = ", in the pixel cells"
        else:
            continue
        if not _has(carried, group, DATA):
            yield f"overlay plane {(group - _OVERLAYS.start) // 2 + 1} (group {group:04X}{where})"


def _curves(source: Dataset) -> Iterator[str]:
    for group in _CURVES:
        if _has(source, group, _CURVE_DATA):
            yield f"curve (group {group:04X})"
        if _has(source, group, _AUDIO_DATA):
            yield f"audio (group {group:04X})"


def _overruled_palette(source: Dataset) -> Iterator[str]:
    if source.get("PhotometricInterpretation") == "PALETTE COLOR":
        palette = palette_of(source)
        if palette.bits != palette.declared:
            yield f"what the palette's descriptors say: {palette.declared} bits, while its entries have {palette.bits}"


def _overruled_header(source: Dataset, encoding: Encoding) -> Iterator[str]:
    """What the header says of codestreams that say something else: a reader that believes it shows other pixels."""
    photometric = str(source.get("PhotometricInterpretation") or "")
    if encoding.colour and photometric.startswith("YBR") != (encoding.colour == "YCbCr"):
        yield f"what PhotometricInterpretation says: {photometric}, while the codestream is {encoding.colour}"
    overruled = getattr(source, "overruled", {}).get("BitsStored")
    said = overruled or str(source.get("BitsStored"))
    # PS3.5 A.4.4 has them equal for JPEG 2000
    if overruled or (encoding.kind == "JPEG 2000" and said != str(encoding.precision)):
        yield f"what BitsStored says: {said}, while the codestream has {encoding.precision}"


def _has(instance: Dataset, group: int, element: int) -> bool:
    found = instance.get((group, element))
    return found is not None and not _is_empty(found)


def _uncarried(source: Dataset, carried: Dataset, keywords: Collection[str]) -> Iterator[str]:
    """Keywords of elements whose value `carried` lacks, also in items of its sequences."""
    for element in source:
        if element.keyword not in keywords or element.keyword in _OF_OTHERS or _is_empty(element):
            continue
        kept = carried.get(element.tag)
        if element.VR == "SQ":
            for number, item in enumerate(element.value):
                after = kept.value[number] if kept is not None else Dataset()
                yield from _uncarried(item, after, {e.keyword for e in item if e.keyword} - NEVER)
        elif kept is None or _count(kept) < _count(element):
            yield element.keyword


def _count(element: DataElement) -> int:
    """How many values there are, without empty ones."""
    values = element.value if isinstance(element.value, MultiValue) else [element.value]
    return sum(value not in (None, "") for value in values)


def _is_empty(element: DataElement) -> bool:
    value = element.value
    return value is None or (hasattr(value, "__len__") and len(value) == 0)
