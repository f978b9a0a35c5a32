"""The signature of a site in a derived object: who recomputes every digest of a forged object still lacks the key.

PS3.15 has no Digital Signature profile with Ed25519, so ours lies in a private block: (0099,0010) private creator
`CREATOR`, (0099,1001) LO algorithm, (0099,1002) LO key id, (0099,1003) OB signature. docs/verification.md has the
format for other programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydicom import Dataset
from pydicom.dataelem import DataElement

from medenhance_dicom.identity import SIGNATURE_GROUP, object_digest
from medenhance_dicom.site_keys import PublicKey, SigningKey

CREATOR = "MEDENHANCE-DICOM SIGNATURE 1"
ALGORITHM = "ED25519"
_PARTS = _ALGORITHM, _KEY, _SIGNATURE = 0x01, 0x02, 0x03

State = Literal["signed", "not signed", "unknown key", "bad signature"]


@dataclass(frozen=True)
class Signature:
    """What an object carries."""

    algorithm: str
    key: str
    """Id of the key."""
    value: bytes


def sign(derived: Dataset, key: SigningKey, pixel_digest: str) -> None:
    """Sign a finished object: nothing in it may change any more.

    Args:
        derived: Gets the block; one that it has is replaced.
        key: The site's.
        pixel_digest: Hex SHA-256 of its Pixel Data, without the pad byte; empty for a structured report.
    """
    for tag in _tags(derived):
        del derived[tag]
    taken = {element.tag.element for element in derived.group_dataset(SIGNATURE_GROUP)}
    start = next(element for element in range(0x10, 0x100) if element not in taken)
    message = _message(derived, key.id, pixel_digest)
    derived.add_new((SIGNATURE_GROUP, start), "LO", CREATOR)
    derived.add_new((SIGNATURE_GROUP, start << 8 | _ALGORITHM), "LO", ALGORITHM)
    derived.add_new((SIGNATURE_GROUP, start << 8 | _KEY), "LO", key.id)
    derived.add_new((SIGNATURE_GROUP, start << 8 | _SIGNATURE), "OB", key.sign(message))


def unsigned(derived: Dataset) -> Dataset:
    """A shallow copy without the block; whatever else is private stays."""
    block, plain = _tags(derived), Dataset()
    plain.update({tag: derived.get_item(tag) for tag in derived.keys() if tag not in block})  # noqa: SIM118
    return plain


def signature_of(derived: Dataset) -> Signature | None:
    """What an object carries; None: nothing. Nothing is verified."""
    start = _start(derived)
    if start is None:
        return None
    algorithm, key, value = (derived.get((SIGNATURE_GROUP, start << 8 | part)) for part in _PARTS)
    signature = value.value if value is not None else None
    return Signature(_text(algorithm), _text(key), signature if isinstance(signature, bytes) else b"")


def signature_state(derived: Dataset, keys: Mapping[str, PublicKey], pixel_digest: str | None) -> State:
    """Whether one of `keys` signed this object, as it is.

    Args:
        derived: The object.
        keys: Key id -> key; those that are trusted.
        pixel_digest: Hex SHA-256 of the Pixel Data that are there; None: they cannot be told.
    """
    found = signature_of(derived)
    if found is None:
        return "not signed"
    if found.algorithm != ALGORITHM or len(found.value) != 64:
        return "bad signature"
    if found.key not in keys:
        return "unknown key"
    message = _message(derived, found.key, pixel_digest or "")
    return "signed" if keys[found.key].verifies(found.value, message) else "bad signature"


def _message(derived: Dataset, key: str, pixel_digest: str) -> bytes:
    """What is signed: identity, header and pixels, and the key, so that it cannot be put down to another."""
    lines = [
        CREATOR, f"key {key}", f"instance {derived.get('SOPInstanceUID')}", f"object {object_digest(derived)}",
        f"pixels {pixel_digest}",
    ]  # fmt: skip
    return "\n".join(lines).encode()


def _start(derived: Dataset) -> int | None:
    """Element of the private creator, (gggg,0010) where we wrote it; None without one (PS3.5 section 7.8.1)."""
    for tag in sorted(derived.keys()):
        if tag.group == SIGNATURE_GROUP and 0x10 <= tag.element <= 0xFF and _text(derived[tag]) == CREATOR:
            return int(tag.element)
    return None


def _tags(derived: Dataset) -> list[int]:
    """Of the block: its creator and its three attributes, where they are there."""
    start = _start(derived)
    if start is None:
        return []
    tags = [SIGNATURE_GROUP << 16 | element for element in (start, *(start << 8 | part for part in _PARTS))]
    return [tag for tag in tags if tag in derived]


def _text(element: DataElement | None) -> str:
    """Of LO, which is bytes where implicit VR forgot it."""
    value = element.value if element is not None else None
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    return text.strip(" \0")
