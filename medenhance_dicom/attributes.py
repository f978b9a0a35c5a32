"""Which attributes go from a source to its derived object: an allow-list per IOD, never a deep copy (requirement R10).

The standard's own tables (attributes.toml) say what an IOD has; `NEVER` says what would be untrue beside new
pixels; `WRITTEN` is what `derive` writes itself.
"""

from __future__ import annotations

import copy
import functools
import math
import re
import tomllib
from collections.abc import Collection, Iterator
from importlib import resources
from typing import Any

from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.valuerep import PersonName

from medenhance_dicom.errors import DerivationError


@functools.cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(resources.files("medenhance_dicom").joinpath("attributes.toml").read_text("utf-8"))


def _named(name: str) -> frozenset[str]:
    return frozenset(_tables()["sets"][name].split())


NEVER = _named("never")
"""Untrue, or signed, beside other pixels: in no item of a derived object at any depth."""

EQUIPMENT = _named("equipment")
"""Of the General Equipment module (PS3.3 C.7.5.1): the scanner's go into its Contributing Equipment item."""

PALETTE = _named("palette")

LOSSY = _named("lossy")

WRITTEN = _named("written") | EQUIPMENT | LOSSY
"""Not copied, because `derive` writes them from scratch (or leaves them out on purpose)."""

SHOWN_GREY = _named("shown-grey")
"""From stored grey value to what is seen (PS3.3 C.11): each means something only with the others, so all go along, also
where the IOD does not list them."""

SHUTTER = _named("shutter")
"""Covers part of the picture, grey or colour; goes along whatever the IOD lists."""

POINTED_AT = _named("pointed-at")
"""What Frame Increment Pointer may name in place of timing; goes along with it."""

_WINDOW = ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation")

_EMPTIED = frozenset(("AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM"))

IDENTITY = _named("identity")
"""A source whose values of these cannot be carried over is refused rather than orphaned (requirements R3, R11)."""


_ASCII = ("", "ISO_IR 6", "ISO 2022 IR 6")
"""Default repertoires: bytes above 127 are letters only behind an escape sequence (PS3.5 section 6.1.2.5)."""
_UNDECLARED = "{} has letters beyond ASCII, and no Specific Character Set says which"
_ESCAPED = re.compile(rb"\x1b(?!\(B)[^\^=\\]*")
"""What an escape sequence holds for: until the end of a component or value."""


@functools.cache
def modules_of(iod: str) -> frozenset[str]:
    """Names of an IOD's modules.

    Raises:
        KeyError: No such IOD in attributes.toml.
    """
    tables = _tables()
    return frozenset(f"{tables['common']} {tables['iods'][iod]}".split())


@functools.cache
def attributes_of(iod: str) -> frozenset[str]:
    """Keywords of every top-level attribute the IOD's modules have (PS3.3 annexes A and C)."""
    tables = _tables()
    texts = [tables["modules"].get(module, "") for module in modules_of(iod)]
    return frozenset(" ".join([*texts, tables["additions"].get(iod, "")]).split())


def allowed(iod: str) -> frozenset[str]:
    """Keywords that are copied from a source into a derived object of this IOD."""
    return attributes_of(iod) - NEVER - WRITTEN


def copied(source: Dataset, keywords: Collection[str]) -> Dataset:
    """The named attributes of a data set, as they are, ready to be written in UTF-8.

    Nothing private, no group length and nothing of `NEVER` comes along, at any depth. Values that do not fit their VR
    (`part10` reads them as UN; DS that are no finite numbers) stay behind: at top level the attribute is there, but
    empty, for it may be of type 2. Of the windows those stay behind in which a number is none.

    Raises:
        DerivationError: An identifying attribute that cannot be carried; names the attribute.
    """
    result = Dataset()
    terms = _charsets(source)
    unknown_text = not terms or terms[0] in _ASCII or any(term not in python_encoding for term in terms)
    declared = any(term in python_encoding and term not in _ASCII for term in terms)
    for element in source:
        if element.keyword in keywords:
            kept = _copied_element(element, unknown_text)
            if element.keyword in IDENTITY:
                if kept is None:
                    raise DerivationError(f"{element.keyword} has a value that cannot be carried over")
                if not declared and not _texts(kept.value).isascii():
                    raise DerivationError(_UNDECLARED.format(element.keyword))
            if kept is not None:
                result[element.tag] = kept
            elif dictionary_VR(element.tag) in _EMPTIED:
                result[element.tag] = DataElement(element.tag, dictionary_VR(element.tag), None)
    return _with_usable_windows(result)


def copied_item(source: Dataset, *, unknown_text: bool = False) -> Dataset:
    """A sequence item under the same rules, with all its standard attributes."""
    result = Dataset()
    for element in source:
        kept = _copied_element(element, unknown_text)
        if kept is not None:
            result[element.tag] = kept
    return _with_usable_windows(result)


def copied_overlay(source: Dataset, group: int) -> Dataset:
    """The elements of an overlay plane, under the same rules."""
    result = Dataset()
    for element in source.group_dataset(group):
        kept = _copied_element(element, unknown_text=False)
        if kept is not None:
            result[element.tag] = kept
    return result


def _with_usable_windows(copied: Dataset) -> Dataset:
    """Without the windows of which a number is none (NaN), and their explanations; half a window stays as it is."""
    listed = {keyword: _values(copied.get(keyword)) for keyword in _WINDOW}
    broken = {
        n
        for keyword in ("WindowCenter", "WindowWidth")
        for n, value in enumerate(listed[keyword])
        if value not in (None, "") and not _is_number(value)
    }
    for keyword, values in listed.items() if broken else ():
        if keyword in copied:
            del copied[keyword]
        if kept := [value for n, value in enumerate(values) if n not in broken]:
            setattr(copied, keyword, kept)
    for keyword in (
        ("WindowCenterWidthExplanation", "VOILUTFunction") if broken and "WindowCenter" not in copied else ()
    ):
        if keyword in copied:
            del copied[keyword]
    return copied


def _values(value: object) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, MultiValue | list) else [value]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def forbidden_in(instance: Dataset) -> Iterator[str]:
    """What a derived object must not hold, at any depth: keywords of `NEVER`, and `private` for a private attribute."""
    for element in instance:
        if element.tag.is_private:
            yield "private"
        elif element.keyword in NEVER:
            yield element.keyword
        elif element.VR == "SQ":
            for item in element.value:
                yield from forbidden_in(item)


def _copied_element(element: DataElement, unknown_text: bool) -> DataElement | None:
    tag = element.tag
    if tag.is_private or tag.element == 0 or element.VR == "UN" or element.keyword in NEVER:
        return None
    if not keyword_for_tag(tag):
        return None
    if tag == 0x00080005:  # of an item: the whole object is UTF-8
        return None
    if element.VR == "SQ":
        items = [copied_item(item, unknown_text=unknown_text) for item in element.value]
        if any(element.value) and not any(items):
            return None
        return DataElement(tag, "SQ", Sequence(items))
    if (
        element.VR == "DS"
        and element.keyword not in _WINDOW
        and not all(_is_number(v) for v in _values(element.value) if v)
    ):
        return None
    result = copy.copy(element)
    if element.VR == "PN":
        names = element.value if element.VM > 1 else [element.value]
        try:
            texts = [_text_of(name, element.keyword, unknown_text) for name in names]
        except DerivationError:
            if element.keyword in IDENTITY:
                raise
            return None
        result.value = texts if element.VM > 1 else texts[0]
    elif "\ufffd" in _texts(element.value):
        return None
    return result


def _text_of(name: PersonName | str | None, keyword: str, unknown_text: bool) -> str:
    """A person's name as text. It must survive the way to UTF-8 unharmed: another name is another patient."""
    text = str(name or "")
    original = getattr(name, "original_string", None) or b""
    if unknown_text and not _ESCAPED.sub(b"", original).isascii():
        raise DerivationError(_UNDECLARED.format(keyword))
    if "\ufffd" in text or "\x1b" in text:
        raise DerivationError(f"{keyword} is not readable in the Specific Character Set that the file declares")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DerivationError(f"{keyword} cannot be written in UTF-8") from None
    return text


def _texts(value: object) -> str:
    if isinstance(value, str):
        return value
    return "".join(v for v in value if isinstance(v, str)) if isinstance(value, list | tuple) else ""


def _charsets(source: Dataset) -> list[str]:
    """Specific Character Set (PS3.3 C.12.1.1.2), with the punctuation that pydicom forgives put right."""
    declared = source.get("SpecificCharacterSet")
    terms = [declared] if isinstance(declared, str) else list(declared or [])
    return [str(term).replace("ISO-IR", "ISO_IR").replace("ISO IR", "ISO_IR") for term in terms]
