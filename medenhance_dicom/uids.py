"""Our unique identifiers (PS3.5 section 9, annex B.2).

What we make has UIDs that are a function of what it is made of (`identity`), so that a repeat is harmless.
"""

from __future__ import annotations

import hashlib
import re

IMPLEMENTATION_CLASS_UID = "2.25.145803462397801546229037610215740369121"
"""Names this implementation in file meta information and in associations (PS3.7 D.3.3.2)."""

IMPLEMENTATION_VERSION_NAME = "MEDENHANCE_010"

INSTANCE_CREATOR_UID = "2.25.145803462397801546229037610215740369122"
"""Instance Creator UID (0008,0014) of everything we write; the loop guard knows our objects by it."""


_FORM = re.compile(r"[0-9]+(\.[0-9]+)*")


def is_uid(text: str) -> bool:
    """Whether a text can be referred to as a UID, and is safe as the name of a file or folder.

    At most 64 digits and dots, no component empty. That is looser than PS3.5 section 9.1, which old devices break with
    leading zeros and roots that nobody registered: a source's UIDs are copied as they are, since another one would be
    another study.
    """
    return len(text) <= 64 and _FORM.fullmatch(text) is not None


def derived_uid(*parts: str | bytes) -> str:
    """A UID that is a function of its parts.

    Args:
        parts: Texts or bytes. Order and boundaries matter: ("ab", "c") and ("a", "bc") give different UIDs.

    Returns:
        `2.25.` and the first 128 bits of SHA-256 over the length-prefixed parts, in decimal: at most 44 characters.

    Example:
        >>> derived_uid("a", "b") == derived_uid("a", "b"), derived_uid("a", "b") == derived_uid("ab")
        (True, False)
    """
    return f"2.25.{int(digest_of(*parts)[:32], 16)}"


def digest_of(*parts: str | bytes) -> str:
    """Hex SHA-256 over the length-prefixed parts."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "big"))
        sha.update(data)
    return sha.hexdigest()


def device_uid(weights_digest: str) -> str:
    """Device UID (0018,1002) of one installed algorithm: another training is another device (PS3.3 C.12.1.1.5)."""
    return derived_uid("device", weights_digest)
